"""What the record says of periods in which everything was down."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Auction, Bid, Trade
from marketplace.orders.selectors import published_auctions
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.rounds import advance_auctions, open_auctions
from tests.cast import Party, Plant, fund, make_grade
from tests.conftest import TestDatabase
from tests.orders.world import bid_of, run_round

PERIOD = timedelta(minutes=5)


def test_periods_nobody_opened_are_closed_without_trades_and_say_so(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    first = run_round(plant, now)
    # Down for three periods and a half: those that begin at 2, 3 and 4 had no auction.
    back = now + PERIOD * 4.5
    advance_auctions(now=back)
    missed = list(Auction.objects.filter(book__missed=True).order_by("period_start"))
    assert [auction.period_start for auction in missed] == [now + PERIOD * n for n in (2, 3, 4)]
    assert [auction.status for auction in missed] == ["settled", "settled", "published"]
    for auction in missed:
        assert (auction.quantity_lots, auction.clearing_rate_micros_per_mtok) == (0, None)
        assert auction.published_at == back
        assert replay_auction(auction_id=auction.id)["matches"]
    assert Trade.objects.exclude(auction=first).count() == 0
    assert Auction.objects.get(period_start=now + PERIOD * 5).status == Auction.Status.OPEN
    assert published_auctions([plant.offering.grade_id]).count() == 4
    assert Bid.objects.get().status == Bid.Status.OPEN
    assert check_ledger() == []
    # The one that was running ends like any other.
    advance_auctions(now=back + PERIOD)
    assert Auction.objects.get(period_start=now + PERIOD * 4).status == Auction.Status.SETTLED


def test_the_look_back_is_a_day_and_a_grade_without_auctions_has_missed_nothing(
    acme: Party, plant: Plant, now: datetime
) -> None:
    open_auctions(now=now)
    later = now + timedelta(days=3)
    fresh = make_grade(now, slug="tiny-code", model="tiny-code")
    open_auctions(now=later)
    missed = Auction.objects.filter(book__missed=True).order_by("period_start")
    starts = list(missed.values_list("period_start", flat=True))
    assert (starts[0], starts[-1], len(starts)) == (later - timedelta(days=1), later, 289)
    assert Auction.objects.filter(grade=fresh).get().period_start == later + PERIOD
    assert len(open_auctions(now=later)) == 0
    assert missed.count() == 289


def test_two_beats_at_once_record_and_open_everything_once(committed_db: TestDatabase, now: datetime) -> None:
    grade = make_grade(now)
    open_auctions(now=now)
    back = now + PERIOD * 6

    def beat(_: int) -> Any:
        try:
            return advance_auctions(now=back)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as beats:
        done = list(beats.map(beat, range(2)))
    assert sum(each["opened"] for each in done) == 1
    starts = Auction.objects.filter(grade=grade).order_by("period_start")
    assert list(starts.values_list("period_start", flat=True)) == [now + PERIOD * n for n in range(1, 8)]
    assert Auction.objects.filter(book__missed=True).count() == 6
