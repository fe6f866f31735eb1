"""From sealed books to spot contracts that deliver: clear, check with the second engine, trade, publish."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F

from marketplace.contracts.services import Award, record_awards, set_period_rate
from marketplace.errors import DomainError, NotFound
from marketplace.ids import derived_hexes
from marketplace.ledger.services import Carving, carve_holds
from marketplace.orders.book import SealedBook, sound_book
from marketplace.orders.controls_selectors import administered_rate
from marketplace.orders.joined_book import MINIMUM, JoinedBook, joined_groups
from marketplace.orders.models import Ask, Auction, MarketControl
from marketplace.orders.pairing import Filled, overage_rate, pair
from marketplace.orders.services.controls import halt_by_rule
from marketplace.orders.services.releasing import close_releases
from marketplace.orders.services.substituting import open_award_contracts, substitute_contracts
from marketplace.orders.services.telling import tell_of_awards
from marketplace.orders.services.topping_up import ROOM
from marketplace.orders.unhurried import without_cycle_collection
from marketplace.packed import packed_bigints, packed_cursor, packed_uuids
from pricing.book import Clearing, Order
from pricing.clearing_reference import EnginesDisagree
from pricing.coupling_book import COUPLED_RULE_VERSION, GradeClearing
from pricing.models import Rate
from pricing.rating import gross_up
from pricing.services import publish_rate
from pricing.units import Micros, Ppm
from providers.list_rates import list_rates_at
from providers.selectors import listed_offerings, share_ppm_of
from providers.services import give_back_period_share

logger = logging.getLogger(__name__)

_RESULT: Final = (
    "rule_version",
    "result_digest",
    "quantity_lots",
    "clearing_rate_micros_per_mtok",
    "rate_low_micros_per_mtok",
    "rate_high_micros_per_mtok",
    "welfare",
    "status",
    "joined",
    "left_out",
)
_ADD_TRADES: Final = """
INSERT INTO orders_trade (id, auction_id, bid_id, ask_id, lots, rate_micros_per_mtok, created_at)
SELECT id, %(auction)s, bid_id, ask_id, lots, %(rate)s, %(now)s
FROM unnest(%(ids)s::uuid[], %(bids)s::uuid[], %(asks)s::uuid[], %(lots)s::bigint[]) AS n (id, bid_id, ask_id, lots)
ORDER BY bid_id
"""
# By account, as every transaction that touches several accounts.
_LOCK_TRADED_BIDS: Final = """
SELECT bid.id::text, bid.contract_id::text, bid.ledger_hold_id::text, buyer.tax_ppm, bid.grade_id::text
FROM orders_bid AS bid
JOIN ledger_hold AS hold ON hold.id = bid.ledger_hold_id
JOIN accounts_organization AS buyer ON buyer.id = bid.organization_id
WHERE bid.id = ANY(%s::uuid[])
ORDER BY hold.account_id, bid.id FOR NO KEY UPDATE OF bid
"""
_SHARES: Final = """
-- A host's own lots and released ones of it are one share of the award.
SELECT trade.bid_id::text, ask.offering_id::text, sum(trade.lots)::bigint
FROM orders_trade AS trade JOIN orders_ask AS ask ON ask.id = trade.ask_id
WHERE trade.auction_id = %s GROUP BY trade.bid_id, ask.offering_id
"""


# As text: making objects of so many ids takes longer than reading them.
_PAIRS: Final = """
SELECT trade.bid_id::text, ask.offering_id::text
FROM orders_trade AS trade JOIN orders_ask AS ask ON ask.id = trade.ask_id WHERE trade.auction_id = %s
"""


class BookChanged(DomainError):
    """The stored book is not the one that was sealed: it has another digest, or cannot be read."""

    code = "book_changed"
    http_status = 409
    title = "The book has changed"

    def __init__(self, auction_id: UUID) -> None:
        super().__init__("The stored book is not the one that was sealed.")
        self.auction_id = auction_id


class _NotConfirmed(Exception):
    """The second engine did not confirm the result of these auctions."""

    def __init__(self, auction_ids: Sequence[UUID], error: EnginesDisagree) -> None:
        super().__init__(str(error))
        self.auction_ids = auction_ids
        self.error = error


def clear_auction(*, auction_id: UUID, now: datetime) -> bool:
    """closed -> cleared: result, trades and digests from the books alone. False when another worker has it.

    Books that bids join are cleared in one transaction, all of them or none, whichever of them is asked for. A halted
    one is not among them and clears by its own rule.
    Raises EnginesDisagree when the second engine does not confirm the result, BookChanged when a stored book is not
    the sealed one: then nothing is traded, the markets of the grades concerned are halted, and their books say so.
    """
    try:
        return _clear(auction_id, now)
    except _NotConfirmed as refused:
        for each in refused.auction_ids:
            halt_by_rule(
                auction_id=each,
                because=MarketControl.Because.ENGINES_DISAGREE,
                evidence={"difference": str(refused.error)[:500]},
                now=now,
            )
        raise refused.error from refused
    except BookChanged as changed:
        halt_by_rule(
            auction_id=changed.auction_id, because=MarketControl.Because.BOOK_CHANGED, evidence={}, now=now
        )
        raise


def _clear(auction_id: UUID, now: datetime) -> bool:
    with without_cycle_collection(), transaction.atomic():
        auctions = _locked_together(auction_id)
        if not auctions:
            return False
        if len(auctions) == 1:
            _clear_alone(auctions[0], _sound(auctions[0]), now)
            return True
        books = {str(auction.grade_id): _sound(auction) for auction in auctions}
        by_grade = {str(auction.grade_id): auction for auction in auctions}
        groups, reasons = joined_groups(list(books.values()))
        for reason in reasons:
            logger.warning("grades not joined", extra={"auction_id": str(auction_id), "reason": reason})
        for group in groups:
            members = [by_grade[str(book.data["grade_id"])] for book in group]
            if len(group) == 1:
                _clear_alone(members[0], group[0], now)
            else:
                _clear_joined(members, JoinedBook(group), now)
    return True


def _locked_together(auction_id: UUID) -> list[Auction]:
    """The auction and those that bids join it with, as far as they trade, locked in the order of their ids.

    Empty when another worker cleared them. Which they could be was written at the gate and is only narrowed since.
    """
    known = Auction.objects.filter(pk=auction_id).values_list("joined", flat=True).first()
    if known is None:
        raise NotFound("There is no such auction.")
    ids = {auction_id, *map(UUID, known)}
    locked = Auction.objects.select_for_update(of=("self",)).defer("book").filter(pk__in=ids).order_by("pk")
    auctions = [auction for auction in locked if auction.status == Auction.Status.CLOSED]
    own = [auction for auction in auctions if auction.pk == auction_id]
    if not own or own[0].halted:
        return own
    return [auction for auction in auctions if not auction.halted]


def _sound(auction: Auction) -> SealedBook:
    """Raises BookChanged."""
    book = sound_book(auction.book, auction.book_digest)
    if book is None:
        raise BookChanged(auction.pk)
    return book


def _clear_alone(auction: Auction, book: SealedBook, now: datetime) -> None:
    result = book.clear()
    try:
        book.confirm(result)
    except EnginesDisagree as error:
        raise _NotConfirmed([auction.pk], error) from error
    if not result.search_complete:
        # Sound, and what a replay finds too, but there may be a better choice among the minima.
        logger.warning(
            "choice among minima not proved best", extra={"auction_id": str(auction.pk), "rule": book.rule}
        )
    auction.rule_version = book.rule
    auction.result_digest = book.result_digest(result)
    auction.welfare = str(result.welfare)
    auction.joined = []
    _save_result(auction, result)
    if result.price is not None:
        _record_trades(
            auction,
            _filled(book.bids, result.bid_fills),
            _filled(book.asks, result.ask_fills),
            book.offerings(),
            now,
        )


def _clear_joined(auctions: Sequence[Auction], book: JoinedBook, now: datetime) -> None:
    """One result for all of them; price, volume and range are each grade's own, welfare and digest the whole's."""
    try:
        result = book.clear()
        book.confirm(result)
    except (EnginesDisagree, ValueError) as error:
        # A book that the engine refuses has no result that could be confirmed either.
        refused = error if isinstance(error, EnginesDisagree) else EnginesDisagree(str(error))
        raise _NotConfirmed([auction.pk for auction in auctions], refused) from error
    digest = book.result_digest(result)
    offerings = book.offerings()
    parts = book.results(result)
    for auction in auctions:
        part = parts[str(auction.grade_id)]
        auction.rule_version = COUPLED_RULE_VERSION
        auction.result_digest = digest
        auction.welfare = str(result.welfare)
        auction.joined = sorted(str(each.pk) for each in auctions)
        auction.left_out = [
            {"bid_id": bid_id, "reason": MINIMUM} for bid_id in book.left_out[str(auction.grade_id)]
        ]
        _save_result(auction, part.facts)
        if part.facts.price is not None:
            bids, asks = (
                [Filled(order.id, lots, rate, _rank(order)) for order, lots, rate in side]
                for side in (part.bids, part.asks)
            )
            _record_trades(auction, bids, asks, offerings, now)


def _save_result(auction: Auction, facts: Clearing | GradeClearing) -> None:
    auction.quantity_lots = facts.quantity_lots
    auction.clearing_rate_micros_per_mtok = facts.price
    auction.rate_low_micros_per_mtok = facts.price_low
    auction.rate_high_micros_per_mtok = facts.price_high
    auction.status = Auction.Status.CLEARED
    # All but the book, which is large and stays as it was sealed.
    auction.save(update_fields=_RESULT)


def _locked_auction(auction_id: UUID) -> Auction:
    auction = Auction.objects.select_for_update().defer("book").filter(pk=auction_id).first()
    if auction is None:
        raise NotFound("There is no such auction.")
    return auction


def _record_trades(
    auction: Auction,
    filled_bids: Sequence[Filled[str]],
    filled_asks: Sequence[Filled[str]],
    offering_of: Mapping[str, UUID],
    now: datetime,
) -> None:
    ask_of_offering = {str(offering_of[ask.id]): ask.id for ask in filled_asks}
    previous = {
        (bid_id, ask_of_offering[offering_id])
        for bid_id, offering_id in _previous_pairs(auction)
        if offering_id in ask_of_offering
    }
    pairs = pair(filled_bids, filled_asks, previous)
    with packed_cursor() as cursor:
        cursor.execute(ROOM)
        cursor.execute(
            _ADD_TRADES,
            {
                "ids": packed_uuids(
                    derived_hexes(auction.id.hex, [f"trade:{bid_id}:{ask_id}" for bid_id, ask_id in pairs])
                ),
                "bids": packed_uuids(bid_id for bid_id, _ in pairs),
                "asks": packed_uuids(ask_id for _, ask_id in pairs),
                "lots": packed_bigints(pairs.values()),
                "auction": auction.id,
                "rate": auction.clearing_rate_micros_per_mtok,
                "now": now,
            },
        )
    for ask in filled_asks:
        Ask.objects.filter(pk=ask.id).update(awarded_lots=ask.lots)


def _filled(orders: Sequence[Order], fills: Sequence[Sequence[int]]) -> list[Filled[str]]:
    return [
        Filled(order.id, lots, order.steps[0][0], _rank(order))
        for order, fill in zip(orders, fills, strict=True)
        if (lots := sum(fill))
    ]


def _rank(order: Order) -> tuple[int, str]:
    return order.priority, order.id


def _previous_pairs(auction: Auction) -> list[tuple[str, str]]:
    """Bid and offering of the grade's last auction that traded."""
    last = (
        Auction.objects.filter(grade_id=auction.grade_id, period_start__lt=auction.period_start)
        .filter(quantity_lots__gt=0)
        .order_by("-period_start")
        .values_list("pk", flat=True)
        .first()
    )
    if last is None:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_PAIRS, (last,))
        return [(bid_id, offering_id) for bid_id, offering_id in cursor.fetchall()]


