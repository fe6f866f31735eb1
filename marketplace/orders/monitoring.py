"""What the operator's monitoring reads: rows for the screens of `screens`, in a constant number of queries.

Groups are organizations. Everything here names them, so nothing of it is public.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from marketplace.accounts.models import Organization
from marketplace.orders.models import Ask, Auction, Bid, BidStep, Trade
from marketplace.orders.screens import (
    Concentration,
    Residual,
    RoundTrip,
    Withdrawal,
    Withdrawals,
    concentration,
    residual_supply,
    round_trips,
    self_crossing_lots,
    withdrawals,
)
from marketplace.orders.selectors import PUBLISHED
from marketplace.orders.sellers import seller_of
from marketplace.periods import Period

WINDOW: Final = timedelta(hours=24)
MOST_WINDOW: Final = timedelta(days=31)
# A cancel in this last part of a delivery period before the no-cancel phase is a late one.
LATE_PPM: Final = 100_000
# Of the newest auctions in which somebody stood on both sides: each needs its book.
MOST_BOOKS: Final = 200

# Without a price the whole demand counts; with one, what was bid at it or above.
_DEMAND: Final = """
SELECT auction.id, sum((step ->> 1)::bigint)::bigint
  FROM orders_auction auction
 CROSS JOIN LATERAL jsonb_array_elements(auction.book -> 'bids') AS bid
 CROSS JOIN LATERAL jsonb_array_elements(bid -> 'steps') AS step
 WHERE auction.id = ANY (%s)
   AND (step ->> 0)::bigint >= coalesce(auction.clearing_rate_micros_per_mtok, 0)
 GROUP BY auction.id
"""
_BOTH_SIDES: Final = """
SELECT auction.id FROM orders_auction auction
 WHERE auction.period_start >= %s AND auction.period_start < %s AND auction.status = ANY (%s)
   AND EXISTS (
       SELECT FROM jsonb_array_elements(auction.book -> 'bids') AS bid
         JOIN jsonb_array_elements(auction.book -> 'asks') AS ask
           ON ask ->> 'organization_id' = bid ->> 'organization_id')
 ORDER BY auction.period_start DESC, auction.id DESC LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class AuctionPower:
    """The pivotal-seller test of one auction."""

    auction: Auction
    demand_lots: int
    supply_lots: int
    sellers: list[Residual]

    @property
    def pivotal(self) -> list[Residual]:
        return [seller for seller in self.sellers if seller.is_pivotal]


@dataclass(frozen=True, slots=True)
class GradeConcentration:
    """Both sides of one grade in the window; None where nothing traded."""

    grade: str
    buyers: Concentration
    sellers: Concentration


@dataclass(frozen=True, slots=True)
class SelfCrossing:
    """One organization on both sides of one book: what would have traded with itself, and was netted."""

    auction_id: UUID
    grade: str
    period_start: datetime
    organization_id: str
    lots: int


@dataclass(frozen=True, slots=True)
class WashReport:
    """`books_read` of the auctions with somebody on both sides; more than `MOST_BOOKS` are not looked at."""

    self_crossings: list[SelfCrossing]
    round_trips: list[RoundTrip]
    books_read: int
    is_cut: bool


def auctions_to_test(*, grade: str | None = None) -> QuerySet[Auction]:
    """Published auctions, newest first; `grade` is a family's slug."""
    auctions = Auction.objects.filter(status__in=PUBLISHED).select_related("grade__family").defer("book")
    if grade is not None:
        auctions = auctions.filter(grade__family__slug=grade)
    return auctions.order_by("-pk")


def powers_of(auctions: Sequence[Auction]) -> list[AuctionPower]:
    """The test of each of these auctions, in the same order, in two queries."""
    ids = [auction.pk for auction in auctions]
    with connection.cursor() as cursor:
        cursor.execute(_DEMAND, [ids])
        demand: dict[UUID, int] = dict(cursor.fetchall())
    supply: dict[UUID, dict[str, int]] = defaultdict(dict)
    asks = Ask.objects.filter(auction_id__in=ids).annotate(seller=seller_of())
    asked = asks.values_list("auction_id", "seller")
    for auction_id, seller, lots in asked.annotate(total=Sum("lots")).order_by():
        supply[auction_id][str(seller)] = int(lots)
    return [
        AuctionPower(
            auction,
            demand.get(auction.pk, 0),
            sum(supply[auction.pk].values()),
            residual_supply(demand.get(auction.pk, 0), supply[auction.pk]),
        )
        for auction in auctions
    ]


