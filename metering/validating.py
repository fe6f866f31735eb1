"""What must be true of an event before it is counted; what is not is quarantined with the field named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from django.conf import settings

from marketplace.ids import uuid7_time_ms
from metering.models import MeterKind, MeterPoint
from metering.usage import Flag, UsageEvent
from pricing.models import GradeBucket, Rate
from pricing.units import Bucket

# An id's time may lie this far in the future (clock skew) and this far in the past (retention).
ID_AHEAD: Final = timedelta(minutes=10)
RETENTION: Final = timedelta(days=400)
SKEW: Final = timedelta(minutes=5)
# The stored form of an event's flags; bits are never reused.
FLAG_BITS: Final = {
    Flag.CAPPED: 1,
    Flag.ESTIMATED: 2,
    Flag.CUT_BUDGET: 4,
    Flag.CLIENT_GONE: 8,
    Flag.UPSTREAM_FAILED: 16,
    Flag.UNPROVABLE: 32,
    Flag.RECOVERED: 64,
}


class Problem(NamedTuple):
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the market knows of the contracts, grades and rates that some events name."""

    points: Mapping[tuple[UUID, UUID], MeterPoint]
    standard_ppm: Mapping[UUID, Mapping[Bucket, int]]
    rates: frozenset[UUID]


def load_facts(events: Sequence[UsageEvent]) -> Facts:
    """Three queries, however many events."""
    contracts = {event.contract_id for event in events}
    points = {
        (point.contract_id, point.offering_id): point
        for point in MeterPoint.objects.filter(contract_id__in=contracts)
    }
    standard_ppm: dict[UUID, dict[Bucket, int]] = {}
    for row in GradeBucket.objects.filter(grade_id__in={event.grade_id for event in events}):
        standard_ppm.setdefault(row.grade_id, {})[Bucket(row.bucket)] = row.standard_ppm
    rates = Rate.objects.filter(pk__in={event.rate_id for event in events}).values_list("pk", flat=True)
    return Facts(points, standard_ppm, frozenset(rates))


def check_event(
    event: UsageEvent, *, kind: str, host_id: UUID | None, facts: Facts, now: datetime
) -> Problem | None:
    """The first thing wrong with it, or None."""
    if event.id.version != 7:
        return Problem("id", "is not a UUIDv7")
    made_ms = uuid7_time_ms(event.id)
    now_ms = int(now.timestamp() * 1000)
    if made_ms > now_ms + ID_AHEAD // timedelta(milliseconds=1):
        return Problem("id", "was made in the future")
    if made_ms < now_ms - RETENTION // timedelta(milliseconds=1):
        return Problem("id", "is older than retention")
    point = facts.points.get((event.contract_id, event.offering_id))
    if point is None or (kind == MeterKind.AGENT and point.host_id != host_id):
        # One answer for unknown and foreign: a host learns nothing of contracts that are not his.
        return Problem("contract_id", "is not supplied by this offering of this meter's host")
    if event.grade_id != point.grade_id:
        return Problem("grade_id", "is not the grade version of the contract")
    if event.rate_id not in facts.rates:
        return Problem("rate_id", "is not a rate of this market")
    if event.occurred_at < point.valid_from - SKEW or (
        point.valid_until is not None and event.occurred_at > point.valid_until + SKEW
    ):
        return Problem("occurred_at", "lies outside the time in which this offering supplies the contract")
    if (
        not event.period_start
        <= event.occurred_at
        < event.period_start + timedelta(seconds=settings.DELIVERY_PERIOD_S)
    ):
        return Problem("period_start", "is not the start of the delivery period of occurred_at")
    return _check_buckets(event, facts.standard_ppm.get(event.grade_id, {}))


def _check_buckets(event: UsageEvent, standard_ppm: Mapping[Bucket, int]) -> Problem | None:
    for bucket, tokens in event.buckets.items():
        if tokens and bucket not in standard_ppm:
            return Problem(f"buckets.{bucket.value}", "has no price in this grade")
    if (
        sum(tokens * standard_ppm.get(bucket, 0) for bucket, tokens in event.buckets.items() if tokens)
        >= 2**62
    ):
        return Problem("buckets", "is more than can be counted")
    return None
