"""Sealed books of one delivery period whose bids take one grade for another, and their common clearing. Pure.

Which books are joined follows from the books alone: a bid joins its own grade to each substitute in which its best
step reaches the lowest ask. One that it does not reach could give it nothing at any price, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from marketplace.orders.book import FLOOR, SealedBook
from marketplace.orders.book_text import BidLine
from pricing.book import Order, digest_facts
from pricing.coupling import CoupledAsk, CoupledBid, CoupledClearing, CoupledTerms, clear_coupled
from pricing.coupling_book import (
    COUPLED_RULE_VERSION,
    GradeClearing,
    digest_coupled_book,
    digest_coupled_result,
    minimum_field,
)
from pricing.coupling_checks import verify

# What joined clearing is bounded by, so that a round ends in time whatever is bid; beyond it each grade stands alone.
MOST_GRADES: Final = 24
MOST_PLACES: Final = 400_000
# int64 of the engine, with room for sums.
_MOST_RATE: Final = 2**58
_MOST_LOTS: Final = 2**61

MINIMUM: Final = "minimum_in_joined_grades"


@dataclass(frozen=True, slots=True)
class GradeResult:
    """One grade's part: its facts, and (order, lots, rate) of what traded; a bid's rate is its best value there."""

    facts: GradeClearing
    bids: list[tuple[Order, int, int]]
    asks: list[tuple[Order, int, int]]


class JoinedBook:
    """Books of several grades as one auction. Grades are named by their ids.

    Bids with a minimum take no part where their grade is joined to another (`left_out`): whether one fills cannot be
    decided for several grades at once.
    """

    def __init__(self, books: Sequence[SealedBook]) -> None:
        self.books = sorted(books, key=lambda book: str(book.data["grade_id"]))
        self.grades = tuple(str(book.data["grade_id"]) for book in self.books)
        self.terms = CoupledTerms(
            floors=dict.fromkeys(self.grades, FLOOR),
            caps={grade: book.data["cap"] for grade, book in zip(self.grades, self.books, strict=True)},
        )
        lowest = {grade: book.lowest_ask for grade, book in zip(self.grades, self.books, strict=True)}
        self.bids: list[CoupledBid] = []
        self.asks: list[CoupledAsk] = []
        self.left_out: dict[str, list[str]] = {grade: [] for grade in self.grades}
        for grade, book in zip(self.grades, self.books, strict=True):
            for order in book.bids:
                if minimum_field(order):
                    self.left_out[grade].append(order.id)
                    continue
                named = book.substitutes.get(order.id)
                reached = _reached(order.steps[0][0], named, lowest) if named else {}
                self.bids.append(CoupledBid(order, grade, reached))
            self.asks += [CoupledAsk(order, grade) for order in book.asks]

    def clear(self) -> CoupledClearing:
        """The result, by the engine of several grades."""
        return clear_coupled(self.bids, self.asks, terms=self.terms)

    def confirm(self, result: CoupledClearing) -> None:
        """Raises EnginesDisagree unless the result proves itself: bounds, complementary slackness, prices, ties."""
        verify(self.bids, self.asks, result, terms=self.terms)

    def digest(self) -> str:
        """SHA-256 over the orders that take part and the terms they are cleared under (hex)."""
        return digest_coupled_book(self.bids, self.asks, terms=self.terms)

    def result_digest(self, result: CoupledClearing) -> str:
        """SHA-256 over the result, and the book that it is the result of (hex)."""
        return digest_facts(
            {
                "rule": COUPLED_RULE_VERSION,
                "book": self.digest(),
                "result": digest_coupled_result(self.bids, self.asks, result),
                "left_out": sorted(bid_id for ids in self.left_out.values() for bid_id in ids),
            }
        )

    def offerings(self) -> dict[str, UUID]:
        """The offering behind each ask, by the ask's id."""
        return {ask_id: offering for book in self.books for ask_id, offering in book.offerings().items()}

    def results(self, result: CoupledClearing) -> dict[str, GradeResult]:
        """Each grade's part of the result, by grade."""
        parts = {
            grade: GradeResult(result.grades.get(grade) or GradeClearing(grade, 0, None, None, None), [], [])
            for grade in self.grades
        }
        for bid, fills in zip(self.bids, result.bid_fills, strict=True):
            for grade, fill in fills.items():
                value = bid.order.steps[0][0] + bid.adjustments.get(grade, 0)
                parts[grade].bids.append((bid.order, sum(fill), value))
        for ask, ask_fill in zip(self.asks, result.ask_fills, strict=True):
            if lots := sum(ask_fill):
                parts[ask.grade].asks.append((ask.order, lots, ask.order.steps[0][0]))
        return parts


