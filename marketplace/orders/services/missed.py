"""Delivery periods whose book was never opened, since nothing of the market ran: closed without trades, and said so."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from marketplace.ids import uuid7
from marketplace.orders.book import Book
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Auction
from marketplace.periods import delivery_period
from pricing.book import RULE_VERSION
from pricing.models import Grade

# The order of the phases: no-cancel from 80% of the preceding period, gate at 90%.
NO_CANCEL_PPM: Final = 800_000
GATE_PPM: Final = 900_000
# Longer ago is a gap in the record that nobody closes: a market that was off for a month owes no 8,640 empty auctions.
LOOK_BACK: Final = timedelta(hours=24)


def auction_times(period_start: datetime) -> dict[str, datetime]:
    """End of the delivery period, and the phases of its auction in the period before."""
    length = delivery_period(period_start).end - period_start
    opens_at = period_start - length
    return {
        "period_end": period_start + length,
        "opens_at": opens_at,
        "no_cancel_at": opens_at + length * NO_CANCEL_PPM / 1_000_000,
        "gate_at": opens_at + length * GATE_PPM / 1_000_000,
    }


def record_missed_periods(grade: Grade, *, now: datetime) -> int:
    """Record the periods between the grade's last auction and `now` for which none was opened; how many.

    Each becomes an auction that was published without orders, its book saying `missed`, for at most the last 24 hours.
    No rate of overage is set for them: none was known before delivery. Done again, or by two workers at once, it adds
    nothing.
    """
    last = Auction.objects.filter(grade=grade).defer("book").order_by("-period_start").first()
    if last is None:
        return 0  # A grade's record begins with its first auction.
    starts = []
    period = delivery_period(now)
    earliest = max(last.period_end, now - LOOK_BACK)
    while period.start >= earliest:
        starts.append(period.start)
        period = delivery_period(period.start - timedelta(microseconds=1))
    missed = [_missed(grade, start, now) for start in reversed(starts)]
    # Another worker may record the same at the same moment: his row is as good.
    Auction.objects.bulk_create(missed, ignore_conflicts=True)
    return len(missed)


def _missed(grade: Grade, period_start: datetime, now: datetime) -> Auction:
    book = Book(
        grade_id=grade.id,
        period_start=period_start,
        cap=cap_of(grade, at=period_start),
        bids=[],
        asks=[],
        missed=True,
    ).sealed()
    result = book.clear()
    times = auction_times(period_start)
    over = times["period_end"] <= now
    return Auction(
        id=uuid7(now),
        grade=grade,
        period_start=period_start,
        **times,
        # Nothing was awarded, so there is nothing to deliver or to settle.
        status=Auction.Status.SETTLED if over else Auction.Status.PUBLISHED,
        rule_version=RULE_VERSION,
        book=dict(book.data),
        book_digest=book.digest(),
        result_digest=book.result_digest(result),
        quantity_lots=result.quantity_lots,
        welfare=str(result.welfare),
        published_at=now,
    )
