"""A large divisible book as arrays from its orders to their fills; the rule is that of `pricing.clearing`.

What `clear` does order by order, for books that are small or have minima, is done here by columns: flat steps are
clipped, those of one order at one price joined to a row, netted, crossed by `clear_arrays`, and fills spread over the
steps again. A book that does not fit in the arrays, or has an order that `check_order` would refuse, is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import chain, islice
from typing import Final

import numpy as np
import numpy.typing as npt

from pricing.book import MAX_STEPS, Clearing, Order, TieRule
from pricing.clearing_kernel import Ints, clear_arrays

_MOST: Final = 2**62  # Prices, and sums of lots: twice of it is still inside int64.


class _Side:
    """One side: its steps one after the other, and its rows, the lots of one order at one price that could trade."""

    def __init__(self, orders: Sequence[Order], counts: Ints, prices: Ints, lots: Ints) -> None:
        self.orders = orders
        self.counts = counts  # steps of each order
        self.step_prices = prices
        self.step_lots = lots

    def join(self, prices: Ints, kept: npt.NDArray[np.bool_]) -> None:
        """Makes the rows of the kept steps at these clipped prices. Splitting an order into equal steps must not change
        its share of a remainder.
        """
        self.kept = np.flatnonzero(kept)
        owners, prices = np.repeat(np.arange(len(self.orders)), self.counts)[kept], prices[kept]
        begins = np.ones(self.kept.size, np.bool_)
        begins[1:] = (owners[1:] != owners[:-1]) | (prices[1:] != prices[:-1])
        self.starts = np.flatnonzero(begins)
        self.row = np.cumsum(begins) - 1  # of each kept step
        self.owners, self.prices = owners[self.starts], prices[self.starts]
        lots = self.step_lots[kept]
        self.lots = np.add.reduceat(lots, self.starts) if lots.size else lots

    def ranks(self, rows: Ints) -> Ints:
        """Who of these rows comes first: by time, then by id. Only ties ask, and most orders are in none."""
        orders, owners = self.orders, self.owners[rows].tolist()
        in_order = sorted(range(len(owners)), key=lambda place: _rank(orders[owners[place]]))
        ranks = np.empty(len(owners), np.int64)
        ranks[in_order] = np.arange(len(owners))
        return ranks

    def best_first(self, rows: Sequence[int], *, is_bid: bool) -> list[int]:
        """One organization's rows: best price, then time, then id."""
        sign = -1 if is_bid else 1
        return sorted(
            rows, key=lambda row: (sign * int(self.prices[row]), *_rank(self.orders[int(self.owners[row])]))
        )

    def fills(self, row_fills: Ints) -> tuple[tuple[int, ...], ...]:
        """Lots of each step of each order: of joined steps the earlier fill first."""
        given = self.step_lots[self.kept]
        filled = np.zeros_like(self.step_lots)
        if self.starts.size == self.kept.size:
            filled[self.kept] = row_fills
        else:
            before = np.cumsum(given) - given
            earlier = before - before[self.starts][self.row]
            filled[self.kept] = np.clip(row_fills[self.row] - earlier, 0, given)
        numbers = filled.tolist()
        least, most = int(self.counts.min()), int(self.counts.max())
        if least == most:
            return tuple(zip(*(numbers[step::most] for step in range(most)), strict=True))
        left = iter(numbers)
        return tuple([tuple(islice(left, count)) for count in self.counts.tolist()])


def clear_flat(
    bids: Sequence[Order],
    asks: Sequence[Order],
    *,
    floor: int | None,
    lowest_ask: int | None,
    cap: int | None,
    tie_rule: TieRule,
    tick: int,
    net_self_trades: bool,
) -> Clearing | None:
    """As `pricing.clearing.clear`, of terms and ids that it has checked; None for a book that is not taken here."""
    if any(bound is not None and not -_MOST < bound < _MOST for bound in (floor, lowest_ask, cap)):
        return None
    buying, selling = _side(bids, is_bid=True), _side(asks, is_bid=False)
    if buying is None or selling is None:
        return None
    _clip_bids(buying, floor, cap)
    _clip_asks(selling, lowest_ask, cap)
    netted = _net(buying, selling) if net_self_trades else 0
    result = clear_arrays(
        buying.prices,
        buying.lots,
        selling.prices,
        selling.lots,
        bid_ranks=buying.ranks,
        ask_ranks=selling.ranks,
        tie_rule=tie_rule,
        tick=tick,
    )
    return Clearing(
        quantity_lots=result.quantity,
        price=result.price,
        price_low=result.price_low,
        price_high=result.price_high,
        welfare=result.welfare,
        bid_fills=buying.fills(result.bid_fills),
        ask_fills=selling.fills(result.ask_fills),
        netted_lots=netted,
    )


