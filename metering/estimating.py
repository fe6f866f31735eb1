"""Validation, estimation, editing of meter data (VEE): what looks wrong is noted, what was estimated is replaced.

Layers: raw (inbox bodies), validated (stored events), estimated (those flagged so), edited (amendments). A finding is a
fact to look at and moves no money. An estimate is replaced by the other meter's actual count as soon as there is one,
and never by more than itself: what a hold captured is never exceeded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction

from marketplace.errors import DomainError
from metering.correcting import amend_event
from metering.models import MeterFinding, MeterSource, UsageCorrection, UsageEvent, UsageRollup
from metering.packing import COUNT_COLUMNS, ESTIMATED_BITS, FLAG_BITS
from metering.selectors import sequence_gaps
from metering.usage import Flag
from metering.witnesses import VEE, Cell, Register, Seen, agent_sources, within
from pricing.rating import cap_counts, standard_numerator
from pricing.selectors import standard_ppm_of
from pricing.units import PPM, Bucket

logger = logging.getLogger(__name__)

Kind = MeterFinding.Kind
# Above it a clock is called wrong: a batch on its way takes less, and signatures allow 300 s.
CLOCK_TOLERANCE: Final = timedelta(seconds=10)
# Over the measured maximum; beyond it a count is impossible rather than good luck.
IMPOSSIBLE_ABOVE_PPM: Final = 1_050_000
# An engine also serves its owner: that far above what was metered is only worth a note.
REGISTER_MORE_PPM: Final = 50_000
_CLOCK_CELLS: Final = 8
_CLOCK_EVENTS: Final = 1_000
_MS: Final = timedelta(milliseconds=1)


# Validation ----------------------------------------------------------------------------------------------------


@transaction.atomic
def check_meters(
    *,
    host_id: UUID,
    gateway: Seen,
    agent: Seen,
    register: Register,
    engine_saw_less: Sequence[str],
    clock_skew_ms: int | None,
    settlement_start: datetime,
    settlement_end: datetime,
    now: datetime,
) -> list[MeterFinding]:
    """Every check of a host and settlement period, each noted once; what is no longer so is taken away."""
    sources = agent_sources(host_id)
    found: dict[Kind, dict[str, Any]] = {}
    if gateway.events and not agent.events:
        found[Kind.AGENT_MISSING] = {
            "estimated_from": "gateway",
            "events": gateway.events,
            "numerator": str(gateway.numerator),
        }
    if skew := _clock_skew(agent.cells, sources, clock_skew_ms):
        found[Kind.CLOCK_SKEW] = skew
    gaps = [gap for source in sources for gap in sequence_gaps(source)]
    if gaps and (gateway.events or agent.events):
        found[Kind.SEQUENCE_GAP] = {"missing": [list(gap) for gap in gaps[:100]], "gaps": len(gaps)}
    seconds = (settlement_end - settlement_start) // timedelta(seconds=1)
    limits = [source.dependable_numerator_per_s for source in sources if source.dependable_numerator_per_s]
    if limits and (impossible := _impossible_rate(gateway, agent, max(limits), seconds)):
        found[Kind.IMPOSSIBLE_RATE] = impossible
    if engine_saw_less:
        found[Kind.REGISTER_LESS] = _against_register(gateway, agent, register, engine_saw_less)
    elif more := _above(register, gateway, agent):
        found[Kind.REGISTER_MORE] = _against_register(gateway, agent, register, more)
    known = MeterFinding.objects.filter(host_id=host_id, settlement_start=settlement_start)
    known.exclude(kind__in=list(found)).delete()
    return [
        MeterFinding.objects.update_or_create(
            host_id=host_id,
            settlement_start=settlement_start,
            kind=kind,
            defaults={"evidence": evidence},
            create_defaults={"evidence": evidence, "found_at": now},
        )[0]
        for kind, evidence in found.items()
    ]


def _impossible_rate(
    gateway: Seen, agent: Seen, dependable_numerator_per_s: int, seconds: int
) -> dict[str, Any] | None:
    possible = dependable_numerator_per_s * seconds
    most = max(gateway.numerator, agent.numerator)
    if most * PPM <= possible * IMPOSSIBLE_ABOVE_PPM:
        return None
    return {
        "gateway_numerator": str(gateway.numerator),
        "agent_numerator": str(agent.numerator),
        "dependable_numerator_per_s": dependable_numerator_per_s,
        "seconds": seconds,
    }


def _above(register: Register, gateway: Seen, agent: Seen) -> list[str]:
    found = []
    for name in ("input_tokens", "output_tokens"):
        counted = getattr(register.counted, name)
        metered = max(getattr(gateway, name), getattr(agent, name))
        if counted is not None and counted > metered and not within(counted, metered, REGISTER_MORE_PPM):
            found.append(name)
    return found


def _against_register(gateway: Seen, agent: Seen, register: Register, names: Sequence[str]) -> dict[str, Any]:
    return {
        "counts": list(names),
        "register": asdict(register.counted),
        "gateway": asdict(gateway.counted),
        "agent": asdict(agent.counted),
    }


# An agent's id is of its own clock: after the market admitted the request, before the market received the batch.
_CLOCK: Final = """
SELECT max(extract(epoch FROM uuid_extract_timestamp(e.id) - b.received_at) * 1000)::bigint,
       max(extract(epoch FROM e.occurred_at - uuid_extract_timestamp(e.id)) * 1000)::bigint,
       max(extract(epoch FROM e.occurred_at - b.received_at) * 1000)::bigint
  FROM (SELECT * FROM metering_usageevent
         WHERE contract_id = %(contract_id)s AND period_start = %(period_start)s AND source_id = ANY (%(agents)s)
         LIMIT %(limit)s) AS e
  JOIN metering_usagebatch b ON b.id = e.batch_id
