"""Anybody's check of a past auction: its stored book cleared again, with those it was cleared together with."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from marketplace.errors import NotFound
from marketplace.orders.book import SealedBook
from marketplace.orders.joined_book import JoinedBook
from marketplace.orders.models import Auction
from pricing.coupling_book import COUPLED_RULE_VERSION


def replay_auction(*, auction_id: UUID) -> dict[str, Any]:
    """Recompute a past auction from its stored book, and those it was cleared together with, and compare the digests.

    Changes nothing. A joined result is also proved once more (`pricing.coupling_checks`); raises EnginesDisagree.
    """
    auction = Auction.objects.filter(pk=auction_id).first()
    if auction is None or auction.book is None:
        raise NotFound("There is no such auction with a sealed book.")
    book = SealedBook(auction.book)
    if not auction.joined or auction.rule_version != COUPLED_RULE_VERSION:
        result_digest, sound = book.result_digest(book.clear()), True
    else:
        members = list(Auction.objects.filter(pk__in=auction.joined).order_by("pk"))
        books = [SealedBook(member.book or {}) for member in members]
        sound = len(members) == len(auction.joined) and all(
            each.digest() == member.book_digest for member, each in zip(members, books, strict=True)
        )
        joined = JoinedBook(books)
        joined_result = joined.clear()
        joined.confirm(joined_result)
        result_digest = joined.result_digest(joined_result)
    digests = {"book_digest": book.digest(), "result_digest": result_digest}
    return {
        "auction_id": str(auction.id),
        **digests,
        "joined": auction.joined,
        "matches": sound
        and digests["book_digest"] == auction.book_digest
        and digests["result_digest"] == auction.result_digest,
    }
