"""The auction's welfare is that of the linear program, solved by HiGHS and then proved in whole numbers.

The solver works in floats. So its price is taken as a guess only: every price gives an upper bound on the welfare of
any trade (weak duality), computed exactly, and the auction's welfare must equal the bound at the solver's price,
or at a limit next to it. What equals an upper bound is the optimum, whatever the solver rounded.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.book import Clearing, Order, TieRule
from pricing.clearing import clear
from pricing.clearing_reference import reference_clear
from tests.pricing.test_clearing import ask, assert_sound, bid


class _Step(NamedTuple):
    sign: int  # 1 of a bid, -1 of an ask
    price: int
    lots: int
    organization_id: str | None


def steps_of(bids: Sequence[Order], asks: Sequence[Order], terms: dict[str, Any]) -> list[_Step]:
    """What may trade, written down from the rules once more: clipped, raised, zero lots dropped."""
    floor, cap, reserve = terms.get("floor"), terms.get("cap"), terms.get("reserve_price")
    steps = []
    for order in bids:
        for price, lots in order.steps:
            if lots and (floor is None or price >= floor):
                steps.append(_Step(1, price if cap is None else min(price, cap), lots, order.organization_id))
    for order in asks:
        for price, lots in order.steps:
            raised = max([price, *(bound for bound in (floor, reserve, order.reserve) if bound is not None)])
            if lots and (cap is None or raised <= cap):
                steps.append(_Step(-1, raised, lots, order.organization_id))
    return steps


def without_self_trades(steps: Iterable[_Step]) -> list[_Step]:
    """An organization's best bids and best asks cancel while they cross: one lot after another."""
    left = [step for step in steps if step.organization_id is None]
    names = sorted({step.organization_id for step in steps if step.organization_id is not None})
    for name in names:
        own = [step for step in steps if step.organization_id == name]
        buying = sorted((s.price for s in own if s.sign == 1 for _ in range(s.lots)), reverse=True)
        selling = sorted(s.price for s in own if s.sign == -1 for _ in range(s.lots))
        while buying and selling and buying[0] >= selling[0]:
            del buying[0], selling[0]
        left += [_Step(1, price, 1, name) for price in buying] + [
            _Step(-1, price, 1, name) for price in selling
        ]
    return left


def solver_price(steps: Sequence[_Step]) -> float:
    """The dual price of the balance of lots, by HiGHS."""
    untyped: Any = highspy.Highs
    solver = untyped()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("presolve", "off")
    prices = max([1, *(abs(step.price) for step in steps)])
    lots = max(step.lots for step in steps)
    for column, step in enumerate(steps):
        solver.addVar(0, step.lots / lots)
        solver.changeColCost(column, -step.sign * (step.price / prices))
    solver.addRow(
        0, 0, len(steps), np.arange(len(steps), dtype=np.int32), np.array([float(s.sign) for s in steps])
    )
    solver.run()
    assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return -float(solver.getSolution().row_dual[0]) * prices


def bound_at(price: int, steps: Iterable[_Step]) -> int:
    """What no trade's welfare exceeds: everybody's best at a price, exactly."""
    return sum(max(0, step.sign * (step.price - price)) * step.lots for step in steps)


def assert_optimal(bids: list[Order], asks: list[Order], terms: dict[str, Any]) -> Clearing:
    result = clear(bids, asks, **terms)
    assert result == reference_clear(bids, asks, **terms)
    assert_sound(bids, asks, result)
    steps = without_self_trades(steps_of(bids, asks, terms))
    if steps:
        limits = sorted({step.price for step in steps})
        guess = solver_price(steps)
        place = bisect_left(limits, guess)
        near = limits[max(0, place - 2) : place + 2]
        assert result.welfare == min(bound_at(price, steps) for price in near)
        if result.quantity_lots:
            assert result.price is not None
            # The published price is an optimal dual itself, and so are both ends of its interval.
            for price in (result.price, result.price_low, result.price_high):
                assert price is not None
                assert bound_at(price, steps) == result.welfare
    else:
        assert (result.quantity_lots, result.welfare) == (0, 0)
    return result


