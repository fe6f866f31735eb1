"""Reads across auctions: the public market data, under the disclosure rule, and a buyer's own bids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet

from marketplace.contracts.selectors import contract_of
from marketplace.errors import NotFound
from marketplace.orders.models import Auction, Bid, BidRevision, BidSubstitute, Release, Trade

# With fewer organizations than this on a side, curves and interval are public only after `DISCLOSURE_DELAY`.
DISCLOSURE_ORGANIZATIONS = 3
DISCLOSURE_DELAY = timedelta(hours=24)
PUBLISHED = (Auction.Status.PUBLISHED, Auction.Status.DELIVERED, Auction.Status.SETTLED)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    rate_micros_per_mtok: int
    lots: int


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What may be shown of a sealed book: aggregated curves without names, and the price interval."""

    demand: list[CurvePoint]
    supply: list[CurvePoint]
    rate_low_micros_per_mtok: int | None
    rate_high_micros_per_mtok: int | None


def bids_of(organization_id: UUID) -> QuerySet[Bid]:
    return (
        Bid.objects.filter(organization_id=organization_id)
        .select_related("grade__family", "ledger_hold")
        .prefetch_related(
            "steps",
            Prefetch("substitutes", queryset=BidSubstitute.objects.select_related("grade__family")),
            Prefetch(
                "trades",
                queryset=Trade.objects.select_related("auction__grade__family")
                .defer("auction__book")
                .order_by("-id"),
            ),
        )
        .order_by("-id")
    )


def published_auctions(grade_ids: Sequence[UUID]) -> QuerySet[Auction]:
    """Rate, volume and digests are public at once and for ever; newest period first."""
    return (
        Auction.objects.filter(grade_id__in=grade_ids, status__in=PUBLISHED)
        .select_related("grade__family")
        .defer("book")
        .order_by("-period_start", "-id")
    )


def current_auction(grade_id: UUID, now: datetime) -> Auction | None:
    """The book that is open for orders now, if any."""
    return (
        Auction.objects.filter(grade_id=grade_id, status__in=(Auction.Status.OPEN, Auction.Status.NO_CANCEL))
        .filter(gate_at__gt=now)
        .defer("book")
        .order_by("period_start")
        .first()
    )


def last_clearing(grade_id: UUID) -> Auction | None:
    """The newest auction of the grade that traded."""
    return published_auctions([grade_id]).filter(clearing_rate_micros_per_mtok__isnull=False).first()


def disclosure_of(auction: Auction, now: datetime) -> Disclosure | None:
    """Curves, depth and interval at once with three organizations on each side, else after 24 h; None before.

    The demand of a grade that was cleared together with others is that of their bids too, as far as they take this one;
    the organizations counted are those of its own book.
    """
    if auction.status not in PUBLISHED or auction.book is None or auction.published_at is None:
        return None
    bids: list[dict[str, Any]] = auction.book["bids"]
    asks: list[dict[str, Any]] = auction.book["asks"]
    sides = [len({order["organization_id"] for order in side}) for side in (bids, asks)]
    if min(sides) < DISCLOSURE_ORGANIZATIONS and now < auction.published_at + DISCLOSURE_DELAY:
        return None
    demand = [(rate, lots) for bid in bids for rate, lots in bid["steps"]]
    demand += [step for other in joined_with(auction) for step in steps_taken(other.book or {}, auction)]
    supply = [(ask["rate"], ask["lots"]) for ask in asks]
    return Disclosure(
        demand=_curve(sorted(demand, key=lambda step: -step[0])),
        supply=_curve(sorted(supply)),
        rate_low_micros_per_mtok=auction.rate_low_micros_per_mtok,
        rate_high_micros_per_mtok=auction.rate_high_micros_per_mtok,
    )


def joined_with(auction: Auction) -> list[Auction]:
    """The other auctions that this one was cleared together with, in the order of their ids. None for most."""
    others = [auction_id for auction_id in auction.joined if auction_id != str(auction.pk)]
    rows = Auction.objects.filter(pk__in=others).select_related("grade__family").order_by("pk")
    return list(rows) if others else []


