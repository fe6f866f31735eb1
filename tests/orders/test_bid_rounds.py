"""What became of a bid, auction by auction, as its buyer reads it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine

from marketplace.accounts.services import SYSTEM
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.bids import cancel_bid
from pricing.models import Grade
from tests.cast import Party, Plant, fund, make_grade, make_plant
from tests.orders.test_substitutes import crowd, run
from tests.orders.world import PERIOD, bid_of, run_round
from tests.portal.conftest import sign_in

__all__ = ["sign_in"]


@pytest.fixture
def other(db: None, now: datetime) -> Grade:
    return make_grade(now, slug="tiny-other", model="tiny-other")


@pytest.fixture
def other_plant(hyperion: Party, other: Grade, now: datetime) -> Plant:
    return make_plant(hyperion, other, now, name="h2", spot_floor=300_000)


@pytest.fixture
def buyers(acme: Party, mallory: Party, now: datetime) -> tuple[Party, Party]:
    for party in (acme, mallory):
        fund(party, 10_000_000, now)
    return acme, mallory


def rounds(party: Party, bid: Bid, now: datetime) -> list[dict[str, Any]]:
    with time_machine.travel(now, tick=False):
        answer = party.api.get(f"/api/v1/bids/{bid.id}/rounds")
    assert answer.status_code == 200, answer.content
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_a_bid_with_a_minimum_is_told_that_it_sat_the_joined_round_out(
    buyers: tuple[Party, Party], plant: Plant, other_plant: Plant, now: datetime, sign_in: Any
) -> None:
    acme, mallory = buyers
    flexible, fixed = crowd(acme, mallory, now)
    whole = bid_of(mallory, now, client_id="w", steps=((600_000, 10),), all_or_none=True)
    auctions = run([plant, other_plant], now)
    home, away = auctions["tiny-chat"], auctions["tiny-other"]
    [told] = rounds(mallory, whole, now + PERIOD)
    assert told == {
        "auction_id": str(home.id),
        "grade": "tiny-chat",
        "period_start": "2026-03-10T12:05:00Z",
        "period_end": "2026-03-10T12:10:00Z",
        "clearing_rate_micros_per_mtok": 350_000,
        "outcome": "left_out",
        "left_out_reason": "minimum_in_joined_grades",
        "lots": 0,
    }
    [won] = rounds(mallory, fixed, now + PERIOD)
    assert (won["outcome"], won["lots"], won["left_out_reason"]) == ("filled", 200, None)
    got = {(each["grade"], each["lots"]) for each in rounds(acme, flexible, now + PERIOD)}
    assert got == {("tiny-chat", 42), ("tiny-other", 158)}
    assert {each["auction_id"] for each in rounds(acme, flexible, now + PERIOD)} == {
        str(home.id),
        str(away.id),
    }
    with time_machine.travel(now + PERIOD, tick=False):
        shown = sign_in(mallory).get(f"/buyer/bids/{whole.id}").content.decode()
        silent = sign_in(mallory).get(f"/buyer/bids/{fixed.id}").content.decode()
    assert "sat out" in shown
    assert "no bid with a minimum takes part" in shown
    assert "sat out" not in silent


def test_its_rounds_begin_at_its_placing_and_end_with_it(
    buyers: tuple[Party, Party], plant: Plant, now: datetime
) -> None:
    acme, _ = buyers
    first = run_round(plant, now)
    bid = bid_of(acme, now + PERIOD, steps=((450_000, 10),))
    poor = bid_of(acme, now + PERIOD, client_id="low", steps=((100_000, 10),))
    second = run_round(plant, now + PERIOD)
    cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now + 2 * PERIOD, actor=SYSTEM)
    third = run_round(plant, now + 2 * PERIOD)
    at = now + 3 * PERIOD
    assert first.period_start < second.period_start < third.period_start
    assert [(each["auction_id"], each["outcome"], each["lots"]) for each in rounds(acme, bid, at)] == [
        (str(second.id), "filled", 10)
    ]
    assert [(each["auction_id"], each["outcome"], each["lots"]) for each in rounds(acme, poor, at)] == [
        (str(third.id), "unfilled", 0),
        (str(second.id), "unfilled", 0),
    ]


def test_of_one_period_it_is_that_rounds_alone_and_nothing_before_publication(
    buyers: tuple[Party, Party], plant: Plant, now: datetime
) -> None:
    acme, _ = buyers
    bid = bid_of(acme, now, steps=((450_000, 10),), period_start=now + PERIOD)
    assert rounds(acme, bid, now) == []
    own = run_round(plant, now)
    run_round(plant, now + PERIOD)
    assert [each["auction_id"] for each in rounds(acme, bid, now + 2 * PERIOD)] == [str(own.id)]
    Auction.objects.filter(pk=own.pk).update(status=Auction.Status.CLEARED)
    assert rounds(acme, bid, now + 2 * PERIOD) == []


def test_an_end_ends_its_rounds_and_a_halt_is_told(
    buyers: tuple[Party, Party], plant: Plant, now: datetime
) -> None:
    acme, _ = buyers
    bid = bid_of(acme, now, steps=((450_000, 10),), valid_until=now + PERIOD + timedelta(seconds=1))
    own = run_round(plant, now)
    run_round(plant, now + PERIOD)
    assert [each["auction_id"] for each in rounds(acme, bid, now + 2 * PERIOD)] == [str(own.id)]
    low = bid_of(acme, now + 2 * PERIOD, client_id="low", steps=((100_000, 10),))
    halted = run_round(plant, now + 2 * PERIOD)
    Auction.objects.filter(pk=halted.pk).update(halted="operator")
    [told] = rounds(acme, low, now + 3 * PERIOD)
    assert told["outcome"] == "halted"


def test_pages_of_rounds_go_on_where_the_last_one_ended(
    buyers: tuple[Party, Party], plant: Plant, now: datetime
) -> None:
    acme, _ = buyers
    bid = bid_of(acme, now, steps=((450_000, 10),))
    made = [run_round(plant, now + index * PERIOD) for index in range(3)]
    with time_machine.travel(now + 3 * PERIOD, tick=False):
        first = acme.api.get(f"/api/v1/bids/{bid.id}/rounds?page_size=2").json()
        rest = acme.api.get(f"/api/v1/bids/{bid.id}/rounds?page_size=2&cursor={first['next']}").json()
    seen = [each["auction_id"] for each in (*first["items"], *rest["items"])]
    assert seen == [str(auction.id) for auction in reversed(made)]
    assert rest["next"] is None
