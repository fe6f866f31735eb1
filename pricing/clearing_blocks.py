"""Orders with a minimum (all-or-none is the greatest one): which of them to accept.

An accepted order's minimum trades in full and never at a loss, at its worst step even, so its hold covers
it; its other lots are ordinary. Among the consistent choices: greatest welfare, then volume, then the
lexicographically smallest set of ids. Found by depth-first branch and bound over sets in that order; the
bound of a branch is the crossing with everything undecided taken as divisible. The search is bounded by a
count, not by a clock, so that it can be replayed; beyond it the fallback holds: reject the least surplus
first until the rest is consistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pricing.clearing_kernel import Crossing, cross_levels

Levels = dict[int, int]


@dataclass(frozen=True, slots=True)
class Block:
    """One order with a minimum: its rows (price, lots) best first, of which the first `minimum` lots go
    together.
    """

    key: tuple[str, bool]  # (order id, is a bid)
    is_bid: bool
    rows: tuple[tuple[int, int], ...]
    minimum: int

    @property
    def lots(self) -> int:
        return sum(lots for _, lots in self.rows)

    @property
    def limit(self) -> int:
        """The worst price of its minimum."""
        left = self.minimum
        for price, lots in self.rows:
            left -= lots
            if left <= 0:
                return price
        return self.rows[-1][0]

    def parts(self) -> tuple[int, list[int]]:
        """The limit price of the minimum, and for each row how many of its lots belong to the minimum."""
        left = self.minimum
        limit = self.rows[0][0]
        inside: list[int] = []
        for price, lots in self.rows:
            taken = min(lots, left)
            if taken:
                limit = price
            inside.append(taken)
            left -= taken
        return limit, inside


@dataclass(frozen=True, slots=True)
class Outcome:
    """The crossing of a consistent choice, with the lots that trade at the margin."""

    crossing: Crossing
    margin: int | None
    bids_taken: int
    asks_taken: int

    @property
    def value(self) -> tuple[int, int]:
        return self.crossing.welfare, self.crossing.quantity


def _add(levels: Levels, price: int, lots: int) -> None:
    if lots:
        levels[price] = levels.get(price, 0) + lots


def evaluate(bids: Levels, asks: Levels, accepted: Iterable[Block]) -> tuple[Outcome, list[Block]]:
    """Crosses the divisible levels with accepted blocks; also returns the blocks whose minimum does not
    fill.
    """
    accepted = list(accepted)
    sides = {True: dict(bids), False: dict(asks)}
    forced: dict[bool, Levels] = {True: {}, False: {}}
    limits: list[int] = []
    inside_value = 0
    for block in accepted:
        limit, inside = block.parts()
        limits.append(limit)
        _add(sides[block.is_bid], limit, block.minimum)
        _add(forced[block.is_bid], limit, block.minimum)
        for (price, lots), taken in zip(block.rows, inside, strict=True):
            inside_value += (price - limit if block.is_bid else limit - price) * taken
            _add(sides[block.is_bid], price, lots - taken)
    crossing, margin, bids_taken, asks_taken = cross_levels(sides[True], sides[False])
    taken_at = {True: bids_taken, False: asks_taken}
    unfilled: list[Block] = []
    for block, limit in zip(accepted, limits, strict=True):
        if margin is None:
            unfilled.append(block)
        elif limit == margin:
            if forced[block.is_bid][margin] > taken_at[block.is_bid]:
                unfilled.append(block)
        elif (limit < margin) == block.is_bid:
            unfilled.append(block)
    valued = Crossing(
        crossing.quantity, crossing.price_low, crossing.price_high, crossing.welfare + inside_value
    )
    return Outcome(valued, margin, bids_taken, asks_taken), unfilled


def _bound(bids: Levels, asks: Levels, blocks: Iterable[Block]) -> tuple[int, int]:
    sides = {True: dict(bids), False: dict(asks)}
    for block in blocks:
        for price, lots in block.rows:
            _add(sides[block.is_bid], price, lots)
    crossing, *_ = cross_levels(sides[True], sides[False])
    return crossing.welfare, crossing.quantity


def _fall_back(bids: Levels, asks: Levels, blocks: Sequence[Block]) -> tuple[list[Block], Outcome]:
    chosen = list(blocks)
    while True:
        outcome, unfilled = evaluate(bids, asks, chosen)
        if not unfilled:
            return chosen, outcome
        # Without a price the order's own limit measures how much it wants to trade.
        price = outcome.margin or 0

        def surplus(block: Block, price: int = price) -> tuple[int, tuple[str, bool]]:
            limit = block.limit
            return (limit - price if block.is_bid else price - limit) * block.minimum, block.key

        chosen.remove(min(unfilled, key=surplus))


def choose_blocks(
    bids: Levels, asks: Levels, blocks: Sequence[Block], *, search_limit: int
) -> tuple[list[Block], Outcome, bool]:
    """The accepted blocks, their outcome, and whether the choice is proved best within `search_limit`
    crossings.
    """
    candidates = sorted(
        (block for block in blocks if block.lots >= block.minimum), key=lambda block: block.key
    )
    chosen, outcome = _fall_back(bids, asks, candidates)
    best = outcome.value
    found_in_order = False  # The fallback's set need not be the smallest of its value.
    start, _ = evaluate(bids, asks, [])
    if start.value >= best:
        chosen, outcome, best, found_in_order = [], start, start.value, True
    stack: list[tuple[tuple[Block, ...], int]] = [((), 0)]
    spent = 0
    while stack:
        accepted, position = stack.pop()
        if position == len(candidates):
            continue
        spent += 1
        if spent > search_limit:
            return chosen, outcome, False
        bound = _bound(bids, asks, [*accepted, *candidates[position:]])
        if bound < best or (bound == best and found_in_order):
            continue  # Later siblings have even less to choose from.
        stack.append((accepted, position + 1))
        grown = (*accepted, candidates[position])
        result, unfilled = evaluate(bids, asks, grown)
        if not unfilled and (result.value > best or (result.value == best and not found_in_order)):
            chosen, outcome, best, found_in_order = list(grown), result, result.value, True
        stack.append((grown, position + 1))
    return chosen, outcome, True