def steps_taken(book: Mapping[str, Any], auction: Auction) -> list[tuple[int, int]]:
    """What the bids of another grade's sealed book offered for the auction's grade: (value there, lots)."""
    home = str(auction.grade_id)
    return [
        (rate + adjustment, lots)
        for bid in book.get("bids", ())
        for grade, adjustment in bid.get("substitutes", ())
        if grade == home
        for rate, lots in bid["steps"]
    ]


def _curve(steps: Sequence[tuple[int, int]]) -> list[CurvePoint]:
    """Cumulative lots at each rate, in the given order."""
    points: dict[int, int] = {}
    total = 0
    for rate, lots in steps:
        total += lots
        points[rate] = total
    return [CurvePoint(rate, lots) for rate, lots in points.items()]


def find_bid(organization_id: UUID, bid_id: UUID) -> Bid:
    """Raises NotFound, also for a bid of another organization."""
    bid = bids_of(organization_id).filter(pk=bid_id).first()
    if bid is None:
        raise NotFound("There is no such bid.")
    return bid


def revisions_of(organization_id: UUID, bid_id: UUID) -> QuerySet[BidRevision]:
    """Every change of a bid, newest first. Raises NotFound, also for a bid of another organization."""
    if not Bid.objects.filter(pk=bid_id, organization_id=organization_id).exists():
        raise NotFound("There is no such bid.")
    return BidRevision.objects.filter(bid_id=bid_id).order_by("-id")


@dataclass(frozen=True, slots=True)
class Tape:
    """What the market of one grade did: its last clearing, the book open now, and the published periods since.

    `rate_before` is the clearing rate in force when the window began, None when nothing had traded by then.
    """

    last: Auction | None
    open: Auction | None
    periods: list[tuple[datetime, int | None, int]]
    rate_before: int | None


def market_tapes(grade_ids: Sequence[UUID], *, now: datetime, window: timedelta) -> dict[UUID, Tape]:
    """The tape of each grade over the last `window`; four queries for any number of grades."""
    since = now - window
    published = Auction.objects.filter(grade_id__in=grade_ids, status__in=PUBLISHED).defer("book")
    traded = published.filter(clearing_rate_micros_per_mtok__isnull=False)
    newest = ("grade_id", "-period_start")
    last = {auction.grade_id: auction for auction in traded.order_by(*newest).distinct("grade_id")}
    before = dict(
        traded.filter(period_start__lte=since)
        .order_by(*newest)
        .distinct("grade_id")
        .values_list("grade_id", "clearing_rate_micros_per_mtok")
    )
    taking = Auction.objects.filter(
        grade_id__in=grade_ids, status__in=(Auction.Status.OPEN, Auction.Status.NO_CANCEL), gate_at__gt=now
    )
    open_now = {
        auction.grade_id: auction
        for auction in taking.defer("book").order_by("grade_id", "period_start").distinct("grade_id")
    }
    periods: dict[UUID, list[tuple[datetime, int | None, int]]] = {grade_id: [] for grade_id in grade_ids}
    rows = published.filter(period_start__gt=since).order_by("period_start")
    for grade_id, start, rate, lots in rows.values_list(
        "grade_id", "period_start", "clearing_rate_micros_per_mtok", "quantity_lots"
    ):
        periods[grade_id].append((start, rate, lots or 0))
    return {
        grade_id: Tape(last.get(grade_id), open_now.get(grade_id), periods[grade_id], before.get(grade_id))
        for grade_id in grade_ids
    }


def recent_auctions() -> QuerySet[Auction]:
    """Auctions in every state, newest period first: for the operator."""
    return Auction.objects.select_related("grade__family").defer("book").order_by("-period_start", "-id")


def releases_of(organization_id: UUID, contract_id: UUID) -> QuerySet[Release]:
    """What of the contract was released into spot. Raises NotFound, also for another organization's."""
    contract = contract_of(organization_id=organization_id, contract_id=contract_id)
    return Release.objects.filter(contract_id=contract.id).order_by("-id")
