"""What an auction would have come to: for one's own orders, and only where the curves are public anyway."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine
from django.core.cache import cache
from pytest_django import Settings

from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.what_if import MOST_PER_WINDOW
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, bid_of, run_round

DAY = timedelta(days=1)


@pytest.fixture
def bids(acme: Party, mallory: Party, plant: Plant, now: datetime) -> dict[str, Bid]:
    """242 lots (255 less the operating margin) are asked at 200,000; acme and mallory want 300 together."""
    for party in (acme, mallory):
        fund(party, 10_000_000, now)
    return {
        "acme": bid_of(acme, now, steps=((450_000, 150), (300_000, 50))),
        "mallory": bid_of(mallory, now, steps=((400_000, 100),)),
    }


@pytest.fixture
def auction(bids: dict[str, Bid], plant: Plant, now: datetime) -> Auction:
    return run_round(plant, now)


def ask(party: Party, auction: Auction | UUID, at: datetime, **body: Any) -> Any:
    auction_id = auction.id if isinstance(auction, Auction) else auction
    with time_machine.travel(at, tick=False):
        return party.api.post(f"/api/v1/auctions/{auction_id}/what-if", body, format="json")


def test_an_own_order_changed_moves_price_fills_and_cost(
    acme: Party, bids: dict[str, Bid], auction: Auction, now: datetime
) -> None:
    own = str(bids["acme"].id)
    answer = ask(
        acme,
        auction,
        now + PERIOD + DAY,
        bid_id=own,
        steps=[{"rate_micros_per_mtok": 450_000, "lots": 20}],
    )
    assert answer.status_code == 200, answer.content
    assert answer.json() == {
        "before": {
            # mallory's step is the one that is partly filled, with what acme's first leaves.
            "clearing_rate_micros_per_mtok": 400_000,
            "quantity_lots": 242,
            "lots": 150,
            "cost_micros": 60_000,
            "fills": [{"bid_id": own, "lots": 150, "cost_micros": 60_000}],
            "other_fills": [],
        },
        "after": {
            "clearing_rate_micros_per_mtok": 200_000,
            "quantity_lots": 120,
            "lots": 20,
            "cost_micros": 4_000,
            "fills": [{"bid_id": own, "lots": 20, "cost_micros": 4_000}],
            "other_fills": [],
        },
    }


def test_it_is_answered_once_the_curves_are_public(
    acme: Party, bids: dict[str, Bid], auction: Auction, now: datetime
) -> None:
    steps = [{"rate_micros_per_mtok": 100, "lots": 1}]
    early = ask(acme, auction, now + PERIOD, steps=steps)
    assert (early.status_code, early.json()["code"]) == (409, "not_disclosed")
    Auction.objects.filter(pk=auction.pk).update(status=Auction.Status.CLOSED)
    sealed = ask(acme, auction, now + PERIOD + DAY, steps=steps)
    assert (sealed.status_code, sealed.json()["code"]) == (409, "not_disclosed")
    assert ask(acme, uuid4(), now + PERIOD, steps=steps).status_code == 404


def test_others_orders_are_neither_shown_nor_changed(
    acme: Party, mallory: Party, bids: dict[str, Bid], auction: Auction, now: datetime
) -> None:
    at = now + PERIOD + DAY
    steps = [{"rate_micros_per_mtok": 450_000, "lots": 30}]
    for bid_id in (bids["acme"].id, uuid4()):
        refused = ask(mallory, auction, at, bid_id=str(bid_id), steps=steps)
        assert (refused.status_code, refused.json()["field"]) == (404, "bid_id")
    answer = ask(mallory, auction, at, steps=steps)
    assert answer.status_code == 200
    text = answer.content.decode()
    assert str(bids["acme"].id) not in text
    assert str(acme.id) not in text
    assert [fill["bid_id"] for fill in answer.json()["after"]["fills"]] == [None, str(bids["mallory"].id)]
    assert replay_auction(auction_id=auction.id)["matches"], "nothing was changed"


def test_an_added_order_and_a_minimum_are_cleared_like_others(
    acme: Party, bids: dict[str, Bid], auction: Auction, now: datetime
) -> None:
    at, own = now + PERIOD + DAY, str(bids["acme"].id)
    whole = ask(acme, auction, at, bid_id=own, all_or_none=True).json()["after"]
    assert whole["lots"] in (0, 200)
    added = ask(acme, auction, at, steps=[{"rate_micros_per_mtok": 440_000, "lots": 10}]).json()["after"]
    assert {"bid_id": None, "lots": 10}.items() <= added["fills"][0].items()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "steps"),
        ({"min_fill_lots": 1}, "steps"),
        ({"steps": [{"rate_micros_per_mtok": 5_000_001, "lots": 1}]}, "steps.0.rate_micros_per_mtok"),
        ({"steps": [{"rate_micros_per_mtok": 1, "lots": 1}], "min_fill_lots": 2}, "min_fill_lots"),
    ],
)
def test_a_bad_what_if_names_the_field(
    acme: Party, auction: Auction, now: datetime, body: dict[str, Any], field: str
) -> None:
    answer = ask(acme, auction, now + PERIOD + DAY, **body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_who_asks_too_often_waits(acme: Party, mallory: Party, auction: Auction, now: datetime) -> None:
    at, steps = now + PERIOD + DAY, [{"rate_micros_per_mtok": 100, "lots": 1}]
    cache.set(f"what-if:{acme.id}", MOST_PER_WINDOW - 1, 60)
    assert ask(acme, auction, at, steps=steps).status_code == 200
    refused = ask(acme, auction, at, steps=steps)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert refused["Retry-After"] == "60"
    assert ask(mallory, auction, at, steps=steps).status_code == 200


def test_a_cache_that_is_down_answers_nothing_and_says_so(
    acme: Party, auction: Auction, now: datetime, settings: Settings
) -> None:
    at, steps = now + PERIOD + DAY, [{"rate_micros_per_mtok": 100, "lots": 1}]
    # Nobody listens on port 1.
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    answer = ask(acme, auction, at, steps=steps)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer["Retry-After"] == "10"
    assert answer["Content-Type"] == "application/problem+json"
    assert "before" not in answer.json()
