"""Good till time: a standing bid ends when its time has come, and not before its last book is published."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.db import IntegrityError, transaction

from marketplace.contracts.models import Entitlement
from marketplace.errors import InvalidInput
from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.clearing import clear_auction, publish_auction
from marketplace.orders.services.rounds import (
    advance_auctions,
    close_due_auctions,
    expire_standing_bids,
)
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, beat, bid_of, held, revise, run_round


def test_a_bid_whose_time_has_come_expires_and_gives_its_hold_back(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, valid_until=now + timedelta(seconds=90))
    auction = run_round(plant, now)
    bid.refresh_from_db()
    assert (bid.status, bid.revision) == (Bid.Status.EXPIRED, 1)
    assert bid.ended_at is not None
    assert held(acme) == 0
    # It was over before the gate, so it was in no book.
    assert auction.quantity_lots == 0
    assert set(advance_auctions(now=now + PERIOD * 0.94).values()) == {0}


def test_it_enters_each_book_whose_gate_comes_before_its_end(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    gate = now + PERIOD * 0.9
    at_the_gate = bid_of(acme, now, client_id="at", valid_until=gate)
    after_it = bid_of(acme, now, client_id="after", valid_until=gate + timedelta(seconds=1))
    advance_auctions(now=now)
    auction = run_round(plant, now)
    assert auction.book is not None
    assert [entry["id"] for entry in auction.book["bids"]] == [str(after_it.id)]
    for bid in (at_the_gate, after_it):
        bid.refresh_from_db()
        assert bid.status == Bid.Status.EXPIRED
    assert Entitlement.objects.get(contract=after_it.contract).entitled_numerator == 60 * 10**9
    # The award's own hold stays.
    assert held(acme) == 12_000
    assert not check_ledger()


def test_its_last_book_is_published_first(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now, valid_until=now + PERIOD * 0.91)
    advance_auctions(now=now)
    late = now + PERIOD * 0.92
    beat(plant, late)
    # The gate has passed and nobody has closed it yet; closed; cleared; published.
    assert expire_standing_bids(now=late) == 0
    close_due_auctions(now=late)
    assert expire_standing_bids(now=late) == 0
    auction = Auction.objects.get(period_start=now + PERIOD)
    clear_auction(auction_id=auction.id, now=late)
    assert expire_standing_bids(now=late) == 0
    publish_auction(auction_id=auction.id, now=late)
    assert expire_standing_bids(now=late) == 1
    assert held(acme) == 12_000
    assert not check_ledger()


def test_a_revision_moves_the_end(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, valid_until=now + timedelta(seconds=90))
    revise(acme, bid, now + timedelta(seconds=60), valid_until=None)
    run_round(plant, now)
    bid.refresh_from_db()
    assert bid.status == Bid.Status.OPEN


def test_only_a_standing_bid_has_an_end_of_its_own(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    for changes in (
        {"period_start": now + PERIOD, "valid_until": now + PERIOD},
        {"valid_until": now},
    ):
        with pytest.raises(InvalidInput) as refused:
            bid_of(acme, now, **changes)
        assert refused.value.field == "valid_until"
    bid = bid_of(acme, now, period_start=now + PERIOD)
    with pytest.raises(IntegrityError, match="orders_bid_valid_until_only_standing"), transaction.atomic():
        Bid.objects.filter(pk=bid.pk).update(valid_until=now + PERIOD)
