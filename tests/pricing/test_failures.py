"""Down time, failed volume and remedies, without a database; the examples of docs/failures.md are run as they stand."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pricing.failures import (
    Benched,
    Outcome,
    attempt_outages,
    down_ms,
    failed_numerator,
    outcomes_of,
    period_ms,
    remedies_within,
    remedy_micros,
    replaced_numerators,
    worked_numerator,
)
from pricing.rating import lots_numerator, price_of, spot_charge_numerator
from pricing.units import NUMERATOR_PER_LOT, PPM

PAGE = Path(__file__).resolve().parents[2] / "docs/failures.md"
LOT = NUMERATOR_PER_LOT
START = datetime(2026, 3, 10, 12, tzinfo=UTC)
END = START + timedelta(minutes=5)
PERIOD_MS = period_ms(START, END)

moments = st.integers(-60_000, PERIOD_MS + 60_000).map(lambda ms: START + timedelta(milliseconds=ms))
intervals = st.tuples(moments, st.one_of(st.none(), moments)).filter(
    lambda pair: pair[1] is None or pair[1] >= pair[0]
)
volumes = st.integers(0, 20 * LOT)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def test_every_example_of_the_page_comes_out_as_written() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 20
    assert result.failed == 0


def test_outages_are_cut_to_the_period_and_counted_once() -> None:
    inside = [(at(-10), at(20)), (at(10), at(30)), (at(10), at(30)), (at(299), None)]
    assert down_ms(inside, start=START, end=END) == 31_000
    assert down_ms([(at(-10), at(0)), (at(300), None)], start=START, end=END) == 0
    assert down_ms([(at(1), at(1))], start=START, end=END) == 0


def test_a_planned_outage_excuses_what_lies_in_it() -> None:
    assert down_ms([(at(0), at(100))], start=START, end=END, excused=[(at(50), at(400))]) == 50_000
    assert down_ms([], start=START, end=END, excused=[(at(50), None)]) == 0


def test_the_next_success_ends_an_outage_and_the_next_failure_begins_another() -> None:
    found = attempt_outages([at(10), at(20), at(60)], [at(5), at(10), at(30), at(90)], end=END)
    assert found == [(at(10), at(30)), (at(60), at(90))]
    assert attempt_outages([at(10)], [], end=END) == [(at(10), END)]
    assert attempt_outages([], [at(10)], end=END) == []


@given(st.lists(intervals, max_size=6), st.lists(intervals, max_size=3))
def test_down_time_is_within_the_period_and_order_does_not_matter(
    outages: list[tuple[datetime, datetime | None]], planned: list[tuple[datetime, datetime | None]]
) -> None:
    counted = down_ms(outages, start=START, end=END, excused=planned)
    assert 0 <= counted <= PERIOD_MS
    assert counted == down_ms(reversed(outages), start=START, end=END, excused=reversed(planned))
    assert counted <= down_ms(outages, start=START, end=END)
    assert down_ms([*outages, (at(3), at(7))], start=START, end=END, excused=planned) >= counted


@given(
    st.dictionaries(st.sampled_from("abc"), volumes, min_size=1),
    st.dictionaries(st.sampled_from("abcd"), volumes),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, PERIOD_MS)),
)
def test_entitled_is_released_delivered_failed_and_unused(
    entitled: dict[str, int], delivered: dict[str, int], down: dict[str, int]
) -> None:
    released = {"a": entitled.get("a", 0) // 3}
    found = outcomes_of(entitled, delivered, down, period_ms=PERIOD_MS, released=released)
    assert found.keys() == entitled.keys()
    for offering, one in found.items():
        assert one.entitled == entitled[offering]
        assert one.released + one.delivered + one.failed + one.unused == one.entitled
        assert min(one.released, one.delivered, one.failed, one.unused) >= 0
        assert one.failed <= (one.entitled - one.released) * down.get(offering, 0) // PERIOD_MS
    owed = sum(one.entitled - one.released for one in found.values())
    assert sum(one.delivered for one in found.values()) == min(owed, sum(delivered.values()))


@given(volumes, volumes, st.integers(0, PERIOD_MS), st.integers(0, PERIOD_MS))
def test_failed_volume_grows_with_down_time_and_shrinks_with_delivery(
    entitled: int, delivered: int, one: int, other: int
) -> None:
    def failed(used: int, down: int) -> int:
        return failed_numerator(
            entitled=entitled, released=0, delivered=min(used, entitled), down_ms=down, period_ms=PERIOD_MS
        )

    assert failed(delivered, min(one, other)) <= failed(delivered, max(one, other))
    assert failed(delivered // 2, one) >= failed(delivered, one)
    assert failed(delivered, 0) == 0
    assert failed(delivered, PERIOD_MS) == entitled - min(delivered, entitled)


@given(st.integers(0, 20), volumes, st.integers(0, PERIOD_MS), st.integers(0, PPM), st.integers(0, 10**7))
def test_the_more_a_host_was_down_the_less_the_buyer_pays_and_the_more_he_gets(
    lots: int, used: int, down: int, theta: int, rate: int
) -> None:
    entitled = lots_numerator(lots)
    delivered = min(used, entitled)

    def net(down: int) -> int:
        failed = failed_numerator(
            entitled=entitled, released=0, delivered=delivered, down_ms=down, period_ms=PERIOD_MS
        )
        due = spot_charge_numerator(delivered, lots, theta, failed=failed)
        assert due.total <= max(delivered, entitled - failed), "the buyer never pays F"
        return price_of(due.total, rate) - remedy_micros(entitled=entitled, failed=failed, rate=rate)

    assert net(down) <= net(down // 2) <= net(0)


@given(volumes, volumes, st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_remedy_is_the_exact_formula_rounded_once(
    failed: int, bought: int, rate: int, replacement_rate: int
) -> None:
    entitled = 20 * LOT
    replaced = replaced_numerators(bought, {"a": failed})["a"]
    assert replaced == min(bought, failed)
    remedy = remedy_micros(
        entitled=entitled, failed=failed, rate=rate, replaced=replaced, replacement_rate=replacement_rate
    )
    exact_thousandths = 1000 * replaced * max(0, replacement_rate - rate) + rate * max(
        0, 100 * failed - entitled
    )
    assert abs(2 * (1000 * 10**12 * remedy - exact_thousandths)) <= 1000 * 10**12
    assert remedy >= 0


@given(st.lists(st.integers(0, 10**9), max_size=8), st.integers(-(10**6), 4 * 10**9))
def test_remedies_never_exceed_the_cap(remedies: list[int], limit: int) -> None:
    paid = remedies_within(remedies, limit)
    assert sum(paid) == min(sum(remedies), max(0, limit))
    assert all(0 <= one <= owed for one, owed in zip(paid, remedies, strict=True))


@given(volumes, st.dictionaries(st.sampled_from("abc"), volumes, min_size=1))
def test_replaced_volume_is_shared_by_what_failed(bought: int, failed: dict[str, int]) -> None:
    parts = replaced_numerators(bought, failed)
    assert sum(parts.values()) == min(bought, sum(failed.values()))
    assert all(0 <= parts[offering] <= failed[offering] for offering in failed)


def test_what_nobody_asked_for_is_unused_and_costs_the_provider_nothing() -> None:
    [one] = outcomes_of({"a": 10 * LOT}, {}, {}, period_ms=PERIOD_MS).values()
    assert one == Outcome(entitled=10 * LOT, released=0, delivered=0, failed=0, down_ms=0)
    assert (one.unused, one.deliverable) == (10 * LOT, 10 * LOT)
    assert remedy_micros(entitled=one.entitled, failed=one.failed, rate=300_000) == 0


def test_what_is_curtailed_fails_for_the_rest_of_its_period_and_down_time_counts_once() -> None:
    """Four of ten lots curtailed at half time; the host down as a whole for the last quarter."""
    terms = {"entitled": 10_000, "released": 0, "period_ms": 300_000}
    assert failed_numerator(**terms, delivered=0, down_ms=0, curtailed=[(4_000, 150_000)]) == 2_000
    assert failed_numerator(**terms, delivered=0, down_ms=75_000, curtailed=[(4_000, 150_000)]) == 3_500
    # What was delivered all the same has not failed.
    assert failed_numerator(**terms, delivered=9_000, down_ms=75_000, curtailed=[(4_000, 150_000)]) == 1_000
    # More than was owed cannot be curtailed.
    assert failed_numerator(**terms, delivered=0, down_ms=0, curtailed=[(8_000, 300_000)] * 2) == 10_000


@given(
    owed=st.integers(0, 10**6),
    parts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 1_000)), max_size=4),
    down=st.integers(0, 1_000),
    delivered=st.integers(0, 10**6),
    worked=st.integers(0, 10**6),
)
def test_curtailing_never_lowers_a_failure_and_a_dearer_mix_never_raises_it(
    owed: int, parts: list[tuple[int, int]], down: int, delivered: int, worked: int
) -> None:
    def failed(cut: list[tuple[int, int]], work: int) -> int:
        return failed_numerator(
            entitled=owed,
            released=0,
            delivered=delivered,
            down_ms=down,
            period_ms=1_000,
            curtailed=cut,
            worked=work,
        )

    cut = [(part, max(down, part_down)) for part, part_down in parts]
    assert failed([], 0) <= failed(cut, 0) <= max(0, owed - delivered)
    assert failed(cut, worked) <= failed(cut, 0)
    # No more than the host-seconds that are left.
    assert failed(cut, worked) <= max(0, owed - worked)


BENCH = Benched.of(
    input_numerator=500,
    output_numerator=500,
    duration_ms=1_000,
    requests=10,
    concurrency=5,
    first_byte_p50_ms=100,
)


def test_the_benched_mix_takes_its_own_volume_and_dearer_tokens_more() -> None:
    assert BENCH.input_ms == 200
    assert worked_numerator(input_numerator=700, output_numerator=700, bench=BENCH) == 1_400
    # Input takes 0.4 ms a token and output 1.6, where the mix takes 1.
    assert worked_numerator(input_numerator=0, output_numerator=1_000, bench=BENCH) == 1_600
    assert worked_numerator(input_numerator=1_000, output_numerator=0, bench=BENCH) == 400
    blind = Benched(0, 500, 1_000, 0)
    assert worked_numerator(input_numerator=300, output_numerator=500, bench=blind) == 800


@given(
    made=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
    duration=st.integers(1, 10**7),
    spent=st.integers(0, 10**7),
    times=st.integers(0, 1_000),
)
def test_a_bench_made_again_works_what_it_made(
    made: tuple[int, int], duration: int, spent: int, times: int
) -> None:
    bench = Benched(*made, duration, min(duration, spent))
    worked = worked_numerator(input_numerator=times * made[0], output_numerator=times * made[1], bench=bench)
    assert worked == times * sum(made)
