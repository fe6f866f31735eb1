"""What must be true of an event before it is counted; what is not is quarantined with the field named.

Pure but for `load_facts`: the clock and what the market knows are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import RFC_4122, UUID

import msgspec
from django.conf import settings
from django.db import connection

from marketplace.ids import uuid7_time_ms
from metering.models import MeterKind
from metering.packing import EPOCH_US, microseconds
from metering.usage import Moment, UsageEvent
from pricing.models import GradeBucket, Rate
from pricing.units import Bucket

# An id's time may lie this far back (as long as events are kept) and this far ahead (clock skew). Partitions for the
# whole of it are there (`metering_make_partitions`).
RETENTION: Final = timedelta(days=400)
SKEW: Final = timedelta(minutes=10)
# A meter makes an id when the request is done. One that is much older than what it tells would be dropped with its
# partition while its sums are still answered for.
ID_BEFORE_US: Final = 24 * 3_600_000_000
# DELIVERY_PERIOD_S divides an hour; what it was when the event was made is not known here.
_LONGEST_PERIOD: Final = timedelta(hours=1)
# A thousand million standard tokens in one request: beyond any context. Bounds what one liar can do to a sum.
MAX_EVENT_NUMERATOR: Final = 10**15
MAX_DURATION_MS: Final = 2**31 - 1  # A column of four bytes.
_MICROSECOND: Final = timedelta(microseconds=1)


class Problem(NamedTuple):
    field: str
    reason: str


class Point(NamedTuple):
    """What a meter point says about one contract and offering."""

    host_id: UUID
    grade_id: UUID
    valid_from: datetime
    valid_until: datetime | None


class Terms(NamedTuple):
    """What the many events of one contract, period and key have in common."""

    contract_id: UUID
    offering_id: UUID
    grade_id: UUID
    rate_id: UUID
    period_start: Moment
    api_key_id: UUID | None


class Supply(NamedTuple):
    """What an event of some terms must keep to (`find_supply`): the bounds of `occurred_at` in microseconds since
    2000, and a weight per bucket, beyond any count where the grade has none.
    """

    first_us: int
    until_us: int
    standard_ppm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the market knows of the contracts, grades and rates that some events name."""

    points: Mapping[tuple[UUID, UUID], Point]
    standard_ppm: Mapping[UUID, Mapping[Bucket, int]]
    # By the id of a rate, the grade version that it prices.
    rates: Mapping[UUID, UUID]
    # How long delivery periods are; agents copy theirs from the market's delivery key.
    period_s: int = 300


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
        first_ms, last_ms = int(first.timestamp() * 1000), int(last.timestamp() * 1000)
        return cls(first, last, first_ms, last_ms)


def read_terms(texts: tuple[str, str, str, str, str, str | None]) -> Terms | None:
    """The texts in the order of `Terms`, read as strictly as `decode_event` reads them; None when it would refuse."""
    try:
        return msgspec.convert(texts, Terms)
    except msgspec.ValidationError:
        return None


def load_facts(named: Iterable[Terms]) -> Facts:
    """Three queries, however many terms."""
    pairs: set[tuple[UUID, UUID]] = set()
    grade_ids: set[UUID] = set()
    rate_ids: set[UUID] = set()
    for terms in named:
        pairs.add((terms.contract_id, terms.offering_id))
        grade_ids.add(terms.grade_id)
        rate_ids.add(terms.rate_id)
    if not pairs:
        return Facts({}, {}, {}, settings.DELIVERY_PERIOD_S)
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
    rates = dict(Rate.objects.filter(pk__in=rate_ids).values_list("pk", "grade_id"))
    return Facts(points, standard_ppm, rates, settings.DELIVERY_PERIOD_S)


def find_supply(
    terms: Terms, *, kind: str, host_id: UUID | None, facts: Facts, window: Window
) -> Supply | None:
    """The rules of `find_problem` and `numerator_of` as far as terms alone decide; None where these break one.

    So an event that keeps to its supply, to the window's ids and to `MAX_EVENT_NUMERATOR` has no problem.
    """
    point = facts.points.get((terms.contract_id, terms.offering_id))
    if point is None or (kind == MeterKind.AGENT and point.host_id != host_id):
        return None
    start = terms.period_start
    if (
        terms.grade_id != point.grade_id
        or facts.rates.get(terms.rate_id) != point.grade_id
        or (kind == MeterKind.AGENT and _find_foreign(terms.api_key_id, start, facts) is not None)
        or start.microsecond
        or not window.first - timedelta(days=1) <= start <= window.last + timedelta(days=1)
    ):
        return None
    # Half-open; the window's last moment is part of it.
    first = max(window.first, point.valid_from - SKEW, start - SKEW)
    until = min(window.last + _MICROSECOND, start + _LONGEST_PERIOD + SKEW)
    if point.valid_until is not None:
        until = min(until, point.valid_until + SKEW)
    ppm = facts.standard_ppm.get(terms.grade_id, {})
    weights = tuple(ppm.get(bucket, MAX_EVENT_NUMERATOR + 1) for bucket in Bucket)
    return Supply(microseconds(first), microseconds(until), weights)


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
    if facts.rates.get(event.rate_id) != point.grade_id:
        return Problem("rate_id", "is not a rate of the contract's grade version")
    found = _find_time_problem(event, point, window) or _find_size_problem(event)
    if found is None and made_ms * 1000 < microseconds(event.occurred_at) + EPOCH_US - ID_BEFORE_US:
        return Problem("id", "was made a day before what it tells")
    if found is None and kind == MeterKind.AGENT:
        found = _find_foreign(event.api_key_id, event.period_start, facts)
    if found is None and event.unproved is not None:
        return Problem("buckets", f"could not be proved: {event.unproved}")
    return found


def _find_time_problem(event: UsageEvent, point: Point, window: Window) -> Problem | None:
    at = event.occurred_at
    if not window.first <= at <= window.last:
        return Problem("occurred_at", "lies before retention or in the future")
    if at < point.valid_from - SKEW or (point.valid_until is not None and at >= point.valid_until + SKEW):
        return Problem("occurred_at", "lies outside the time in which this offering supplies the contract")
    start = event.period_start
    # A difference cannot overflow, whatever the year.
    if start.microsecond or not -SKEW <= at - start < _LONGEST_PERIOD + SKEW:
        return Problem("period_start", "is not the start of the delivery period of occurred_at")
    return None


def _find_foreign(api_key_id: UUID | None, period_start: datetime, facts: Facts) -> Problem | None:
    """What a host cannot know, or copies from the market's delivery key and nowhere else."""
    if api_key_id is not None:
        return Problem("api_key_id", "is not for a host's meter to say")
    if not is_period_start(period_start, facts):
        return Problem("period_start", "is not the start of a delivery period")
    return None


def is_period_start(at: datetime, facts: Facts) -> bool:
    """Whether delivery periods, as long as they are now, begin at this moment."""
    return at.microsecond == 0 and int(at.timestamp()) % facts.period_s == 0


def _find_size_problem(event: UsageEvent) -> Problem | None:
    if event.duration_ms > MAX_DURATION_MS:
        return Problem("duration_ms", "is longer than any request")
    if event.first_byte_ms is not None and event.first_byte_ms > MAX_DURATION_MS:
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


def weigh(counts: Sequence[int | None], standard_ppm: Sequence[int]) -> int:
    """The numerator of counts in the order of `Bucket`; beyond `MAX_EVENT_NUMERATOR` for one without weight."""
    numerator = 0
    for tokens, ppm in zip(counts, standard_ppm, strict=True):
        if tokens:
            numerator += tokens * ppm
    return numerator
