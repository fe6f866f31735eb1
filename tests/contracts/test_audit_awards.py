"""Bids, awards and dead gateways: what is held, what is carved out of it, and what is left when somebody stops."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.holds import Opened
from marketplace.contracts.models import Accrual, Entitlement, Hold
from marketplace.contracts.services import open_hold, sweep_holds, void_hold
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold as LedgerHold
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.ledger.services import close_hold
from marketplace.orders.models import Auction, Bid, Trade
from marketplace.orders.services.bids import BidTerms, cancel_bid, place_bid
from marketplace.orders.services.clearing import clear_auction, publish_auction
from marketplace.orders.services.rounds import advance_auctions, close_due_auctions, open_auctions
from metering.ingesting import ingest_batches
from metering.models import MeterSource, UsageRollup
from metering.models import UsageEvent as StoredEvent
from metering.services import accept_batch, gateway_source
from metering.usage import Finish, UsageEvent, encode_batch, encode_event
from pricing.models import Grade
from pricing.units import Bucket
from providers.services import record_heartbeat
from tests.cast import Party, Plant, fund, make_grade, make_plant

PERIOD = timedelta(minutes=5)
HOUR = timedelta(hours=1)
LOT = 10**9
OUTPUT_PPM = 1_000_000


def beat(plant: Plant, now: datetime) -> None:
    record_heartbeat(
        host_id=plant.host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=now,
    )


def bid_of(
    buyer: Party,
    now: datetime,
    *,
    steps: tuple[tuple[int, int], ...],
    grade: str = "tiny-chat",
    client_id: str = "b1",
) -> Bid:
    return place_bid(
        organization_id=buyer.id,
        terms=BidTerms(grade=grade, client_id=client_id, steps=steps),
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )


def run_round(plant: Plant, start: datetime) -> Auction:
    for share in (0.0, 0.85, 0.92, 0.93):
        beat(plant, start + PERIOD * share)
        advance_auctions(now=start + PERIOD * share)
    return Auction.objects.get(period_start=start + PERIOD)


def held(buyer: Party) -> int:
    return balance(organization_id=buyer.id, kind="prepaid", currency="USD").pending_micros


def posted(buyer: Party) -> int:
    return balance(organization_id=buyer.id, kind="prepaid", currency="USD").posted_micros


def request(buyer: Party, grade: Grade, plant: Plant, lots: int, at: datetime) -> tuple[UUID, Opened]:
    beat(plant, at)
    hold_id = uuid7(at)
    opened = open_hold(
        id=hold_id, organization_id=buyer.id, grade_ids=[grade.id], numerators=[lots * LOT], now=at
    )
    return hold_id, opened


def test_a_bid_whose_hold_is_awarded_whole_wins_again_and_again(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    # At the floor, so that the award costs exactly what the bid holds.
    bid = bid_of(acme, now, steps=((200_000, 60),))
    worst = 12_000
    assert bid.ledger_hold_id is not None
    for number in range(2):
        auction = run_round(plant, now + PERIOD * number)
        assert (auction.status, auction.quantity_lots) == ("published", 60)
        assert auction.clearing_rate_micros_per_mtok == 200_000
        hold = LedgerHold.objects.get(pk=bid.ledger_hold_id)
        assert (hold.amount_micros, hold.status) == (0, "open")
        assert held(acme) == (number + 1) * worst
    advance_auctions(now=now + 2 * PERIOD)
    assert held(acme) == 3 * worst
    assert Trade.objects.count() == Entitlement.objects.count() == 2
    assert check_ledger() == []


@pytest.mark.parametrize(("funds", "second_lots"), [(1_000_000, 60), (20_000, 0)])
def test_an_award_published_after_the_next_book_opened_does_not_leave_its_bid_uncovered(
    acme: Party, plant: Plant, now: datetime, funds: int, second_lots: int
) -> None:
    fund(acme, funds, now)
    bid_of(acme, now, steps=((200_000, 60),))
    beat(plant, now)
    advance_auctions(now=now)
    beat(plant, now + PERIOD * 0.92)
    assert close_due_auctions(now=now + PERIOD * 0.92) == 1
    first = Auction.objects.get()
    assert clear_auction(auction_id=first.id, now=now + PERIOD * 0.92)
    open_auctions(now=now + PERIOD)
    assert publish_auction(auction_id=first.id, now=now + PERIOD)
    # The award took the whole hold; what is free may or may not pay for the bid once more.
    second = run_round(plant, now + PERIOD)
    assert (second.status, second.quantity_lots) == ("published", second_lots)
    assert bool(Bid.objects.get().skip_reason) == (second_lots == 0)
    assert check_ledger() == []


def test_one_auction_that_cannot_be_published_holds_up_no_other(
    acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    other = make_grade(now, slug="tiny-code", model="tiny-code")
    second_plant = make_plant(hyperion, other, now, name="h2")
    broken = bid_of(acme, now, steps=((200_000, 60),))
    bid_of(acme, now, steps=((200_000, 60),), grade="tiny-code", client_id="b2")
    for share in (0.0, 0.85):
        advance_auctions(now=now + PERIOD * share)
    beat(plant, now + PERIOD * 0.92)
    beat(second_plant, now + PERIOD * 0.92)
    assert close_due_auctions(now=now + PERIOD * 0.92) == 2
    assert broken.ledger_hold_id is not None
    close_hold(id=broken.ledger_hold_id, status="voided", now=now)
    advance_auctions(now=now + PERIOD * 0.93)
    assert Auction.objects.get(grade=broken.grade, period_start=now + PERIOD).status == "cleared"
    assert Auction.objects.get(grade=other, period_start=now + PERIOD).status == "published"
    assert check_ledger() == []


def test_a_cancelled_bid_keeps_its_unsettled_award_which_is_then_settled(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, steps=((200_000, 60),))
    run_round(plant, now)
    beat(plant, now + PERIOD)
    advance_auctions(now=now + PERIOD)
    cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now + PERIOD, actor=SYSTEM)
    assert held(acme) == 12_000
    hold_id, opened = request(acme, grade, plant, 5, now + PERIOD)
    assert (opened.outcome, opened.kind, opened.contract_id) == ("ok", "spot", bid.contract_id)
    void_hold(id=hold_id, now=now + PERIOD)
    settle_period(settlement_start=now, now=now + HOUR + timedelta(seconds=76))
    assert Charge.objects.get().kind == "minimum_take"
    assert (posted(acme), held(acme)) == (1_000_000 - 6_000, 0)
    advance_auctions(now=now + 3 * HOUR)
    assert Auction.objects.get(period_start=now + PERIOD).status == "settled"
    assert check_ledger() == []


def report(plant: Plant, hold_id: UUID, output_tokens: int, at: datetime) -> None:
    """The host's agent tells what it served for a hold, signed-in source and all, through ingestion."""
    hold = Hold.objects.get(pk=hold_id)
    event = UsageEvent(
        id=uuid7(at),
        sequence=1,
        request_id=hold.request_id,
        attempt=hold.attempt,
        part=0,
        contract_id=hold.contract_id,
        offering_id=hold.offering_id,
        grade_id=hold.grade_id,
        rate_id=hold.rate_id,
        period_start=hold.period_start,
        occurred_at=hold.opened_at,
        buckets={Bucket.OUTPUT: output_tokens},
        finish=Finish.STOP,
        bytes_in=10,
        bytes_out=20,
        duration_ms=5,
    )
    source = MeterSource.objects.get(host_id=plant.host.id, kind="agent", status="active")
    body = encode_batch(
        source_id=source.id, sequence_from=1, previous_digest="0" * 64, lines=[encode_event(event)]
    )
    accept_batch(source=source, body=body, now=at)
    ingest_batches(now=at)


