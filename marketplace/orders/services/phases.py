"""What may be done to an order now: the rounds that it competes in, locked, and their phase."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from django.conf import settings

from marketplace.errors import DomainError
from marketplace.orders.controls_selectors import is_halted
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.substituting import awaits_a_result
from marketplace.periods import delivery_period

UNPUBLISHED = (
    Auction.Status.OPEN,
    Auction.Status.NO_CANCEL,
    Auction.Status.CLOSED,
    Auction.Status.CLEARED,
)
TAKING = (Auction.Status.OPEN, Auction.Status.NO_CANCEL)


class MarketClosed(DomainError):
    """The book of that period takes no such order now."""

    code = "market_closed"
    http_status = 409
    title = "The market is closed for this"


class Phase(StrEnum):
    """FREE: anything goes. NO_CANCEL: an order may only improve. SEALED: between the gate and the result, nothing."""

    FREE = "free"
    NO_CANCEL = "no_cancel"
    SEALED = "sealed"


def lock_rounds(*, grade_id: UUID, period_start: datetime | None) -> list[Auction]:
    """The unpublished rounds that a bid of this grade competes in, locked: no gate closes before the caller commits.

    A standing bid (`period_start` None) competes in all of them, another one in its own. Taken before any bid's lock.
    """
    rounds = Auction.objects.select_for_update(of=("self",)).filter(grade_id=grade_id, status__in=UNPUBLISHED)
    if period_start is not None:
        rounds = rounds.filter(period_start=period_start)
    return list(rounds.defer("book").order_by("pk"))


def phase_of(rounds: Sequence[Auction], *, bid: Bid, now: datetime) -> Phase:
    """The most binding phase among the locked rounds. Who came after a gate is in none of that gate's books.

    What trades nothing binds nobody: of a halted market only results that are not published yet.
    """
    if awaits_a_result(bid):
        return Phase.SEALED
    concerned = [auction for auction in rounds if bid.created_at < auction.gate_at and not auction.halted]
    if is_halted(bid.grade_id):
        return Phase.SEALED if any(auction.status not in TAKING for auction in concerned) else Phase.FREE
    for auction in concerned:
        if auction.status not in TAKING or auction.gate_at <= now:
            return Phase.SEALED
    if bid.period_start is not None and not rounds and gate_has_passed(bid.period_start, now):
        return Phase.SEALED
    if any(a.status == Auction.Status.NO_CANCEL or a.no_cancel_at <= now for a in concerned):
        return Phase.NO_CANCEL
    return Phase.FREE


def gate_has_passed(period_start: datetime, now: datetime) -> bool:
    # Compared from `now`: the year 1 has no moment before it.
    return now + timedelta(seconds=settings.DELIVERY_PERIOD_S) / 10 >= period_start


def first_round(
    rounds: Sequence[Auction], *, period_start: datetime | None, now: datetime
) -> tuple[datetime, UUID | None]:
    """(start, auction) of the first delivery period whose book an order received now enters.

    The auction is None while that book is not opened yet.
    """
    taking = {
        auction.period_start: auction.id
        for auction in rounds
        if auction.status in TAKING and auction.gate_at > now
    }
    if period_start is None:
        current = delivery_period(now)
        period_start = current.end
        known = any(auction.period_start == period_start for auction in rounds)
        if period_start not in taking and (known or gate_has_passed(period_start, now)):
            period_start += current.end - current.start
    return period_start, taking.get(period_start)
