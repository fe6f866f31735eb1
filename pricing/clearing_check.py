"""Checks a result without clearing anew: the conditions of the optimum, which one result alone meets (DESIGN 7).

A divisible book's auction is a linear program. Fills are optimal if and only if a price supports them (complementary
slackness): no order that trades loses at it, no order that is left out gains. The volume is the greatest when no bid
and ask that are left out meet. What the price interval, the price and the shares of a tie must be is then read off the
fills. Nothing is searched and no candidate price is tried, so the check has neither engine's method, and is a matter of
some passes over arrays. Books with minima, and numbers beyond 62 bits, are checked by the second engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from pricing.book import Clearing, Order
from pricing.clearing_reference import EnginesDisagree, confirm

_MOST: Final = 2**62

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Side:
    """Lots of one order at one price, as a row: what could trade after clipping and netting, and what did."""

    owner: Ints  # the order's index
    price: Ints
    lots: Ints
    filled: Ints

    def traded(self) -> Ints:
        return self.price[self.filled > 0]

    def left(self) -> Ints:
        return self.price[self.filled < self.lots]


def verify(
    bids: Sequence[Order],
    asks: Sequence[Order],
    result: Clearing,
    *,
    floor: int | None = None,
    cap: int | None = None,
) -> None:
    """Raises EnginesDisagree unless `result` is what the rule makes of the book: pro rata ties, a tick of 1."""
    if any(order.all_or_none or order.min_fill for order in chain(bids, asks)) or not _fits(bids, asks):
        confirm(bids, asks, result, floor=floor, cap=cap)
        return
    own_bids, own_asks = _own_indices(bids, asks), _own_indices(asks, bids)
    limits = (floor, cap)
    buying, selling = _Steps(bids, limits, is_bid=True), _Steps(asks, limits, is_bid=False)
    netted = sum(
        _net(buying, selling, own_bids[organization], own_asks[organization]) for organization in own_bids
    )
    _demand(netted == result.netted_lots, "the lots netted within organizations differ")
    _demand(not result.rejected_paradoxically, "an order is called rejected paradoxically without a minimum")
    bid_side, ask_side = buying.rows(result.bid_fills), selling.rows(result.ask_fills)
    volume = int(bid_side.filled.sum())
    _demand(volume == int(ask_side.filled.sum()) == result.quantity_lots, "the two sides' volumes differ")
    _demand(_welfare(bid_side) - _welfare(ask_side) == result.welfare, "the welfare differs")
    low, high = _interval(bid_side, ask_side, volume)
    _demand((result.price_low, result.price_high) == (low, high), "the price interval differs")
    if volume:
        assert low is not None
        assert high is not None
        _demand(result.price == (low + high) // 2, "the price is not the midpoint of its interval")
        _check_tie(bids, bid_side, int(bid_side.traded().min()))
        _check_tie(asks, ask_side, int(ask_side.traded().max()))
    else:
        _demand(result.price is None, "there is a price without a trade")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise EnginesDisagree(otherwise)


def _fits(bids: Sequence[Order], asks: Sequence[Order]) -> bool:
    steps = chain.from_iterable([order.steps for order in chain(bids, asks)])
    numbers = list(chain.from_iterable(steps))
    prices, lots = numbers[::2], numbers[1::2]
    prices += [order.reserve for order in asks if order.reserve is not None]
    inside = -_MOST < min(prices, default=0) <= max(prices, default=0) < _MOST
    return inside and sum(lots) < _MOST


def _own_indices(orders: Sequence[Order], others: Sequence[Order]) -> dict[str, list[int]]:
    """Orders of each organization that has some on the other side too."""
    both = {order.organization_id for order in others} & {order.organization_id for order in orders}
    own: dict[str, list[int]] = {name: [] for name in both if name is not None}
    for index, order in enumerate(orders):
        if order.organization_id in own:
            own[order.organization_id].append(index)
    return own


class _Steps:
    """One side's steps, flat: clipped prices, lots that can trade, lots as they were given."""

    def __init__(
        self, orders: Sequence[Order], limits: tuple[int | None, int | None], *, is_bid: bool
    ) -> None:
        floor, cap = limits
        self.orders = orders
        self.is_bid = is_bid
        self.counts = [len(order.steps) for order in orders]
        self.first = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        self.owner = np.repeat(np.arange(len(orders)), self.counts)
        steps = chain.from_iterable([order.steps for order in orders])
        flat = np.array(list(chain.from_iterable(steps)), np.int64)
        self.price, self.given = flat[::2].copy(), flat[1::2].copy()
        self.lots = self.given.copy()
        if is_bid:
            if floor is not None:
                self.lots[self.price < floor] = 0
            if cap is not None:
                np.minimum(self.price, cap, out=self.price)
        else:
            lowest = -_MOST if floor is None else floor
            reserves = [lowest if order.reserve is None else max(lowest, order.reserve) for order in orders]
            np.maximum(self.price, np.array(reserves, np.int64)[self.owner], out=self.price)
            if cap is not None:
                self.lots[self.price > cap] = 0

    def best_first(self, indices: Sequence[int]) -> Ints:
        """The steps of these orders: best price, then time, then id."""
        sign = -1 if self.is_bid else 1
        steps = [step for index in indices for step in range(self.first[index], self.first[index + 1])]
        orders, owner, price = self.orders, self.owner.tolist(), self.price.tolist()
        steps.sort(
            key=lambda step: (sign * price[step], orders[owner[step]].priority, orders[owner[step]].id, step)
        )
        return np.array(steps, np.int64)

    def rows(self, fills: Sequence[Sequence[int]]) -> _Side:
        """Steps of one order at one price are the same lots; the earliest of them show what was filled."""
        _demand([len(fill) for fill in fills] == self.counts, "the fills are not those of the book")
        numbers = list(chain.from_iterable(fills))
        inside = 0 <= min(numbers, default=0) <= max(numbers, default=0) < _MOST
        _demand(inside and set(map(type, numbers)) <= {int}, "a fill is no quantity")
        filled = np.array(numbers, np.int64)
        _demand(bool((filled <= self.given).all()), "more is filled than was asked for")
        if not filled.size:
            return _Side(self.owner, self.price, self.lots, filled)
        begins = np.ones(filled.size, np.bool_)
        begins[1:] = (self.owner[1:] != self.owner[:-1]) | (self.price[1:] != self.price[:-1])
        starts = np.flatnonzero(begins)
        row_filled, row_lots = np.add.reduceat(filled, starts), np.add.reduceat(self.lots, starts)
        _demand(bool((row_filled <= row_lots).all()), "more is filled than can trade")
        row = np.cumsum(begins) - 1
        before = np.cumsum(self.given) - self.given
        earlier = before - before[starts][row]
        shown = np.clip(row_filled[row] - earlier, 0, self.given)
        _demand(bool((shown == filled).all()), "a later step is filled before an equal one")
        live = row_lots > 0
        return _Side(self.owner[starts][live], self.price[starts][live], row_lots[live], row_filled[live])


