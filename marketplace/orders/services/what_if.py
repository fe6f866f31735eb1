"""What an auction would have come to with another order of the caller's: the sealed book, cleared again.

A what-if tells price, volume and the caller's own fills. Asked often enough, that is the curve of the others, so it is
answered only where the curves are public anyway (`selectors.disclosure_of`), and only so often an organization.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from django.core.cache import cache

from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound
from marketplace.orders.book import Book, BookBid
from marketplace.orders.models import Auction
from marketplace.orders.selectors import disclosure_of
from marketplace.orders.terms import asks_for_more, check_steps
from pricing.book import Clearing, Order

MOST_PER_WINDOW: Final = 30
WINDOW_S: Final = 60
# Stands for the order that is added; no row has it.
ADDED_ID: Final = UUID(int=0)

logger = logging.getLogger(__name__)


class NotDisclosed(Conflict):
    """The book may not be asked about yet."""

    code = "not_disclosed"


class TooManyQuestions(DomainError):
    """This organization asked too often; nothing was computed."""

    code = "too_many_requests"
    http_status = 429
    title = "Too many requests"


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

    An order that asks for more than it did stands behind all others of its rate, as a revision would. Changes nothing.
    Raises NotFound (the auction; or `bid_id`: no order of the caller in this book), NotDisclosed, TooManyQuestions or
    InvalidInput.
    """
    if change.bid_id is None and change.steps is None:
        raise InvalidInput("An added order has steps.", field="steps")
    auction = Auction.objects.select_related("grade").filter(pk=auction_id).first()
    if auction is None:
        raise NotFound("There is no such auction.")
    if disclosure_of(auction, now) is None:
        raise NotDisclosed(
            "A book can be asked about once its curves are public: at once after publication with three "
            "organizations on each side, else 24 hours later."
        )
    assert auction.book is not None
    _count_question(organization_id)
    book = Book.from_json(auction.book)
    changed = _with_change(book, organization_id, change, auction.gate_at)
    return WhatIf(before=_outcome(book, organization_id), after=_outcome(changed, organization_id))


def _with_change(book: Book, organization_id: UUID, change: OwnChange, gate_at: datetime) -> Book:
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
    if asks_for_more(new.steps, old.steps):
        new = replace(new, placed_at=gate_at)
    return replace(book, bids=[*others, new])


def _outcome(book: Book, organization_id: UUID) -> Outcome:
    sealed = book.sealed()
    result = sealed.clear()
    return Outcome(
        clearing_rate_micros_per_mtok=result.price,
        quantity_lots=result.quantity_lots,
        fills=_own_fills(sealed.bids, result, organization_id),
    )


def _own_fills(bids: Sequence[Order], result: Clearing, organization_id: UUID) -> list[OwnFill]:
    fills = []
    for bid, fill in zip(bids, result.bid_fills, strict=True):
        if bid.organization_id == str(organization_id):
            lots, bid_id = sum(fill), UUID(bid.id)
            cost = -(-lots * (result.price or 0) // 1000)
            fills.append(OwnFill(None if bid_id == ADDED_ID else bid_id, lots, cost))
    return fills


def _count_question(organization_id: UUID) -> None:
    """A cache that is down answers nothing here: the bound is what keeps a guesser slow."""
    key = f"what-if:{organization_id}"
    cache.add(key, 0, WINDOW_S)
    try:
        asked = cache.incr(key)
    except ValueError:  # it ran out between the two
        cache.set(key, 1, WINDOW_S)
        asked = 1
    if asked > MOST_PER_WINDOW:
        raise TooManyQuestions(
            f"At most {MOST_PER_WINDOW} what-ifs in {WINDOW_S} seconds.", retry_after_s=WINDOW_S
        )
