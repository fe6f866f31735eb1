"""What must be true of an event before it is counted; what is not is quarantined with the field named.

Pure but for `load_facts`: the clock and what the market knows are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import RFC_4122, UUID

from django.db import connection

from marketplace.ids import uuid7_time_ms
from metering.models import MeterKind
from metering.usage import UsageEvent
from pricing.models import GradeBucket, Rate
from pricing.units import Bucket

# An id's time may lie this far back (what settlement still looks at) and this far ahead (clock skew). Partitions for
# the whole of it are there (`metering_make_partitions`).
RETENTION: Final = timedelta(days=62)
SKEW: Final = timedelta(minutes=10)
# DELIVERY_PERIOD_S divides an hour; what it was when the event was made is not known here.
_LONGEST_PERIOD: Final = timedelta(hours=1)
# A thousand million standard tokens in one request: beyond any context. Bounds what one liar can do to a sum.
MAX_EVENT_NUMERATOR: Final = 10**15
_MAX_INT4: Final = 2**31 - 1
_MILLISECOND: Final = timedelta(milliseconds=1)


class Problem(NamedTuple):
    field: str
    reason: str


class Point(NamedTuple):
    """What a meter point says about one contract and offering."""

    host_id: UUID
    grade_id: UUID
    valid_from: datetime
    valid_until: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the market knows of the contracts, grades and rates that some events name."""

    points: Mapping[tuple[UUID, UUID], Point]
    standard_ppm: Mapping[UUID, Mapping[Bucket, int]]
    rates: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Window:
    """The moments that an event may be of, given the time of its ingestion."""

    first: datetime
    last: datetime
    first_ms: int
    last_ms: int

    @classmethod
    def at(cls, now: datetime) -> Window:
        first, last = now - RETENTION, now + SKEW
        return cls(first, last, int(first.timestamp() * 1000), int(last.timestamp() * 1000))


def load_facts(events: Iterable[UsageEvent]) -> Facts:
    """Three queries, however many events."""
    pairs: set[tuple[UUID, UUID]] = set()
    grade_ids: set[UUID] = set()
    rate_ids: set[UUID] = set()
    for event in events:
        pairs.add((event.contract_id, event.offering_id))
        grade_ids.add(event.grade_id)
        rate_ids.add(event.rate_id)
    if not pairs:
        return Facts({}, {}, frozenset())
    contracts, offerings = zip(*pairs, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT contract_id, offering_id, host_id, grade_id, valid_from, valid_until
                 FROM metering_meterpoint JOIN unnest(%s::uuid[], %s::uuid[]) AS asked (contract_id, offering_id)
                USING (contract_id, offering_id)""",
            [list(contracts), list(offerings)],
        )
        points = {(contract, offering): Point(*row) for contract, offering, *row in cursor.fetchall()}
    standard_ppm: dict[UUID, dict[Bucket, int]] = {}
    for grade_id, bucket, ppm in GradeBucket.objects.filter(grade_id__in=grade_ids).values_list(
        "grade_id", "bucket", "standard_ppm"
    ):
        standard_ppm.setdefault(grade_id, {})[Bucket(bucket)] = ppm
    rates = frozenset(Rate.objects.filter(pk__in=rate_ids).values_list("pk", flat=True))
    return Facts(points, standard_ppm, rates)


def find_problem(
    event: UsageEvent, *, kind: str, host_id: UUID | None, facts: Facts, window: Window
) -> Problem | None:
    """The first thing wrong with the event but for its buckets (`numerator_of`), or None."""
    event_id = event.id
    if event_id.version != 7 or event_id.variant != RFC_4122:
        return Problem("id", "is not a UUIDv7")
    made_ms = uuid7_time_ms(event_id)
    if made_ms > window.last_ms:
        return Problem("id", "was made in the future")
    if made_ms < window.first_ms:
        return Problem("id", "is older than retention")
    point = facts.points.get((event.contract_id, event.offering_id))
    if point is None or (kind == MeterKind.AGENT and point.host_id != host_id):
        # One answer for unknown and foreign: a host learns nothing of contracts that are not his.
        return Problem("contract_id", "is not supplied by this offering of this meter's host")
    if event.grade_id != point.grade_id:
        return Problem("grade_id", "is not the grade version of the contract")
    if event.rate_id not in facts.rates:
        return Problem("rate_id", "is not a rate of this market")
    return _find_time_problem(event, point, window) or _find_size_problem(event)


def _find_time_problem(event: UsageEvent, point: Point, window: Window) -> Problem | None:
    at = event.occurred_at
    if not window.first <= at <= window.last:
        return Problem("occurred_at", "lies before retention or in the future")
    if at < point.valid_from - SKEW or (point.valid_until is not None and at >= point.valid_until + SKEW):
        return Problem("occurred_at", "lies outside the time in which this offering supplies the contract")
    start = event.period_start
    if start.microsecond or not start - SKEW <= at < start + _LONGEST_PERIOD + SKEW:
        return Problem("period_start", "is not the start of the delivery period of occurred_at")
    return None


def _find_size_problem(event: UsageEvent) -> Problem | None:
    if event.duration_ms > _MAX_INT4:
        return Problem("duration_ms", "is longer than any request")
    if event.first_byte_ms is not None and event.first_byte_ms > _MAX_INT4:
        return Problem("first_byte_ms", "is longer than any request")
    return None


def numerator_of(event: UsageEvent, standard_ppm: Mapping[Bucket, int]) -> int | Problem:
    """The event in millionths of a standard token, exact (as `pricing.rating.standard_numerator` has it), or what is
    wrong with its buckets.
    """
    numerator = 0
    for bucket, tokens in event.buckets.items():
        if tokens is None:
            continue
        ppm = standard_ppm.get(bucket)
        if ppm is None:
            # Also for a count of zero: a sum needs a weight to be made with.
            if tokens:
                return Problem(f"buckets.{bucket.value}", "has no weight in this grade")
            continue
        numerator += tokens * ppm
    if numerator > MAX_EVENT_NUMERATOR:
        return Problem("buckets", "are more than any request can be")
    return numerator
