"""The round of a delivery period, from bid to spot contract, through the services."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import time_machine
from django.test import Client

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import Allocation, Entitlement, PeriodRate
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.ledger.services import InsufficientFunds
from marketplace.orders.models import Ask, Auction, Bid, Trade
from marketplace.orders.services.bids import BidTerms, MarketClosed, cancel_bid, place_bid
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.rounds import advance_auctions
from providers.models import HostPeriod
from providers.services import announce_tariff
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, beat, bid_of, run_round


def test_overage_is_bounded_by_the_list_rate_of_the_period_not_of_the_auction(
    acme: Party, plant: Plant, now: datetime
) -> None:
    """The market clears at 200,000, a tenth above is 220,000; the period's list tariff is cheaper than that."""
    fund(acme, 1_000_000, now)
    for valid_from, rate in ((now + PERIOD, 210_000), (now + 2 * PERIOD, 600_000)):
        announce_tariff(
            organization_id=plant.host.provider.organization_id,
            offering_id=plant.offering.id,
            kind="per_unit",
            valid_from=valid_from,
            rate_micros_per_mtok=rate,
            now=now,
            actor=SYSTEM,
        )
    bid_of(acme, now)
    auction = run_round(plant, now)
    assert (auction.period_start, auction.clearing_rate_micros_per_mtok) == (now + PERIOD, 200_000)
    assert PeriodRate.objects.get().overage_rate.micros_per_mtok == 210_000