def _net(buying: _Steps, selling: _Steps, own_bids: Sequence[int], own_asks: Sequence[int]) -> int:
    """Takes off as many of an organization's best lots on both sides as cross, and says how many."""
    bid_steps, ask_steps = buying.best_first(own_bids), selling.best_first(own_asks)
    bid_ends, ask_ends = np.cumsum(buying.lots[bid_steps]), np.cumsum(selling.lots[ask_steps])
    ends = np.union1d(bid_ends, ask_ends)
    ends = ends[(ends > 0) & (ends <= min(bid_ends[-1], ask_ends[-1]))]
    # The lots just up to each end are of one bid and one ask.
    bid_prices = buying.price[bid_steps][np.searchsorted(bid_ends, ends)]
    ask_prices = selling.price[ask_steps][np.searchsorted(ask_ends, ends)]
    crossing = ends[bid_prices >= ask_prices]
    netted = int(crossing.max()) if crossing.size else 0
    for side, steps, step_ends in ((buying, bid_steps, bid_ends), (selling, ask_steps, ask_ends)):
        side.lots[steps] -= np.clip(netted - (step_ends - side.lots[steps]), 0, side.lots[steps])
    return netted


def _welfare(side: _Side) -> int:
    """Exact: beyond 64 bits where it must be."""
    traded = side.filled > 0
    return sum(
        price * lots
        for price, lots in zip(side.price[traded].tolist(), side.filled[traded].tolist(), strict=True)
    )


def _interval(buying: _Side, selling: _Side, volume: int) -> tuple[int | None, int | None]:
    """The prices that support these fills. Raises EnginesDisagree when none does, or when more could trade."""
    next_bid, next_ask = _most(buying.left()), _least(selling.left())
    # Were they equal, they could trade without loss; were they crossed, with a gain.
    _demand(next_bid is None or next_ask is None or next_bid < next_ask, "orders that meet are left out")
    if not volume:
        return next_bid, next_ask
    last_bid, last_ask = _least(buying.traded()), _most(selling.traded())
    assert last_bid is not None
    assert last_ask is not None
    low = last_ask if next_bid is None else max(last_ask, next_bid)
    high = last_bid if next_ask is None else min(last_bid, next_ask)
    _demand(low <= high, "no price supports these fills")
    return low, high


def _most(prices: Ints) -> int | None:
    return int(prices.max()) if prices.size else None


def _least(prices: Ints) -> int | None:
    return int(prices.min()) if prices.size else None


def _check_tie(orders: Sequence[Order], side: _Side, margin: int) -> None:
    """Whoever stands at the last price that traded shares it pro rata: largest remainder, then time, then id."""
    tied = side.price == margin
    open_lots, filled = side.lots[tied].tolist(), side.filled[tied].tolist()
    total, taken = sum(open_lots), sum(filled)
    if taken == total:
        return
    shares, remainders = zip(*(divmod(lots * taken, total) for lots in open_lots), strict=True)
    extra = [lots - share for lots, share in zip(filled, shares, strict=True)]
    _demand(all(lots in (0, 1) for lots in extra), "a tie is not shared pro rata")
    ranked = sorted(
        (-remainder, orders[owner].priority, orders[owner].id, lots)
        for remainder, owner, lots in zip(remainders, side.owner[tied].tolist(), extra, strict=True)
    )
    won = [lots for *_, lots in ranked]
    _demand(won == sorted(won, reverse=True), "a tie's remainder went to others")