def concentrations(window: Period) -> list[GradeConcentration]:
    """Every grade that traded in the window, by slug; one query."""
    buyers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    sellers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for grade, buyer, seller, lots in _lots_traded(window):
        buyers[grade][buyer] += lots
        sellers[grade][seller] += lots
    found = []
    for grade in sorted(buyers):
        buying, selling = concentration(buyers[grade]), concentration(sellers[grade])
        assert buying is not None, "a trade has lots"
        assert selling is not None, "a trade has lots"
        found.append(GradeConcentration(grade, buying, selling))
    return found


def wash_report(window: Period) -> WashReport:
    """Who stood on both sides of a book, and who traded back and forth, over all grades; three queries."""
    with connection.cursor() as cursor:
        cursor.execute(_BOTH_SIDES, [window.start, window.end, list(PUBLISHED), MOST_BOOKS + 1])
        ids = [auction_id for (auction_id,) in cursor.fetchall()]
    books = Auction.objects.filter(pk__in=ids[:MOST_BOOKS]).select_related("grade__family")
    crossings = [
        SelfCrossing(auction.pk, auction.grade.family.slug, auction.period_start, organization_id, lots)
        for auction in books.order_by("-period_start", "-pk")
        for organization_id, lots in _crossed_in(auction.book or {})
    ]
    bought: dict[tuple[str, str], int] = defaultdict(int)
    for _, buyer, seller, lots in _lots_traded(window):
        bought[buyer, seller] += lots
    return WashReport(crossings, round_trips(bought), min(len(ids), MOST_BOOKS), len(ids) > MOST_BOOKS)


def spoof_report(window: Period) -> list[Withdrawals]:
    """Who withdrew bids in the window, and how much of it just before a no-cancel phase; three queries."""
    margin = timedelta(seconds=settings.DELIVERY_PERIOD_S) * LATE_PPM / 1_000_000
    late = Auction.objects.filter(
        grade_id=OuterRef("grade_id"),
        no_cancel_at__gt=OuterRef("ended_at"),
        no_cancel_at__lte=OuterRef("ended_at") + margin,
    )
    bids = Bid.objects.filter(
        status=Bid.Status.CANCELLED, ended_at__gte=window.start, ended_at__lt=window.end
    ).annotate(is_late=Exists(late))
    lots_of: dict[UUID, int] = dict(
        BidStep.objects.filter(bid__in=bids.values("pk"))
        .values_list("bid_id")
        .annotate(total=Sum("lots"))
        .order_by()
    )
    cancelled = [
        Withdrawal(str(organization_id), int(lots_of.get(pk, 0)), is_late)
        for pk, organization_id, is_late in bids.values_list("pk", "organization_id", "is_late")
    ]
    traded: dict[str, int] = defaultdict(int)
    for _, buyer, _, lots in _lots_traded(window):
        traded[buyer] += lots
    return withdrawals(cancelled, traded)


def names_of(organization_ids: set[str]) -> dict[str, str]:
    """What the operator calls them; one query."""
    rows = Organization.objects.filter(pk__in=organization_ids).values_list("pk", "name")
    return {str(pk): name for pk, name in rows}


def _lots_traded(window: Period) -> list[tuple[str, str, str, int]]:
    """(grade, buyer, seller, lots) of the published auctions of the window, summed."""
    trades = Trade.objects.filter(
        Q(auction__period_start__gte=window.start, auction__period_start__lt=window.end),
        auction__status__in=PUBLISHED,
    )
    rows = (
        trades.annotate(seller=seller_of("ask__"))
        .values_list("auction__grade__family__slug", "bid__organization_id", "seller")
        .annotate(total=Sum("lots"))
        .order_by()
    )
    return [(grade, str(buyer), str(seller), int(lots)) for grade, buyer, seller, lots in rows]


def _crossed_in(book: Mapping[str, Any]) -> list[tuple[str, int]]:
    bids: dict[str, list[tuple[int, int]]] = defaultdict(list)
    asks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for bid in book.get("bids", []):
        bids[bid["organization_id"]] += [(rate, lots) for rate, lots in bid["steps"]]
    for ask in book.get("asks", []):
        asks[ask["organization_id"]].append((ask["rate"], ask["lots"]))
    crossed = {group: self_crossing_lots(bids[group], asks[group]) for group in sorted(bids.keys() & asks)}
    return [(group, lots) for group, lots in crossed.items() if lots]
