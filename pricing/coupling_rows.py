"""A coupled book as rows: clipped, split into components of grades that bids join, self-trades netted.

In grade g a step is worth `min(price + adjustment, cap of g)` and cannot trade there when `price +
adjustment` lies below g's floor. Asks are lifted to floor and reserve as in a single grade. A grade without
a live ask is no grade that a bid could get anything in, and joins nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pricing.book import Order
from pricing.coupling_book import CoupledAsk, CoupledBid, CoupledTerms, minimum_field


@dataclass(slots=True)
class BidRow:
    """Steps of one bid that are worth the same: `worth[i]` in `grades[i]`, by grade."""

    order: int
    grades: tuple[str, ...]
    worth: tuple[int, ...]
    lots: int
    steps: list[int]

    @property
    def values(self) -> Iterator[tuple[str, int]]:
        return zip(self.grades, self.worth, strict=True)


@dataclass(slots=True)
class AskRow:
    order: int
    grade: str
    price: int
    lots: int
    steps: list[int]


@dataclass(slots=True)
class Component:
    """Grades by name, joined by bids, with all rows that can trade in them."""

    grades: tuple[str, ...]
    bids: list[BidRow] = field(default_factory=list)
    asks: list[AskRow] = field(default_factory=list)
    netted_lots: int = 0


@dataclass(slots=True)
class PreparedBook:
    """`unsupplied` are the grades without a live ask, with the best value of a bid in each, if there is one."""

    components: list[Component]
    unsupplied: dict[str, int | None]


def prepare(bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], terms: CoupledTerms) -> PreparedBook:
    """Raises ValueError, naming the field, for an order with a minimum in a component of several grades.

    Self-trades are netted in components of several grades only; a single grade's engine does it itself.
    """
    ask_rows = _ask_rows(asks, terms)
    supplied = {row.grade for row in ask_rows}
    unsupplied: dict[str, int | None] = {ask.grade: None for ask in asks if ask.grade not in supplied}
    bid_rows = _bid_rows(bids, terms, supplied, unsupplied)
    root_of = _joined(supplied, {row.grades for row in bid_rows})
    members: dict[str, list[str]] = {}
    for grade in sorted(supplied):
        members.setdefault(root_of[grade], []).append(grade)
    by_root = {root: Component(tuple(grades)) for root, grades in members.items()}
    for bid_row in bid_rows:
        by_root[root_of[bid_row.grades[0]]].bids.append(bid_row)
    for ask_row in ask_rows:
        by_root[root_of[ask_row.grade]].asks.append(ask_row)
    components = [by_root[root] for root in sorted(by_root, key=lambda root: by_root[root].grades)]
    for component in components:
        if len(component.grades) > 1:
            _refuse_minima(bids, asks, component)
            if terms.net_self_trades:
                component.netted_lots = _net(bids, asks, component)
    return PreparedBook(components, dict(sorted(unsupplied.items())))


def _ask_rows(asks: Sequence[CoupledAsk], terms: CoupledTerms) -> list[AskRow]:
    rows: list[AskRow] = []
    for index, ask in enumerate(asks):
        grade, order = ask.grade, ask.order
        bounds = (terms.floors.get(grade), terms.reserve_prices.get(grade), order.reserve)
        bound = max((each for each in bounds if each is not None), default=None)
        cap = terms.caps.get(grade)
        last: AskRow | None = None
        for step, (limit, lots) in enumerate(order.steps):
            price = limit if bound is None or limit > bound else bound
            if not lots or (cap is not None and price > cap):
                continue
            if last is not None and last.price == price:
                last.lots += lots
                last.steps.append(step)
            else:
                last = AskRow(index, grade, price, lots, [step])
                rows.append(last)
    return rows


def _bid_rows(
    bids: Sequence[CoupledBid], terms: CoupledTerms, supplied: set[str], unsupplied: dict[str, int | None]
) -> list[BidRow]:
    rows: list[BidRow] = []
    bounded = bool(terms.floors or terms.caps)
    for index, bid in enumerate(bids):
        options = [(bid.grade, 0)]
        if bid.adjustments:
            options = sorted([*options, *bid.adjustments.items()])
        names = tuple([grade for grade, _ in options])
        is_plain = not bounded
        for grade in names:
            if grade not in supplied:
                is_plain = False
                unsupplied.setdefault(grade, None)
        last: BidRow | None = None
        for step, (limit, lots) in enumerate(bid.order.steps):
            if not lots:
                continue
            if is_plain:
                grades, worth = names, tuple([limit + adjustment for _, adjustment in options])
            else:
                grades, worth = _clipped(limit, options, terms, supplied, unsupplied)
                if not grades:
                    continue
            if last is not None and last.worth == worth and last.grades == grades:
                # Splitting an order into equal steps must not change its share of a tie.
                last.lots += lots
                last.steps.append(step)
            else:
                last = BidRow(index, grades, worth, lots, [step])
                rows.append(last)
    return rows


def _clipped(
    limit: int,
    options: Sequence[tuple[str, int]],
    terms: CoupledTerms,
    supplied: set[str],
    unsupplied: dict[str, int | None],
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Grades in which a step can trade, and what it is worth there."""
    grades: list[str] = []
    worth: list[int] = []
    for grade, adjustment in options:
        value = limit + adjustment
        if value < terms.floors.get(grade, value):
            continue
        value = min(value, terms.caps.get(grade, value))
        if grade in supplied:
            grades.append(grade)
            worth.append(value)
        else:
            best = unsupplied[grade]
            unsupplied[grade] = value if best is None else max(best, value)
    return tuple(grades), tuple(worth)


