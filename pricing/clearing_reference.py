"""The second engine: the same auction by another method, for checking a result before it is published.

It scans candidate prices and tests each against the definition of a clearing price, `D(p+) <= q <= D(p)` and
`S(p-) <= q <= S(p)`, instead of finding the margin. Minima are chosen by trying every set (small books),
or a given choice is checked. It shares only the types of the book with the first engine.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, combinations
from typing import Final, NamedTuple

from pricing.book import Clearing, Order, TieRule, digest_result

MAX_MINIMA_TRIED: Final = 12


class EnginesDisagree(Exception):
    """The second engine does not confirm a result: it must not be published."""


class _Unit(NamedTuple):
    """Lots at one price. A minimum is one unit at its worst price, whose extra value is known in advance."""

    price: int
    lots: int
    order: int
    steps: tuple[tuple[int, int], ...]  # (step, lots), in the order they fill
    is_minimum: bool


class _Side:
    """Cumulative lots over sorted prices."""

    def __init__(self, units: Sequence[_Unit]) -> None:
        ordered = sorted(units, key=lambda unit: unit.price)
        self.prices = [unit.price for unit in ordered]
        self.sums = [0, *accumulate(unit.lots for unit in ordered)]
        self.values = [0, *accumulate(unit.lots * unit.price for unit in ordered)]
        self.minima: dict[int, int] = {}
        for unit in ordered:
            if unit.is_minimum:
                self.minima[unit.price] = self.minima.get(unit.price, 0) + unit.lots
        self.least, self.most = min(self.minima, default=None), max(self.minima, default=None)

    def below(self, price: int) -> int:
        return self.sums[bisect_left(self.prices, price)]

    def up_to(self, price: int) -> int:
        return self.sums[bisect_right(self.prices, price)]

    def value_below(self, price: int) -> int:
        return self.values[bisect_left(self.prices, price)]

    def value_above(self, price: int) -> int:
        return self.values[-1] - self.values[bisect_right(self.prices, price)]


class _Trial(NamedTuple):
    welfare: int
    quantity: int
    low: int
    high: int


def reference_clear(
    bids: Sequence[Order],
    asks: Sequence[Order],
    *,
    floor: int | None = None,
    cap: int | None = None,
    reserve_price: int | None = None,
    tie_rule: TieRule | str = TieRule.PRO_RATA,
    tick: int = 1,
    net_self_trades: bool = True,
    accepted: frozenset[tuple[str, bool]] | None = None,
) -> Clearing:
    """Clears as `pricing.clearing.clear` does.

    `accepted` fixes which orders with a minimum take part, as (order id, is a bid); without it all sets are tried,
    for at most 12 such orders (ValueError beyond).
    """
    buying = [_clipped_bid(order, floor, cap) for order in bids]
    selling = [_clipped_ask(order, floor, cap, reserve_price) for order in asks]
    netted = _net_organizations(bids, asks, buying, selling) if net_self_trades else 0
    minima = [
        (order.id, is_bid)
        for orders, steps, is_bid in ((bids, buying, True), (asks, selling, False))
        for order, live in zip(orders, steps, strict=True)
        if _needs(order) and any(lots for _, lots in live)
    ]
    sets: Iterator[frozenset[tuple[str, bool]]]
    if accepted is not None:
        sets = iter([accepted])
    elif len(minima) > MAX_MINIMA_TRIED:
        raise ValueError(f"bids: more than {MAX_MINIMA_TRIED} orders with a minimum")
    else:
        sets = (frozenset(some) for size in range(len(minima) + 1) for some in combinations(minima, size))
    best: tuple[_Trial, frozenset[tuple[str, bool]], list[list[_Unit]]] | None = None
    for chosen in sets:
        units = [
            _units(bids, buying, chosen, is_bid=True),
            _units(asks, selling, chosen, is_bid=False),
        ]
        trial = _try_prices(units[0], units[1], nothing_needed=not chosen)
        if trial is None:
            continue
        for side, is_bid, prices in ((units[0], True, buying), (units[1], False, selling)):
            for unit in side:
                if unit.is_minimum:
                    gain = sum((prices[unit.order][step][0] - unit.price) * lots for step, lots in unit.steps)
                    trial = trial._replace(welfare=trial.welfare + (gain if is_bid else -gain))
        if best is None or (-trial.welfare, -trial.quantity, sorted(chosen)) < (
            -best[0].welfare,
            -best[0].quantity,
            sorted(best[1]),
        ):
            best = trial, chosen, [units[0], units[1]]
    if best is None:
        raise ValueError("accepted: the orders with a minimum cannot be filled")
    trial, chosen, (bid_units, ask_units) = best
    limits = {
        (order.id, is_bid): _limit(order, live)
        for orders, steps, is_bid in ((bids, buying, True), (asks, selling, False))
        for order, live in zip(orders, steps, strict=True)
        if _needs(order)
    }
    rejected = [(key, limits[key]) for key in minima if key not in chosen]
    bid_fills = [[0] * len(order.steps) for order in bids]
    ask_fills = [[0] * len(order.steps) for order in asks]
    if not trial.quantity:
        low, high, paradoxical = _no_trade(bids, asks, buying, selling, rejected)
        price = None
    else:
        low, high, price, paradoxical = _settle_interval(trial, rejected, tick)
        for orders, units_of_side, fills, is_bid in (
            (bids, bid_units, bid_fills, True),
            (asks, ask_units, ask_fills, False),
        ):
            _fill(orders, units_of_side, fills, trial, TieRule(tie_rule), is_bid=is_bid)
    return Clearing(
        quantity_lots=trial.quantity,
        price=price,
        price_low=low,
        price_high=high,
        welfare=trial.welfare if trial.quantity else 0,
        bid_fills=_earliest_steps(bids, buying, bid_fills),
        ask_fills=_earliest_steps(asks, selling, ask_fills),
        rejected_paradoxically=tuple(sorted(paradoxical)),
        netted_lots=netted,
    )


def confirm(
    bids: Sequence[Order],
    asks: Sequence[Order],
    result: Clearing,
    *,
    floor: int | None = None,
    cap: int | None = None,
    reserve_price: int | None = None,
    tie_rule: TieRule | str = TieRule.PRO_RATA,
    tick: int = 1,
    net_self_trades: bool = True,
) -> None:
    """Recomputes a result, on its own choice of minima, and raises EnginesDisagree on any difference."""
    accepted = frozenset(
        (order.id, is_bid)
        for orders, fills, is_bid in ((bids, result.bid_fills, True), (asks, result.ask_fills, False))
        for order, fill in zip(orders, fills, strict=True)
        if _needs(order) and any(fill)
    )
    try:
        second = reference_clear(
            bids,
            asks,
            floor=floor,
            cap=cap,
            reserve_price=reserve_price,
            tie_rule=tie_rule,
            tick=tick,
            net_self_trades=net_self_trades,
            accepted=accepted,
        )
    except ValueError as error:
        raise EnginesDisagree(str(error)) from error
    if digest_result(bids, asks, second) != digest_result(bids, asks, result):
        raise EnginesDisagree("the second engine gives another result")


def _needs(order: Order) -> int:
    return sum(lots for _, lots in order.steps) if order.all_or_none else order.min_fill


def _clipped_bid(order: Order, floor: int | None, cap: int | None) -> list[tuple[int, int]]:
    return [
        (price if cap is None or price < cap else cap, 0 if floor is not None and price < floor else lots)
        for price, lots in order.steps
    ]


def _clipped_ask(
    order: Order, floor: int | None, cap: int | None, reserve: int | None
) -> list[tuple[int, int]]:
    bounds = [bound for bound in (floor, reserve, order.reserve) if bound is not None]
    raised = [(max([price, *bounds]), lots) for price, lots in order.steps]
    return [(price, 0 if cap is not None and price > cap else lots) for price, lots in raised]


def _net_organizations(
    bids: Sequence[Order],
    asks: Sequence[Order],
    buying: list[list[tuple[int, int]]],
    selling: list[list[tuple[int, int]]],
) -> int:
    netted = 0
    members: dict[str, tuple[list[int], list[int]]] = {}
    for side, orders in enumerate((bids, asks)):
        for i, order in enumerate(orders):
            if order.organization_id is not None:
                members.setdefault(order.organization_id, ([], []))[side].append(i)
    for own_bids, own_asks in members.values():
        highest = max((p for i in own_bids for p, lots in buying[i] if lots), default=None)
        lowest = min((p for i in own_asks for p, lots in selling[i] if lots), default=None)
        if highest is None or lowest is None or highest < lowest:
            continue
        for i in own_bids:
            if _needs(bids[i]) and any(lots and price >= lowest for price, lots in buying[i]):
                buying[i] = [(price, 0) for price, _ in buying[i]]
        for i in own_asks:
            if _needs(asks[i]) and any(lots and price <= highest for price, lots in selling[i]):
                selling[i] = [(price, 0) for price, _ in selling[i]]
        wanted = sorted(
            (-price, bids[i].priority, bids[i].id, i, step)
            for i in own_bids
            if not _needs(bids[i])
            for step, (price, _) in enumerate(buying[i])
        )
        offered = sorted(
            (price, asks[k].priority, asks[k].id, k, step)
            for k in own_asks
            if not _needs(asks[k])
            for step, (price, _) in enumerate(selling[k])
        )
        for price, _, _, i, step in wanted:
            for other, _, _, k, other_step in offered:
                if other > -price or not buying[i][step][1]:
                    break
                lots = min(buying[i][step][1], selling[k][other_step][1])
                buying[i][step] = (-price, buying[i][step][1] - lots)
                selling[k][other_step] = (other, selling[k][other_step][1] - lots)
                netted += lots
    return netted


def _units(
    orders: Sequence[Order],
    live: list[list[tuple[int, int]]],
    chosen: frozenset[tuple[str, bool]],
    *,
    is_bid: bool,
) -> list[_Unit]:
    """The units of one side when the chosen minima take part; the others with a minimum do not."""
    units: list[_Unit] = []
    for index, order in enumerate(orders):
        needed = _needs(order)
        if needed and (order.id, is_bid) not in chosen:
            continue
        inside: list[tuple[int, int]] = []
        outside: dict[int, list[tuple[int, int]]] = {}
        worst = 0
        for step, (price, lots) in enumerate(live[index]):
            taken = min(needed, lots)
            needed -= taken
            if taken:
                inside.append((step, taken))
                worst = price
            if lots - taken:
                outside.setdefault(price, []).append((step, lots - taken))
        if needed:
            # More than the order has left: it can never be filled, which no price can mend.
            units.append(_Unit(0, -1, index, (), True))
            continue
        if inside:
            units.append(_Unit(worst, sum(lots for _, lots in inside), index, tuple(inside), True))
        for price, steps in outside.items():
            units.append(_Unit(price, sum(lots for _, lots in steps), index, tuple(steps), False))
    return units


def _try_prices(bids: list[_Unit], asks: list[_Unit], *, nothing_needed: bool) -> _Trial | None:
    """The greatest volume that any price supports, with the range of prices that support it."""
    if any(unit.lots < 0 for unit in (*bids, *asks)):
        return None
    demand, supply = _Side(bids), _Side(asks)
    best: _Trial | None = None
    for price in sorted({*demand.prices, *supply.prices}):
        wanted, offered = demand.sums[-1] - demand.below(price), supply.up_to(price)
        least = max(
            demand.sums[-1] - demand.up_to(price) + demand.minima.get(price, 0),
            supply.below(price) + supply.minima.get(price, 0),
        )
        volume = min(wanted, offered)
        if volume < least or not volume:
            continue
        if not _no_minimum_loses(demand, supply, price):
            continue
        if best is None or volume > best.quantity:
            at_price = volume - (demand.sums[-1] - demand.up_to(price)), volume - supply.below(price)
            welfare = (
                demand.value_above(price) - supply.value_below(price) + price * (at_price[0] - at_price[1])
            )
            best = _Trial(welfare, volume, price, price)
        elif volume == best.quantity:
            best = best._replace(high=price)
    # A price may also support the greatest volume from inside the range without reaching it as its own maximum.
    if best is not None:
        for price in sorted({*demand.prices, *supply.prices}):
            if _supports(demand, supply, price, best.quantity):
                best = best._replace(low=min(best.low, price), high=max(best.high, price))
        return best
    return _Trial(0, 0, 0, 0) if nothing_needed else None


def _supports(demand: _Side, supply: _Side, price: int, quantity: int) -> bool:
    strictly_wanted = demand.sums[-1] - demand.up_to(price)
    wanted = demand.sums[-1] - demand.below(price)
    return (
        strictly_wanted + demand.minima.get(price, 0) <= quantity <= wanted
        and supply.below(price) + supply.minima.get(price, 0) <= quantity <= supply.up_to(price)
        and _no_minimum_loses(demand, supply, price)
    )


def _no_minimum_loses(demand: _Side, supply: _Side, price: int) -> bool:
    return (demand.least is None or demand.least >= price) and (supply.most is None or supply.most <= price)


def _limit(order: Order, live: list[tuple[int, int]]) -> int:
    """The worst price at which the order's minimum would trade."""
    needed, worst = _needs(order), 0
    for price, lots in live:
        if needed > 0 and lots:
            worst = price
            needed -= lots
    return worst


