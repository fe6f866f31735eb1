"""What may be done to an order now: the rounds that it competes in, locked, and their phase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from marketplace.errors import DomainError
from marketplace.ids import derived_id
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
# Keys of advisory locks are signed 64-bit numbers.
_KEY_BITS: Final = (1 << 63) - 1
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
    One change waits for another of the same rounds, and for no placing.
    """
    rounds = _rounds(grade_id, period_start)
    return list(rounds.select_for_update(of=("self",), no_key=True).order_by("pk"))


def share_rounds(*, grade_id: UUID, period_start: datetime | None, now: datetime) -> list[Auction]:
    """The same rounds for a bid that is placed now: none whose gate is ahead closes before the caller commits, and
    placements do not wait for each other.

    A round whose gate has come is read as it is: a bid of this moment is not in its book, whatever becomes of it.
    """
    pass_turnstile(grade_id)
    rounds = _rounds(grade_id, period_start)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM orders_auction WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE",
            [list(rounds.filter(gate_at__gt=now).values_list("pk", flat=True))],
        )
    # Read again under the locks: a gate may have been closing while we waited.
    return list(rounds.order_by("pk"))


def _rounds(grade_id: UUID, period_start: datetime | None) -> QuerySet[Auction]:
    rounds = Auction.objects.filter(grade_id=grade_id, status__in=UNPUBLISHED)
    if period_start is not None:
        rounds = rounds.filter(period_start=period_start)
    return rounds.defer("book")


def pass_turnstile(grade_id: UUID) -> None:
    """Before the rounds of a grade are shared. Placements pass together until somebody holds it, then wait in turn.

    Row locks alone would let every new placement by whoever waits for the last one to end, so that a stream of them
    could keep a gate, or a halt, from closing.
    """
    _advise("SELECT pg_advisory_xact_lock_shared(%s)", grade_id)


def hold_turnstile(grade_ids: Iterable[UUID]) -> None:
    """Before the rounds of these grades are locked to be closed or halted: those placing now end, others wait until the
    caller's transaction does."""
    for grade_id in sorted(grade_ids):
        _advise("SELECT pg_advisory_xact_lock(%s)", grade_id)


def _advise(statement: str, grade_id: UUID) -> None:
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute(statement, [derived_id(grade_id, "rounds").int & _KEY_BITS])


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
