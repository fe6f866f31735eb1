"""From a sealed book to spot contracts that deliver: clear, check with the second engine, trade, publish."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from marketplace.contracts.services import record_award, set_period_rate
from marketplace.errors import NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, change_hold, open_hold
from marketplace.orders.book import Book
from marketplace.orders.models import Ask, Auction, Bid, Trade
from marketplace.orders.pairing import Filled, overage_rate, pair
from pricing.book import RULE_VERSION, Clearing
from pricing.models import Rate
from pricing.rating import gross_up
from pricing.services import publish_rate
from pricing.units import Micros, Ppm
from providers.selectors import listed_offerings, share_ppm_of
from providers.services import give_back_period_share


def clear_auction(*, auction_id: UUID, now: datetime) -> bool:
    """closed -> cleared: result, trades and digests from the book alone. False when another worker has it.

    Raises EnginesDisagree, changing nothing, when the second engine does not confirm the result: then the auction
    stays closed for the operator to look at, and nothing is published.
    """
    with transaction.atomic():
        auction = _locked_auction(auction_id)
        if auction.status != Auction.Status.CLOSED:
            return False
        book = Book.from_json(auction.book or {})
        result = book.clear()
        book.confirm(result)
        auction.rule_version = RULE_VERSION
        auction.result_digest = book.result_digest(result)
        auction.quantity_lots = result.quantity_lots
        auction.clearing_rate_micros_per_mtok = result.price
        auction.rate_low_micros_per_mtok = result.price_low
        auction.rate_high_micros_per_mtok = result.price_high
        auction.welfare = str(result.welfare)
        auction.status = Auction.Status.CLEARED
        auction.save()
        if result.price is not None:
            _record_trades(auction, book, result, now)
    return True


def _locked_auction(auction_id: UUID) -> Auction:
    auction = Auction.objects.select_for_update().filter(pk=auction_id).first()
    if auction is None:
        raise NotFound("There is no such auction.")
    return auction


def _record_trades(auction: Auction, book: Book, result: Clearing, now: datetime) -> None:
    assert result.price is not None
    bids, asks = book.orders()
    offering_of = {ask.id: ask.offering_id for ask in book.asks}
    filled_bids = [
        Filled(UUID(bid.id), sum(fill), bid.steps[0][0], (f"{bid.priority:020}", bid.id))
        for bid, fill in zip(bids, result.bid_fills, strict=True)
        if sum(fill)
    ]
    filled_asks = [
        Filled(UUID(ask.id), sum(fill), ask.steps[0][0], (f"{ask.priority:020}", ask.id))
        for ask, fill in zip(asks, result.ask_fills, strict=True)
        if sum(fill)
    ]
    ask_of_offering = {offering_of[ask.id]: ask.id for ask in filled_asks}
    previous = {
        (bid_id, ask_of_offering[offering_id])
        for bid_id, offering_id in _previous_pairs(auction)
        if offering_id in ask_of_offering
    }
    Trade.objects.bulk_create(
        Trade(
            id=derived_id(auction.id, f"trade:{bid_id}:{ask_id}"),
            auction=auction,
            bid_id=bid_id,
            ask_id=ask_id,
            lots=lots,
            rate_micros_per_mtok=result.price,
            created_at=now,
        )
        for (bid_id, ask_id), lots in pair(filled_bids, filled_asks, previous).items()
    )
    for ask in filled_asks:
        Ask.objects.filter(pk=ask.id).update(awarded_lots=ask.lots)


def _previous_pairs(auction: Auction) -> list[tuple[UUID, UUID]]:
    last = (
        Auction.objects.filter(grade_id=auction.grade_id, period_start__lt=auction.period_start)
        .filter(quantity_lots__gt=0)
        .order_by("-period_start")
        .first()
    )
    if last is None:
        return []
    return list(Trade.objects.filter(auction=last).values_list("bid_id", "ask__offering_id"))


def publish_auction(*, auction_id: UUID, now: datetime) -> bool:
    """cleared -> published: awards become entitlements with a hold of their own, the unawarded share goes back."""
    with transaction.atomic():
        auction = _locked_auction(auction_id)
        if auction.status != Auction.Status.CLEARED:
            return False
        rate = None
        if auction.clearing_rate_micros_per_mtok is not None:
            rate = publish_rate(
                grade_id=auction.grade_id,
                kind=Rate.Kind.CLEARING,
                micros_per_mtok=auction.clearing_rate_micros_per_mtok,
                source_id=auction.id,
                now=now,
            )
            _award(auction, rate, now)
        _give_back_unawarded(auction)
        _set_period_rate(auction, now)
        auction.rate = rate
        auction.published_at = now
        auction.status = Auction.Status.PUBLISHED
        auction.save(update_fields=["rate", "published_at", "status"])
    return True


def _award(auction: Auction, rate: Rate, now: datetime) -> None:
    trades: dict[UUID, list[Trade]] = defaultdict(list)
    for trade in Trade.objects.filter(auction=auction).select_related("ask").order_by("pk"):
        trades[trade.bid_id].append(trade)
    # By account, as every transaction that touches several accounts.
    bids = Bid.objects.select_for_update(of=("self",)).select_related("organization", "grade")
    bids = bids.order_by("ledger_hold__account_id", "pk")
    for bid in bids.filter(pk__in=trades):
        lots = sum(trade.lots for trade in trades[bid.id])
        # The bid's hold covers rate x lots of every step sum, so carving the award out of it cannot fail.
        cost = gross_up(Micros(-(-rate.micros_per_mtok * lots // 1000)), Ppm(bid.organization.tax_ppm))
        assert bid.ledger_hold_id is not None
        award_hold = derived_id(auction.id, f"award:{bid.id}")
        change_hold(id=bid.ledger_hold_id, delta_micros=-cost, now=now)
        open_hold(
            id=award_hold,
            account_id=account_id(
                organization_id=bid.organization_id,
                kind=AccountKind.PREPAID,
                currency=bid.grade.currency,
                now=now,
            ),
            amount_micros=cost,
            code="award",
            reference_id=auction.id,
            now=now,
        )
        record_award(
            contract_id=bid.contract_id,
            period_start=auction.period_start,
            period_end=auction.period_end,
            lots=lots,
            rate_id=rate.id,
            ledger_hold_id=award_hold,
            shares=[(trade.ask.offering_id, trade.lots) for trade in trades[bid.id]],
            now=now,
        )


def _give_back_unawarded(auction: Auction) -> None:
    seconds = int((auction.period_end - auction.period_start).total_seconds())
    asks = Ask.objects.filter(auction=auction, awarded_lots__lt=F("lots")).select_related("offering")
    for ask in asks.order_by("offering__host_id", "pk"):
        kept = share_ppm_of(ask.awarded_lots, ask.offering, seconds) if ask.awarded_lots else 0
        if ask.share_ppm > kept:
            give_back_period_share(
                host_id=ask.offering.host_id,
                period_start=auction.period_start,
                share_ppm=ask.share_ppm - kept,
            )


def _set_period_rate(auction: Auction, now: datetime) -> None:
    """Overage and replacement in this period, known before delivery; none where nothing is listed."""
    listed = [offering.list_rate.micros_per_mtok for offering in listed_offerings(auction.grade_id, now)]
    if not listed:
        return
    unsold = (
        Ask.objects.filter(auction=auction, awarded_lots__lt=F("lots"))
        .order_by("rate_micros_per_mtok")
        .first()
    )
    set_period_rate(
        grade_id=auction.grade_id,
        period_start=auction.period_start,
        clearing_rate_micros_per_mtok=auction.clearing_rate_micros_per_mtok,
        overage_micros_per_mtok=overage_rate(
            list_rate=min(listed),
            clearing_rate=auction.clearing_rate_micros_per_mtok,
            next_unsold_ask=unsold.rate_micros_per_mtok if unsold else None,
        ),
        now=now,
    )


def replay_auction(*, auction_id: UUID) -> dict[str, Any]:
    """Recompute a past auction from its stored book and compare the digests. Changes nothing."""
    auction = Auction.objects.filter(pk=auction_id).first()
    if auction is None or auction.book is None:
        raise NotFound("There is no such auction with a sealed book.")
    book = Book.from_json(auction.book)
    result = book.clear()
    digests = {"book_digest": book.digest(), "result_digest": book.result_digest(result)}
    return {
        "auction_id": str(auction.id),
        **digests,
        "matches": digests["book_digest"] == auction.book_digest
        and digests["result_digest"] == auction.result_digest,
    }