def publish_auction(*, auction_id: UUID, now: datetime) -> bool:
    """cleared -> published: awards become entitlements with a hold of their own, the unawarded share goes back."""
    with without_cycle_collection(), transaction.atomic():
        auction = _locked_auction(auction_id)
        if auction.status != Auction.Status.CLEARED:
            return False
        close_releases(auction, now=now)
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
        else:
            _give_back_unawarded(auction)
        _set_period_rate(auction, now)
        auction.rate = rate
        auction.published_at = now
        auction.status = Auction.Status.PUBLISHED
        auction.save(update_fields=["rate", "published_at", "status"])
    return True


def _award(auction: Auction, rate: Rate, now: datetime) -> None:
    """Every traded bid gets its entitlement and a hold carved out of its own; then, by its lock last, the ledger."""
    shares: dict[str, list[tuple[UUID | str, int]]] = defaultdict(list)
    with packed_cursor() as cursor:
        cursor.execute(ROOM)
        cursor.execute(_SHARES, (auction.id,))
        for bid_id, offering_id, lots in cursor.fetchall():
            shares[bid_id].append((offering_id, lots))
        # By their ids: of the trades, which are new, the planner knows no number, and would look bid by bid.
        cursor.execute(_LOCK_TRADED_BIDS, (packed_uuids(shares),))
        bids = cursor.fetchall()
        open_award_contracts(auction, now=now)
        contract_of = substitute_contracts(auction)
    awards: list[Award] = []
    carvings: list[Carving] = []
    home = str(auction.grade_id)
    award_holds = derived_hexes(auction.id.hex, [f"award:{bid[0]}" for bid in bids])
    for (bid_id, own_contract_id, hold_id, tax_ppm, grade_id), award_hold in zip(
        bids, award_holds, strict=True
    ):
        contract_id = own_contract_id if grade_id == home else contract_of[bid_id]
        lots = sum(part for _, part in shares[bid_id])
        # The bid's hold covers rate x lots of every step sum in all its grades, so carving awards out cannot fail.
        cost = gross_up(Micros(-(-rate.micros_per_mtok * lots // 1000)), Ppm(tax_ppm))
        awards.append(Award(contract_id, lots, award_hold, shares[bid_id]))
        carvings.append(Carving(award_hold, hold_id, cost))
    record_awards(awards, period_start=auction.period_start, period_end=auction.period_end, rate_id=rate.id)
    tell_of_awards(auction, awards, rate, now=now)
    _give_back_unawarded(auction)
    carve_holds(carvings, code="award", reference_id=auction.id, now=now)


def _give_back_unawarded(auction: Auction) -> None:
    seconds = int((auction.period_end - auction.period_start).total_seconds())
    asks = Ask.objects.filter(auction=auction, awarded_lots__lt=F("lots"), release__isnull=True)
    for ask in asks.select_related("offering").order_by("offering__host_id", "pk"):
        kept = share_ppm_of(ask.awarded_lots, ask.offering, seconds) if ask.awarded_lots else 0
        if ask.share_ppm > kept:
            give_back_period_share(
                host_id=ask.offering.host_id,
                period_start=auction.period_start,
                share_ppm=ask.share_ppm - kept,
            )


def _set_period_rate(auction: Auction, now: datetime) -> None:
    """Overage and replacement in this period, known before delivery; none where nothing is listed.

    Of a halted period it is the administered rate, never above the list rate.
    """
    offerings = listed_offerings(auction.grade_id, now)
    # What they cost in the period, not what they cost while it is cleared.
    rates = list_rates_at(offerings, auction.period_start).values()
    listed = [int(rate.comparable) for rate in rates if rate.comparable is not None]
    administered = (
        administered_rate(auction.grade_id, before=auction.period_start) if auction.halted else None
    )
    if administered is not None:
        listed.append(administered)
    if not listed:
        return
    unsold = (
        # What is released and not resold is its buyer's again: nobody gets it as overage.
        Ask.objects.filter(auction=auction, awarded_lots__lt=F("lots"), release__isnull=True)
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
