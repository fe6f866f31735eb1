"""The spot auction of several grades whose bids may take one for another (DESIGN 7).

A bid's step is worth `price + adjustment` in each grade that it accepts, an ask offers one grade, and each
grade trades at one price. The result maximises welfare, a linear program whose optimum and optimal prices
are found exactly in integers (`pricing.coupling_prices`), and is a pure function of the book:

- Grades joined by bids are cleared together. A grade that no bid joins to another is cleared by
  `pricing.clearing.clear`, minima included.
- Prices: of all optimal price vectors the floored midpoint of each grade's range, moved to ticks.
- Everybody strictly better than the prices, in a grade where he gains most, trades in full. The volume is
  the greatest that welfare leaves; ties go by the rules of `pricing.coupling_fills`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pricing.book import TieRule
from pricing.clearing import DEFAULT_SEARCH_LIMIT, clear
from pricing.coupling_book import (
    ComponentClearing,
    CoupledAsk,
    CoupledBid,
    CoupledClearing,
    CoupledTerms,
    GradeClearing,
    check_coupled,
)
from pricing.coupling_fills import Fills, Ranks, fill_rows, supporting_set
from pricing.coupling_prices import Market, choose_prices, market_of, supporting_prices
from pricing.coupling_rows import AskRow, BidRow, Component, alone, prepare, split_component

__all__ = ["CoupledAsk", "CoupledBid", "CoupledClearing", "CoupledTerms", "clear_coupled"]

BidFills = list[dict[str, list[int]]]


def clear_coupled(
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    *,
    terms: CoupledTerms | None = None,
    tie_rule: TieRule | str = TieRule.PRO_RATA,
    search_limit: int = DEFAULT_SEARCH_LIMIT,
) -> CoupledClearing:
    """Clears a book of several grades exactly.

    Raises ValueError, naming the field, for a malformed order, a repeated id, terms without sense, an order
    with a minimum in a grade that a bid joins to another, and for joined grades beyond what int64 holds:
    prices of 2**59, 2**62 lots, 62 grades. A lone grade has no such bounds.
    """
    terms = terms or CoupledTerms()
    tie_rule = TieRule(tie_rule)
    check_coupled(bids, asks)
    book = prepare(bids, asks, terms)
    bid_fills: BidFills = [{} for _ in bids]
    ask_fills = [[0] * len(ask.order.steps) for ask in asks]
    cleared = [
        ComponentClearing((GradeClearing(grade, 0, None, best, None),), 0)
        for grade, best in book.unsupplied.items()
    ]
    for component in book.components:
        if len(component.grades) == 1:
            cleared.append(
                _clear_alone(component, bids, asks, terms, tie_rule, search_limit, bid_fills, ask_fills)
            )
        else:
            cleared.append(_clear_joined(component, bids, asks, terms.tick, tie_rule, bid_fills, ask_fills))
    cleared.sort(key=lambda part: part.grades[0].grade)
    return CoupledClearing(
        tuple(cleared),
        tuple([{grade: tuple(fills[grade]) for grade in sorted(fills)} for fills in bid_fills]),
        tuple(map(tuple, ask_fills)),
    )


def _clear_alone(
    component: Component,
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    terms: CoupledTerms,
    tie_rule: TieRule,
    search_limit: int,
    bid_fills: BidFills,
    ask_fills: list[list[int]],
) -> ComponentClearing:
    (grade,) = component.grades
    buyers = list(dict.fromkeys(row.order for row in component.bids))
    sellers = list(dict.fromkeys(row.order for row in component.asks))
    result = clear(
        [alone(bids[index].order, bids[index].adjustments.get(grade, 0)) for index in buyers],
        [asks[index].order for index in sellers],
        floor=terms.floors.get(grade),
        cap=terms.caps.get(grade),
        reserve_price=terms.reserve_prices.get(grade),
        tick=terms.tick,
        net_self_trades=terms.net_self_trades,
        tie_rule=tie_rule,
        search_limit=search_limit,
    )
    for index, fill in zip(buyers, result.bid_fills, strict=True):
        if any(fill):
            bid_fills[index][grade] = list(fill)
    for index, fill in zip(sellers, result.ask_fills, strict=True):
        ask_fills[index] = list(fill)
    facts = GradeClearing(
        grade, result.quantity_lots, result.price, result.price_low, result.price_high, result.price
    )
    return ComponentClearing(
        (facts,), result.welfare, result.netted_lots, result.rejected_paradoxically, result.search_complete
    )


def _clear_joined(
    component: Component,
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    tick: int,
    tie_rule: TieRule,
    bid_fills: BidFills,
    ask_fills: list[list[int]],
) -> ComponentClearing:
    parts, best = split_component(component)
    facts = [GradeClearing(grade, 0, None, bid, ask) for grade, (bid, ask) in best.items()]
    welfare = 0
    for part in parts:
        market = market_of(part)
        ranks = Ranks(_places_of(bids, part.bids), _places_of(asks, part.asks))
        start = supporting_prices(market)
        some = fill_rows(market, start, ranks, tie_rule, fair=False)
        prices = supporting_set(market, some)
        chosen = choose_prices(prices, tick)
        fills = fill_rows(market, chosen, ranks, tie_rule, fair=True)
        welfare += _welfare(market, fills)
        volumes = _write_fills(part, market, fills, bids, asks, bid_fills, ask_fills)
        facts += (
            GradeClearing(grade, volume, price if volume else None, low, high, price)
            for grade, volume, price, low, high in zip(
                part.grades, volumes, chosen, prices.lows, prices.highs, strict=True
            )
        )
    facts.sort(key=lambda each: each.grade)
    return ComponentClearing(tuple(facts), welfare, component.netted_lots)


def _places_of(
    side: Sequence[CoupledBid] | Sequence[CoupledAsk], rows: Sequence[BidRow] | Sequence[AskRow]
) -> Callable[[int], tuple[int, str]]:
    def place(number: int) -> tuple[int, str]:
        order = side[rows[number].order].order
        return order.priority, order.id

    return place


def _welfare(market: Market, fills: Fills) -> int:
    """In Python's integers: lots x price may be beyond 64 bits."""
    traded = fills.bids > 0
    sold = fills.asks > 0
    paid = zip(market.values[traded].tolist(), fills.bids[traded].tolist(), strict=True)
    cost = zip(market.ask_prices[sold].tolist(), fills.asks[sold].tolist(), strict=True)
    value: int = sum(value * lots for value, lots in paid)
    expense: int = sum(price * lots for price, lots in cost)
    return value - expense


def _write_fills(
    part: Component,
    market: Market,
    fills: Fills,
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    bid_fills: BidFills,
    ask_fills: list[list[int]],
) -> list[int]:
    """Rows back to steps, the first steps first; returns the volume of each grade."""
    volumes = [0] * market.grades
    rows, places = np.nonzero(fills.bids)
    for number, grade, filled in zip(
        rows.tolist(), market.grade_of[rows, places].tolist(), fills.bids[rows, places].tolist(), strict=True
    ):
        volumes[grade] += filled
        row = part.bids[number]
        steps, own, name = bids[row.order].order.steps, bid_fills[row.order], part.grades[grade]
        if len(steps) == 1:
            own[name] = [filled]
            continue
        left = filled
        mine = own.setdefault(name, [0] * len(steps))
        for step in row.steps:
            taken = min(left, steps[step][1] - sum(each[step] for each in own.values()))
            mine[step] += taken
            left -= taken
    for ask_row, filled in zip(part.asks, fills.asks.tolist(), strict=True):
        left = filled
        for step in ask_row.steps if left else ():
            taken = min(left, asks[ask_row.order].order.steps[step][1])
            ask_fills[ask_row.order][step] = taken
            left -= taken
    return volumes
