"""The check by conditions takes every honest result and refuses every other, whatever was altered in it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.book import Clearing, Order, digest_result
from pricing.clearing import clear
from pricing.clearing_check import verify
from pricing.clearing_reference import EnginesDisagree, confirm
from tests.pricing.test_clearing import ask, bid, huge_prices, orders

limits = st.fixed_dictionaries(
    {"floor": st.none() | st.integers(-3, 1), "cap": st.none() | st.integers(2, 7)}
)


@settings(max_examples=400, deadline=None)
@given(orders(is_bid=True), orders(is_bid=False), limits)
def test_every_honest_result_is_taken(bids: list[Order], asks: list[Order], under: dict[str, Any]) -> None:
    verify(bids, asks, clear(bids, asks, **under), **under)


@settings(max_examples=60, deadline=None)
@given(orders(is_bid=True, minima=True, price=huge_prices), orders(is_bid=False, price=huge_prices))
def test_minima_and_huge_numbers_go_to_the_second_engine(bids: list[Order], asks: list[Order]) -> None:
    result = clear(bids, asks)
    verify(bids, asks, result)
    with pytest.raises(EnginesDisagree):
        verify(bids, asks, replace(result, welfare=result.welfare + 1))


def _altered(result: Clearing, chance: random.Random) -> Clearing:
    """One fact of the result changed: a figure, a fill, or some lots moved from one order to another."""
    field = chance.choice(
        [
            "quantity_lots",
            "price",
            "price_low",
            "price_high",
            "welfare",
            "netted_lots",
            "fills",
            "moved",
            "both",
        ]
    )
    step = chance.choice([-1, 1])
    if field not in ("fills", "moved", "both"):
        value = getattr(result, field)
        changed: dict[str, Any] = {field: step if value is None else value + step}
        return replace(result, **changed)
    sides = {name: [list(fill) for fill in getattr(result, name)] for name in ("bid_fills", "ask_fills")}
    names = ["bid_fills", "ask_fills"] if field == "both" else [chance.choice(["bid_fills", "ask_fills"])]
    for name in names:
        for change in (1, -1) if field == "moved" else (step,):
            if sides[name]:
                fill = chance.choice(sides[name])
                fill[chance.randrange(len(fill))] += change
    volume = sum(map(sum, sides["bid_fills"])) if field == "both" else result.quantity_lots
    fills: dict[str, Any] = {name: tuple(tuple(fill) for fill in side) for name, side in sides.items()}
    return replace(result, quantity_lots=volume, **fills)


@settings(max_examples=1_000, deadline=None)
@given(
    orders(is_bid=True), orders(is_bid=False), limits, st.randoms(use_true_random=False), st.integers(1, 3)
)
def test_every_altered_result_is_refused(
    bids: list[Order], asks: list[Order], under: dict[str, Any], chance: random.Random, changes: int
) -> None:
    honest = altered = clear(bids, asks, **under)
    for _ in range(changes):
        altered = _altered(altered, chance)
    if digest_result(bids, asks, altered) == digest_result(bids, asks, honest):
        verify(bids, asks, altered, **under)
        return
    with pytest.raises(EnginesDisagree):
        verify(bids, asks, altered, **under)
    with pytest.raises(EnginesDisagree):
        confirm(bids, asks, altered, **under)


def test_a_feasible_result_that_sells_less_or_to_the_wrong_bidder_is_refused() -> None:
    bids, asks = [bid("b0", (10, 5)), bid("b1", (8, 5))], [ask("a0", (1, 5))]
    honest = clear(bids, asks)
    assert honest.bid_fills == ((5,), (0,))
    nothing = Clearing(0, None, 10, 1, 0, ((0,), (0,)), ((0,),))
    to_the_worse = Clearing(5, 5, 1, 10, 35, ((0,), (5,)), ((5,),))
    for wrong in (nothing, to_the_worse):
        with pytest.raises(EnginesDisagree):
            verify(bids, asks, wrong)


def test_a_remainder_given_to_the_later_of_two_is_refused() -> None:
    bids = [bid("b0", (10, 1), priority=1), bid("b1", (10, 1), priority=2)]
    asks = [ask("a0", (1, 1))]
    honest = clear(bids, asks)
    assert honest.bid_fills == ((1,), (0,))
    with pytest.raises(EnginesDisagree, match="remainder"):
        verify(bids, asks, replace(honest, bid_fills=((0,), (1,))))


def test_a_large_book_is_taken_and_one_lot_moved_in_it_is_not() -> None:
    chance = random.Random(7)
    bids = [
        bid(f"b{n:05}", (chance.randint(50, 900), chance.randint(1, 9)), organization_id=f"o{n % 90}")
        for n in range(3_000)
    ]
    asks = [ask(f"a{n}", (40 + 60 * n, 1_000), organization_id=f"o{n}") for n in range(12)]
    result = clear(bids, asks, floor=0, cap=850)
    verify(bids, asks, result, floor=0, cap=850)
    traded = [index for index, (lots,) in enumerate(result.bid_fills) if lots]
    fills = list(result.bid_fills)
    fills[traded[0]], fills[traded[1]] = (fills[traded[0]][0] - 1,), (fills[traded[1]][0] + 1,)
    with pytest.raises(EnginesDisagree):
        verify(bids, asks, replace(result, bid_fills=tuple(fills)), floor=0, cap=850)
