"""What an auction would have come to with another order of the caller's: the sealed book, cleared again.

A what-if tells price, volume and the caller's own fills. Asked often enough, that is the curve of the others, so it is
answered only where the curves are public anyway (`selectors.disclosure_of`), and only so often an organization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.orders.asking import count_question
from marketplace.orders.bid_rounds import tradable_auctions
from marketplace.orders.book import Book, BookBid
from marketplace.orders.joined_book import GradeResult, JoinedBook, counted_substitutes, joined_groups
from marketplace.orders.models import Auction
from marketplace.orders.selectors import disclosure_of, joined_with
from marketplace.orders.terms import (
    BidTerms,
    Substitutes,
    asks_for_more,
    check_steps,
    check_substitutes,
    takes_more,
)
from pricing.book import Clearing
from pricing.coupling_book import GradeClearing

MOST_PER_WINDOW: Final = 30
# Stands for the order that is added; no row has it.
ADDED_ID: Final = UUID(int=0)


class NotDisclosed(Conflict):
    """The book may not be asked about yet."""

    code = "not_disclosed"


@dataclass(frozen=True, slots=True)
class OwnChange:
    """One own order changed (`bid_id` names it; what is None stays) or added (`bid_id` None; `steps` are needed)."""

    bid_id: UUID | None = None
    steps: Sequence[tuple[int, int]] | None = None
    min_fill_lots: int | None = None
    all_or_none: bool | None = None
    # (grade's slug, adjustment in micros per Mtok), all of them anew.
    substitutes: Substitutes | None = None


@dataclass(frozen=True, slots=True)
class OwnFill:
    """`bid_id` None is the added order. `cost_micros` is lots x price, rounded up, without tax."""

    bid_id: UUID | None
    lots: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class OtherFill:
    """What an own order got in another grade of the books cleared together, at that grade's rate."""

    grade: str
    clearing_rate_micros_per_mtok: int
    bid_id: UUID | None
    lots: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the grade asked about; `other_fills` are of others, and counted in none of its sums."""

    clearing_rate_micros_per_mtok: int | None
    quantity_lots: int
    fills: list[OwnFill]
    other_fills: list[OtherFill]

    @property
    def lots(self) -> int:
        return sum(fill.lots for fill in self.fills)

    @property
    def cost_micros(self) -> int:
        return sum(fill.cost_micros for fill in self.fills)


@dataclass(frozen=True, slots=True)
class WhatIf:
    before: Outcome
    after: Outcome


def what_if(*, organization_id: UUID, auction_id: UUID, change: OwnChange, now: datetime) -> WhatIf:
    """Clear a published book as it was and with one order of the organization changed or added.

    A book that was cleared together with others is cleared together with them again, and with the books of the grades
    that the change names as substitutes, once the curves of all of them are public. An order that asks for more than
    it did stands behind all others of its rate, as a revision would. Changes nothing.
    Raises NotFound (the auction; or `bid_id`: no order of the caller in this book), NotDisclosed, TooManyQuestions,
    CannotCount or InvalidInput.
    """
    if change.bid_id is None and change.steps is None:
        raise InvalidInput("An added order has steps.", field="steps")
    auction = Auction.objects.select_related("grade__family").filter(pk=auction_id).first()
    if auction is None:
        raise NotFound("There is no such auction.")
    own = [auction, *joined_with(auction)]
    named = _named_auctions(auction, change)
    together = sorted({member.pk: member for member in [*own, *named]}.values(), key=lambda member: member.pk)
    if any(disclosure_of(member, now) is None for member in together):
        raise NotDisclosed(
            "A book can be asked about once its curves are public: at once after publication with three "
            "organizations on each side, else 24 hours later."
        )
    count_question(f"what-if:{organization_id}", most=MOST_PER_WINDOW, what="what-ifs")
    books = {member.grade_id: Book.from_json(member.book or {}) for member in together}
    place = _place_of(change, books, auction.grade_id)
    grades = {member.grade_id: member.grade.family.slug for member in together}
    new = _changed_order(books, place, organization_id, change, auction.gate_at, grades)
    others = [bid for bid in books[place].bids if bid.id != new.id]
    changed = {**books, place: replace(books[place], bids=[*others, new])}
    as_it_was = {member.grade_id: books[member.grade_id] for member in own}
    return WhatIf(
        before=_outcome(as_it_was, auction.grade_id, organization_id, grades),
        after=_outcome(changed, auction.grade_id, organization_id, grades),
    )


def _named_auctions(auction: Auction, change: OwnChange) -> list[Auction]:
    """The published auctions of the same period of the grades that the change names, and those cleared with them.

    A halted market trades nothing, so nothing joins it. Raises InvalidInput naming the substitute.
    """
    if not change.substitutes or auction.halted:
        return []
    rows = tradable_auctions(auction)
    known = {row.grade.family.slug: row for row in [auction, *rows]}
    found = []
    for number, (slug, _) in enumerate(change.substitutes):
        if slug not in known:
            raise InvalidInput(
                "No auction of this grade traded in that period.", field=f"substitutes.{number}.grade"
            )
        found += [known[slug], *joined_with(known[slug])]
    return found


def _place_of(change: OwnChange, books: Mapping[UUID, Book], grade_id: UUID) -> UUID:
    """The grade in whose book the order stands; the auction's own where it stands in none."""
    for place, book in books.items():
        if change.bid_id is not None and any(bid.id == change.bid_id for bid in book.bids):
            return place
    return grade_id


