"""However the same usage is cut up, it comes to the same standard tokens and the same money, to the micro.

Upwards imports are on purpose: the arithmetic is proved with the functions that bill. A seed that fails is named;
`SLICING_SPLITS` says how many are tried.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import Random
from uuid import UUID

from marketplace.billing.lines import (
    NOTHING,
    Line,
    Share,
    Terms,
    corrections,
    delivery_shares,
    spot_lines,
    total_by_offering,
    usage_line,
)
from pricing.rating import price_ceil, price_of, standard_numerator
from pricing.units import NUMERATOR_PER_LOT, Bucket
from tests.pricing.slices import (
    HOUR,
    OFFERINGS,
    RATES,
    Slice,
    Usage,
    cut,
    deal,
    random_usage,
    seeds,
    slice_usage,
    with_repeats,
)

RATE_ID, GRADE_ID = UUID(int=100), UUID(int=101)
RollUps = Counter[tuple[UUID, Bucket, int]]


def terms_of(usage: Usage) -> Terms:
    return Terms(RATE_ID, GRADE_ID, usage.rate, HOUR, HOUR + timedelta(hours=1))


def uncut_numerators(usage: Usage) -> dict[UUID, int]:
    """The truth, straight from the tokens."""
    tokens: dict[UUID, dict[Bucket, int]] = defaultdict(dict)
    for (offering, bucket), count in usage.native.items():
        tokens[offering][bucket] = count
    return {
        offering: standard_numerator(by_bucket, usage.standard_ppm) for offering, by_bucket in tokens.items()
    }


def roll_up(batches: Sequence[Sequence[Slice]], seen: set[int]) -> RollUps:
    """What one worker adds: native sums by offering, bucket and delivery period, of events nobody has counted."""
    sums: RollUps = Counter()
    for batch in batches:
        for event in batch:
            if event.id in seen:
                continue
            seen.add(event.id)
            for bucket, tokens in event.tokens.items():
                sums[event.offering_id, bucket, event.period] += tokens
    return sums


def ingest(random: Random, events: Sequence[Slice]) -> RollUps:
    """Batches of any size in any order, some events twice, over any number of workers that merge in any order."""
    batches = deal(random, with_repeats(random, events), 8)
    seen: set[int] = set()
    partial = [roll_up(claimed, seen) for claimed in deal(random, batches, 4)]
    random.shuffle(partial)
    total: RollUps = Counter()
    for sums in partial:
        total.update(sums)
    return total


def numerators_of(usage: Usage, rollups: RollUps) -> dict[UUID, int]:
    """By offering, as billing reads them: each row's sum times one weight, rows added up."""
    sums: dict[UUID, int] = defaultdict(int)
    for (offering, bucket, _), tokens in rollups.items():
        sums[offering] += tokens * usage.standard_ppm[bucket]
    return dict(sums)


def settled(lines: Sequence[Line]) -> tuple[int, int, dict[UUID, Share]]:
    """Volume, money and who earned it, over all lines of a period."""
    shares = {offering: share for offering, share in total_by_offering(lines).items() if share}
    return sum(line.numerator for line in lines), sum(line.amount_micros for line in lines), shares


def test_any_split_has_the_same_standard_tokens_and_the_same_charge() -> None:
    for seed in seeds():
        random = Random(seed)
        usage = random_usage(random)
        whole = usage_line("usage", terms_of(usage), uncut_numerators(usage), usage.fee_ppm)
        events = slice_usage(random, usage)
        line = usage_line(
            "usage", terms_of(usage), numerators_of(usage, ingest(random, events)), usage.fee_ppm
        )
        assert line == whole, f"seed {seed}"
        by_event = [standard_numerator(event.tokens, usage.standard_ppm) for event in events]
        assert sum(by_event) == whole.numerator, f"seed {seed}"
        # What was captured, event by event, always covers the charge.
        assert sum(price_ceil(numerator, usage.rate) for numerator in by_event) >= whole.amount_micros, (
            f"seed {seed}"
        )
        assert sum(share.gross_micros for share in line.shares.values()) == line.amount_micros, f"seed {seed}"


def test_any_settlement_runs_end_in_the_same_money_also_with_voids() -> None:
    """Late events come in later runs, and events that should not have been are voided in later runs."""
    for seed in seeds():
        random = Random(seed)
        usage = random_usage(random)
        strangers = slice_usage(random, random_usage(random), first_id=10**6)
        voided = {event.id: random.randint(1, 4) for event in strangers}
        arrives = {event.id: random.randrange(voided[event.id]) for event in strangers}
        events = slice_usage(random, usage)
        arrives |= {event.id: random.randrange(4) for event in events}
        recorded: list[Line] = []
        for run in range(5):
            present = [
                event
                for event in (*events, *strangers)
                if arrives[event.id] <= run and voided.get(event.id, 5) > run
            ]
            numerators = numerators_of(usage, ingest(random, present)) if present else {}
            desired = [usage_line("usage", terms_of(usage), numerators, usage.fee_ppm)] if numerators else []
            recorded += corrections(desired, recorded) if run else desired
        whole = usage_line("usage", terms_of(usage), uncut_numerators(usage), usage.fee_ppm)
        assert settled(recorded) == settled([whole]), f"seed {seed}"


