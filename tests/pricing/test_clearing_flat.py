"""A large book goes through arrays: what they make of it is what is made of it order by order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from pricing.book import Clearing, Order, TieRule
from pricing.clearing import clear
from pricing.clearing_flat import clear_flat
from pricing.clearing_kernel import clear_arrays
from pricing.clearing_reference import confirm, reference_clear
from tests.pricing.test_clearing import ask, bid, huge_prices, orders, terms

MANY = 400  # On one side: beyond where `clear` goes through arrays.


def through_arrays(bids: list[Order], asks: list[Order], **under: Any) -> Clearing | None:
    bounds = [bound for bound in (under.get("floor"), under.get("reserve_price")) if bound is not None]
    return clear_flat(
        bids,
        asks,
        floor=under.get("floor"),
        lowest_ask=max(bounds, default=None),
        cap=under.get("cap"),
        tie_rule=under.get("tie_rule", TieRule.PRO_RATA),
        tick=under.get("tick", 1),
        net_self_trades=True,
    )


@settings(max_examples=400, deadline=None)
@given(orders(is_bid=True), orders(is_bid=False), terms)
def test_arrays_give_what_the_orders_one_by_one_give(
    bids: list[Order], asks: list[Order], under: dict[str, Any]
) -> None:
    assert len(bids) + len(asks) < 256  # So `clear` takes them one by one.
    found = through_arrays(bids, asks, **under)
    if bids and asks:
        assert found == clear(bids, asks, **under) == reference_clear(bids, asks, **under)
    else:
        assert found is None


@settings(max_examples=100, deadline=None)
@given(orders(is_bid=True, price=huge_prices), orders(is_bid=False, price=huge_prices))
def test_numbers_that_do_not_fit_are_not_taken(bids: list[Order], asks: list[Order]) -> None:
    assert through_arrays(bids, asks) in (None, clear(bids, asks))


@pytest.mark.parametrize("tie_rule", TieRule)
@pytest.mark.parametrize("span", [3, 40, 10**6])
def test_a_large_book_is_cleared_by_arrays_as_by_the_second_engine(span: int, tie_rule: TieRule) -> None:
    chance = random.Random(span)
    names = [None, *[f"org{number}" for number in range(12)]]

    def side(kind: Any, *, is_bid: bool) -> list[Order]:
        made = []
        for number in range(MANY):
            steps = [(chance.randrange(span), chance.randrange(9)) for _ in range(chance.randint(1, 4))]
            steps.sort(reverse=is_bid, key=lambda step: step[0])
            more = {} if is_bid else {"reserve": chance.choice([None, None, chance.randrange(span)])}
            made.append(
                kind(
                    f"{number:04}",
                    *steps,
                    organization_id=chance.choice(names),
                    priority=chance.randrange(20),
                    **more,
                )
            )
        return made

    bids, asks = side(bid, is_bid=True), side(ask, is_bid=False)
    under: dict[str, Any] = {"floor": span // 9, "cap": span - span // 7, "tie_rule": tie_rule}
    result = through_arrays(bids, asks, **under)
    assert result is not None
    assert result.quantity_lots
    assert result.netted_lots
    assert result == clear(bids, asks, **under) == reference_clear(bids, asks, **under)
    confirm(bids, asks, result, **under)
    chance.shuffle(bids)
    assert clear(bids, asks, **under).quantity_lots == result.quantity_lots


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (bid("wrong", (1, 5), (2, 5)), "steps"),
        (bid("wrong"), "steps"),
        (bid("wrong", *[(5, 1)] * 11), "steps"),
        (bid("wrong", (5, -1)), "steps"),
        (bid("wrong", (5.0, 1)), "steps"),  # type: ignore[arg-type]
        (bid("wrong", (True, 1)), "steps"),
        (bid("wrong", (5, 1), min_fill=-1), "min_fill"),
        (bid("b7", (5, 1)), "id"),
    ],
)
def test_one_malformed_order_in_a_large_book_is_refused_by_field(wrong: Order, field: str) -> None:
    bids = [bid(f"b{number}", (9, 5), (5, 5)) for number in range(MANY)]
    with pytest.raises(ValueError, match=f"^{field}:"):
        clear([*bids, wrong, *[bid(f"c{number}", (9, 5)) for number in range(MANY)]], [ask("a", (5, 5))])


def test_only_the_tied_are_asked_for_their_ranks() -> None:
    asked = []

    def ranks(rows: Any) -> Any:
        asked.append(rows.tolist())
        return -rows

    prices, lots = np.array([9, 5, 5, 5, 1]), np.array([3, 1, 1, 1, 4])
    result = clear_arrays(prices, lots, np.array([5]), np.array([4]), bid_ranks=ranks)
    assert result.bid_fills.tolist() == [3, 0, 0, 1, 0]
    assert asked == [[1, 2, 3]]