def _changed_order(
    books: Mapping[UUID, Book],
    place: UUID,
    organization_id: UUID,
    change: OwnChange,
    gate_at: datetime,
    grades: Mapping[UUID, str],
) -> BookBid:
    """The order as it would have stood in the book of `place`; `grades` are the slugs of the books' grades."""
    book = books[place]
    if change.bid_id is None:
        old = BookBid(ADDED_ID, organization_id, gate_at, steps=[])
    else:
        own = [b for b in book.bids if b.id == change.bid_id and b.organization_id == organization_id]
        if not own:
            raise NotFound("You had no such order in this book.", field="bid_id")
        [old] = own
    new = replace(
        old,
        steps=old.steps if change.steps is None else list(change.steps),
        min_fill_lots=old.min_fill_lots if change.min_fill_lots is None else change.min_fill_lots,
        all_or_none=old.all_or_none if change.all_or_none is None else change.all_or_none,
    )
    check_steps(new.steps, new.min_fill_lots, book.cap)
    caps = {grade_id: each.cap for grade_id, each in books.items()}
    if change.substitutes is not None:
        new = replace(new, substitutes=_named_in(new, change.substitutes, grades, grades[place], caps))
    if new.substitutes and (new.all_or_none or new.min_fill_lots):
        raise InvalidInput(
            "A bid that takes other grades has no minimum.",
            field="all_or_none" if new.all_or_none else "min_fill_lots",
        )
    more = _is_more(new, old)
    counted = counted_substitutes(new.steps, new.substitutes, home_cap=book.cap, caps=caps)
    return replace(new, substitutes=counted, placed_at=gate_at if more else new.placed_at)


def _named_in(
    order: BookBid,
    substitutes: Substitutes,
    grades: Mapping[UUID, str],
    home: str,
    caps: Mapping[UUID, int],
) -> tuple[tuple[UUID, int], ...]:
    """The substitutes by their grades' ids. Raises InvalidInput as the placing of such a bid would."""
    terms = BidTerms(
        grade=home,
        client_id="",
        steps=order.steps,
        min_fill_lots=order.min_fill_lots,
        all_or_none=order.all_or_none,
        substitutes=substitutes,
    )
    check_substitutes(terms, caps_micros_per_mtok={grades[grade_id]: cap for grade_id, cap in caps.items()})
    ids = {slug: grade_id for grade_id, slug in grades.items()}
    return tuple(sorted((ids[slug], adjustment) for slug, adjustment in substitutes))


def _is_more(new: BookBid, old: BookBid) -> bool:
    """Whether it asks for more than it did, in its own grade or another."""
    named, before = ([(str(grade), more) for grade, more in bid.substitutes] for bid in (new, old))
    return asks_for_more(new.steps, old.steps) or takes_more(named, before)


def _outcome(
    books: Mapping[UUID, Book], grade_id: UUID, organization_id: UUID, grades: Mapping[UUID, str]
) -> Outcome:
    """What the grade of these books came to, and what the organization's orders got of it and beside it."""
    sealed = {place: book.sealed() for place, book in books.items()}
    groups, _ = joined_groups(list(sealed.values()))
    [group] = [group for group in groups if sealed[grade_id] in group]
    home = sealed[grade_id].bids
    others: list[OtherFill] = []
    if len(group) == 1:
        result = sealed[grade_id].clear()
        facts: Clearing | GradeClearing = result
        lots = {order.id: sum(fill) for order, fill in zip(home, result.bid_fills, strict=True)}
        orders = home
    else:
        joined = JoinedBook(group)
        parts = joined.results(joined.clear())
        part = parts.pop(str(grade_id))
        facts = part.facts
        lots = {order.id: filled for order, filled, _ in part.bids}
        orders = [*home, *(order for book in group for order in book.bids if book is not sealed[grade_id])]
        for other, its_part in sorted(parts.items()):
            others += _other_fills(grades[UUID(other)], its_part, organization_id)
    at_home = {order.id for order in home}
    fills = []
    for order in orders:
        filled = lots.get(order.id, 0)
        if order.organization_id == str(organization_id) and (filled or order.id in at_home):
            fills.append(OwnFill(_named_id(order.id), filled, _cost(filled, facts.price)))
    return Outcome(facts.price, facts.quantity_lots, fills, others)


def _other_fills(grade: str, part: GradeResult, organization_id: UUID) -> list[OtherFill]:
    price = part.facts.price
    return [
        OtherFill(grade, price, _named_id(order.id), filled, _cost(filled, price))
        for order, filled, _ in part.bids
        if price is not None and filled and order.organization_id == str(organization_id)
    ]


def _named_id(order_id: str) -> UUID | None:
    bid_id = UUID(order_id)
    return None if bid_id == ADDED_ID else bid_id


def _cost(lots: int, price: int | None) -> int:
    return -(-lots * (price or 0) // 1000)
