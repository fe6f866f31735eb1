"""Down time, failed volume and remedies, without a database; the examples of docs/failures.md are run as they stand."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pricing.failures import (
    Outcome,
    attempt_outages,
    down_ms,
    failed_numerator,
    outcomes_of,
    period_ms,
    remedies_within,
    remedy_micros,
    replaced_numerators,
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
