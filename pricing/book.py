"""The book of one auction and what comes out of it: values without behaviour, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

# `uniform-1` chose among many minima by another search: where it hit its bound, the choice could be another one.
FIRST_RULE: Final = "uniform-1"
RULE_VERSION: Final = "uniform-2"
MAX_STEPS: Final = 10


class TieRule(StrEnum):
    """Who gets the lots at the marginal price when not everyone can."""

    PRO_RATA = "pro_rata"  # by largest remainder, then priority, then id
    TIME_PRIORITY = "time_priority"  # by priority, then id


class Order(NamedTuple):
    """A bid or an ask: up to ten `(price, lots)` steps, best for the other side first.

    `id` is unique on its side of the book. A lower `priority` comes first (the time of acceptance, as an
    integer). `reserve` is the provider's published floor under an ask. `min_fill` lots are taken together
    or the order is left out; `all_or_none` is the same for the whole order. Without an `organization_id`
    nothing is netted.
    """

    id: str
    steps: tuple[tuple[int, int], ...]
    organization_id: str | None = None
    priority: int = 0
    reserve: int | None = None
    min_fill: int = 0
    all_or_none: bool = False

    @property
    def lots(self) -> int:
        return sum(lots for _, lots in self.steps)


@dataclass(frozen=True, slots=True)
class Clearing:
    """The result of one auction. Fills follow the order, and the steps, of the input.

    With a trade, `[price_low, price_high]` are the prices that support it. Without one, `price` is None
    and they are the best bid and the best ask, where there is one. `welfare` is in lots x price, exact.
    `rejected_paradoxically` names the orders with a minimum that would have gained at the price and could
    not be filled. `netted_lots` were taken off each side because their organization would have traded
    with itself. `search_complete` is False when the choice among minima hit its bound and fell back (then
    it is a valid choice, not proved the best).
    """

    quantity_lots: int
    price: int | None
    price_low: int | None
    price_high: int | None
    welfare: int
    bid_fills: tuple[tuple[int, ...], ...]
    ask_fills: tuple[tuple[int, ...], ...]
    rejected_paradoxically: tuple[str, ...] = ()
    netted_lots: int = 0
    search_complete: bool = field(default=True)


def filled_lots(orders: Sequence[Order], fills: Sequence[Sequence[int]]) -> dict[str, int]:
    """Lots of each order that traded, by order id, without those that got nothing."""
    totals = {order.id: sum(fill) for order, fill in zip(orders, fills, strict=True)}
    return {order_id: lots for order_id, lots in totals.items() if lots}


def check_order(order: Order, *, is_bid: bool) -> None:
    """Raises ValueError naming the field when an order cannot be cleared: see `Order`."""
    if not order.steps or len(order.steps) > MAX_STEPS:
        raise ValueError(f"steps: order {order.id} has {len(order.steps)}, allowed are 1 to {MAX_STEPS}")
    previous: int | None = None
    for price, lots in order.steps:
        if type(price) is not int or type(lots) is not int:
            raise ValueError(f"steps: order {order.id} has a price or quantity that is not an integer")
        if lots < 0:
            raise ValueError(f"steps: order {order.id} has a negative quantity")
        if previous is not None and (price > previous if is_bid else price < previous):
            direction = "rise" if is_bid else "fall"
            raise ValueError(f"steps: the prices of order {order.id} must not {direction}")
        previous = price
    if order.min_fill < 0:
        raise ValueError(f"min_fill: order {order.id} has a negative minimum")


def digest_book(
    bids: Sequence[Order], asks: Sequence[Order], *, terms: Mapping[str, object], rule: str = RULE_VERSION
) -> str:
    """SHA-256 (hex) of the book and the terms it is cleared under, whatever order they are given in."""
    return digest_facts(
        {
            "rule": rule,
            "terms": dict(terms),
            "bids": [order_facts(order) for order in sorted(bids, key=_by_id)],
            "asks": [order_facts(order) for order in sorted(asks, key=_by_id)],
        }
    )


def digest_result(
    bids: Sequence[Order], asks: Sequence[Order], result: Clearing, *, rule: str = RULE_VERSION
) -> str:
    """SHA-256 (hex) of an auction's result, whatever order the book was given in."""
    return digest_facts(
        {
            "rule": rule,
            "quantity_lots": result.quantity_lots,
            "price": result.price,
            "price_low": result.price_low,
            "price_high": result.price_high,
            "welfare": result.welfare,
            "bids": _fill_facts(bids, result.bid_fills),
            "asks": _fill_facts(asks, result.ask_fills),
            "rejected_paradoxically": sorted(result.rejected_paradoxically),
            "netted_lots": result.netted_lots,
        }
    )


def _by_id(order: Order) -> str:
    return order.id


def order_facts(order: Order) -> list[object]:
    """All of an order that a digest covers."""
    return [
        order.id,
        order.organization_id,
        order.priority,
        order.steps,
        order.reserve,
        order.min_fill,
        order.all_or_none,
    ]


def _fill_facts(orders: Sequence[Order], fills: Sequence[Sequence[int]]) -> list[tuple[str, Sequence[int]]]:
    return sorted([(order.id, fill) for order, fill in zip(orders, fills, strict=True) if any(fill)])


def digest_facts(facts: Mapping[str, object]) -> str:
    """SHA-256 (hex) of facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
