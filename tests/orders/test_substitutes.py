"""Bids that take another grade for their own: terms and money, the joined round, contracts, and what is published."""

from __future__ import annotations

from datetime import datetime

import pytest

from marketplace.contracts.models import Entitlement
from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Auction, Bid, BidSubstitute, Trade
from marketplace.orders.services.clearing import replay_auction
from marketplace.orders.services.rounds import advance_auctions
from pricing.coupling_book import COUPLED_RULE_VERSION
from pricing.models import Grade
from tests.cast import Party, Plant, fund, make_grade, make_plant
from tests.orders.world import PERIOD, beat, bid_of

# 850 standard tokens a second make 255 lots in five minutes, less the operating margin of 5%.
HOST_LOTS = 242


@pytest.fixture
def other(db: None, now: datetime) -> Grade:
    return make_grade(now, slug="tiny-other", model="tiny-other")


@pytest.fixture
def other_plant(hyperion: Party, other: Grade, now: datetime) -> Plant:
    return make_plant(hyperion, other, now, name="h2", spot_floor=300_000)


@pytest.fixture
def buyer(acme: Party, now: datetime) -> Party:
    fund(acme, 10_000_000, now)
    return acme


@pytest.fixture
def rival(mallory: Party, now: datetime) -> Party:
    fund(mallory, 10_000_000, now)
    return mallory


def to(plants: list[Plant], start: datetime, share: float) -> None:
    at = start + PERIOD * share
    for plant in plants:
        beat(plant, at)
    advance_auctions(now=at)


def run(plants: list[Plant], start: datetime) -> dict[str, Auction]:
    """A whole round; the auctions of the period after `start` by their grades' slugs."""
    for share in (0.0, 0.85, 0.92, 0.93):
        to(plants, start, share)
    rows = Auction.objects.filter(period_start=start + PERIOD).select_related("grade__family")
    return {auction.grade.family.slug: auction for auction in rows}


def crowd(buyer: Party, rival: Party, now: datetime) -> tuple[Bid, Bid]:
    """More is wanted of the first grade than there is; one of the two takes the other grade for 50,000 less."""
    flexible = bid_of(
        buyer, now, client_id="f", steps=((500_000, 200),), substitutes=(("tiny-other", -50_000),)
    )
    fixed = bid_of(rival, now, client_id="x", steps=((450_000, 200),))
    return flexible, fixed


def test_who_takes_another_grade_makes_room_and_pays_that_grades_rate(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    flexible, fixed = crowd(buyer, rival, now)
    auctions = run([plant, other_plant], now)
    home, other = auctions["tiny-chat"], auctions["tiny-other"]
    assert {home.status, other.status} == {Auction.Status.PUBLISHED}
    assert home.joined == other.joined == sorted([str(home.id), str(other.id)])
    assert home.rule_version == other.rule_version == COUPLED_RULE_VERSION
    assert home.result_digest == other.result_digest != ""
    assert (home.quantity_lots, other.quantity_lots) == (HOST_LOTS, 400 - HOST_LOTS)
    # The other grade is not sold out, which pins its rate at the floor; who moves is indifferent at 50,000 more.
    assert other.clearing_rate_micros_per_mtok == 300_000
    assert home.clearing_rate_micros_per_mtok == 350_000
    lots = {
        (trade.bid_id, trade.auction_id): (trade.lots, trade.rate_micros_per_mtok)
        for trade in Trade.objects.all()
    }
    assert lots == {
        (fixed.id, home.id): (200, 350_000),
        (flexible.id, home.id): (42, 350_000),
        (flexible.id, other.id): (158, 300_000),
    }
    named = BidSubstitute.objects.get(bid=flexible)
    assert named.contract is not None
    assert named.contract.grade_id == other.grade_id
    assert named.contract.organization_id == buyer.id
    assert named.contract.max_rate_micros_per_mtok == 450_000
    award = Entitlement.objects.get(contract=named.contract)
    assert (award.entitled_numerator, award.rate.micros_per_mtok) == (158 * 10**9, 300_000)
    assert award.ledger_hold is not None
    assert award.ledger_hold.amount_micros == 47_400
    assert Entitlement.objects.get(contract=flexible.contract).entitled_numerator == 42 * 10**9
    assert not check_ledger()
    for auction in (home, other):
        assert replay_auction(auction_id=auction.id)["matches"]