def curve(
    chance: random.Random, *, is_bid: bool, most: int, span: int, lots: int
) -> tuple[tuple[int, int], ...]:
    steps = [
        (chance.randrange(-span // 4, span), chance.randrange(lots)) for _ in range(chance.randint(1, most))
    ]
    return tuple(sorted(steps, key=lambda step: step[0], reverse=is_bid))


NAMES = [None, "acme", "hyperion", "mallory"]


@settings(max_examples=120, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([4, 30, 10_000]),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.fixed_dictionaries(
        {
            "floor": st.none() | st.integers(-3, 1),
            "cap": st.none() | st.integers(2, 20),
            "reserve_price": st.none() | st.integers(-2, 12),
            "tie_rule": st.sampled_from(TieRule),
        }
    ),
)
def test_curves_of_ten_steps_with_floor_cap_reserve_and_own_orders(
    chance: random.Random, span: int, sizes: tuple[int, int], terms: dict[str, Any]
) -> None:
    """Zero lots, ties on either and on both sides, one-sided and empty books and negative prices among them."""
    bids = [
        Order(
            f"b{n}",
            curve(chance, is_bid=True, most=10, span=span, lots=6),
            organization_id=chance.choice(NAMES),
            priority=chance.randrange(3),
        )
        for n in range(sizes[0])
    ]
    asks = [
        Order(
            f"a{n}",
            curve(chance, is_bid=False, most=10, span=span, lots=6),
            organization_id=chance.choice(NAMES),
            priority=chance.randrange(3),
            reserve=chance.choice([None, chance.randrange(-2, 8)]),
        )
        for n in range(sizes[1])
    ]
    assert_optimal(bids, asks, terms)


@pytest.mark.parametrize("seed", range(12))
def test_products_beyond_64_bits(seed: int) -> None:
    """Prices of 2**61 and lots of 2**50: the solver sees them to 53 bits, the proof to the last."""
    chance = random.Random(seed)
    bids = [bid(f"b{n}", (chance.randrange(2**61), chance.randrange(1, 2**50))) for n in range(12)]
    asks = [ask(f"a{n}", (chance.randrange(2**61), chance.randrange(1, 2**50))) for n in range(12)]
    assert assert_optimal(bids, asks, {}).welfare > 2**64


@pytest.mark.parametrize(
    ("bids", "asks", "welfare", "lots"),
    [
        ([], [], 0, 0),
        ([], [ask("a", (3, 5))], 0, 0),
        ([bid("b", (3, 5))], [], 0, 0),
        ([bid("b", (9, 0))], [ask("a", (1, 0))], 0, 0),
        ([bid("b", (9, 0), (5, 4))], [ask("a", (1, 0), (2, 4))], 12, 4),
        ([bid("b0", (5, 4)), bid("b1", (5, 6))], [ask("a", (5, 7))], 0, 7),
        ([bid("b0", (5, 4)), bid("b1", (5, 6))], [ask("a", (1, 7))], 28, 7),
        ([bid("b", (5, 7))], [ask("a0", (2, 4)), ask("a1", (2, 6))], 21, 7),
        ([bid("b0", (5, 4)), bid("b1", (3, 6))], [ask("a0", (3, 4)), ask("a1", (3, 6))], 8, 10),
        ([bid("b", (0, 5))], [ask("a", (-4, 5))], 20, 5),
        ([bid("b", (-1, 5))], [ask("a", (-4, 3))], 9, 3),
        ([bid("b", (0, 5))], [ask("a", (0, 5))], 0, 5),
    ],
    ids=[
        "empty",
        "asks only",
        "bids only",
        "zero lots",
        "zero steps",
        "all at one price",
        "tied bids",
        "tied asks",
        "ties on both sides",
        "negative ask",
        "both negative",
        "zero price",
    ],
)
def test_books_that_engines_stumble_over(
    bids: list[Order], asks: list[Order], welfare: int, lots: int
) -> None:
    result = assert_optimal(bids, asks, {})
    assert (result.welfare, result.quantity_lots) == (welfare, lots)


def test_a_book_of_two_thousand_orders() -> None:
    chance = random.Random(9)
    bids = [bid(f"b{n}", (chance.randrange(10**6), chance.randrange(1, 1_000))) for n in range(1_000)]
    asks = [ask(f"a{n}", (chance.randrange(10**6), chance.randrange(1, 1_000))) for n in range(1_000)]
    assert_optimal(bids, asks, {})
