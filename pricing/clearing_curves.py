"""The curves of a book as they change: lots taken in and out, and the crossing after each change.

Lots and their value are kept in Fenwick trees over the prices (P. Fenwick 1994): a change and a crossing cost the
logarithm of the number of prices. All in plain integers, of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import accumulate
from operator import add, mul, sub
from typing import Final, NamedTuple

Entries = tuple[tuple[int, int], ...]  # (level, lots); a level is the place of a price, from 1

_PLANT_FROM_SHARE: Final = 10  # An order added one by one costs about as much as ten levels planted anew.


class CurveCrossing(NamedTuple):
    value: tuple[int, int]  # welfare, lots
    level: int
    bids_taken: int
    asks_taken: int


class Curves:
    """Lots and their value, cumulative over the levels, with the crossing of both sides."""

    def __init__(self, prices: list[int], bids_at: list[int], asks_at: list[int]) -> None:
        """Prices and lots by level, from 1: what stands at place 0 is 0."""
        self.prices, self.bids_at, self.asks_at = prices, bids_at, asks_at
        self.extra = 0
        size = len(prices)
        self._powers = [1 << bit for bit in reversed(range(size.bit_length()))]
        # A node of a Fenwick tree holds what lies beyond this place, up to its own.
        self._starts = [place & (place - 1) for place in range(size)]
        self._plant()

    def _plant(self) -> None:
        self.bid_lots = sum(self.bids_at)
        self.bid_value = sum(map(mul, self.bids_at, self.prices))
        both = list(map(add, self.bids_at, self.asks_at))
        self._lots, self._bids, self._values = (
            self._tree(both),
            self._tree(self.bids_at),
            self._tree(map(mul, both, self.prices)),
        )

    def _tree(self, values: Iterable[int]) -> list[int]:
        sums = list(accumulate(values))
        return list(map(sub, sums, map(sums.__getitem__, self._starts)))

    def copy(self) -> Curves:
        """Curves of their own, to which others may be added."""
        other = copy(self)
        for name in ("bids_at", "asks_at", "_lots", "_bids", "_values"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def add_all(self, some: Sequence[tuple[bool, Entries]], *, sign: int = 1) -> None:
        """Takes many orders in or out: one by one, or all trees anew where that is less work."""
        if len(some) * _PLANT_FROM_SHARE < len(self.prices):
            for is_bid, entries in some:
                self.add(entries, is_bid=is_bid, sign=sign)
            return
        for is_bid, entries in some:
            at = self.bids_at if is_bid else self.asks_at
            for level, lots in entries:
                at[level] += sign * lots
        self._plant()

    def add(self, entries: Entries, *, is_bid: bool, sign: int) -> None:
        """Takes lots in (sign 1) or out (sign -1)."""
        lots_tree, bids_tree, values_tree = self._lots, self._bids, self._values
        size = len(lots_tree)
        for level, some in entries:
            lots = some * sign
            value = lots * self.prices[level]
            at = level
            if is_bid:
                self.bids_at[level] += lots
                self.bid_lots += lots
                self.bid_value += value
                while at < size:
                    lots_tree[at] += lots
                    bids_tree[at] += lots
                    values_tree[at] += value
                    at += at & -at
            else:
                self.asks_at[level] += lots
                while at < size:
                    lots_tree[at] += lots
                    values_tree[at] += value
                    at += at & -at

    def up_to(self, level: int) -> tuple[int, int]:
        """Lots of bids and of asks at this level and below."""
        both = bids = 0
        while level:
            both += self._lots[level]
            bids += self._bids[level]
            level &= level - 1
        return bids, both - bids

    def cross(self) -> CurveCrossing | None:
        """The crossing at the lowest level at which asks up to it cover bids beyond it; None without a trade.

        Asks up to a level cover the bids beyond it as soon as both sides' lots up to it reach all bids' lots.
        """
        lots_tree, bids_tree, values_tree = self._lots, self._bids, self._values
        size, wanted = len(lots_tree), self.bid_lots
        if not wanted:
            return None
        place = together = bids_below = value_below = 0
        for power in self._powers:
            further = place + power
            if further < size and together + lots_tree[further] < wanted:
                place = further
                together += lots_tree[further]
                bids_below += bids_tree[further]
                value_below += values_tree[further]
        level = place + 1
        above = wanted - bids_below - self.bids_at[level]
        below = together - bids_below
        quantity = min(above + self.bids_at[level], below + self.asks_at[level])
        if not quantity:
            return None
        welfare = self.bid_value - value_below - self.prices[level] * (wanted - together)
        return CurveCrossing((welfare + self.extra, quantity), level, quantity - above, quantity - below)
