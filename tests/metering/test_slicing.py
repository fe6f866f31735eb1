"""The same usage through real ingestion and correction, cut up at random each time: equal roll-ups, equal charges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

import pytest
from django.db import connections
from django.db.models import Sum

from marketplace.billing.lines import Line, Terms, usage_line
from marketplace.billing.selectors import metered_usage
from marketplace.ids import uuid7
from metering.ingesting import ingest_batches
from metering.models import UsageBatch, UsageEvent, UsageRollup
from metering.services import amend_event, backfill_event, void_event
from metering.usage import MAX_EVENTS_PER_BATCH
from metering.usage import UsageEvent as WireEvent
from pricing.rating import standard_numerator
from pricing.services import publish_rate
from pricing.units import Bucket
from tests.cast import WEIGHTS
from tests.conftest import TestDatabase
from tests.metering.meters import Meters, make_meters
from tests.pricing.slices import (
    DELIVERY_PERIOD,
    OFFERINGS,
    Draw,
    Slice,
    Usage,
    deal,
    slice_usage,
    with_repeats,
)

SPLITS = 20
STANDARD_PPM = {bucket: weight // 4 for bucket, weight in WEIGHTS.items()}
# Every output token is a standard token: exactly half a micro, which rounds to nothing when it is rounded alone.
RATE = 500_000
FEE_PPM = 50_000
WHY = "The meter was wrong."
# Odd counts, and so few in one draw that each token can be an event of its own.
DRAWS = (
    Draw(OFFERINGS[0], {Bucket.OUTPUT: 39}),
    Draw(OFFERINGS[0], {Bucket.UNCACHED_INPUT: 1_001, Bucket.CACHE_READ: 7, Bucket.OUTPUT: 13}),
    Draw(OFFERINGS[1], {Bucket.REASONING: 31, Bucket.UNCACHED_INPUT: 2}),
    Draw(OFFERINGS[2], {Bucket.CACHE_WRITE: 3, Bucket.OUTPUT: 1_234_567, Bucket.CACHE_READ: 99_999}),
)


def supplied_by_three(meters: Meters) -> dict[UUID, Meters]:
    """A new contract that three offerings of the host supply."""
    contract_id = uuid7()
    points = {name: replace(meters, contract_id=contract_id, offering_id=uuid7()) for name in OFFERINGS}
    for point in points.values():
        point.add_point()
    return points


def wire_event(points: dict[UUID, Meters], part: Slice, now: datetime) -> WireEvent:
    start = now + part.period * DELIVERY_PERIOD
    return points[part.offering_id].event(
        buckets=dict(part.tokens), period_start=start, occurred_at=start + timedelta(seconds=part.id % 250)
    )


def send(random: Random, meters: Meters, events: dict[int, WireEvent], slices: Sequence[Slice]) -> int:
    """Batches in random order, some events in several, some batches twice; returns how many events were sent."""
    batches = deal(random, with_repeats(random, slices), 7)
    batches += random.sample(batches, random.randint(0, len(batches) // 2))
    for batch in batches:
        assert len(batch) <= MAX_EVENTS_PER_BATCH
        meters.report(events[part.id] for part in batch)
    return sum(map(len, batches))


def drain(now: datetime, *, limit: int, workers: int) -> None:
    """Workers at the same queue, each with a connection of its own."""

    def work(_: int) -> None:
        try:
            while ingest_batches(limit=limit, now=now):
                pass
        finally:
            connections.close_all()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))


def rolled_up(points: dict[UUID, Meters]) -> dict[tuple[UUID, str], tuple[int, int]]:
    """Native tokens and numerator by offering and bucket, over all delivery periods."""
    found: dict[tuple[UUID, str], tuple[int, int]] = {}
    for name, point in points.items():
        rows = (
            UsageRollup.objects.filter(contract_id=point.contract_id, offering_id=point.offering_id)
            .values_list("bucket")
            .annotate(tokens=Sum("native_tokens"), standard=Sum("numerator"))
        )
        found |= {(name, bucket): (int(tokens), int(standard)) for bucket, tokens, standard in rows if tokens}
    return found


def standard_of(usage: Usage) -> dict[tuple[UUID, str], tuple[int, int]]:
    """What `rolled_up` must find, straight from the tokens."""
    return {
        (offering, bucket.value): (tokens, standard_numerator({bucket: tokens}, STANDARD_PPM))
        for (offering, bucket), tokens in usage.native.items()
    }


def charged(points: dict[UUID, Meters], rate_id: UUID, now: datetime) -> Line:
    """The hour's line as a settlement computes it, its shares by the offerings' common names."""
    contract_id = points[OFFERINGS[0]].contract_id
    names = {point.offering_id: name for name, point in points.items()}
    numerators: dict[UUID, int] = defaultdict(int)
    for metered in metered_usage(contract_id, now, now + timedelta(hours=1)):
        for offering, numerator in metered.numerators.items():
            numerators[names[offering]] += numerator
    grade_id = points[OFFERINGS[0]].grade_id
    terms = Terms(rate_id, grade_id, RATE, now, now + timedelta(hours=1))
    return usage_line("usage", terms, numerators, FEE_PPM)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_split_is_stored_once_and_charged_the_same(
    committed_db: TestDatabase, now: datetime, workers: int
) -> None:
    plain = make_meters(now)
    rate = publish_rate(
        grade_id=plain.grade_id, kind="list", micros_per_mtok=RATE, source_id=uuid7(), now=now
    )
    meters = replace(plain, rate_id=rate.id)
    usage = Usage(STANDARD_PPM, RATE, FEE_PPM, DRAWS)
    uncut = [Slice(number, draw.offering_id, 0, draw.tokens) for number, draw in enumerate(DRAWS)]
    contracts: list[dict[UUID, Meters]] = []
    distinct = sent = 0
    # The first contract has the usage in one event for each draw, the others cut up; all wait in one queue.
    for seed in range(SPLITS):
        random = Random(seed)
        points = supplied_by_three(meters)
        slices = slice_usage(random, usage) if seed else uncut
        events = {part.id: wire_event(points, part, now) for part in slices}
        sent += send(random, meters, events, slices)
        distinct += len(events)
        contracts.append(points)
    drain(now + timedelta(hours=2), limit=9, workers=workers)

    finished = UsageBatch.objects.aggregate(accepted=Sum("accepted_events"), again=Sum("duplicate_events"))
    assert finished == {"accepted": distinct, "again": sent - distinct}
    assert sent > distinct > 10 * len(uncut) * SPLITS // 2
    assert UsageEvent.objects.count() == distinct
    truth = standard_of(usage)
    lines = [charged(points, rate.id, now) for points in contracts]
    for seed, points in enumerate(contracts):
        assert rolled_up(points) == truth, f"seed {seed}"
        assert lines[seed] == lines[0], f"seed {seed}"
    assert lines[0].numerator == sum(standard for _, standard in truth.values())
    # 1,237,401.8375 standard tokens at half a micro each, rounded once.
    assert lines[0].amount_micros == 618_701
    assert sum(share.gross_micros for share in lines[0].shares.values()) == lines[0].amount_micros


def amend(random: Random, source_id: UUID, event_id: UUID, part: Slice, now: datetime) -> None:
    """To what the part says, half of the time by way of another mistake."""
    if random.random() < 0.5:
        mistaken = amend_event(
            source_id=source_id,
            event_id=event_id,
            buckets={Bucket.OUTPUT: 1},
            reason=WHY,
            actor="operator",
            now=now,
        )
        assert mistaken.replacement_source_id is not None
        assert mistaken.replacement_id is not None
        source_id, event_id = mistaken.replacement_source_id, mistaken.replacement_id
    amend_event(
        source_id=source_id, event_id=event_id, buckets=part.tokens, reason=WHY, actor="operator", now=now
    )


def backfill(event: WireEvent, part: Slice, now: datetime) -> None:
    backfill_event(
        contract_id=event.contract_id,
        offering_id=event.offering_id,
        rate_id=event.rate_id,
        api_key_id=None,
        period_start=event.period_start,
        occurred_at=event.occurred_at,
        buckets=part.tokens,
        request_id=event.request_id,
        reason=WHY,
        actor="operator",
        now=now,
    )


def test_usage_set_right_by_any_corrections_comes_to_the_same(db: None, now: datetime) -> None:
    """Wrong counts are amended, also twice, strangers voided, and what was never reported is backfilled."""
    plain = make_meters(now)
    rate = publish_rate(
        grade_id=plain.grade_id, kind="list", micros_per_mtok=RATE, source_id=uuid7(), now=now
    )
    meters = replace(plain, rate_id=rate.id)
    source_id = meters.gateway.id
    usage = Usage(STANDARD_PPM, RATE, FEE_PPM, DRAWS)
    later = now + timedelta(hours=2)
    lines: list[Line] = []
    for seed in range(8):
        random = Random(seed)
        points = supplied_by_three(meters)
        slices = slice_usage(random, usage)
        strangers = slice_usage(random, replace(usage, draws=random.sample(DRAWS, 2)), first_id=len(slices))
        parts = random.sample(slices, len(slices))
        missing, wrong = parts[:3], {part.id for part in parts[3:9]}
        told = [
            replace(part, tokens={random.choice(list(WEIGHTS)): random.randint(0, 3_000)})
            if part.id in wrong
            else part
            for part in (*parts[3:], *strangers)
        ]
        events = {part.id: wire_event(points, part, now) for part in (*slices, *strangers)}
        sent = events | {part.id: wire_event(points, part, now) for part in told}
        send(random, meters, sent, told)
        ingest_batches(now=later)
        assert rolled_up(points) != standard_of(usage), f"seed {seed}"

        edits = [("amend", part) for part in slices if part.id in wrong]
        edits += [("void", part) for part in strangers] + [("backfill", part) for part in missing]
        for edit, part in random.sample(edits, len(edits)):
            if edit == "void":
                void_event(
                    source_id=source_id, event_id=sent[part.id].id, reason=WHY, actor="operator", now=later
                )
            elif edit == "amend":
                amend(random, source_id, sent[part.id].id, part, later)
            else:
                backfill(events[part.id], part, later)
        assert rolled_up(points) == standard_of(usage), f"seed {seed}"
        lines.append(charged(points, rate.id, now))
    assert {line.amount_micros for line in lines} == {618_701}
    assert all(line == lines[0] for line in lines)
