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
from marketplace.orders.book import Book, BookBid
from marketplace.orders.joined_book import JoinedBook, counted_substitutes, joined_groups
from marketplace.orders.models import Auction
from marketplace.orders.selectors import disclosure_of, joined_with
from marketplace.orders.terms import asks_for_more, check_steps
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


@dataclass(frozen=True, slots=True)
class OwnFill:
    """`bid_id` None is the added order. `cost_micros` is lots x price, rounded up, without tax."""

    bid_id: UUID | None
    lots: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Outcome:
    clearing_rate_micros_per_mtok: int | None
    quantity_lots: int
    fills: list[OwnFill]

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

    A book that was cleared together with others is cleared together with them again, once the curves of all of them
    are public; an added order takes no other grade. An order that asks for more than it did stands behind all others
    of its rate, as a revision would. Changes nothing.
    Raises NotFound (the auction; or `bid_id`: no order of the caller in this book), NotDisclosed, TooManyQuestions,
    CannotCount or InvalidInput.
    """
    if change.bid_id is None and change.steps is None:
        raise InvalidInput("An added order has steps.", field="steps")
    auction = Auction.objects.select_related("grade").filter(pk=auction_id).first()
    if auction is None:
        raise NotFound("There is no such auction.")
    together = sorted([auction, *joined_with(auction)], key=lambda member: member.pk)
    if any(disclosure_of(member, now) is None for member in together):
        raise NotDisclosed(
            "A book can be asked about once its curves are public: at once after publication with three "
            "organizations on each side, else 24 hours later."
        )
    count_question(f"what-if:{organization_id}", most=MOST_PER_WINDOW, what="what-ifs")
    books = {member.grade_id: Book.from_json(member.book or {}) for member in together}
    place = _place_of(change, books, auction.grade_id)
    caps = {grade_id: book.cap for grade_id, book in books.items()}
    changed = {**books, place: _with_change(books[place], organization_id, change, auction.gate_at, caps)}
    return WhatIf(
        before=_outcome(books, auction.grade_id, organization_id),
        after=_outcome(changed, auction.grade_id, organization_id),
    )


def _place_of(change: OwnChange, books: Mapping[UUID, Book], grade_id: UUID) -> UUID:
    """The grade in whose book the order stands; the auction's own where it stands in none."""
    for place, book in books.items():
        if change.bid_id is not None and any(bid.id == change.bid_id for bid in book.bids):
            return place
    return grade_id


def _with_change(
    book: Book, organization_id: UUID, change: OwnChange, gate_at: datetime, caps: Mapping[UUID, int]
) -> Book:
    if change.bid_id is None:
        old = BookBid(ADDED_ID, organization_id, gate_at, steps=[])
        others = book.bids
    else:
        own = [b for b in book.bids if b.id == change.bid_id and b.organization_id == organization_id]
        if not own:
            raise NotFound("You had no such order in this book.", field="bid_id")
        [old] = own
        others = [b for b in book.bids if b.id != change.bid_id]
    new = replace(
        old,
        steps=old.steps if change.steps is None else list(change.steps),
        min_fill_lots=old.min_fill_lots if change.min_fill_lots is None else change.min_fill_lots,
        all_or_none=old.all_or_none if change.all_or_none is None else change.all_or_none,
    )
    check_steps(new.steps, new.min_fill_lots, book.cap)
    if new.substitutes and (new.all_or_none or new.min_fill_lots):
        raise InvalidInput(
            "A bid that takes other grades has no minimum.",
            field="all_or_none" if new.all_or_none else "min_fill_lots",
        )
    counted = counted_substitutes(new.steps, new.substitutes, home_cap=book.cap, caps=caps)
    new = replace(new, substitutes=counted)
    if asks_for_more(new.steps, old.steps):
        new = replace(new, placed_at=gate_at)
    return replace(book, bids=[*others, new])


def _outcome(books: Mapping[UUID, Book], grade_id: UUID, organization_id: UUID) -> Outcome:
    """What the grade of these books came to, and what the organization's orders got of it."""
    sealed = {place: book.sealed() for place, book in books.items()}
    groups, _ = joined_groups(list(sealed.values()))
    [group] = [group for group in groups if sealed[grade_id] in group]
    home = sealed[grade_id].bids
    if len(group) == 1:
        result = sealed[grade_id].clear()
        facts: Clearing | GradeClearing = result
        lots = {order.id: sum(fill) for order, fill in zip(home, result.bid_fills, strict=True)}
        orders = home
    else:
        joined = JoinedBook(group)
        part = joined.results(joined.clear())[str(grade_id)]
        facts = part.facts
        lots = {order.id: filled for order, filled, _ in part.bids}
        orders = [*home, *(order for book in group for order in book.bids if book is not sealed[grade_id])]
    at_home = {order.id for order in home}
    fills = []
    for order in orders:
        filled = lots.get(order.id, 0)
        if order.organization_id == str(organization_id) and (filled or order.id in at_home):
            bid_id = UUID(order.id)
            cost = -(-filled * (facts.price or 0) // 1000)
            fills.append(OwnFill(None if bid_id == ADDED_ID else bid_id, filled, cost))
    return Outcome(facts.price, facts.quantity_lots, fills)
