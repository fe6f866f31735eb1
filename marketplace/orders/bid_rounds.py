"""What became of a bid, auction by auction; and an organization's orders as a sealed book has them."""

from __future__ import annotations

import json
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Prefetch, Q, QuerySet

from marketplace.arrays import uuid_array
from marketplace.errors import NotFound
from marketplace.orders.book import BookBid
from marketplace.orders.joined_book import MINIMUM
from marketplace.orders.models import Auction, Bid, Trade
from marketplace.orders.selectors import PUBLISHED, find_bid

FILLED: Final = "filled"
UNFILLED: Final = "unfilled"
LEFT_OUT: Final = "left_out"
HALTED: Final = "halted"
OUTCOMES: Final = (FILLED, UNFILLED, LEFT_OUT, HALTED)
# In plain words, where a buyer reads them.
WHY_LEFT_OUT: Final = {
    MINIMUM: "the grade was cleared together with others, where no bid with a minimum takes part"
}

# The rows that are the caller's, without the books, which may be large.
_OWN_ORDERS: Final = """
SELECT item
FROM orders_auction AS auction, jsonb_array_elements(auction.book -> 'bids') AS item
WHERE auction.id = ANY(%s::uuid[]) AND item ->> 'organization_id' = %s
ORDER BY item ->> 'id'
"""


class BidRound:
    """An auction as one bid saw it: `outcome` of `OUTCOMES`, and what it got there.

    `unfilled` is also a round that skipped the bid, for want of balance or by its daily budget.
    """

    def __init__(self, auction: Auction, bid_id: UUID) -> None:
        self.auction = auction
        trades: list[Trade] = auction.own_trades  # type: ignore[attr-defined]
        self.lots = sum(trade.lots for trade in trades)
        reasons = [each["reason"] for each in auction.left_out if each["bid_id"] == str(bid_id)]
        self.left_out_reason: str | None = reasons[0] if reasons else None

    @property
    def outcome(self) -> str:
        if self.lots:
            return FILLED
        if self.left_out_reason is not None:
            return LEFT_OUT
        return HALTED if self.auction.halted else UNFILLED

    @property
    def why_left_out(self) -> str:
        """Empty where it was not."""
        reason = self.left_out_reason
        return "" if reason is None else WHY_LEFT_OUT.get(reason, reason.replace("_", " "))


def rounds_of(organization_id: UUID, bid_id: UUID) -> QuerySet[Auction]:
    """The published auctions that the bid stood for, newest first: those of its grade between its placing and its end,
    and those of other grades in which it got something. Each is a `BidRound` together with the bid's id.

    Raises NotFound, also for a bid of another organization.
    """
    bid = find_bid(organization_id, bid_id)
    own = Q(grade_id=bid.grade_id, gate_at__gt=bid.created_at)
    if not bid.standing:
        own &= Q(period_start=bid.period_start)
    if bid.valid_until is not None:
        own &= Q(gate_at__lt=bid.valid_until)
    if bid.status == Bid.Status.CANCELLED:
        # A bid that ended by itself ended after the result of its last round.
        own &= Q(gate_at__lte=bid.ended_at)
    traded = Q(pk__in=Trade.objects.filter(bid_id=bid_id).values("auction_id"))
    grades = [bid.grade_id, *(named.grade_id for named in bid.substitutes.all())]
    return (
        Auction.objects.filter(own | traded, grade_id__in=grades, status__in=PUBLISHED)
        .select_related("grade__family")
        .prefetch_related(
            Prefetch("trades", queryset=Trade.objects.filter(bid_id=bid_id), to_attr="own_trades")
        )
        .defer("book")
        .order_by("-pk")
    )


def published_auction(auction_id: UUID) -> Auction:
    """Raises NotFound, also for one whose result is still to come."""
    found = (
        Auction.objects.filter(pk=auction_id, status__in=PUBLISHED)
        .select_related("grade__family")
        .defer("book")
        .first()
    )
    if found is None:
        raise NotFound("There is no such published auction.")
    return found


def tradable_auctions(auction: Auction) -> list[Auction]:
    """The published auctions of other grades for the same delivery period, but those of halted markets, by slug."""
    rows = Auction.objects.filter(period_start=auction.period_start, status__in=PUBLISHED, halted="")
    others = rows.exclude(grade_id=auction.grade_id).select_related("grade__family").defer("book")
    return list(others.order_by("grade__family__slug", "grade__version"))


def own_orders(auction: Auction, organization_id: UUID) -> list[BookBid]:
    """The organization's bids as they were sealed in this book and those cleared together with it, by their ids."""
    with connection.cursor() as cursor:
        cursor.execute(
            _OWN_ORDERS, (uuid_array(map(UUID, auction.joined or [str(auction.pk)])), str(organization_id))
        )
        rows = cursor.fetchall()
    return [BookBid.from_json(json.loads(item)) for (item,) in rows]
