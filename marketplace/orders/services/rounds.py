"""The round of one delivery period: open, no_cancel, closed, cleared, published, delivered, settled.

Every step moves `Auction.status` by compare-and-set in the transaction that does the step's work, so any worker can
do or resume it, and two at once do it once.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef

from marketplace.contracts.models import Contract, Entitlement
from marketplace.contracts.services import keep_carry_over
from marketplace.errors import DomainError
from marketplace.ids import derived_id
from marketplace.orders.book import Book, BookAsk
from marketplace.orders.book_text import BidLine, sealed_text
from marketplace.orders.controls import FEW_SELLERS
from marketplace.orders.joined_book import connected, counted_substitutes, seal_links
from marketplace.orders.models import Ask, Auction, Bid
from marketplace.orders.services.bids import end_bid
from marketplace.orders.services.controls import review_at_opening, sealing_terms
from marketplace.orders.services.missed import auction_times, record_missed_periods
from marketplace.orders.services.phases import UNPUBLISHED, hold_turnstile
from marketplace.orders.services.releasing import ask_released, close_stranded_releases
from marketplace.orders.services.substituting import awaits_a_result, awarded_contracts
from marketplace.orders.services.topping_up import (
    LockedBid,
    cover,
    lock_bids_at_the_gate,
    lock_standing_bids,
)
from marketplace.orders.unhurried import without_cycle_collection
from marketplace.packed import packed_cursor
from marketplace.periods import delivery_period
from pricing.clearing_reference import EnginesDisagree
from pricing.models import Grade
from pricing.selectors import grades_in_force
from providers.models import Offering
from providers.selectors import dependable_lots, listed_offerings, share_ppm_of, unsold_ppm
from providers.services import CapacityGone, take_period_share

logger = logging.getLogger(__name__)

# The status is moved in the row that is locked: nobody else has it.
_SEAL: Final = """
UPDATE orders_auction SET book = %s::jsonb, book_digest = %s, halted = %s, status = 'closed' WHERE id = %s
"""


def open_auctions(*, now: datetime) -> list[Auction]:
    """Make the auction of the coming delivery period for every grade in force; re-running makes none.

    Periods for which none was opened, since everything was down, are recorded as missed first.
    """
    opened = []
    for grade in grades_in_force(at=now):
        record_missed_periods(grade, now=now)
        auction = _open_auction(grade, now)
        if auction is not None:
            opened.append(auction)
    return opened


def _open_auction(grade: Grade, now: datetime) -> Auction | None:
    current = delivery_period(now)
    with without_cycle_collection(), transaction.atomic():
        auction, made = Auction.objects.get_or_create(
            grade=grade,
            period_start=current.end,
            defaults=auction_times(current.end),
        )
        if not made:
            return None
        review_at_opening(auction, now=now)
        cover(lock_standing_bids(grade.id, gate_at=auction.gate_at), now=now)
    return auction


def enter_no_cancel(*, now: datetime) -> int:
    return Auction.objects.filter(status=Auction.Status.OPEN, no_cancel_at__lte=now).update(
        status=Auction.Status.NO_CANCEL
    )


def close_due_auctions(*, now: datetime) -> int:
    """Seal the books whose gate has passed. All grades of one period close in one transaction, so that a host which
    serves several grades is asked into them together."""
    open_states = (Auction.Status.OPEN, Auction.Status.NO_CANCEL)
    starts = Auction.objects.filter(status__in=open_states, gate_at__lte=now).values_list(
        "period_start", flat=True
    )
    closed = 0
    for start in sorted(set(starts)):
        # What will still be running then is not for sale; before the locks of the gate, for it locks hours too.
        keep_carry_over(period_start=start, now=now)
        closed += _close_period(start, now)
    return closed


def _close_period(period_start: datetime, now: datetime) -> int:
    open_states = (Auction.Status.OPEN, Auction.Status.NO_CANCEL)
    due = Auction.objects.filter(period_start=period_start, status__in=open_states, gate_at__lte=now)
    with without_cycle_collection(), transaction.atomic():
        hold_turnstile(due.values_list("grade_id", flat=True))
        auctions = list(due.select_for_update(of=("self",)).select_related("grade").order_by("pk"))
        if not auctions:
            return 0
        # A period that came too near is closed without supply: no trades, and the record says so.
        missed = now >= _latest_clearing(auctions[0])
        terms = sealing_terms(auctions, now=now)
        trading = [] if missed else [auction for auction in auctions if not terms[auction.id].halted]
        lines: dict[str, list[BidLine]] = {}
        asks: dict[UUID, list[BookAsk]] = {}
        if trading:
            locked = lock_bids_at_the_gate(
                [auction.grade_id for auction in trading],
                period_start=period_start,
                gate_at=trading[0].gate_at,
            )
            asks = _take_supply(trading, now)
            for auction_id, released in ask_released(trading, asks, now=now).items():
                asks[auction_id] += released
            caps = {auction.grade_id: terms[auction.id].cap for auction in trading}
            lines = _snapshot_bids(locked, caps, now)
        links: set[tuple[str, str]] = set()
        for auction in auctions:
            book = Book(
                grade_id=auction.grade_id,
                period_start=auction.period_start,
                cap=terms[auction.id].cap,
                bids=[],
                asks=asks.get(auction.id, []),
                missed=missed,
                halted=terms[auction.id].halted,
            )
            entered = lines.get(str(auction.grade_id), [])
            links |= seal_links(auction.grade_id, entered)
            sealed = sealed_text(book, entered)
            with packed_cursor() as cursor:
                cursor.execute(_SEAL, (sealed.data, sealed.digest, book.halted, auction.id))
        _join(auctions, links)
    return len(auctions)


def _latest_clearing(auction: Auction) -> datetime:
    return auction.period_start + (auction.period_end - auction.period_start) / 10


def _join(auctions: list[Auction], links: set[tuple[str, str]]) -> None:
    """Each auction is told which others bids of this period connect it with."""
    by_grade = {str(auction.grade_id): auction for auction in auctions}
    for members in connected(by_grade, links):
        if len(members) > 1:
            ids = sorted(str(by_grade[grade].pk) for grade in members)
            Auction.objects.filter(pk__in=ids).update(joined=ids)


def _snapshot_bids(
    locked: list[LockedBid], caps: Mapping[UUID, int], now: datetime
) -> dict[str, list[BidLine]]:
    """By grade, the bids whose holds are whole at the gate: an award published after this book was opened has taken
    its part, and what it took is held again where the balance allows.
    """
    in_book = cover([bid for bid in locked if not bid.is_whole], now=now)
    books: dict[str, list[BidLine]] = defaultdict(list)
    for bid in locked:
        if bid.is_whole or bid.id in in_book:
            books[bid.grade_id].append(BidLine(*bid[:6], _counted(bid, caps) if bid.substitutes else ()))
    return books


def _counted(bid: LockedBid, caps: Mapping[UUID, int]) -> list[tuple[str, int]]:
    """The substitutes that count in this round, by grade; of a bid that names some."""
    counted = counted_substitutes(
        json.loads(bid.steps),
        [(UUID(grade), adjustment) for grade, adjustment in json.loads(bid.substitutes)],
        home_cap=caps[UUID(bid.grade_id)],
        caps=caps,
    )
    return [(str(grade_id), adjustment) for grade_id, adjustment in counted]


class _Offer(NamedTuple):
    """Lots whose share of the host has been taken for this auction."""

    offering: Offering
    lots: int
    share_ppm: int


def _take_supply(auctions: list[Auction], now: datetime) -> dict[UUID, list[BookAsk]]:
    """Ask every listed offering's unsold share into its auction and take that share in the same transaction.

    A host with several grades gives its share to the ask with the lowest floor per host-second. What is asked follows
    when it is known who has something to sell in each book.
    """
    seconds = settings.DELIVERY_PERIOD_S
    by_host: dict[UUID, list[tuple[int, Auction, Offering]]] = defaultdict(list)
    for auction in auctions:
        for offering in listed_offerings(auction.grade_id, now):
            floor_per_host = offering.spot_floor_micros_per_mtok * dependable_lots(offering, seconds)
            by_host[offering.host_id].append((floor_per_host, auction, offering))
    offers: dict[UUID, list[_Offer]] = defaultdict(list)
    for host_id in sorted(by_host):
        for _, auction, offering in sorted(by_host[host_id], key=lambda entry: (entry[0], entry[2].id)):
            free_ppm = unsold_ppm(host_id, auction.period_start)
            lots = free_ppm * dependable_lots(offering, seconds) // 1_000_000
            if lots < 1:
                continue
            share = share_ppm_of(lots, offering, seconds)
            try:
                with transaction.atomic():
                    take_period_share(host_id=host_id, period_start=auction.period_start, share_ppm=share)
            except CapacityGone:
                continue
            offers[auction.id].append(_Offer(offering, lots, share))
    return {auction.id: _ask(auction, offers[auction.id], now) for auction in auctions}


def _ask(auction: Auction, offers: Sequence[_Offer], now: datetime) -> list[BookAsk]:
    """At the providers' floors; with fewer than three sellers in this book, none above its own firm list rate.

    A provider whose hosts are sold out, or gave their share to another grade, competes with nobody here.
    """
    sellers = {offer.offering.host.provider.organization_id for offer in offers}
    asks = []
    for offering, lots, share_ppm in offers:
        rate = offering.spot_floor_micros_per_mtok
        if len(sellers) < FEW_SELLERS:
            rate = min(rate, offering.firm_rate.micros_per_mtok)
        ask = Ask.objects.create(
            id=derived_id(auction.id, f"ask:{offering.id}"),
            auction=auction,
            offering=offering,
            rate_micros_per_mtok=rate,
            lots=lots,
            share_ppm=share_ppm,
            created_at=now,
        )
        asks.append(
            BookAsk(
                id=ask.id,
                organization_id=offering.host.provider.organization_id,
                offering_id=offering.id,
                placed_at=offering.created_at,
                rate=rate,
                lots=lots,
            )
        )
    return asks


def advance_auctions(*, now: datetime) -> dict[str, int]:
    """Do everything that is due, in order; safe to call from any number of workers at any time.

    An auction that cannot be cleared or published stays where it is, is logged, and holds up no other.
    """
    from marketplace.orders.services.clearing import clear_auction, publish_auction

    done = {"no_cancel": enter_no_cancel(now=now), "closed": close_due_auctions(now=now)}
    for status, step in ((Auction.Status.CLOSED, clear_auction), (Auction.Status.CLEARED, publish_auction)):
        due = (
            Auction.objects.filter(status=status).order_by("period_start", "pk").values_list("pk", flat=True)
        )
        done[step.__name__] = sum(_try(step, pk, now) for pk in list(due))
    done["opened"] = len(open_auctions(now=now))
    done["delivered"] = Auction.objects.filter(status=Auction.Status.PUBLISHED, period_end__lte=now).update(
        status=Auction.Status.DELIVERED
    )
    done["settled"] = _settle_delivered()
    done["returned"] = close_stranded_releases(now=now)
    done["expired"] = _expire_single_bids(now) + expire_standing_bids(now=now)
    return done


def _try(step: Callable[..., bool], auction_id: UUID, now: datetime) -> bool:
    try:
        return step(auction_id=auction_id, now=now)
    except (DomainError, EnginesDisagree):
        logger.exception("auction stuck", extra={"auction_id": str(auction_id), "step": step.__name__})
        return False


def _settle_delivered() -> int:
    """An auction is settled once every award of it is."""
    settled = 0
    for auction in Auction.objects.filter(status=Auction.Status.DELIVERED):
        contracts = Contract.objects.filter(awarded_contracts(auction))
        unsettled = Entitlement.objects.filter(
            contract__in=contracts, period_start=auction.period_start, settled_at__isnull=True
        )
        if not unsettled.exists():
            settled += Auction.objects.filter(pk=auction.pk, status=Auction.Status.DELIVERED).update(
                status=Auction.Status.SETTLED
            )
    return settled


def _expire_single_bids(now: datetime) -> int:
    """Bids for one period end when their period's auction is published (awarded or not) or was never held."""
    expired = 0
    grace = timedelta(seconds=settings.DELIVERY_PERIOD_S)
    for bid_id in Bid.objects.filter(status=Bid.Status.OPEN, standing=False).values_list("pk", flat=True):
        with transaction.atomic():
            bid = Bid.objects.select_for_update().get(pk=bid_id)
            if bid.status != Bid.Status.OPEN or bid.period_start is None:
                continue
            rounds = Auction.objects.filter(grade_id=bid.grade_id, period_start=bid.period_start)
            auction = rounds.defer("book").first()
            over = (
                auction.published_at is not None if auction is not None else now >= bid.period_start + grace
            )
            if over and not awaits_a_result(bid):
                end_bid(bid, status=Bid.Status.EXPIRED, now=now)
                expired += 1
    return expired


def expire_standing_bids(*, now: datetime) -> int:
    """End the standing bids whose `valid_until` has come and give their holds back; how many.

    One whose last book is not published yet waits for its award, which is carved out of its hold.
    """
    last_book = Auction.objects.filter(
        grade_id=OuterRef("grade_id"), status__in=UNPUBLISHED, gate_at__lt=OuterRef("valid_until")
    )
    due = Bid.objects.filter(~Exists(last_book), status=Bid.Status.OPEN, valid_until__lte=now)
    expired = 0
    for bid_id in list(due.values_list("pk", flat=True)):
        with transaction.atomic():
            # Looked at again under the lock: it may have been revised to live on, or cancelled.
            bid = due.select_for_update(of=("self",), skip_locked=True).filter(pk=bid_id).first()
            if bid is not None and not awaits_a_result(bid):
                end_bid(bid, status=Bid.Status.EXPIRED, now=now)
                expired += 1
    return expired