def _joined(grades: Iterable[str], links: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """For each grade, a grade that stands for its component."""
    parent = {grade: grade for grade in grades}

    def root(grade: str) -> str:
        while parent[grade] != grade:
            parent[grade] = parent[parent[grade]]
            grade = parent[grade]
        return grade

    for first, *others in links:
        for other in others:
            parent[root(other)] = root(first)
    return {grade: root(grade) for grade in parent}


def _refuse_minima(bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], component: Component) -> None:
    for side, rows, kind in ((bids, component.bids, "bid"), (asks, component.asks, "ask")):
        for row in rows:
            entry = side[row.order]
            if name := minimum_field(entry.order):
                raise ValueError(
                    f"{name}: {kind} {entry.order.id} is in grade {entry.grade},"
                    " which a bid joins to other grades"
                )


def _net(bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], component: Component) -> int:
    """Takes off what organizations would trade with themselves: grade by grade in the order of their names,
    the best bids by their value in that grade against the best asks, while they cross.
    """
    own_asks: dict[str, dict[str, list[AskRow]]] = {}
    for ask_row in component.asks:
        if (organization := asks[ask_row.order].order.organization_id) is not None:
            own_asks.setdefault(organization, {}).setdefault(ask_row.grade, []).append(ask_row)
    own_bids: dict[str, list[BidRow]] = {}
    for bid_row in component.bids:
        if (organization := bids[bid_row.order].order.organization_id) in own_asks:
            own_bids.setdefault(organization, []).append(bid_row)
    netted = 0
    for organization, rows in own_bids.items():
        for grade, selling in sorted(own_asks[organization].items()):
            buying = [
                (-value, bids[row.order].order.priority, bids[row.order].order.id, row)
                for row in rows
                for where, value in row.values
                if where == grade
            ]
            buying.sort(key=lambda entry: entry[:3])
            selling.sort(
                key=lambda row: (row.price, asks[row.order].order.priority, asks[row.order].order.id)
            )
            i = j = 0
            while i < len(buying) and j < len(selling) and -buying[i][0] >= selling[j].price:
                bid_row, ask_row = buying[i][3], selling[j]
                lots = min(bid_row.lots, ask_row.lots)
                bid_row.lots -= lots
                ask_row.lots -= lots
                netted += lots
                i += not bid_row.lots
                j += not ask_row.lots
    if netted:
        component.bids = [row for row in component.bids if row.lots]
        component.asks = [row for row in component.asks if row.lots]
    return netted


def alone(order: Order, adjustment: int) -> Order:
    """The order as one of a single grade in which its steps are worth `adjustment` more."""
    if not adjustment:
        return order
    return order._replace(steps=tuple((price + adjustment, lots) for price, lots in order.steps))


def split_component(component: Component) -> tuple[list[Component], dict[str, tuple[int | None, int | None]]]:
    """After netting: parts with both sides in every grade, and the best bid and ask of grades that have not."""
    live = {row.grade for row in component.asks}
    rows = component.bids
    best: dict[str, tuple[int | None, int | None]] = {}
    if len(live) < len(component.grades):
        rows = []
        for row in component.bids:
            kept = [(grade, value) for grade, value in row.values if grade in live]
            for grade, value in row.values:
                if grade not in live:
                    bid = best.get(grade, (None, None))[0]
                    best[grade] = (value if bid is None else max(bid, value), None)
            if kept:
                grades, worth = zip(*kept, strict=True)
                rows.append(replace(row, grades=grades, worth=worth))
    root_of = _joined(live, {row.grades for row in rows})
    wanted = {root_of[row.grades[0]] for row in rows}
    members: dict[str, list[str]] = {}
    for grade in component.grades:
        if grade not in live:
            best.setdefault(grade, (None, None))
        elif root_of[grade] in wanted:
            members.setdefault(root_of[grade], []).append(grade)
        else:
            best[grade] = (None, min(row.price for row in component.asks if row.grade == grade))
    parts = {root: Component(tuple(grades)) for root, grades in members.items()}
    for row in rows:
        parts[root_of[row.grades[0]]].bids.append(row)
    for ask_row in component.asks:
        if root_of[ask_row.grade] in parts:
            parts[root_of[ask_row.grade]].asks.append(ask_row)
    return list(parts.values()), best