"""


def _clock_skew(
    cells: Mapping[Cell, int], sources: Sequence[MeterSource], said_ms: int | None
) -> dict[str, Any] | None:
    """How far the agent's clock must be off at least, from a sample of its events, and how far it says itself it is
    (`said_ms`, ahead of the market's; it then corrects its ids). None within the tolerance."""
    ahead = behind = 0
    with connection.cursor() as cursor:
        for cell in sorted(cells, key=lambda cell: cells[cell], reverse=True)[:_CLOCK_CELLS]:
            cursor.execute(
                _CLOCK,
                {
                    "contract_id": cell.contract_id,
                    "period_start": cell.period_start,
                    "agents": [source.pk for source in sources],
                    "limit": _CLOCK_EVENTS,
                },
            )
            id_ahead, id_behind, occurred_ahead = (figure or 0 for figure in cursor.fetchone())
            ahead, behind = max(ahead, id_ahead, occurred_ahead), max(behind, id_behind)
    tolerance = CLOCK_TOLERANCE // _MS
    if max(ahead, behind, abs(said_ms or 0)) <= tolerance:
        return None
    return {
        "said_ms": said_ms,
        "ahead_ms": ahead if ahead > tolerance else 0,
        "behind_ms": behind if behind > tolerance else 0,
        "tolerance_ms": tolerance,
    }


# Estimation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A gateway's event without usage of the engine's, and the agent's event of the same request, which has it."""

    source_id: UUID
    event_id: UUID
    counts: tuple[int | None, ...]
    numerator: int
    actual: tuple[int | None, ...]
    actual_numerator: int


def replace_estimates(
    *, since: datetime, now: datetime, until: datetime | None = None, limit: int = 10_000
) -> int:
    """Replace each estimate of `[since, until)` of which the agent has reported the actual count; returns how many.

    The lower of both settles: the agent's where it is not above the estimate, else the estimate's own, unflagged. The
    next settlement run writes what that changes as an adjustment. One that cannot be replaced keeps no other from
    being so: the error is logged.
    """
    replaced = 0
    for estimate in _replaceable(since, until or now, limit):
        lower = estimate.actual_numerator <= estimate.numerator
        counts = estimate.actual if lower else estimate.counts
        try:
            amend_event(
                source_id=estimate.source_id,
                event_id=estimate.event_id,
                buckets=dict(zip(Bucket, counts, strict=True)),
                reason=(
                    f"Estimated at {estimate.numerator}, the agent counted {estimate.actual_numerator}"
                    f" (millionths of a standard token): the {'count' if lower else 'lower estimate'} stands."
                ),
                actor=VEE,
                now=now,
            )
        except DomainError:
            # Somebody has corrected it meanwhile, or its partition is gone.
            logger.info("estimate not replaced", extra={"event_id": str(estimate.event_id)}, exc_info=True)
            continue
        except Exception:
            # Whatever it is about this host's count, the others' estimates do not wait for it.
            logger.exception("estimate not replaced", extra={"event_id": str(estimate.event_id)})
            continue
        replaced += 1
    return replaced


_COUNTS: Final = ", ".join(f"g.{name}" for name in COUNT_COLUMNS)
_ACTUAL: Final = ", ".join(f"a.{name}" for name in COUNT_COLUMNS)
# An event without any count is no actual count; of a request that was reported twice the higher one is (as in pairing).
_ESTIMATES: Final = f"""
SELECT DISTINCT ON (g.id, g.source_id) g.flags & %(split)s <> 0, g.source_id, g.id, g.numerator, a.numerator,
       {_COUNTS}, {_ACTUAL}
  FROM metering_usageevent g
  JOIN metering_metersource s ON s.id = g.source_id AND s.kind = 'gateway'
  JOIN metering_usageevent a
    ON a.contract_id = g.contract_id AND a.period_start = g.period_start AND a.request_id = g.request_id
   AND a.attempt = g.attempt AND a.part = g.part
  JOIN metering_metersource m ON m.id = a.source_id AND m.kind = 'agent'
 WHERE g.contract_id = %(contract_id)s AND g.period_start = %(period_start)s
   AND g.flags & %(estimated)s <> 0 AND a.flags & %(no_actual)s = 0
   AND num_nonnulls({_ACTUAL}) > 0
   AND NOT EXISTS (SELECT FROM metering_usagecorrection c
                    WHERE (c.target_id, c.target_source_id) IN ((g.id, g.source_id), (a.id, a.source_id)))
 ORDER BY g.id, g.source_id, a.numerator DESC, a.id LIMIT %(limit)s
"""  # noqa: S608


def _replaceable(since: datetime, until: datetime, limit: int) -> Iterator[Estimate]:
    """By way of the roll-ups that still hold estimates: there are few, and they say where to look."""
    places = (
        UsageRollup.objects.filter(
            meter="gateway", estimated_events__gt=0, period_start__gte=since, period_start__lt=until
        )
        .order_by("period_start", "contract_id")
        .values_list("contract_id", "period_start")
        .distinct()
    )
    buckets, left = len(COUNT_COLUMNS), limit
    for contract_id, period_start in list(places):
        with connection.cursor() as cursor:
            cursor.execute(
                _ESTIMATES,
                {
                    "contract_id": contract_id,
                    "period_start": period_start,
                    "estimated": ESTIMATED_BITS,
                    "no_actual": ESTIMATED_BITS | FLAG_BITS[Flag.UNPROVABLE],
                    "split": FLAG_BITS[Flag.SPLIT],
                    "limit": left,
                },
            )
            rows = cursor.fetchall()
        left -= len(rows)
        for is_split, source_id, event_id, numerator, actual_numerator, *counts in rows:
            estimate = Estimate(
                source_id,
                event_id,
                tuple(counts[:buckets]),
                numerator,
                tuple(counts[buckets:]),
                actual_numerator,
            )
            if is_split:
                # Before the first, by which it is found.
                yield from _second_part(estimate)
            yield estimate
        if left <= 0:
            return


# A part's id is made at its attempt's admission.
_SAME_ADMISSION: Final = timedelta(seconds=2)


def _second_part(first: Estimate) -> Iterator[Estimate]:
    """The estimate of an attempt's second part, whatever contract it is of: the agent counted both as one.

    Its actual count is what the agent counted beyond what the first part's estimate covers, as the two were split.
    """
    event = UsageEvent.objects.get(pk=(first.event_id, first.source_id))
    second = UsageEvent.objects.filter(
        source_id=first.source_id,
        id__gte=_least_id(event.occurred_at - _SAME_ADMISSION),
        id__lt=_least_id(event.occurred_at + _SAME_ADMISSION),
        request_id=event.request_id,
        attempt=event.attempt,
        offering_id=event.offering_id,
        part=1,
    ).first()
    if second is None or UsageCorrection.objects.filter(
        target_id=second.id, target_source_id=second.source_id
    ):
        return
    standard_ppm = standard_ppm_of(event.grade_id)
    actual = {bucket: count or 0 for bucket, count in zip(Bucket, first.actual, strict=True)}
    covered = cap_counts(actual, standard_ppm, first.numerator)
    rest = {bucket: count - covered[bucket] for bucket, count in actual.items()}
    yield Estimate(
        second.source_id,
        second.id,
        tuple(getattr(second, name) for name in COUNT_COLUMNS),
        second.numerator,
        tuple(
            rest[bucket] if first.actual[place] is not None else None for place, bucket in enumerate(Bucket)
        ),
        first.actual_numerator - standard_numerator(covered, standard_ppm),
    )


def _least_id(at: datetime) -> UUID:
    """No UUIDv7 of this moment or a later one is below it."""
    return UUID(int=(at - _EPOCH) // _MS << 80)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
