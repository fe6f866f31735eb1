"""Who gets what at given prices of several grades: the greatest volume, and ties by rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pricing.book import TieRule
from pricing.clearing_kernel import share_lots
from pricing.coupling_flow import FlowGraph
from pricing.coupling_prices import (
    Demand,
    Ints,
    Market,
    PriceSet,
    demand_at,
    lots_by_set,
    members,
    price_set,
)

_OPEN: Final = 2**62


@dataclass(frozen=True, slots=True)
class Fills:
    bids: Ints  # (rows, K), beside `Market.grade_of`
    asks: Ints


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of a row, by number, the place of its order on its side of the book: its priority and its id."""

    of_bid: Callable[[int], tuple[int, str]]
    of_ask: Callable[[int], tuple[int, str]]


def fill_rows(market: Market, prices: Sequence[int], ranks: Ranks, tie_rule: TieRule, *, fair: bool) -> Fills:
    """Fills at optimal prices: those of the rules, or without `fair` any optimal ones."""
    demand = demand_at(market, market.values, prices)
    must, may = demand.gain > 0, demand.gain == 0
    classes = [
        (grade_set, is_sure, lots)
        for is_sure, rows in ((True, must), (False, may))
        for grade_set, lots in lots_by_set(demand.sets(market, rows), market.bid_lots[rows]).items()
    ]
    classes.sort(key=class_order)
    below = [market.supply(grade, price) for grade, price in enumerate(prices)]
    at = [
        market.supply(grade, price + 1) - lots
        for (grade, price), lots in zip(enumerate(prices), below, strict=True)
    ]
    flows = class_flows(classes, below, at, fair=fair)
    bid_fills = _fill_bids(market, demand, classes, flows, ranks, tie_rule)
    volumes = [0] * market.grades
    for flow in flows:
        for grade, lots in flow.items():
            volumes[grade] += lots
    asked = np.array(prices, np.int64)[market.ask_grades]
    ask_fills = market.ask_lots * (market.ask_prices < asked)
    for grade in range(market.grades):
        if volumes[grade] > below[grade]:
            rows = np.flatnonzero((market.ask_grades == grade) & (market.ask_prices == asked))
            ask_fills[rows] = share_lots(
                market.ask_lots[rows].tolist(),
                volumes[grade] - below[grade],
                _places([ranks.of_ask(row) for row in rows.tolist()]),
                tie_rule,
            )
    return Fills(bid_fills, ask_fills)


def class_order(each: tuple[int, bool, int]) -> tuple[bool, int, list[int]]:
    """Of (set of grades, trades surely, lots): sure ones first, then those with the fewest grades, by name."""
    grade_set, is_sure, _ = each
    return not is_sure, grade_set.bit_count(), members(grade_set)


def class_flows(
    classes: list[tuple[int, bool, int]], below: list[int], at: list[int], *, fair: bool
) -> list[dict[int, int]]:
    """Lots from each class of bids to each of its grades: as many as possible in all; then, if `fair`, to
    class by class of those that need not trade as many as that leaves.

    Where several flows do that, it is the one that Dinic's algorithm finds with classes and grades in this
    order, so the result depends on nothing else.
    """
    count = len(below)
    source, sink, first, last = range(count, count + 4)
    graph = FlowGraph(count + 4 + len(classes))
    # What must flow comes from `first` or goes to `last`: the usual way to give edges lower bounds.
    around = graph.add_edge(sink, source, None)
    sure = sum(lots for _, is_sure, lots in classes if is_sure)
    graph.add_edge(source, last, sure)
    graph.add_edge(first, sink, sum(below))
    entries: list[int] = []
    edges: list[list[tuple[int, int]]] = []
    for node, (grade_set, is_sure, lots) in enumerate(classes, count + 4):
        entries.append(graph.add_edge(first if is_sure else source, node, lots))
        edges.append([(grade, graph.add_edge(node, grade, None)) for grade in members(grade_set)])
    for grade in range(count):
        graph.add_edge(grade, last, below[grade])
        graph.add_edge(grade, sink, at[grade])
    obeyed = graph.send(first, last)
    assert obeyed == sure + sum(below), "these prices do not support an optimum"
    graph.close(around)
    graph.send(source, sink)
    if fair:
        for node, ((_, is_sure, lots), entry) in enumerate(zip(classes, entries, strict=True), count + 4):
            if not is_sure:
                missing = lots - graph.flow(entry)
                graph.close(entry)
                # What this class can still get is what classes after it give back.
                graph.send(node, source, missing)
    return [{grade: lots for grade, edge in own if (lots := graph.flow(edge))} for own in edges]


