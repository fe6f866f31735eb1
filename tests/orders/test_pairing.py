"""Who supplies whom, and what a bid can cost at most."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.orders.pairing import Filled, overage_rate, pair, worst_case_micros


def order(number: int, lots: int, rate: int) -> Filled[UUID]:
    return Filled(UUID(int=number), lots, rate, (number, str(number)))


def test_last_periods_pairs_are_kept_before_the_north_west_corner() -> None:
    bids = [order(1, 5, 900), order(2, 5, 800)]
    asks = [order(11, 5, 100), order(12, 5, 200)]
    kept = pair(bids, asks, {(UUID(int=2), UUID(int=11))})
    assert kept == {(UUID(int=2), UUID(int=11)): 5, (UUID(int=1), UUID(int=12)): 5}
    fresh = pair(bids, asks)
    assert fresh == {(UUID(int=1), UUID(int=11)): 5, (UUID(int=2), UUID(int=12)): 5}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 6), st.randoms())
def test_pairing_fills_everyone_and_does_not_depend_on_order(
    bid_lots: list[int], sellers: int, random: object
) -> None:
    bids = [order(i, lots, 100 + i) for i, lots in enumerate(bid_lots)]
    total = sum(bid_lots)
    shares = [total // sellers] * sellers
    shares[0] += total - sum(shares)
    asks = [order(100 + i, lots, 10 + i) for i, lots in enumerate(shares) if lots]
    pairs = pair(bids, asks)
    for bid in bids:
        assert sum(lots for (bid_id, _), lots in pairs.items() if bid_id == bid.id) == bid.lots
    for ask in asks:
        assert sum(lots for (_, ask_id), lots in pairs.items() if ask_id == ask.id) == ask.lots
    random.shuffle(bids)  # type: ignore[attr-defined]
    random.shuffle(asks)  # type: ignore[attr-defined]
    assert pair(bids, asks) == pairs


def test_sides_of_different_volume_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="same volume"):
        pair([order(1, 5, 9)], [order(2, 4, 1)])


@pytest.mark.parametrize(
    ("clearing", "next_ask", "expected"),
    [(None, None, 1000), (500, None, 550), (500, 600, 660), (999, None, 1000), (501, None, 552)],
)
def test_overage_rate_is_a_tenth_above_the_market_and_never_above_list(
    clearing: int | None, next_ask: int | None, expected: int
) -> None:
    assert overage_rate(list_rate=1000, clearing_rate=clearing, next_unsold_ask=next_ask) == expected


def test_the_worst_case_is_the_dearest_step_sum_not_the_first() -> None:
    # 900 x 1 lot = 0.9 micros; 800 x 11 lots = 8.8 micros; 10 x 12 lots = 0.12 micros.
    assert worst_case_micros([(900, 1), (800, 10), (10, 1)]) == 9
