"""What the steps of a round promise for many bids at once: whom a balance covers, budgets, awards, the sealed form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from marketplace.contracts.models import Allocation, Entitlement
from marketplace.contracts.services import Award, record_awards
from marketplace.errors import Conflict
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import change_hold, close_hold
from marketplace.orders.book import Book, BookAsk, BookBid, SealedBook
from marketplace.orders.models import Bid
from marketplace.orders.services.budgets import NO_BUDGET
from marketplace.orders.services.rounds import close_due_auctions, open_auctions
from marketplace.orders.services.topping_up import HOLD_ENDED, NO_FUNDS
from metering.models import MeterPoint
from metering.services import NewPoint, add_meter_points
from pricing.book import FIRST_RULE
from pricing.services import publish_rate
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, bid_of, run_round


def test_bids_of_one_account_are_topped_up_in_turn_and_each_says_why_it_sits_out(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 30_000, now)
    bids = [bid_of(acme, now, client_id=f"b{n}", steps=((200_000, 50),)) for n in range(3)]
    ended = bids.pop()
    for bid in bids:
        assert bid.ledger_hold_id is not None
        change_hold(id=bid.ledger_hold_id, delta_micros=-8_000, now=now)
    assert ended.ledger_hold_id is not None
    change_hold(id=ended.ledger_hold_id, delta_micros=-10_000, now=now)
    close_hold(id=ended.ledger_hold_id, status="voided", now=now)
    # 26,000 are free: both are covered. Then 10,000 go elsewhere and only one is.
    poorer = bid_of(acme, now, client_id="single", steps=((200_000, 50),), period_start=now + 2 * PERIOD)
    assert poorer.ledger_hold_id is not None
    change_hold(id=poorer.ledger_hold_id, delta_micros=7_000, now=now)
    open_auctions(now=now)
    reasons = {bid.pk: bid.skip_reason for bid in Bid.objects.all()}
    assert [reasons[bid.pk] for bid in bids] == ["", NO_FUNDS]
    assert reasons[ended.pk] == HOLD_ENDED
    assert [Hold.objects.get(pk=bid.ledger_hold_id or "").amount_micros for bid in bids] == [10_000, 2_000]
    assert close_due_auctions(now=now + PERIOD * 0.92) == 1
    assert check_ledger() == []


def test_a_daily_budget_that_was_spent_keeps_its_bid_out_of_the_next_book(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, steps=((200_000, 60),), max_total_micros_per_day=20_000)
    assert run_round(plant, now).quantity_lots == 60
    open_auctions(now=now + PERIOD)
    bid.refresh_from_db()
    assert bid.skip_reason == NO_BUDGET
    # The next day has a budget of its own.
    open_auctions(now=now + timedelta(days=1))
    bid.refresh_from_db()
    assert bid.skip_reason == ""


def test_awards_recorded_again_are_passed_over_and_on_other_terms_refused(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bids = [bid_of(acme, now, client_id=f"b{n}", steps=((200_000, 50),)) for n in range(2)]
    rate = publish_rate(
        grade_id=plant.offering.grade_id, kind="clearing", micros_per_mtok=200_000, source_id=uuid7(), now=now
    )
    terms = {"period_start": now + PERIOD, "period_end": now + 2 * PERIOD, "rate_id": rate.id}
    awards = []
    for bid in bids:
        assert bid.ledger_hold_id is not None
        awards.append(Award(bid.contract_id, 9, bid.ledger_hold_id, [(plant.offering.id, 9)]))
    assert record_awards(awards[:1], **terms) == 1  # type: ignore[arg-type]
    assert record_awards(awards, **terms) == 1  # type: ignore[arg-type]
    assert record_awards(awards, **terms) == 0  # type: ignore[arg-type]
    assert record_awards([], **terms) == 0  # type: ignore[arg-type]
    assert Entitlement.objects.count() == Allocation.objects.count() == MeterPoint.objects.count() == 2
    with pytest.raises(AssertionError, match="once"):
        record_awards(
            [awards[0]._replace(lots=8, shares=[(plant.offering.id, 8)])],
            **terms,  # type: ignore[arg-type]
        )


def test_meter_points_only_ever_widen_and_stay_with_their_host(plant: Plant, now: datetime) -> None:
    contract, other = uuid7(), uuid7()
    point = NewPoint(uuid7(), contract, plant.offering.id, plant.host.id, plant.offering.grade_id)
    add_meter_points([point], valid_from=now)
    add_meter_points([point], valid_from=now + PERIOD)
    assert MeterPoint.objects.get(contract_id=contract).valid_from == now
    add_meter_points([point, point._replace(id=uuid7(), contract_id=other)], valid_from=now - PERIOD)
    assert MeterPoint.objects.get(contract_id=contract).valid_from == now - PERIOD
    assert MeterPoint.objects.get(contract_id=contract).id == point.id
    third = point._replace(id=uuid7(), contract_id=uuid7())
    with pytest.raises(Conflict):
        add_meter_points([third, point._replace(id=uuid7(), host_id=uuid7())], valid_from=now)
    assert MeterPoint.objects.count() == 2


def test_the_sealed_form_and_its_digests_are_what_they_were() -> None:
    at = datetime(2026, 3, 10, 12, 0, 0, 123456, tzinfo=UTC)
    ids = [UUID(int=n << 64) for n in range(1, 8)]
    book = Book(
        grade_id=ids[0],
        period_start=at,
        cap=900,
        bids=[
            BookBid(ids[3], ids[5], at, [(500, 3), (400, 2)]),
            BookBid(ids[2], ids[6], at.replace(microsecond=0), [(450, 7)], min_fill_lots=2),
        ],
        asks=[BookAsk(ids[4], ids[1], ids[0], at, 100, 6)],
    ).sealed()
    assert [bid["placed_at"] for bid in book.data["bids"]] == [
        "2026-03-10T12:00:00+00:00",
        "2026-03-10T12:00:00.123456+00:00",
    ]
    assert book.data["bids"][1]["steps"] == [[500, 3], [400, 2]]
    book = SealedBook({**book.data, "rule_version": FIRST_RULE})
    result = book.clear()
    book.confirm(result)
    assert book.digest() == "1410e2b11e38bdeff22945bcd5504c604ba63e220c680a260eaaefd3e5938705"
    assert book.result_digest(result) == "de984d59d0d716a027e019362c5ce57c019ed7b10e10c7fc4e28b8773e4be2c9"
