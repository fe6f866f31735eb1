"""The rules of the market's controls, without a database. The examples are those of docs/controls.md."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.orders import controls
from marketplace.orders.controls import Action, Status

LENGTHS = st.sampled_from([seconds for seconds in range(10, 3_601) if 3_600 % seconds == 0])
RATES = st.integers(1, 10**15)


def test_the_breakers_example() -> None:
    """2,016 periods of five minutes; the sum that 90 of them make at the cap of 5.00."""
    assert controls.periods_in_window(300) == 2_016
    limit = controls.threshold(cap=5_000_000, period_s=300)
    assert limit == 90 * 5_000_000
    assert not controls.is_over_threshold(rolling_sum=limit, cap=5_000_000, period_s=300)
    assert controls.is_over_threshold(rolling_sum=limit + 1, cap=5_000_000, period_s=300)
    assert controls.administered_cap(median=210_000, cap=5_000_000) == 420_000


@given(cap=RATES, period_s=LENGTHS)
def test_the_threshold_is_seven_and_a_half_hours_at_the_cap_whatever_the_period(
    cap: int, period_s: int
) -> None:
    """A price at the cap trips it in the period after those that fill 27,000 s, and not before."""
    periods = 27_000 // period_s
    assert not controls.is_over_threshold(rolling_sum=periods * cap, cap=cap, period_s=period_s)
    assert controls.is_over_threshold(rolling_sum=(periods + 1) * cap, cap=cap, period_s=period_s)


@given(cap=RATES, period_s=LENGTHS, more=st.integers(0, 10**18))
def test_the_threshold_shown_is_the_last_sum_that_does_not_trip(cap: int, period_s: int, more: int) -> None:
    limit = controls.threshold(cap=cap, period_s=period_s)
    assert not controls.is_over_threshold(rolling_sum=limit, cap=cap, period_s=period_s)
    assert controls.is_over_threshold(rolling_sum=limit + 1 + more, cap=cap, period_s=period_s)


@given(status=st.sampled_from(list(Status)), rolling_sum=st.integers(0, 10**19), cap=RATES, period_s=LENGTHS)
def test_the_breaker_makes_allowed_moves_only_and_rests_after_them(
    status: Status, rolling_sum: int, cap: int, period_s: int
) -> None:
    action = controls.breaker_action(status, rolling_sum=rolling_sum, cap=cap, period_s=period_s)
    if action is None:
        return
    assert status is not Status.HALTED
    [(origin, target)] = controls.MOVES[action]
    assert origin is status
    assert controls.breaker_action(target, rolling_sum=rolling_sum, cap=cap, period_s=period_s) is None


def test_every_move_is_listed() -> None:
    moves = {move for action in Action if action is not Action.RATE_SET for move in controls.MOVES[action]}
    assert moves == {
        (Status.NORMAL, Status.CAPPED),
        (Status.CAPPED, Status.NORMAL),
        (Status.NORMAL, Status.HALTED),
        (Status.CAPPED, Status.HALTED),
        (Status.HALTED, Status.NORMAL),
    }


@given(st.lists(RATES, min_size=1))
def test_half_of_the_rates_lie_on_each_side_of_the_median(rates: list[int]) -> None:
    median = controls.lower_median(rates)
    assert median in rates
    assert 2 * sum(rate < median for rate in rates) < len(rates)
    assert 2 * sum(rate > median for rate in rates) <= len(rates)


def test_there_is_no_median_of_nothing() -> None:
    assert controls.lower_median([]) is None
    assert controls.administered_cap(median=None, cap=7) == 7


@given(median=st.one_of(st.none(), st.integers(0, 10**15)), cap=RATES)
def test_the_breaker_never_raises_a_cap(median: int | None, cap: int) -> None:
    administered = controls.administered_cap(median=median, cap=cap)
    assert 1 <= administered <= cap
    assert controls.book_cap(cap=cap, administered=administered) == administered
    assert controls.book_cap(cap=cap, administered=None) == cap


@pytest.mark.parametrize(
    ("days", "due"),
    [([], False), ([1], False), ([1, 1, 1], False), ([1, 2], True), ([3, 9, 9], True)],
)
def test_a_review_needs_two_days(days: list[int], due: bool) -> None:
    assert controls.review_is_due([date(2026, 3, day) for day in days]) is due


def test_the_reviews_example() -> None:
    assert controls.is_near_cap(rate=3_500_000, cap=5_000_000)
    assert not controls.is_near_cap(rate=3_499_999, cap=5_000_000)
    assert controls.raised_cap(5_000_000) == 6_250_000


@given(cap=st.integers(1, 10**15))
def test_a_raise_is_at_most_a_quarter(cap: int) -> None:
    assert 4 * (controls.raised_cap(cap) - cap) <= cap < 4 * (controls.raised_cap(cap) - cap) + 4


def test_every_example_of_the_page_is_a_test() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(test_\w+)`", (root / "docs/controls.md").read_text())
    tests = "\n".join(path.read_text() for path in (root / "tests/orders").glob("test_controls*.py"))
    assert len(set(named)) >= 6
    assert [name for name in named if f"def {name}(" not in tests] == []