def overdue(hold_id: UUID) -> datetime:
    return Hold.objects.get(pk=hold_id).expires_at + timedelta(seconds=3)


@pytest.mark.parametrize(
    ("tokens", "numerator"), [(1_500_000, 1_500_000 * OUTPUT_PPM), (9_000_000, 2_000 * LOT)]
)
def test_a_dead_gateways_hold_is_captured_from_the_agents_count_at_most_the_hold(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, tokens: int, numerator: int
) -> None:
    fund(acme, 10_000_000, now)
    gateway_source(now)
    hold_id, opened = request(acme, grade, plant, 2_000, now)
    assert (opened.outcome, opened.kind) == ("ok", "on_demand")
    report(plant, hold_id, tokens, now + timedelta(seconds=1))
    assert StoredEvent.objects.get().numerator == tokens * OUTPUT_PPM
    at = overdue(hold_id)
    assert sweep_holds(now=at) == 1
    assert sweep_holds(now=at) == 0
    hold = Hold.objects.get(pk=hold_id)
    assert (hold.status, hold.captured_numerator) == ("captured", numerator)
    assert ingest_batches(now=at) == 1
    charged = UsageRollup.objects.get(meter="gateway", bucket="output")
    assert charged.numerator == numerator
    result = settle_period(settlement_start=now, now=now + HOUR + timedelta(seconds=76))
    assert (result.waiting, result.failed) == ([], [])
    amount = numerator * 600_000 // 10**12
    assert Charge.objects.get().amount_micros == amount
    assert (posted(acme), held(acme)) == (10_000_000 - amount, 0)
    assert check_ledger() == []


def test_a_dead_gateways_hold_without_any_report_is_voided_and_costs_nothing(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000_000, now)
    hold_id, _ = request(acme, grade, plant, 2_000, now)
    assert held(acme) == 1_200_000
    due = now + HOUR + timedelta(seconds=76)
    waiting = settle_period(settlement_start=now, now=due).waiting
    assert [reason for _, reason in waiting] == ["holds_open"]
    assert sweep_holds(now=due) == 1
    assert Hold.objects.get(pk=hold_id).status == "voided"
    assert Accrual.objects.get().held_micros == 0
    result = settle_period(settlement_start=now, now=due)
    assert (result.waiting, result.failed, Charge.objects.count()) == ([], [], 0)
    assert (posted(acme), held(acme)) == (10_000_000, 0)
    assert check_ledger() == []


def test_an_agents_report_after_the_hold_was_voided_charges_nothing(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000_000, now)
    gateway_source(now)
    hold_id, _ = request(acme, grade, plant, 2_000, now)
    due = now + HOUR + timedelta(seconds=76)
    assert sweep_holds(now=due) == 1
    report(plant, hold_id, 1_000_000, due)
    assert sweep_holds(now=due) == 0
    settle_period(settlement_start=now, now=due)
    assert Charge.objects.count() == 0
    assert UsageRollup.objects.get().meter == "agent"
    assert check_ledger() == []