def _settle_interval(
    trial: _Trial, rejected: list[tuple[tuple[str, bool], int]], tick: int
) -> tuple[int, int, int, list[str]]:
    low, high = trial.low, trial.high
    while True:
        price = _midpoint(low, high, tick)
        losing = [limit for (_, is_bid), limit in rejected if is_bid and low < limit <= price]
        losing_asks = [limit for (_, is_bid), limit in rejected if not is_bid and price <= limit < high]
        if not losing and not losing_asks:
            break
        low, high = max([low, *losing]), min([high, *losing_asks])
    gaining = [
        order_id for (order_id, is_bid), limit in rejected if (limit > price if is_bid else limit < price)
    ]
    return low, high, price, gaining


def _midpoint(low: int, high: int, tick: int) -> int:
    """The greatest tick from `low` up to the midpoint; else the least tick up to `high`; else the floored
    midpoint.
    """
    middle = Fraction(low + high, 2)
    down = int(middle // tick) * tick
    if down >= low:
        return down
    up = -(-low // tick) * tick
    return up if up <= high else int(middle // 1)


def _no_trade(
    bids: Sequence[Order],
    asks: Sequence[Order],
    buying: list[list[tuple[int, int]]],
    selling: list[list[tuple[int, int]]],
    rejected: list[tuple[tuple[str, bool], int]],
) -> tuple[int | None, int | None, list[str]]:
    best_bids = {o.id: p for o, live in zip(bids, buying, strict=True) for p, n in reversed(live) if n}
    best_asks = {o.id: p for o, live in zip(asks, selling, strict=True) for p, n in reversed(live) if n}
    highest, lowest = max(best_bids.values(), default=None), min(best_asks.values(), default=None)
    gaining: list[str] = []
    for (order_id, is_bid), limit in rejected:
        if is_bid and lowest is not None and limit > lowest:
            gaining.append(order_id)
            del best_bids[order_id]
        elif not is_bid and highest is not None and limit < highest:
            gaining.append(order_id)
            del best_asks[order_id]
    return max(best_bids.values(), default=None), min(best_asks.values(), default=None), gaining


def _fill(
    orders: Sequence[Order],
    units: list[_Unit],
    fills: list[list[int]],
    trial: _Trial,
    tie_rule: TieRule,
    *,
    is_bid: bool,
) -> None:
    """Everything that gains at the lowest supporting price trades, its ties share what is left."""
    price, left = trial.low, trial.quantity
    ties: list[_Unit] = []
    for unit in units:
        if unit.is_minimum or (unit.price > price if is_bid else unit.price < price):
            left -= unit.lots
            for step, lots in unit.steps:
                fills[unit.order][step] += lots
        elif unit.price == price:
            ties.append(unit)
    ties.sort(key=lambda unit: (orders[unit.order].priority, orders[unit.order].id))
    total = sum(unit.lots for unit in ties)
    assert 0 <= left <= total
    if tie_rule is TieRule.TIME_PRIORITY:
        shares = []
        for unit in ties:
            shares.append(min(unit.lots, left))
            left -= shares[-1]
    else:
        exact = [Fraction(unit.lots * left, total) for unit in ties]
        shares = [int(share) for share in exact]
        by_remainder = sorted(range(len(ties)), key=lambda i: (shares[i] - exact[i], i))
        for i in by_remainder[: left - sum(shares)]:
            shares[i] += 1
    for unit, share in zip(ties, shares, strict=True):
        left_of_share = share
        for step, lots in unit.steps:
            taken = min(lots, left_of_share)
            fills[unit.order][step] += taken
            left_of_share -= taken


def _earliest_steps(
    orders: Sequence[Order], live: list[list[tuple[int, int]]], fills: list[list[int]]
) -> tuple[tuple[int, ...], ...]:
    """Steps of one order at one price are the same lots: the earliest of them show the fill."""
    shown: list[tuple[int, ...]] = []
    for order, prices, fill in zip(orders, live, fills, strict=True):
        left: dict[int, int] = {}
        for (price, _), lots in zip(prices, fill, strict=True):
            left[price] = left.get(price, 0) + lots
        packed = []
        for (price, _), (_, lots) in zip(prices, order.steps, strict=True):
            packed.append(min(lots, left[price]))
            left[price] -= packed[-1]
        shown.append(tuple(packed))
    return tuple(shown)
