"""What a bid would have got, had it taken other grades, or no longer: their books cleared with its own."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.cache import cache

from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.replaying import replay_auction
from pricing.models import Grade
from tests.cast import Party, Plant, fund, make_grade, make_plant
from tests.orders.test_substitutes import crowd, run
from tests.orders.world import PERIOD, bid_of

NAMED = [{"grade": "tiny-other", "adjustment_micros_per_mtok": -50_000}]


@pytest.fixture
def plants(hyperion: Party, plant: Plant, now: datetime) -> list[Plant]:
    """242 lots of each grade, asked at 200,000 and 300,000."""
    cache.clear()
    other: Grade = make_grade(now, slug="tiny-other", model="tiny-other")
    return [plant, make_plant(hyperion, other, now, name="h2", spot_floor=300_000)]


@pytest.fixture
def buyers(acme: Party, mallory: Party, now: datetime) -> tuple[Party, Party]:
    for party in (acme, mallory):
        fund(party, 10_000_000, now)
    return acme, mallory


def ask(party: Party, auction: Auction, now: datetime, **body: Any) -> Any:
    with time_machine.travel(now + PERIOD + timedelta(days=1), tick=False):
        return party.api.post(f"/api/v1/auctions/{auction.id}/what-if", body, format="json")


def alone(buyers: tuple[Party, Party], plants: list[Plant], now: datetime) -> tuple[Bid, dict[str, Auction]]:
    """The crowd of test_substitutes, but nobody takes another grade: 400 lots are wanted, 242 asked."""
    acme, mallory = buyers
    bid = bid_of(acme, now, client_id="f", steps=((500_000, 200),))
    bid_of(mallory, now, client_id="x", steps=((450_000, 200),))
    return bid, run(plants, now)


def test_naming_another_grade_comes_to_what_such_a_bid_really_comes_to(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime
) -> None:
    """The after is the round that test_substitutes runs with the same orders."""
    bid, auctions = alone(buyers, plants, now)
    home = auctions["tiny-chat"]
    assert home.joined == []
    answer = ask(buyers[0], home, now, bid_id=str(bid.id), substitutes=NAMED)
    assert answer.status_code == 200, answer.content
    own = str(bid.id)
    assert answer.json() == {
        "before": {
            # The step that is partly filled sets the rate.
            "clearing_rate_micros_per_mtok": 450_000,
            "quantity_lots": 242,
            "lots": 200,
            "cost_micros": 90_000,
            "fills": [{"bid_id": own, "lots": 200, "cost_micros": 90_000}],
            "other_fills": [],
        },
        "after": {
            "clearing_rate_micros_per_mtok": 350_000,
            "quantity_lots": 242,
            "lots": 42,
            "cost_micros": 14_700,
            "fills": [{"bid_id": own, "lots": 42, "cost_micros": 14_700}],
            "other_fills": [
                {
                    "grade": "tiny-other",
                    "clearing_rate_micros_per_mtok": 300_000,
                    "bid_id": own,
                    "lots": 158,
                    "cost_micros": 47_400,
                }
            ],
        },
    }
    assert replay_auction(auction_id=home.id)["matches"], "nothing was changed"


def test_no_longer_naming_it_comes_to_what_the_grades_come_to_alone(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime
) -> None:
    flexible, _ = crowd(*buyers, now)
    home = run(plants, now)["tiny-chat"]
    answer = ask(buyers[0], home, now, bid_id=str(flexible.id), substitutes=[]).json()
    assert answer["before"]["other_fills"][0]["lots"] == 158
    after = answer["after"]
    assert (after["clearing_rate_micros_per_mtok"], after["lots"], after["other_fills"]) == (450_000, 200, [])


def test_an_added_order_takes_another_grade_too(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime
) -> None:
    _, auctions = alone(buyers, plants, now)
    steps = [{"rate_micros_per_mtok": 440_000, "lots": 30}]
    answer = ask(buyers[0], auctions["tiny-chat"], now, steps=steps, substitutes=NAMED).json()["after"]
    assert [(fill["bid_id"], fill["lots"]) for fill in answer["other_fills"]] == [(None, 30)]


def test_the_curves_of_the_grades_named_must_be_public_too(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime
) -> None:
    bid, auctions = alone(buyers, plants, now)
    away = auctions["tiny-other"]
    Auction.objects.filter(pk=away.pk).update(published_at=now + timedelta(days=1))
    refused = ask(buyers[0], auctions["tiny-chat"], now, bid_id=str(bid.id), substitutes=NAMED)
    assert (refused.status_code, refused.json()["code"]) == (409, "not_disclosed")
    # Of its own grade alone it is answered.
    assert ask(buyers[0], auctions["tiny-chat"], now, bid_id=str(bid.id), all_or_none=True).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"substitutes": [{"grade": "nothing", "adjustment_micros_per_mtok": 0}]}, "substitutes.0.grade"),
        ({"substitutes": [{"grade": "tiny-chat", "adjustment_micros_per_mtok": 0}]}, "substitutes.0.grade"),
        ({"substitutes": [*NAMED, *NAMED]}, "substitutes.1.grade"),
        (
            {"substitutes": [{"grade": "tiny-other", "adjustment_micros_per_mtok": -500_000}]},
            "substitutes.0.adjustment_micros_per_mtok",
        ),
        ({"substitutes": NAMED, "all_or_none": True}, "all_or_none"),
        ({"substitutes": NAMED, "min_fill_lots": 1}, "min_fill_lots"),
    ],
)
def test_what_no_bid_can_name_no_what_if_can(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime, body: dict[str, Any], field: str
) -> None:
    bid, auctions = alone(buyers, plants, now)
    refused = ask(buyers[0], auctions["tiny-chat"], now, bid_id=str(bid.id), **body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)


def test_a_halted_grade_cannot_be_named(
    buyers: tuple[Party, Party], plants: list[Plant], now: datetime
) -> None:
    bid, auctions = alone(buyers, plants, now)
    Auction.objects.filter(pk=auctions["tiny-other"].pk).update(halted="operator")
    refused = ask(buyers[0], auctions["tiny-chat"], now, bid_id=str(bid.id), substitutes=NAMED)
    assert (refused.status_code, refused.json()["field"]) == (422, "substitutes.0.grade")