def test_hours_of_an_hourly_bill_add_up_to_the_volume_and_round_once_each() -> None:
    """On demand, an hour is a line. Which hour a token is of is a fact, and moves no more than its line's rounding."""
    for seed in seeds():
        random = Random(seed)
        usage = random_usage(random)
        whole = usage_line("usage", terms_of(usage), uncut_numerators(usage), usage.fee_ppm)
        lines = [
            usage_line("usage", terms_of(usage), numerators_of(usage, ingest(random, hour)), usage.fee_ppm)
            for hour in deal(random, slice_usage(random, usage), 24)
        ]
        assert sum(line.numerator for line in lines) == whole.numerator, f"seed {seed}"
        moved = sum(line.amount_micros for line in lines) - whole.amount_micros
        assert 2 * abs(moved) <= len(lines) + 1, f"seed {seed}"


def test_any_split_of_an_award_costs_the_same() -> None:
    for seed in seeds():
        random = Random(seed)
        usage = random_usage(random)
        truth = uncut_numerators(usage)
        lots = random.randint(0, 2 * sum(truth.values()) // NUMERATOR_PER_LOT + 3)
        failed = random.randint(0, lots * NUMERATOR_PER_LOT)
        take_ppm = random.choice((0, 500_000, 333_333, 1_000_000))
        allocated = {offering: random.randint(1, 9) for offering in OFFERINGS}

        def charge(
            numerators: Mapping[UUID, int],
            usage: Usage = usage,
            lots: int = lots,
            failed: int = failed,
            take_ppm: int = take_ppm,
            allocated: Mapping[UUID, int] = allocated,
        ) -> list[Line]:
            return spot_lines(
                terms_of(usage),
                numerators,
                entitled_lots=lots,
                failed=failed,
                minimum_take_ppm=take_ppm,
                deliverable=allocated,
                fee_ppm=usage.fee_ppm,
            )

        arriving = deal(random, slice_usage(random, usage), 4)
        recorded: list[Line] = []
        for run in range(len(arriving)):
            present = [event for heap in arriving[: run + 1] for event in heap]
            desired = charge(numerators_of(usage, ingest(random, present)))
            recorded += corrections(desired, recorded) if run else desired
        assert settled(recorded) == settled(charge(truth)), f"seed {seed}"


def test_any_split_of_a_prepaid_month_into_hours_earns_the_same() -> None:
    for seed in seeds():
        random = Random(seed)
        fee_ppm = random.choice((0, 50_000, 333_333))
        rates = {offering: random.choice(RATES) for offering in OFFERINGS}
        month = {
            offering: random.choice((random.randint(1, 30) * 250_000, random.randint(0, 10**13)))
            for offering in OFFERINGS
        }
        due = sum(price_of(month[offering], rates[offering]) for offering in OFFERINGS)
        fee_left = random.choice((due, due + 3, due, due * 2 // 3))
        hours: list[dict[UUID, int]] = [{} for _ in range(24)]
        for offering, numerator in month.items():
            for part in cut(random, numerator):
                hour = random.choice(hours)
                hour[offering] = hour.get(offering, 0) + part

        earned: dict[UUID, Share] = dict.fromkeys(OFFERINGS, NOTHING)
        for delta in hours:
            paid = sum(share.gross_micros for share in earned.values())
            shares = delivery_shares(
                delta,
                before=earned,
                rates=rates,
                contract_rate=1,
                left_micros=fee_left - paid,
                fee_ppm=fee_ppm,
            )
            for offering, share in shares.items():
                earned[offering] += share
        at_once = delivery_shares(
            month, before={}, rates=rates, contract_rate=1, left_micros=fee_left, fee_ppm=fee_ppm
        )
        if fee_left >= due:
            assert {offering: share for offering, share in earned.items() if share} == at_once, f"seed {seed}"
        # A fee that is short is shared as it goes, and paid out to the last micro all the same.
        assert sum(share.gross_micros for share in earned.values()) == min(due, fee_left), f"seed {seed}"


def test_rounding_each_event_would_have_been_seen() -> None:
    """The usages are such that the common mistake shows: a price for each event, added up."""
    wrong = 0
    for seed in range(200):
        random = Random(seed)
        usage = random_usage(random)
        by_event = [
            price_of(standard_numerator(event.tokens, usage.standard_ppm), usage.rate)
            for event in slice_usage(random, usage)
        ]
        wrong += sum(by_event) != price_of(sum(uncut_numerators(usage).values()), usage.rate)
    assert wrong > 60


def test_a_million_tokens_of_half_a_micro_each_cost_half_a_million_micros() -> None:
    ppm, rate = {Bucket.OUTPUT: 250_000}, 2_000_000
    token = standard_numerator({Bucket.OUTPUT: 1}, ppm)
    assert (
        price_of(token, rate) == 0
    )  # An exact half goes to the even neighbour: for nothing, a million times.
    usage = Usage(ppm, rate, 0, [])
    events = [Slice(number, OFFERINGS[0], number % 12, {Bucket.OUTPUT: 1}) for number in range(1_000)]
    rollups = ingest(Random(0), events)
    thousand = sum(numerators_of(usage, rollups).values())
    assert price_of(thousand, rate) == 500
    assert price_of(thousand * 1_000, rate) == 500_000