def _rank(order: Order) -> tuple[int, str]:
    return order.priority, order.id


def _side(orders: Sequence[Order], *, is_bid: bool) -> _Side | None:
    """The steps as arrays. None of no orders, with a minimum, a malformed order, or a number that does not fit."""
    if not orders or any(order.min_fill or order.all_or_none for order in orders):
        return None
    counts = [len(order.steps) for order in orders]
    steps = list(chain.from_iterable([order.steps for order in orders]))
    numbers = list(chain.from_iterable(steps))
    if min(counts) < 1 or max(counts) > MAX_STEPS or set(map(len, steps)) != {2}:
        return None
    # A truth value counts as a number in an array, and a fraction is cut off.
    if set(map(type, numbers)) != {int} or not -_MOST < min(numbers) <= max(numbers) < _MOST:
        return None
    flat = np.array(numbers, np.int64)
    side = _Side(orders, np.array(counts, np.int64), flat[::2].copy(), flat[1::2].copy())
    if int(side.step_lots.min()) < 0 or float(side.step_lots.sum(dtype=np.float64)) >= _MOST:
        return None
    rises = np.diff(side.step_prices) if is_bid else -np.diff(side.step_prices)
    # From an order's last step to the next one's first the price may do as it likes.
    rises[np.cumsum(side.counts)[:-1] - 1] = 0
    return None if bool((rises > 0).any()) else side


def _clip_bids(side: _Side, lowest: int | None, cap: int | None) -> None:
    kept = side.step_lots > 0
    if lowest is not None:
        kept &= side.step_prices >= lowest
    side.join(side.step_prices if cap is None else np.minimum(side.step_prices, cap), kept)


def _clip_asks(side: _Side, lowest: int | None, cap: int | None) -> None:
    prices = side.step_prices if lowest is None else np.maximum(side.step_prices, lowest)
    reserves = [-_MOST if order.reserve is None else order.reserve for order in side.orders]
    prices = np.maximum(prices, np.repeat(np.array(reserves, np.int64), side.counts))
    kept = side.step_lots > 0
    if cap is not None:
        kept &= prices <= cap
    side.join(prices, kept)


def _net(buying: _Side, selling: _Side) -> int:
    """Takes off what an organization would trade with itself: its best bids against its best asks while they cross."""
    both = {order.organization_id for order in buying.orders} & {
        order.organization_id for order in selling.orders
    }
    both.discard(None)
    if not both:
        return 0
    own_bids, own_asks = (_rows_of(both, side) for side in (buying, selling))
    netted = 0
    for organization in own_bids.keys() & own_asks.keys():
        bid_rows = buying.best_first(own_bids[organization], is_bid=True)
        ask_rows = selling.best_first(own_asks[organization], is_bid=False)
        i = j = 0
        while i < len(bid_rows) and j < len(ask_rows):
            bid, ask = bid_rows[i], ask_rows[j]
            if buying.prices[bid] < selling.prices[ask]:
                break
            lots = min(int(buying.lots[bid]), int(selling.lots[ask]))
            buying.lots[bid] -= lots
            selling.lots[ask] -= lots
            netted += lots
            i += not buying.lots[bid]
            j += not selling.lots[ask]
    return netted


def _rows_of(organizations: Set[str | None], side: _Side) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for row, owner in enumerate(side.owners.tolist()):
        if (organization := side.orders[owner].organization_id) in organizations:
            found.setdefault(organization, []).append(row)
    return found
