"""Prices of several grades that support a welfare-optimal exchange, found and bounded exactly in integers.

Bids for one of several grades and asks of one grade each are an assignment market (Shapley and Shubik
1971). Its dual, the sum of all gains as a function of the grades' prices,

    sum over bid rows of lots x max(0, max over grades of value - price)
    + sum over ask rows of lots x max(0, price - limit),

is L-natural convex (Murota 2003): prices are optimal when no set of grades gains by going up, or down, by
one together, and the optimal prices are the integer points between bounds on prices and on differences of
two. So a descent by such sets, found as minimum cuts, from a coarse scale of prices to the finest ends at
the optimum of the linear program, and shortest paths bound the optimal prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pricing.coupling_flow import FlowGraph
from pricing.coupling_rows import Component

Ints = npt.NDArray[np.int64]

MAX_PRICE: Final = 2**59  # Sums of a few prices stay inside int64.
MAX_LOTS: Final = 2**62
MAX_GRADES: Final = 62  # Sets of grades are bits of an int64.
_FIRST_BITS: Final = 7
_NEVER: Final = 2**61  # The price of the grade that pads the rows.


@dataclass(frozen=True, slots=True)
class Market:
    """A component in arrays: rows of bids with up to K grades each, padded with a grade beyond the last."""

    grades: int
    grade_of: Ints  # (rows, K), ascending
    values: Ints  # (rows, K)
    bid_lots: Ints
    ask_grades: Ints
    ask_prices: Ints
    ask_lots: Ints
    curves: tuple[tuple[Ints, Ints], ...]  # for each grade: ask prices ascending, lots before each

    def supply(self, grade: int, price: int) -> int:
        """Lots asked for strictly less than `price`."""
        prices, before = self.curves[grade]
        return int(before[np.searchsorted(prices, price)])


def market_of(component: Component) -> Market:
    """Raises ValueError, naming the field, where prices, lots or grades are too many for exact int64."""
    number = {grade: index for index, grade in enumerate(component.grades)}
    if len(number) > MAX_GRADES:
        raise ValueError(f"adjustments: bids join {len(number)} grades, allowed are {MAX_GRADES}")
    sizes = [len(row.grades) for row in component.bids]
    lots = ([row.lots for row in component.bids], [row.lots for row in component.asks])
    flat_values = [value for row in component.bids for value in row.worth]
    ask_prices = [row.price for row in component.asks]
    if max(map(sum, lots)) >= MAX_LOTS:
        raise ValueError("steps: the lots of joined grades must come to less than 2**62")
    least, most = (choose(choose(flat_values), choose(ask_prices)) for choose in (min, max))
    if max(-least, most) >= MAX_PRICE:
        raise ValueError("steps: prices in joined grades must lie within 2**59")
    flat_grades = np.array([number[grade] for row in component.bids for grade in row.grades], np.int64)
    width = max(sizes)
    inside = np.arange(width) < np.array(sizes, np.int64)[:, None]
    grade_of = np.full(inside.shape, len(number), np.int64)
    values = np.zeros(inside.shape, np.int64)
    grade_of[inside] = flat_grades
    values[inside] = np.array(flat_values, np.int64)
    asks = (
        np.array([number[row.grade] for row in component.asks], np.int64),
        np.array(ask_prices, np.int64),
        np.array(lots[1], np.int64),
    )
    curves = []
    for grade in range(len(number)):
        mine = asks[0] == grade
        order = np.argsort(asks[1][mine])
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(asks[2][mine][order])])
        curves.append((asks[1][mine][order], before))
    return Market(len(number), grade_of, values, np.array(lots[0], np.int64), *asks, tuple(curves))


@dataclass(frozen=True, slots=True)
class Demand:
    """What each row wants at given prices: its best gain (0 and more: it may trade), and where it has that."""

    gain: Ints
    best: npt.NDArray[np.bool_]  # (rows, K)

    def sets(self, market: Market, rows: npt.NDArray[np.bool_]) -> Ints:
        """For these rows, the grades of the best gain as bits."""
        bits = np.append(np.int64(1) << np.arange(market.grades, dtype=np.int64), np.int64(0))
        return np.asarray((bits[market.grade_of[rows]] * self.best[rows]).sum(axis=1), np.int64)


def demand_at(market: Market, values: Ints, prices: Sequence[int]) -> Demand:
    padded = np.array([*prices, _NEVER], np.int64)
    gains = values - padded[market.grade_of]
    gain = gains.max(axis=1)
    return Demand(gain, gains == gain[:, None])


def lots_by_set(sets: Ints, lots: Ints) -> dict[int, int]:
    if not sets.size:
        return {}
    order = np.argsort(sets)
    ordered = sets[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return dict(zip(ordered[starts].tolist(), np.add.reduceat(lots[order], starts).tolist(), strict=True))


def members(grade_set: int) -> list[int]:
    return [grade for grade in range(grade_set.bit_length()) if grade_set >> grade & 1]


# ---- descent


def supporting_prices(market: Market) -> list[int]:
    """One vector of optimal prices, which of them is left open."""
    least = min(int(market.values[market.grade_of < market.grades].min()), int(market.ask_prices.min()))
    most = max(int(market.values[market.grade_of < market.grades].max()), int(market.ask_prices.max()))
    # Coarser than this most bids are indifferent between grades, which makes the cuts large.
    coarsest = max(0, (most - least).bit_length() - _FIRST_BITS)
    prices = [(price - least) >> coarsest for price in _prices_without_substitution(market)]
    for shift in range(coarsest, -1, -1):
        # Prices are counted from `least` in units of 2**shift, which the last round brings down to 1.
        values = (market.values - least) >> shift
        if shift < coarsest:
            prices = [2 * price for price in prices]
        while True:
            step = _improving_step(market, values, prices, least, shift)
            if not any(step):
                break
            prices = [price + move for price, move in zip(prices, step, strict=True)]
    return [price + least for price in prices]


def _prices_without_substitution(market: Market) -> list[int]:
    """A guess to begin with: where asks meet the bids that are worth most in this grade."""
    worth = np.where(market.grade_of < market.grades, market.values, -_NEVER)
    favourite = worth.argmax(axis=1)[:, None]
    grades = np.take_along_axis(market.grade_of, favourite, axis=1)[:, 0]
    values = np.take_along_axis(worth, favourite, axis=1)[:, 0]
    guess = []
    for grade, (ask_prices, asked_before) in enumerate(market.curves):
        mine = grades == grade
        order = np.argsort(values[mine])
        wanted = np.cumsum(market.bid_lots[mine][order][::-1])[::-1]
        # Of the bids in ascending order, the first beyond which the asks up to it suffice.
        enough = asked_before[np.searchsorted(ask_prices, values[mine][order], side="right")] >= wanted
        guess.append(int(values[mine][order][np.argmax(enough)] if enough.any() else ask_prices[-1]))
    return guess


def _improving_step(market: Market, values: Ints, prices: Sequence[int], least: int, shift: int) -> list[int]:
    """The set of grades to raise, or to lower, by one; all zeros at the optimum."""
    demand = demand_at(market, values, prices)
    wants = _weights(market, demand, demand.gain > 0)
    up_to = [market.supply(g, ((price + 1) << shift) + least) for g, price in enumerate(prices)]
    scarce = _unserved(wants, up_to)
    if any(scarce):
        return [int(each) for each in scarce]
    below = [market.supply(g, (price << shift) + least) for g, price in enumerate(prices)]
    takes = _weights(market, demand, demand.gain >= 0)
    return [-int(each) for each in _unsold(takes, below)]


def _weights(market: Market, demand: Demand, rows: npt.NDArray[np.bool_]) -> dict[int, int]:
    return lots_by_set(demand.sets(market, rows), market.bid_lots[rows])


def _unserved(wants: dict[int, int], supply: Sequence[int]) -> list[bool]:
    """Grades that buyers who want nothing else want more of than there is."""
    count = len(supply)
    source, sink = count, count + 1
    graph, loose = _bipartite(count, wants)
    edges = []
    for node, (grade_set, lots) in loose:
        edges.append(graph.add_edge(source, node, lots))
        for grade in members(grade_set):
            graph.add_edge(node, grade, None)
    for grade in range(count):
        edges.append(graph.add_edge(source, grade, wants.get(1 << grade, 0)))
        graph.add_edge(grade, sink, supply[grade])
    return _reached(graph, source, sink, sum(wants.values()), count)


def _unsold(takes: dict[int, int], supply: Sequence[int]) -> list[bool]:
    """Grades of which more must be sold than anybody takes."""
    count = len(supply)
    source, sink = count, count + 1
    graph, loose = _bipartite(count, takes)
    for node, (grade_set, lots) in loose:
        graph.add_edge(node, sink, lots)
        for grade in members(grade_set):
            graph.add_edge(grade, node, None)
    for grade in range(count):
        graph.add_edge(source, grade, supply[grade])
        graph.add_edge(grade, sink, takes.get(1 << grade, 0))
    return _reached(graph, source, sink, sum(supply), count)


def _bipartite(count: int, lots: dict[int, int]) -> tuple[FlowGraph, list[tuple[int, tuple[int, int]]]]:
    several = sorted(item for item in lots.items() if item[0] & (item[0] - 1))
    return FlowGraph(count + 2 + len(several)), list(enumerate(several, count + 2))


def _reached(graph: FlowGraph, source: int, sink: int, needed: int, count: int) -> list[bool]:
    if graph.send(source, sink) == needed:
        return [False] * count
    return [level >= 0 for level in graph.levels(source)[:count]]


# ---- all optimal prices, and the one that is published


@dataclass(frozen=True, slots=True)
class PriceSet:
    """The integer points with `lows <= prices <= highs` and `prices[g] - prices[h] <= gaps[g][h]`, all tight."""

    lows: tuple[int, ...]
    highs: tuple[int, ...]
    gaps: tuple[tuple[int | None, ...], ...]


def price_set(
    lows: Sequence[int | None], highs: Sequence[int | None], gaps: Sequence[Sequence[int | None]]
) -> PriceSet:
    """Tightens bounds by shortest paths (Floyd 1962). Some prices must meet them, and all be bounded on both sides."""
    count = len(lows)
    # Node `count` is the price 0.
    longest: list[list[int | None]] = [[*gaps[g], highs[g]] for g in range(count)]
    longest.append([*(None if low is None else -low for low in lows), 0])
    for node in range(count):
        longest[node][node] = 0
    for middle in range(count + 1):
        through = longest[middle]
        for row in longest:
            first = row[middle]
            if first is None:
                continue
            for end, second in enumerate(through):
                if second is not None:
                    known = row[end]
                    if known is None or first + second < known:
                        row[end] = first + second
    assert all(row[node] == 0 for node, row in enumerate(longest)), "no prices meet these bounds"
    tight_lows = [-low for low in longest[count][:count] if low is not None]
    tight_highs = [row[count] for row in longest[:count] if row[count] is not None]
    assert len(tight_lows) == len(tight_highs) == count, "a price without bounds"
    return PriceSet(
        tuple(tight_lows),
        tuple(high for high in tight_highs if high is not None),
        tuple(tuple(row[:count]) for row in longest[:count]),
    )


def choose_prices(prices: PriceSet, tick: int) -> list[int]:
    """Grade by grade in the order of their names: the midpoint of the grade's range floored to a tick.

    Where the grades before do not leave that, the tick above; where they leave neither, the midpoint
    itself, or the price next to it that they leave. With a tick of 1 it is the midpoint for all grades:
    the floored midpoint of two optimal price vectors is optimal.
    """
    chosen: list[int] = []
    for grade, (lowest, highest) in enumerate(zip(prices.lows, prices.highs, strict=True)):
        middle = (lowest + highest) // 2
        low, high = lowest, highest
        for other, price in enumerate(chosen):
            above, below = prices.gaps[grade][other], prices.gaps[other][grade]
            high = high if above is None else min(high, price + above)
            low = low if below is None else max(low, price - below)
        floored = middle // tick * tick
        if low <= floored <= high:
            chosen.append(floored)
        elif low <= floored + tick <= high:
            chosen.append(floored + tick)
        else:
            chosen.append(min(max(middle, low), high))
    return chosen