def _fill_bids(
    market: Market,
    demand: Demand,
    classes: list[tuple[int, bool, int]],
    flows: list[dict[int, int]],
    ranks: Ranks,
    tie_rule: TieRule,
) -> Ints:
    fills = np.zeros_like(market.values)
    for is_sure, among in ((True, demand.gain > 0), (False, demand.gain == 0)):
        rows = np.flatnonzero(among)
        sets = demand.sets(market, among)
        if is_sure:
            alone = (sets & (sets - 1)) == 0
            full = rows[alone]
            fills[full] = demand.best[full] * market.bid_lots[full, None]
            rows, sets = rows[~alone], sets[~alone]
        by_set = {
            grade_set: flow
            for (grade_set, sure, _), flow in zip(classes, flows, strict=True)
            if sure is is_sure
        }
        for grade_set in np.unique(sets).tolist():
            flow = by_set[grade_set]
            mine = rows[sets == grade_set].tolist()
            lots = market.bid_lots[mine].tolist()
            if not is_sure:
                lots = _share_by_order(mine, lots, sum(flow.values()), ranks, tie_rule)
            in_rank = sorted(range(len(mine)), key=lambda place: (ranks.of_bid(mine[place]), mine[place]))
            _deal(fills, market.grade_of, [(mine[place], lots[place]) for place in in_rank], flow)
    return fills


def _share_by_order(
    rows: list[int], lots: list[int], available: int, ranks: Ranks, tie_rule: TieRule
) -> list[int]:
    """Rows of one order share as one, the earlier first, so that steps gain nothing over one step."""
    owners = [ranks.of_bid(row) for row in rows]
    open_of: dict[tuple[int, str], int] = {}
    for owner, mine in zip(owners, lots, strict=True):
        open_of[owner] = open_of.get(owner, 0) + mine
    shares = share_lots(list(open_of.values()), available, _places(list(open_of)), tie_rule)
    left = dict(zip(open_of, shares, strict=True))
    shared = []
    for owner, mine in zip(owners, lots, strict=True):
        taken = min(mine, left[owner])
        left[owner] -= taken
        shared.append(taken)
    return shared


def _places(keys: list[tuple[int, str]]) -> list[int]:
    place_of = {key: place for place, key in enumerate(sorted(keys))}
    return [place_of[key] for key in keys]


def _deal(fills: Ints, grade_of: Ints, rows: list[tuple[int, int]], flow: dict[int, int]) -> None:
    """Hands the grades out, by name, to the rows in turn."""
    grades = iter(sorted(flow.items()))
    grade, left = next(grades, (0, 0))
    for row, lots in rows:
        wanted = lots
        while wanted:
            while not left:
                grade, left = next(grades)
            dealt = min(wanted, left)
            fills[row, grade_of[row].tolist().index(grade)] += dealt
            wanted -= dealt
            left -= dealt


# ---- which prices support given fills


def supporting_set(market: Market, fills: Fills) -> PriceSet:
    """All optimal prices, by complementary slackness with fills that are optimal."""
    count = market.grades
    highs = np.full(count + 1, _OPEN, np.int64)
    lows = np.full(count + 1, -_OPEN, np.int64)
    gaps = np.full((count + 1, count + 1), _OPEN, np.int64)
    filled = fills.bids.sum(axis=1)
    short = filled < market.bid_lots
    np.maximum.at(lows, market.grade_of[short], market.values[short])
    rows, places = np.nonzero(fills.bids)
    grades, worth = market.grade_of[rows, places], market.values[rows, places]
    np.minimum.at(highs, grades, worth)
    for place in range(market.grade_of.shape[1]):
        np.minimum.at(gaps, (grades, market.grade_of[rows, place]), worth - market.values[rows, place])
    sold, unsold = fills.asks > 0, fills.asks < market.ask_lots
    np.maximum.at(lows, market.ask_grades[sold], market.ask_prices[sold])
    np.minimum.at(highs, market.ask_grades[unsold], market.ask_prices[unsold])
    return price_set(
        [None if low == -_OPEN else low for low in lows[:count].tolist()],
        [None if high == _OPEN else high for high in highs[:count].tolist()],
        [[None if gap == _OPEN else gap for gap in row[:count]] for row in gaps[:count].tolist()],
    )