def test_a_trade_becomes_a_spot_contract_with_its_own_hold(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    # max(450,000 x 40, 300,000 x 60) / 1000 micros.
    assert balance(organization_id=acme.id, kind="prepaid", currency="USD").pending_micros == 18_000
    auction = run_round(plant, now)
    assert auction.status == Auction.Status.PUBLISHED
    assert auction.quantity_lots == 60
    # Supply exceeds demand: the marginal ask's floor prices everybody.
    assert auction.clearing_rate_micros_per_mtok == 200_000
    assert Trade.objects.get().lots == 60
    entitlement = Entitlement.objects.get(contract=bid.contract)
    assert entitlement.entitled_numerator == 60 * 10**9
    assert entitlement.ledger_hold is not None
    assert entitlement.ledger_hold.amount_micros == 12_000
    assert Allocation.objects.get(contract=bid.contract).offering_id == plant.offering.id
    assert PeriodRate.objects.get().overage_rate.micros_per_mtok == 220_000
    assert not check_ledger()


def test_the_unawarded_share_goes_back_and_the_awarded_one_stays_sold(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    auction = run_round(plant, now)
    ask = Ask.objects.get(auction=auction)
    period = HostPeriod.objects.get(host=plant.host, period_start=auction.period_start)
    assert ask.lots > ask.awarded_lots == 60
    # 850 standard tokens a second make 255 lots in five minutes.
    assert period.sold_ppm == -(-1_000_000 * 60 // 255)


def test_advancing_twice_does_everything_once(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    auction = run_round(plant, now)
    assert set(advance_auctions(now=now + PERIOD * 0.94).values()) == {0}
    assert Trade.objects.count() == Entitlement.objects.count() == 1
    assert replay_auction(auction_id=auction.id)["matches"]


def test_a_standing_bid_is_topped_up_for_the_next_book_or_sits_it_out(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 30_000, now)
    bid = bid_of(acme, now)
    run_round(plant, now)
    # 18,000 held, 12,000 carved out for the award: 12,000 are free, so the hold is whole again.
    advance_auctions(now=now + PERIOD)
    bid.refresh_from_db()
    assert bid.skip_reason == ""
    second = run_round(plant, now + PERIOD)
    assert second.quantity_lots == 60
    advance_auctions(now=now + 2 * PERIOD)
    bid.refresh_from_db()
    assert "balance" in bid.skip_reason
    third = run_round(plant, now + 2 * PERIOD)
    assert third.quantity_lots == 0
    assert not check_ledger()


def test_a_bid_for_one_period_ends_with_it_and_gives_its_hold_back(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, steps=((100_000, 10),), period_start=now + PERIOD)
    run_round(plant, now)
    bid.refresh_from_db()
    assert bid.status == Bid.Status.EXPIRED
    assert balance(organization_id=acme.id, kind="prepaid", currency="USD").pending_micros == 0


def test_a_bid_cannot_be_cancelled_while_the_round_is_binding(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)
    with pytest.raises(MarketClosed):
        cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now + PERIOD * 0.85, actor=SYSTEM)
    cancelled = cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now + PERIOD * 0.5, actor=SYSTEM)
    assert cancelled.status == Bid.Status.CANCELLED
    assert balance(organization_id=acme.id, kind="prepaid", currency="USD").pending_micros == 0


def test_a_gate_closed_too_late_trades_nothing_and_says_so(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    advance_auctions(now=now)
    late = now + PERIOD * 1.5
    beat(plant, late)
    advance_auctions(now=late)
    auction = Auction.objects.get(period_start=now + PERIOD)
    assert auction.status == Auction.Status.PUBLISHED
    assert auction.book is not None
    assert auction.book["missed"] is True
    assert auction.quantity_lots == 0
    assert not Trade.objects.exists()


def test_the_same_client_id_is_the_same_bid_and_other_terms_are_a_conflict(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    first = bid_of(acme, now)
    assert bid_of(acme, now).id == first.id
    with pytest.raises(Conflict) as refused:
        bid_of(acme, now, steps=((450_000, 41),))
    assert refused.value.field == "client_id"
    assert Bid.objects.count() == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": ()}, "steps"),
        ({"steps": tuple((100, 1) for _ in range(11))}, "steps"),
        ({"steps": ((100, 1), (101, 1))}, "steps.1.rate_micros_per_mtok"),
        ({"steps": ((0, 1),)}, "steps.0.rate_micros_per_mtok"),
        ({"steps": ((5_000_001, 1),)}, "steps.0.rate_micros_per_mtok"),
        ({"steps": ((100, 0),)}, "steps.0.lots"),
        ({"steps": ((100, 10**9), (100, 1))}, "steps"),
        ({"min_fill_lots": 61}, "min_fill_lots"),
        ({"max_total_micros_per_day": 0}, "max_total_micros_per_day"),
        ({"period_start": datetime.fromisoformat("2026-03-10T12:07:00+00:00")}, "period_start"),
        ({"period_start": datetime.fromisoformat("2026-03-12T12:05:00+00:00")}, "period_start"),
    ],
)
def test_bad_terms_are_refused_naming_the_field(
    acme: Party, plant: Plant, now: datetime, changes: dict[str, object], field: str
) -> None:
    fund(acme, 10**12, now)
    with pytest.raises(InvalidInput) as refused:
        bid_of(acme, now, **changes)
    assert refused.value.field == field
    assert not Bid.objects.exists()


def test_a_bid_above_the_balance_changes_nothing(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 10_000, now)
    with pytest.raises(InsufficientFunds):
        bid_of(acme, now)
    assert not Bid.objects.exists()
    assert balance(organization_id=acme.id, kind="prepaid", currency="USD").available_micros == 10_000


def test_an_unknown_grade_and_a_closed_gate_are_refused(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    with pytest.raises(NotFound):
        bid_of(acme, now, grade="no-such-grade")
    with pytest.raises(MarketClosed) as refused:
        bid_of(acme, now + PERIOD * 0.95, period_start=now + PERIOD)
    assert refused.value.field == "period_start"


def test_mallory_sees_and_cancels_nothing_of_acmes(
    acme: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    with pytest.raises(NotFound):
        cancel_bid(organization_id=mallory.id, bid_id=bid.id, now=now, actor=SYSTEM)
    assert mallory.api.get("/api/v1/bids").json()["items"] == []
    assert mallory.api.get(f"/api/v1/bids/{bid.id}").status_code == 404
    assert mallory.api.delete(f"/api/v1/bids/{bid.id}").status_code == 404
    assert acme.api.get(f"/api/v1/bids/{bid.id}").json()["steps"][0]["lots"] == 40


def test_the_public_market_shows_price_and_digests_but_no_book_of_few(
    acme: Party, plant: Plant, now: datetime, client: Client
) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    auction = run_round(plant, now)
    with time_machine.travel(now + PERIOD, tick=False):
        shown = client.get("/api/v1/market/tiny-chat").json()
    assert shown["last"]["clearing_rate_micros_per_mtok"] == 200_000
    assert shown["last"]["book_digest"] == auction.book_digest
    assert shown["depth"] is None
    assert "Acme" not in str(shown)
    # A day later the aggregated book of few is public too; names never.
    with time_machine.travel(now + PERIOD + timedelta(days=1), tick=False):
        later = client.get("/api/v1/market/tiny-chat").json()
    assert later["depth"]["demand"] == [
        {"rate_micros_per_mtok": 450_000, "lots": 40},
        {"rate_micros_per_mtok": 300_000, "lots": 60},
    ]
    assert str(acme.id) not in str(later)


def test_the_same_operation_places_one_bid(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    operation = uuid7()
    terms = BidTerms(grade="tiny-chat", client_id="b1", steps=((450_000, 40),))
    first, second = (
        place_bid(organization_id=acme.id, terms=terms, operation_id=operation, now=now, actor=SYSTEM)
        for _ in range(2)
    )
    assert first.id == second.id
    assert Bid.objects.count() == 1