def _reached(rate: int, named: Sequence[tuple[str, int]], lowest: Mapping[str, int | None]) -> dict[str, int]:
    """Of a bid's substitutes, those in which its best step reaches the lowest ask, with their adjustments."""
    reached = {}
    for grade, adjustment in named:
        ask = lowest.get(grade)
        if ask is not None and rate + adjustment >= ask:
            reached[grade] = adjustment
    return reached


def joined_groups(books: Sequence[SealedBook]) -> tuple[list[list[SealedBook]], list[str]]:
    """Which books are cleared together, each group by grade; and why books that bids join are not, if any.

    Every book is in one group. A book of which no bid joins anything is a group of its own, as are all books of a
    group beyond the bounds of joined clearing.
    """
    by_grade = {str(book.data["grade_id"]): book for book in books}
    lowest = {grade: book.lowest_ask for grade, book in by_grade.items()}
    links: set[tuple[str, str]] = set()
    for grade, book in by_grade.items():
        for order in book.bids:
            named = book.substitutes.get(order.id)
            if named and not minimum_field(order):
                links.update((grade, other) for other in _reached(order.steps[0][0], named, lowest))
    groups: list[list[SealedBook]] = []
    reasons: list[str] = []
    for members in connected(by_grade, links):
        group = [by_grade[grade] for grade in members]
        reason = _beyond_bounds(group) if len(group) > 1 else ""
        if reason:
            reasons.append(reason)
            groups += [[book] for book in group]
        else:
            groups.append(group)
    return groups, reasons


def connected(names: Mapping[str, object], links: set[tuple[str, str]]) -> list[list[str]]:
    """The connected components of a graph, each by name; links to what is not among the names are passed over."""
    near: dict[str, set[str]] = {name: set() for name in names}
    for one, other in links:
        if one in near and other in near:
            near[one].add(other)
            near[other].add(one)
    found: list[list[str]] = []
    seen: set[str] = set()
    for name in sorted(near):
        if name in seen:
            continue
        component, waiting = set(), [name]
        while waiting:
            at = waiting.pop()
            if at not in component:
                component.add(at)
                waiting += near[at]
        seen |= component
        found.append(sorted(component))
    return found


def _beyond_bounds(group: Sequence[SealedBook]) -> str:
    if len(group) > MOST_GRADES:
        return f"{len(group)} grades are joined; at most {MOST_GRADES} are cleared together"
    if any(book.data["cap"] > _MOST_RATE for book in group):
        return "a cap is beyond what joined clearing computes with"
    places = lots = 0
    for book in group:
        for order in book.bids:
            places += len(order.steps) * (1 + len(book.substitutes.get(order.id, ())))
            lots += sum(step[1] for step in order.steps)
        places += len(book.asks)
        lots += sum(step[1] for order in book.asks for step in order.steps)
    if places > MOST_PLACES:
        return f"{places} steps in all grades; at most {MOST_PLACES} are cleared together"
    if lots > _MOST_LOTS:
        return "the lots are beyond what joined clearing computes with"
    return ""


def counted_substitutes(
    steps: Sequence[tuple[int, int]],
    named: Sequence[tuple[UUID, int]],
    *,
    home_cap: int,
    caps: Mapping[UUID, int],
) -> tuple[tuple[UUID, int], ...]:
    """Of the substitutes that a bid names, those that count in a round; `caps` are of the grades that trade in it.

    None where the bid's own rates lie above its grade's cap of the round (it fell since), and no grade where its value
    would. Nothing of a bid with substitutes is then clipped at a cap: all its lots trade at one distance from its
    steps, and the bid's hold, values x cumulative lots, covers them wherever they trade.
    """
    if steps[0][0] > home_cap:
        return ()
    return tuple(
        (grade_id, adjustment)
        for grade_id, adjustment in sorted(named)
        if grade_id in caps
        and steps[0][0] + adjustment <= caps[grade_id]
        and steps[-1][0] + adjustment >= FLOOR
    )


def seal_links(grade_id: UUID, lines: Iterable[BidLine]) -> set[tuple[str, str]]:
    """(this grade, other grade) for each grade that a bid of the book names, as they are sealed."""
    return {(str(grade_id), grade) for line in lines for grade, _ in line.substitutes}
