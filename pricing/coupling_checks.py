"""The proof of a coupled auction's result, in plain integers: it does not solve anything, it only looks.

A result stands when it obeys the book (bounds, balance, nobody at a loss), when its prices prove that no
other trades are worth more (complementary slackness, and welfare equal to the sum of all gains at these
prices, the value of the dual program), and when its ranges, prices and ties are those of the rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from pricing.book import Clearing, TieRule
from pricing.clearing_kernel import share_lots
from pricing.clearing_reference import EnginesDisagree, confirm
from pricing.coupling_book import (
    ComponentClearing,
    CoupledAsk,
    CoupledBid,
    CoupledClearing,
    CoupledTerms,
    GradeClearing,
    check_coupled,
)
from pricing.coupling_fills import class_flows, class_order
from pricing.coupling_prices import choose_prices, price_set
from pricing.coupling_rows import AskRow, BidRow, Component, alone, prepare, split_component

RowFills = list[dict[str, int]]


def verify(
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    result: CoupledClearing,
    *,
    terms: CoupledTerms | None = None,
    tie_rule: TieRule | str = TieRule.PRO_RATA,
) -> None:
    """Raises EnginesDisagree, saying where, unless the result is what the rules make of the book.

    A grade that no bid joins to another goes through the second engine of one grade.
    """
    terms = terms or CoupledTerms()
    check_coupled(bids, asks)
    _check_shapes(bids, asks, result)
    book = prepare(bids, asks, terms)
    expected = [(grade,) for grade in book.unsupplied] + [component.grades for component in book.components]
    found = {tuple(each.grade for each in part.grades): part for part in result.components}
    _hold(
        sorted(expected) == [tuple(each.grade for each in part.grades) for part in result.components],
        "components",
    )
    for grade, best in book.unsupplied.items():
        _hold(
            found[grade,] == ComponentClearing((GradeClearing(grade, 0, None, best, None),), 0),
            f"grade {grade}",
        )
    bid_rows = [row for component in book.components for row in component.bids]
    ask_rows = [row for component in book.components for row in component.asks]
    bid_fills = _fills_of_bid_rows(bids, bid_rows, result)
    ask_fills = _fills_of_ask_rows(ask_rows, result)
    for component in book.components:
        part = found[component.grades]
        own_bids, bid_fills = bid_fills[: len(component.bids)], bid_fills[len(component.bids) :]
        own_asks, ask_fills = ask_fills[: len(component.asks)], ask_fills[len(component.asks) :]
        if len(component.grades) == 1:
            _confirm_alone(bids, asks, component, part, result, terms, TieRule(tie_rule))
        else:
            _Joined(bids, asks, component, part, own_bids, own_asks).check(terms.tick, TieRule(tie_rule))


def _hold(true: bool, what: str) -> None:
    if not true:
        raise EnginesDisagree(f"{what}: not what the rules make of the book")


def _check_shapes(bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], result: CoupledClearing) -> None:
    for facts in result.grades.values():
        numbers = (
            facts.quantity_lots,
            facts.price,
            facts.price_low,
            facts.price_high,
            facts.supporting_price,
        )
        _hold(all(each is None or type(each) is int for each in numbers), f"grade {facts.grade}")
    _hold(len(result.bid_fills) == len(bids) and len(result.ask_fills) == len(asks), "fills")
    for bid, by_grade in zip(bids, result.bid_fills, strict=True):
        name = f"fills of bid {bid.order.id}"
        for grade, fill in by_grade.items():
            _hold(grade == bid.grade or grade in bid.adjustments, name)
            _hold(len(fill) == len(bid.order.steps) and any(fill), name)
            _hold(all(type(lots) is int and lots >= 0 for lots in fill), name)
        for step, (_, lots) in enumerate(bid.order.steps):
            _hold(sum(fill[step] for fill in by_grade.values()) <= lots, name)
    for ask, fill in zip(asks, result.ask_fills, strict=True):
        name = f"fills of ask {ask.order.id}"
        _hold(len(fill) == len(ask.order.steps), name)
        for (_, lots), filled in zip(ask.order.steps, fill, strict=True):
            _hold(type(filled) is int and 0 <= filled <= lots, name)


def _fills_of_bid_rows(
    bids: Sequence[CoupledBid], rows: Sequence[BidRow], result: CoupledClearing
) -> RowFills:
    """Lots of each row by grade; what traded without a row that may trade there is refused."""
    fills: RowFills = []
    counted = [0] * len(bids)
    for row in rows:
        by_grade = result.bid_fills[row.order]
        mine = {
            grade: lots
            for grade, _ in row.values
            if grade in by_grade and (lots := sum(by_grade[grade][step] for step in row.steps))
        }
        fills.append(mine)
        counted[row.order] += sum(mine.values())
    for bid, by_grade, lots in zip(bids, result.bid_fills, counted, strict=True):
        _hold(sum(map(sum, by_grade.values())) == lots, f"fills of bid {bid.order.id}")
    return fills


def _fills_of_ask_rows(rows: Sequence[AskRow], result: CoupledClearing) -> list[int]:
    fills = [sum(result.ask_fills[row.order][step] for step in row.steps) for row in rows]
    _hold(sum(fills) == sum(map(sum, result.ask_fills)), "fills of asks that cannot trade")
    return fills


def _confirm_alone(
    bids: Sequence[CoupledBid],
    asks: Sequence[CoupledAsk],
    component: Component,
    part: ComponentClearing,
    result: CoupledClearing,
    terms: CoupledTerms,
    tie_rule: TieRule,
) -> None:
    (facts,) = part.grades
    grade = facts.grade
    _hold(facts.supporting_price == facts.price, f"grade {grade}")
    buyers = list(dict.fromkeys(row.order for row in component.bids))
    sellers = list(dict.fromkeys(row.order for row in component.asks))
    confirm(
        [alone(bids[index].order, bids[index].adjustments.get(grade, 0)) for index in buyers],
        [asks[index].order for index in sellers],
        Clearing(
            quantity_lots=facts.quantity_lots,
            price=facts.price,
            price_low=facts.price_low,
            price_high=facts.price_high,
            welfare=part.welfare,
            bid_fills=tuple(
                result.bid_fills[index].get(grade, (0,) * len(bids[index].order.steps)) for index in buyers
            ),
            ask_fills=tuple(result.ask_fills[index] for index in sellers),
            rejected_paradoxically=part.rejected_paradoxically,
            netted_lots=part.netted_lots,
            search_complete=part.search_complete,
        ),
        floor=terms.floors.get(grade),
        cap=terms.caps.get(grade),
        reserve_price=terms.reserve_prices.get(grade),
        tie_rule=tie_rule,
        tick=terms.tick,
        net_self_trades=terms.net_self_trades,
    )


class _Joined:
    """One component of several grades beside what came out of it."""

    def __init__(
        self,
        bids: Sequence[CoupledBid],
        asks: Sequence[CoupledAsk],
        component: Component,
        part: ComponentClearing,
        bid_fills: RowFills,
        ask_fills: list[int],
    ) -> None:
        self.bids, self.asks = bids, asks
        self.component, self.part = component, part
        self.bid_rows = list(zip(component.bids, bid_fills, strict=True))
        self.ask_rows = list(zip(component.asks, ask_fills, strict=True))
        self.facts = {each.grade: each for each in part.grades}
        self.prices = {
            each.grade: each.supporting_price for each in part.grades if each.supporting_price is not None
        }

    def check(self, tick: int, tie_rule: TieRule) -> None:
        parts, best = split_component(self.component)
        # Without all prices the slackness below would prove nothing.
        _hold(
            sorted(self.prices) == sorted(grade for each in parts for grade in each.grades),
            "supporting prices",
        )
        self._check_balance()
        self._check_welfare()
        for grade, (bid, ask) in best.items():
            _hold(self.facts[grade] == GradeClearing(grade, 0, None, bid, ask), f"grade {grade}")
        for each in parts:
            self._check_prices(each.grades, tick)
            self._check_ties(each.grades, tie_rule)
        _hold(not self.part.rejected_paradoxically and self.part.search_complete, "minima")

    def _check_balance(self) -> None:
        _hold(self.part.netted_lots == self.component.netted_lots, "netted lots")
        volumes = dict.fromkeys(self.component.grades, 0)
        for bid_row, fill in self.bid_rows:
            _hold(sum(fill.values()) <= bid_row.lots, f"fills of bid {self.bids[bid_row.order].order.id}")
            for grade, lots in fill.items():
                volumes[grade] += lots
        sold = dict.fromkeys(self.component.grades, 0)
        for ask_row, lots in self.ask_rows:
            _hold(lots <= ask_row.lots, f"fills of ask {self.asks[ask_row.order].order.id}")
            sold[ask_row.grade] += lots
        for grade, facts in self.facts.items():
            _hold(volumes[grade] == sold[grade] == facts.quantity_lots, f"volume of grade {grade}")
            _hold(
                facts.price == (facts.supporting_price if volumes[grade] else None)
                and (not volumes[grade] or facts.price is not None),
                f"price of grade {grade}",
            )

    def _check_welfare(self) -> None:
        """Complementary slackness row by row, then that the primal and the dual program have one value."""
        primal = dual = 0
        for bid_row, fill in self.bid_rows:
            gain, best = self._wants(bid_row)
            name = f"fills of bid {self.bids[bid_row.order].order.id}"
            _hold(fill.keys() <= best and (gain >= 0 or not fill), name)
            _hold(gain <= 0 or sum(fill.values()) == bid_row.lots, name)
            dual += bid_row.lots * max(0, gain)
            primal += sum(value * fill.get(grade, 0) for grade, value in bid_row.values)
        for ask_row, lots in self.ask_rows:
            name = f"fills of ask {self.asks[ask_row.order].order.id}"
            # Without a price nobody may buy here, and nobody has sold.
            gain = self.prices.get(ask_row.grade, ask_row.price) - ask_row.price
            _hold(gain >= 0 or not lots, name)
            _hold(gain <= 0 or lots == ask_row.lots, name)
            dual += ask_row.lots * max(0, gain)
            primal -= ask_row.price * lots
        _hold(primal == dual == self.part.welfare, "welfare")

    def _wants(self, row: BidRow) -> tuple[int, set[str]]:
        gains = {grade: value - self.prices[grade] for grade, value in row.values if grade in self.prices}
        gain = max(gains.values(), default=-1)
        return gain, {grade for grade, each in gains.items() if each == gain}

    def _check_prices(self, grades: Sequence[str], tick: int) -> None:
        number = {grade: index for index, grade in enumerate(grades)}
        lows: list[int | None] = [None] * len(grades)
        highs: list[int | None] = [None] * len(grades)
        gaps: list[list[int | None]] = [[None] * len(grades) for _ in grades]
        for bid_row, fill in self.bid_rows:
            own = [(number[grade], value) for grade, value in bid_row.values if grade in number]
            if sum(fill.values()) < bid_row.lots:
                for grade, value in own:
                    lows[grade] = _higher(lows[grade], value)
            for here, worth in own:
                if grades[here] not in fill:
                    continue
                highs[here] = _lower(highs[here], worth)
                for there, value in own:
                    gaps[here][there] = _lower(gaps[here][there], worth - value)
        for ask_row, lots in self.ask_rows:
            if ask_row.grade not in number:
                continue
            here = number[ask_row.grade]
            if lots:
                lows[here] = _higher(lows[here], ask_row.price)
            if lots < ask_row.lots:
                highs[here] = _lower(highs[here], ask_row.price)
        # Such prices exist: the published ones are among them, or the slackness above did not hold.
        prices = price_set(lows, highs, gaps)
        chosen = choose_prices(prices, tick)
        for name, low, high, price in zip(grades, prices.lows, prices.highs, chosen, strict=True):
            facts = self.facts[name]
            _hold((facts.price_low, facts.price_high) == (low, high), f"range of grade {name}")
            _hold(facts.supporting_price == price, f"price of grade {name}")

    def _check_ties(self, grades: Sequence[str], tie_rule: TieRule) -> None:
        number = {grade: index for index, grade in enumerate(grades)}
        classes: dict[tuple[int, bool], list[tuple[BidRow, dict[str, int]]]] = {}
        for bid_row, fill in self.bid_rows:
            gain, best = self._wants(bid_row)
            if gain >= 0 and best <= number.keys():
                grade_set = sum(1 << number[grade] for grade in best)
                classes.setdefault((grade_set, gain > 0), []).append((bid_row, fill))
        ordered = sorted(
            ((key[0], key[1], sum(row.lots for row, _ in rows)) for key, rows in classes.items()),
            key=class_order,
        )
        at_price = {grade: [] for grade in grades}  # type: dict[str, list[tuple[AskRow, int]]]
        below = [0] * len(grades)
        for ask_row, lots in self.ask_rows:
            if ask_row.grade in number and ask_row.price == self.prices[ask_row.grade]:
                at_price[ask_row.grade].append((ask_row, lots))
            elif ask_row.grade in number and ask_row.price < self.prices[ask_row.grade]:
                below[number[ask_row.grade]] += ask_row.lots
        at = [sum(row.lots for row, _ in at_price[grade]) for grade in grades]
        flows = class_flows(ordered, below, at, fair=True)
        for (grade_set, is_sure, _), flow in zip(ordered, flows, strict=True):
            rows = classes[grade_set, is_sure]
            for grade in grades:
                found = sum(fill.get(grade, 0) for _, fill in rows)
                _hold(found == flow.get(number[grade], 0), f"share of grade {grade}")
            if not is_sure:
                self._check_shares(self.bids, [(row, sum(fill.values())) for row, fill in rows], tie_rule)
        for rows_at in at_price.values():
            self._check_shares(self.asks, rows_at, tie_rule)

    def _check_shares(
        self,
        side: Sequence[CoupledBid] | Sequence[CoupledAsk],
        rows: Sequence[tuple[BidRow, int]] | Sequence[tuple[AskRow, int]],
        tie_rule: TieRule,
    ) -> None:
        open_of: dict[int, int] = {}
        filled: dict[int, int] = {}
        for row, lots in rows:
            open_of[row.order] = open_of.get(row.order, 0) + row.lots
            filled[row.order] = filled.get(row.order, 0) + lots
        in_rank = sorted(open_of, key=lambda index: (side[index].order.priority, side[index].order.id))
        shares = share_lots(
            [open_of[index] for index in in_rank], sum(filled.values()), range(len(in_rank)), tie_rule
        )
        for index, share in zip(in_rank, shares, strict=True):
            _hold(filled[index] == share, f"share of order {side[index].order.id} in a tie")


def _higher(bound: int | None, value: int) -> int:
    return value if bound is None else max(bound, value)


def _lower(bound: int | None, value: int) -> int:
    return value if bound is None else min(bound, value)
