"""The spot auction of one grade: a two-sided call auction at a uniform price (DESIGN 7).

A result is a pure function of the book. Volume is the greatest among welfare-optimal outcomes; the price
is the midpoint, floored to a tick, of the interval that last accepted and first rejected orders leave (a
k-double auction with k = 1/2, Chatterjee and Samuelson 1983). Rejected orders with a minimum bind like
any other, unless they are rejected paradoxically, that is, would gain at the published price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pricing.book import (
    FIRST_RULE,
    RULE_VERSION,
    Clearing,
    Order,
    TieRule,
    check_order,
    digest_book,
    digest_result,
    filled_lots,
)
from pricing.clearing_blocks import Block, Levels, choose_blocks
from pricing.clearing_flat import clear_flat
from pricing.clearing_kernel import Crossing, clear_arrays, clear_integers, price_inside, share_lots
from pricing.clearing_minima import choose_minima

__all__ = [
    "Clearing",
    "Order",
    "TieRule",
    "clear",
    "clear_arrays",
    "digest_book",
    "digest_result",
    "filled_lots",
]

DEFAULT_SEARCH_LIMIT: Final = 5_000
_NUMPY_FROM_ROWS: Final = 512  # Below it plain integers are faster than setting arrays up.
_NUMPY_FROM_ORDERS: Final = 256


@dataclass(slots=True)
class _Row:
    """Steps of one order at one price, after clipping; `lots` shrinks by netting, `fill` is the result."""

    order: int
    price: int
    lots: int
    steps: list[int]
    fill: int = 0


def clear(
    bids: Sequence[Order],
    asks: Sequence[Order],
    *,
    floor: int | None = None,
    cap: int | None = None,
    reserve_price: int | None = None,
    tie_rule: TieRule | str = TieRule.PRO_RATA,
    tick: int = 1,
    net_self_trades: bool = True,
    search_limit: int = DEFAULT_SEARCH_LIMIT,
    rule: str = RULE_VERSION,
) -> Clearing:
    """Clears a book exactly, in integers.

    Bids above the cap count as bids at the cap and asks below the floor (or their reserve) as asks at it;
    a bid below the floor and an ask above the cap cannot trade and are left out, since clipping them
    would make them trade at a loss. `rule` is the version that the book was sealed under, `search_limit` the
    steps that each stage of the choice among minima may take. Raises ValueError, naming the field, for a
    malformed order, a repeated id, or terms without sense.
    """
    if rule not in (FIRST_RULE, RULE_VERSION):
        raise ValueError(f"rule: {rule!r} is not known")
    tie_rule = TieRule(tie_rule)
    if tick < 1:
        raise ValueError("tick: must be at least 1")
    if floor is not None and cap is not None and floor > cap:
        raise ValueError("floor: is above the cap")
    for orders in (bids, asks):
        if len({order.id for order in orders}) != len(orders):
            raise ValueError("id: occurs twice on one side of the book")
    lowest_ask = max((bound for bound in (floor, reserve_price) if bound is not None), default=None)
    if len(bids) + len(asks) >= _NUMPY_FROM_ORDERS:
        result = clear_flat(
            bids,
            asks,
            floor=floor,
            lowest_ask=lowest_ask,
            cap=cap,
            tie_rule=tie_rule,
            tick=tick,
            net_self_trades=net_self_trades,
        )
        if result is not None:
            return result
    for orders, is_bid in ((bids, True), (asks, False)):
        for order in orders:
            check_order(order, is_bid=is_bid)
    bid_rows = _rows(bids, is_bid=True, lowest=floor, cap=cap)
    ask_rows = _rows(asks, is_bid=False, lowest=lowest_ask, cap=cap)
    netted = 0
    if net_self_trades:
        bid_rows, ask_rows = _without_self_crossing_minima(bids, asks, bid_rows, ask_rows)
        netted = _net(bids, asks, bid_rows, ask_rows)
    bid_rows = [row for row in bid_rows if row.lots]
    ask_rows = [row for row in ask_rows if row.lots]

    blocks = _blocks(bids, bid_rows, is_bid=True) + _blocks(asks, ask_rows, is_bid=False)
    paradoxical: list[str] = []
    complete = True
    if blocks:
        crossing, price, paradoxical, complete = _clear_with_blocks(
            bids,
            asks,
            bid_rows,
            ask_rows,
            blocks,
            tie_rule=tie_rule,
            tick=tick,
            search_limit=search_limit,
            rule=rule,
        )
    else:
        crossing = _clear_divisible(bids, asks, bid_rows, ask_rows, tie_rule)
        price = _price(crossing.price_low, crossing.price_high, tick) if crossing.quantity else None
    return Clearing(
        quantity_lots=crossing.quantity,
        price=price,
        price_low=crossing.price_low,
        price_high=crossing.price_high,
        welfare=crossing.welfare,
        bid_fills=_fills(bids, bid_rows),
        ask_fills=_fills(asks, ask_rows),
        rejected_paradoxically=tuple(sorted(paradoxical)),
        netted_lots=netted,
        search_complete=complete,
    )


def _minimum(order: Order) -> int:
    return order.lots if order.all_or_none else order.min_fill


def _price(low: int | None, high: int | None, tick: int) -> int:
    assert low is not None
    assert high is not None
    return price_inside(low, high, tick)


def _rows(orders: Sequence[Order], *, is_bid: bool, lowest: int | None, cap: int | None) -> list[_Row]:
    rows: list[_Row] = []
    for index, order in enumerate(orders):
        bound = lowest
        if not is_bid and order.reserve is not None:
            bound = order.reserve if bound is None else max(bound, order.reserve)
        last: _Row | None = None
        for step, (limit, lots) in enumerate(order.steps):
            if not lots:
                continue
            if is_bid:
                if bound is not None and limit < bound:
                    continue
                price = limit if cap is None else min(limit, cap)
            else:
                price = limit if bound is None else max(limit, bound)
                if cap is not None and price > cap:
                    continue
            if last is not None and last.price == price:
                # Splitting an order into equal steps must not change its share of the remainder.
                last.lots += lots
                last.steps.append(step)
            else:
                last = _Row(index, price, lots, [step])
                rows.append(last)
    return rows


def _without_self_crossing_minima(
    bids: Sequence[Order], asks: Sequence[Order], bid_rows: list[_Row], ask_rows: list[_Row]
) -> tuple[list[_Row], list[_Row]]:
    """An order with a minimum cannot be netted in part: left out when it crosses its own organization's
    other side.
    """
    best_bid: dict[str, int] = {}
    best_ask: dict[str, int] = {}
    for row in bid_rows:
        if (organization := bids[row.order].organization_id) is not None:
            best_bid[organization] = max(row.price, best_bid.get(organization, row.price))
    for row in ask_rows:
        if (organization := asks[row.order].organization_id) is not None:
            best_ask[organization] = min(row.price, best_ask.get(organization, row.price))
    crossing = {name for name, price in best_bid.items() if name in best_ask and price >= best_ask[name]}
    if not crossing:
        return bid_rows, ask_rows
    out_bids = {
        row.order
        for row in bid_rows
        if _minimum(order := bids[row.order])
        and order.organization_id in crossing
        and row.price >= best_ask[order.organization_id or ""]
    }
    out_asks = {
        row.order
        for row in ask_rows
        if _minimum(order := asks[row.order])
        and order.organization_id in crossing
        and row.price <= best_bid[order.organization_id or ""]
    }
    return (
        [row for row in bid_rows if row.order not in out_bids],
        [row for row in ask_rows if row.order not in out_asks],
    )


def _net(bids: Sequence[Order], asks: Sequence[Order], bid_rows: list[_Row], ask_rows: list[_Row]) -> int:
    """Takes off what an organization would trade with itself: its best bids against its best asks while they
    cross.
    """
    own_bids: dict[str, list[_Row]] = {}
    own_asks: dict[str, list[_Row]] = {}
    for orders, rows, own in ((bids, bid_rows, own_bids), (asks, ask_rows, own_asks)):
        for row in rows:
            order = orders[row.order]
            if order.organization_id is not None and not _minimum(order):
                own.setdefault(order.organization_id, []).append(row)
    netted = 0
    for organization in own_bids.keys() & own_asks.keys():
        buying = sorted(
            own_bids[organization], key=lambda row: (-row.price, bids[row.order].priority, bids[row.order].id)
        )
        selling = sorted(
            own_asks[organization], key=lambda row: (row.price, asks[row.order].priority, asks[row.order].id)
        )
        i = j = 0
        while i < len(buying) and j < len(selling) and buying[i].price >= selling[j].price:
            lots = min(buying[i].lots, selling[j].lots)
            buying[i].lots -= lots
            selling[j].lots -= lots
            netted += lots
            i += not buying[i].lots
            j += not selling[j].lots
    return netted


def _ranks(orders: Sequence[Order]) -> list[int]:
    in_order = sorted(range(len(orders)), key=lambda index: (orders[index].priority, orders[index].id))
    ranks = [0] * len(orders)
    for rank, index in enumerate(in_order):
        ranks[index] = rank
    return ranks


def _clear_divisible(
    bids: Sequence[Order],
    asks: Sequence[Order],
    bid_rows: list[_Row],
    ask_rows: list[_Row],
    tie_rule: TieRule,
) -> Crossing:
    sides = []
    for orders, rows in ((bids, bid_rows), (asks, ask_rows)):
        ranks = _ranks(orders)
        sides.append(
            ([row.price for row in rows], [row.lots for row in rows], [ranks[row.order] for row in rows])
        )
    every = [number for prices, lots, _ in sides for number in (*prices, *lots)]
    if len(bid_rows) + len(ask_rows) >= _NUMPY_FROM_ROWS and -(2**63) <= min(every) <= max(every) < 2**63:
        (bid_prices, bid_lots, bid_ranks), (ask_prices, ask_lots, ask_ranks) = (
            (np.array(prices, np.int64), np.array(lots, np.int64), np.array(ranks, np.int64))
            for prices, lots, ranks in sides
        )
        result = clear_arrays(
            bid_prices,
            bid_lots,
            ask_prices,
            ask_lots,
            bid_ranks=bid_ranks,
            ask_ranks=ask_ranks,
            tie_rule=tie_rule,
        )
        crossing = Crossing(result.quantity, result.price_low, result.price_high, result.welfare)
        fills = [result.bid_fills.tolist(), result.ask_fills.tolist()]
    else:
        crossing, fills = clear_integers((sides[0], sides[1]), tie_rule)
    for rows, row_fills in zip((bid_rows, ask_rows), fills, strict=True):
        for row, fill in zip(rows, row_fills, strict=True):
            row.fill = fill
    return crossing


def _blocks(orders: Sequence[Order], rows: list[_Row], *, is_bid: bool) -> list[Block]:
    needed = {index: minimum for index, order in enumerate(orders) if (minimum := _minimum(order))}
    by_order: dict[int, list[tuple[int, int]]] = {}
    if needed:
        for row in rows:
            if row.order in needed:
                by_order.setdefault(row.order, []).append((row.price, row.lots))
    return [
        Block((orders[index].id, is_bid), is_bid, tuple(block_rows), needed[index])
        for index, block_rows in by_order.items()
    ]


def _clear_with_blocks(
    bids: Sequence[Order],
    asks: Sequence[Order],
    bid_rows: list[_Row],
    ask_rows: list[_Row],
    blocks: list[Block],
    *,
    tie_rule: TieRule,
    tick: int,
    search_limit: int,
    rule: str,
) -> tuple[Crossing, int | None, list[str], bool]:
    levels: list[Levels] = []
    with_minimum = {block.key for block in blocks}
    for orders, rows, is_bid in ((bids, bid_rows, True), (asks, ask_rows, False)):
        side: Levels = {}
        needing = {index for index, order in enumerate(orders) if (order.id, is_bid) in with_minimum}
        for row in rows:
            if row.order not in needing:
                side[row.price] = side.get(row.price, 0) + row.lots
        levels.append(side)
    choose = choose_blocks if rule == FIRST_RULE else choose_minima
    accepted, outcome, complete = choose(levels[0], levels[1], blocks, search_limit=search_limit)
    accepted_keys = {block.key: block for block in accepted}
    rejected = [block for block in blocks if block.key not in accepted_keys]
    if outcome.margin is None:
        low, high, paradoxical = _best_prices(levels, rejected)
        return Crossing(0, low, high, 0), None, paradoxical, complete
    for orders, rows, is_bid, taken in (
        (bids, bid_rows, True, outcome.bids_taken),
        (asks, ask_rows, False, outcome.asks_taken),
    ):
        _fill_side(orders, rows, is_bid, outcome.margin, taken, accepted_keys, tie_rule)
    low, high, price, paradoxical = _bind_rejected(outcome.crossing, rejected, tick)
    crossing = Crossing(outcome.crossing.quantity, low, high, outcome.crossing.welfare)
    return crossing, price, paradoxical, complete


def _best_prices(levels: list[Levels], rejected: list[Block]) -> tuple[int | None, int | None, list[str]]:
    """Without trade: best bid and ask, with those left out that cross the other side and only fail by their
    minimum.
    """
    bid_prices = list(levels[0]) + [block.rows[0][0] for block in rejected if block.is_bid]
    ask_prices = list(levels[1]) + [block.rows[0][0] for block in rejected if not block.is_bid]
    best_bid, best_ask = max(bid_prices, default=None), min(ask_prices, default=None)
    paradoxical: list[str] = []
    low, high = list(levels[0]), list(levels[1])
    for block in rejected:
        limit = block.limit
        if block.is_bid:
            if best_ask is not None and limit > best_ask:
                paradoxical.append(block.key[0])
            else:
                low.append(block.rows[0][0])
        elif best_bid is not None and limit < best_bid:
            paradoxical.append(block.key[0])
        else:
            high.append(block.rows[0][0])
    return max(low, default=None), min(high, default=None), paradoxical


def _bind_rejected(crossing: Crossing, rejected: list[Block], tick: int) -> tuple[int, int, int, list[str]]:
    """Lets rejected minima bind the interval unless they are in the money at the price it gives.

    Starts from the interval without them; each one that turns out not to gain at the price binds, which
    keeps that price inside, until nothing changes.
    """
    low, high = crossing.price_low, crossing.price_high
    assert low is not None
    assert high is not None
    bid_limits = [block.limit for block in rejected if block.is_bid]
    ask_limits = [block.limit for block in rejected if not block.is_bid]
    while True:
        price = price_inside(low, high, tick)
        new_low = max([low, *(limit for limit in bid_limits if limit <= price)])
        new_high = min([high, *(limit for limit in ask_limits if limit >= price)])
        if (new_low, new_high) == (low, high):
            break
        low, high = new_low, new_high
    paradoxical = [
        block.key[0] for block in rejected if (block.limit > price if block.is_bid else block.limit < price)
    ]
    return low, high, price, paradoxical


def _fill_side(
    orders: Sequence[Order],
    rows: list[_Row],
    is_bid: bool,
    margin: int,
    taken: int,
    accepted: dict[tuple[str, bool], Block],
    tie_rule: TieRule,
) -> None:
    """Minima first, then what is strictly better than the margin, then the tie at the margin."""
    ranks = _ranks(orders)
    taking_part: dict[int, Block] = {}
    left_out: set[int] = set()
    for index, order in enumerate(orders):
        if _minimum(order):
            block = accepted.get((order.id, is_bid))
            if block is None:
                left_out.add(index)
            else:
                taking_part[index] = block
    left_of_minimum = {index: block.minimum for index, block in taking_part.items()}
    at_margin: list[tuple[_Row, int]] = []
    for row in rows:
        if row.order in left_out:
            continue
        inside = 0
        if row.order in taking_part:
            inside = min(row.lots, left_of_minimum[row.order])
            left_of_minimum[row.order] -= inside
            row.fill = inside
            if inside and taking_part[row.order].limit == margin:
                taken -= inside
        if (row.price > margin) if is_bid else (row.price < margin):
            row.fill = row.lots
        elif row.price == margin and row.lots > inside:
            at_margin.append((row, row.lots - inside))
    shares = share_lots(
        [lots for _, lots in at_margin], taken, [ranks[row.order] for row, _ in at_margin], tie_rule
    )
    for (row, _), share in zip(at_margin, shares, strict=True):
        row.fill += share


def _fills(orders: Sequence[Order], rows: list[_Row]) -> tuple[tuple[int, ...], ...]:
    fills = [[0] * len(order.steps) for order in orders]
    for row in rows:
        left = row.fill
        for step in row.steps:
            lots = min(left, orders[row.order].steps[step][1])
            fills[row.order][step] = lots
            left -= lots
        assert left == 0
    return tuple(tuple(fill) for fill in fills)
