"""The price index: nobody's volume decides it alone, and fall-backs say so."""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.index import Basis, IndexTrade, capped_weights, price_index, weighted_median


def trades(rates: list[int], lots: int = 10) -> list[IndexTrade]:
    return [
        IndexTrade(f"auction-{i}", rate, lots, f"buyer-{i % 4}", f"seller-{i % 4}")
        for i, rate in enumerate(rates)
    ]


def test_index_is_the_volume_weighted_median() -> None:
    value = price_index(trades([100, 110, 120, 130, 140, 150, 160, 170]))
    assert (value.rate, value.basis, value.is_fallback) == (135, Basis.SPOT, False)
    assert (value.trades, value.auctions, value.groups, value.lots) == (8, 8, 8, 80)


def test_order_of_trades_does_not_matter() -> None:
    window = trades([100, 110, 120, 130, 140, 500])
    shuffled = random.Random(1).sample(window, len(window))
    assert price_index(window) == price_index(shuffled)


def test_one_group_cannot_paint_the_index() -> None:
    honest = [IndexTrade(f"auction-{i}", 100, 10, f"buyer-{i % 4}", f"seller-{i % 4}") for i in range(8)]
    painted = [IndexTrade("auction-9", 900, 10**9, "mallory", "seller-9")]
    assert price_index(honest + painted).rate == 100


def test_trades_inside_a_group_do_not_count() -> None:
    honest = trades([100] * 8)
    wash = [IndexTrade(f"wash-{i}", 900, 10**6, "mallory", "mallory") for i in range(20)]
    assert price_index(honest + wash) == price_index(honest)


def test_thin_windows_fall_back_and_say_so() -> None:
    thin = trades([100, 100])
    committed = price_index(thin, committed=trades([80, 80, 80, 80]), previous=70)
    assert (committed.rate, committed.basis, committed.is_fallback) == (80, Basis.COMMITTED, True)
    carried = price_index(thin, previous=70)
    assert (carried.rate, carried.basis) == (70, Basis.CARRIED)
    nothing = price_index([])
    assert (nothing.rate, nothing.basis) == (None, Basis.NONE)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_no_group_weighs_more_than_its_cap(lots: list[int]) -> None:
    weights = capped_weights({str(index): value for index, value in enumerate(lots)})
    total = sum(weights.values())
    share = max(Fraction(1, 5), Fraction(1, len(lots)))
    assert all(weight <= share * total for weight in weights.values())
    assert all(0 < weights[str(index)] <= value for index, value in enumerate(lots))
    # The lightest group is never scaled down.
    assert min(weights.values()) == min(lots)


def test_median_midway_is_half_even() -> None:
    one = Fraction(1)
    assert weighted_median([(1, one), (2, one)]) == 2
    assert weighted_median([(2, one), (3, one)]) == 2
    assert weighted_median([(7, one)]) == 7
    assert capped_weights({}) == {}
