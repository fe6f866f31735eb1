"""Bids that take another grade for their own: terms and money, the joined round, contracts, and what is published."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine
from django.core.cache import cache
from django.db import connections

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract, Entitlement
from marketplace.contracts.services import open_hold, void_hold
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import InsufficientFunds
from marketplace.orders.models import Auction, Bid, BidSubstitute, MarketControl, Trade
from marketplace.orders.selectors import disclosure_of
from marketplace.orders.services.bids import MarketClosed, cancel_bid
from marketplace.orders.services.clearing import BookChanged, clear_auction, publish_auction
from marketplace.orders.services.controls import halt_market
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.rounds import advance_auctions
from pricing.book import RULE_VERSION
from pricing.coupling_book import COUPLED_RULE_VERSION
from pricing.models import Grade
from tests.billing.world import meter
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.orders.world import PERIOD, beat, bid_of, held, revise

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


def test_a_request_of_the_other_grade_is_paid_by_its_contract_and_becomes_an_invoice_line(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, other: Grade, now: datetime
) -> None:
    flexible, _ = crowd(buyer, rival, now)
    run([plant, other_plant], now)
    contract = BidSubstitute.objects.get(bid=flexible).contract
    assert contract is not None
    start = now + PERIOD
    during = start + timedelta(seconds=30)
    # Never 15 seconds without a word: nothing was down.
    for second in range(0, 310, 10):
        for each in (plant, other_plant):
            beat(each, start + timedelta(seconds=second))
    hold_id = uuid7(during)
    opened = open_hold(
        id=hold_id,
        organization_id=buyer.id,
        grade_ids=[other.id],
        numerators=[10**9],
        now=during,
    )
    assert (opened.outcome, opened.contract_id, opened.kind) == ("ok", contract.id, "spot")
    assert (opened.rate_micros_per_mtok, opened.offering_id) == (300_000, other_plant.offering.id)
    void_hold(id=hold_id, now=during)
    award = Entitlement.objects.get(contract=contract)
    meter(contract, award.rate, other_plant, 100 * 10**9, start)
    result = settle_period(settlement_start=now, now=now + timedelta(hours=1, seconds=600))
    assert not result.failed
    charge = Charge.objects.get(contract=contract)
    assert (charge.kind, charge.grade_id, charge.amount_micros) == ("spot", other.id, 30_000)
    (invoice,) = [
        each
        for each in issue_invoices(month_start=now.replace(day=1, hour=0), now=now + timedelta(days=30))
        if each.organization_id == buyer.id
    ]
    amounts = {line.charges.get().contract_id: line.amount_micros for line in invoice.lines.all()}
    # 42 lots in its own grade went unused: half of them are the minimum take, 21 x 350.
    assert amounts == {contract.id: 30_000, flexible.contract_id: 7_350}
    assert not check_ledger()
    advance_auctions(now=now + timedelta(hours=2))
    assert set(Auction.objects.filter(period_start=start).values_list("status", flat=True)) == {"settled"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"substitutes": (("nothing", 0),)}, "substitutes.0.grade"),
        ({"substitutes": (("tiny-chat", 0),)}, "substitutes.0.grade"),
        ({"substitutes": (("tiny-other", 0), ("tiny-other", 1))}, "substitutes.1.grade"),
        ({"substitutes": (("tiny-other", -300_000),)}, "substitutes.0.adjustment_micros_per_mtok"),
        ({"substitutes": (("tiny-other", 10**9),)}, "substitutes.0.adjustment_micros_per_mtok"),
        ({"substitutes": tuple((f"g{n}", 0) for n in range(6))}, "substitutes"),
        ({"substitutes": (("tiny-other", 0),), "all_or_none": True}, "all_or_none"),
        ({"substitutes": (("tiny-other", 0),), "min_fill_lots": 1}, "min_fill_lots"),
    ],
)
def test_what_no_bid_can_name_is_refused_by_name_and_changes_nothing(
    buyer: Party, plant: Plant, other: Grade, now: datetime, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        bid_of(buyer, now, **changes)
    assert refused.value.field == field
    assert not Bid.objects.exists()
    assert not Contract.objects.exists()
    assert held(buyer) == 0


def test_the_hold_is_for_the_dearest_grade_and_follows_the_substitutes(
    buyer: Party, plant: Plant, other: Grade, now: datetime
) -> None:
    bid = bid_of(buyer, now, substitutes=(("tiny-other", 50_000),))
    # max(500,000 x 40, 350,000 x 60) / 1000, and two micros for an award of its own.
    assert held(buyer) == 21_002
    assert bid.revisions.get().receipt["held_micros"] == 21_002
    bid = revise(buyer, bid, now, substitutes=(("tiny-other", -50_000),))
    assert held(buyer) == 18_002
    bid = revise(buyer, bid, now, substitutes=())
    assert held(buyer) == 18_000
    # The same change again is answered like the first time.
    assert revise(buyer, bid, now, revision=2, substitutes=()).revision == 3
    with pytest.raises(InsufficientFunds) as refused:
        revise(buyer, bid, now, steps=((450_000, 20_000),), substitutes=(("tiny-other", 100_000),))
    assert refused.value.field == "steps"
    assert (held(buyer), BidSubstitute.objects.get().withdrawn_at) == (18_000, now)
    cancel_bid(organization_id=buyer.id, bid_id=bid.id, now=now, actor=SYSTEM)
    assert held(buyer) == 0


def test_receipts_are_signed_over_substitutes_and_rest_takes_and_shows_them(
    buyer: Party, plant: Plant, other: Grade, now: datetime
) -> None:
    body = {
        "grade": "tiny-chat",
        "client_id": "r",
        "steps": [{"rate_micros_per_mtok": 450_000, "lots": 40}],
        "substitutes": [{"grade": "tiny-other", "adjustment_micros_per_mtok": -50_000}],
    }
    with time_machine.travel(now, tick=False):
        made = buyer.api.post("/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
        assert made.status_code == 201, made.content
        again = buyer.api.post("/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
        body["substitutes"] = []
        different = buyer.api.post("/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
        changed = buyer.api.patch(
            f"/api/v1/bids/{made.json()['id']}",
            {
                "revision": 1,
                "substitutes": [
                    {"grade": "tiny-other", "adjustment_micros_per_mtok": 0},
                    {"grade": "tiny-chat", "adjustment_micros_per_mtok": 0},
                ],
            },
            format="json",
        )
    assert made.json()["receipt"]["terms"]["substitutes"] == [["tiny-other", -50_000]]
    assert made.json()["substitutes"] == [
        {"grade": "tiny-other", "adjustment_micros_per_mtok": -50_000, "contract_id": None}
    ]
    assert again.json()["id"] == made.json()["id"]
    assert (different.status_code, different.json()["field"]) == (409, "client_id")
    assert (changed.status_code, changed.json()["field"]) == (422, "substitutes.1.grade")


def test_in_the_no_cancel_phase_substitutes_stay_and_a_sealed_bid_waits_for_all_its_grades(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    flexible, _ = crowd(buyer, rival, now)
    plants = [plant, other_plant]
    to(plants, now, 0.0)
    late = now + PERIOD * 0.85
    with pytest.raises(MarketClosed) as refused:
        revise(buyer, flexible, late, substitutes=(("tiny-other", 0),))
    assert refused.value.field == "substitutes"
    advance_auctions(now=now + PERIOD * 0.9 - timedelta(seconds=1))
    seal(now)
    home, away = of(now, "tiny-chat"), of(now, "tiny-other")
    after = now + PERIOD * 0.92
    assert clear_auction(auction_id=home.id, now=after)
    assert publish_auction(auction_id=home.id, now=after)
    # Its own grade is published, and what it got in the other is not carved out of its hold yet.
    with pytest.raises(MarketClosed):
        cancel_bid(organization_id=buyer.id, bid_id=flexible.id, now=after, actor=SYSTEM)
    with pytest.raises(MarketClosed):
        revise(buyer, flexible, after, steps=((500_000, 201),))
    assert publish_auction(auction_id=away.id, now=after)
    assert revise(buyer, flexible, after, steps=((500_000, 201),)).revision == 2
    assert not check_ledger()


def seal(start: datetime) -> None:
    """The gate alone, as a worker that died after it would leave the round."""
    from marketplace.orders.services.rounds import close_due_auctions

    assert close_due_auctions(now=start + PERIOD * 0.91) == 2


def of(start: datetime, slug: str) -> Auction:
    return Auction.objects.get(period_start=start + PERIOD, grade__family__slug=slug)


def test_a_bid_for_one_period_lives_until_its_last_grade_is_published(
    buyer: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    bid = bid_of(
        buyer, now, steps=((500_000, 300),), substitutes=(("tiny-other", 0),), period_start=now + PERIOD
    )
    plants = [plant, other_plant]
    to(plants, now, 0.0)
    to(plants, now, 0.85)
    seal(now)
    home, away = of(now, "tiny-chat"), of(now, "tiny-other")
    after = now + PERIOD * 0.92
    clear_auction(auction_id=away.id, now=after)
    assert set(Auction.objects.filter(pk__in=[home.id, away.id]).values_list("status", flat=True)) == {
        "cleared"
    }
    publish_auction(auction_id=home.id, now=after)
    # A worker that takes over from here publishes the other and only then ends the bid.
    advance_auctions(now=after)
    bid.refresh_from_db()
    assert bid.status == Bid.Status.EXPIRED
    assert sum(Trade.objects.values_list("lots", flat=True)) == 300
    assert Entitlement.objects.count() == 2
    assert set(Contract.objects.values_list("status", flat=True)) == {"ended"}
    assert not check_ledger()


def test_a_halted_grade_is_taken_out_and_the_others_clear_without_it(
    buyer: Party, rival: Party, operator: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    crowd(buyer, rival, now)
    plants = [plant, other_plant]
    to(plants, now, 0.0)
    to(plants, now, 0.85)
    seal(now)
    assert of(now, "tiny-chat").joined != []
    halt_market(
        operator_id=operator.id,
        grade=other_plant.offering.grade,
        reason="looks odd",
        now=now + PERIOD * 0.91,
        actor=SYSTEM,
    )
    to(plants, now, 0.92)
    home, away = of(now, "tiny-chat"), of(now, "tiny-other")
    assert (away.quantity_lots, away.joined, away.status) == (0, [], "published")
    assert (home.quantity_lots, home.joined, home.rule_version) == (HOST_LOTS, [], RULE_VERSION)
    # As if nobody had named another grade: the 200 lots at 500,000 first, then 42 of those at 450,000.
    assert home.clearing_rate_micros_per_mtok == 450_000
    for auction in (home, away):
        assert replay_auction(auction_id=auction.id)["matches"]


def test_a_book_that_was_tampered_with_is_halted_and_the_others_go_on_without_it(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    crowd(buyer, rival, now)
    plants = [plant, other_plant]
    to(plants, now, 0.0)
    to(plants, now, 0.85)
    seal(now)
    home = of(now, "tiny-chat")
    assert home.book is not None
    [bid, other_bid] = home.book["bids"]
    named = bid if "substitutes" in bid else other_bid
    named["substitutes"][0][1] += 1
    home.save(update_fields=["book"])
    with pytest.raises(BookChanged):
        clear_auction(auction_id=of(now, "tiny-other").id, now=now + PERIOD * 0.91)
    control = MarketControl.objects.get(status="halted")
    assert (control.grade_id, control.halted_because) == (home.grade_id, "book_changed")
    to(plants, now, 0.92)
    assert {of(now, slug).status for slug in ("tiny-chat", "tiny-other")} == {"published"}
    assert not Trade.objects.exists()
    assert not check_ledger()


def test_bids_with_a_minimum_sit_a_joined_round_out_and_are_listed(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    crowd(buyer, rival, now)
    whole = bid_of(rival, now, client_id="w", steps=((600_000, 10),), all_or_none=True)
    auctions = run([plant, other_plant], now)
    home = auctions["tiny-chat"]
    assert home.left_out == [{"bid_id": str(whole.id), "reason": "minimum_in_joined_grades"}]
    assert not Trade.objects.filter(bid=whole).exists()
    assert replay_auction(auction_id=home.id)["matches"]
    with time_machine.travel(now + PERIOD, tick=False):
        shown = rival.api.get(f"/api/v1/bids/{whole.id}").json()
        public = rival.api.get("/api/v1/auctions?grade=tiny-chat").content.decode()
    assert shown["status"] == "open"
    assert str(whole.id) not in public


def test_replay_finds_out_what_was_changed_in_any_of_the_joined_books(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    crowd(buyer, rival, now)
    auctions = run([plant, other_plant], now)
    home, away = auctions["tiny-chat"], auctions["tiny-other"]
    assert away.book is not None
    away.book["asks"][0]["lots"] += 1
    away.save(update_fields=["book"])
    assert not replay_auction(auction_id=home.id)["matches"]
    assert not replay_auction(auction_id=away.id)["matches"]


def test_a_what_if_clears_the_joined_books_again_for_ones_own_orders(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    cache.clear()
    flexible, fixed = crowd(buyer, rival, now)
    away = run([plant, other_plant], now)["tiny-other"]
    body = {"bid_id": str(flexible.id), "steps": [{"rate_micros_per_mtok": 500_000, "lots": 42}]}

    def ask(party: Party, at: datetime, what: dict[str, Any]) -> Any:
        with time_machine.travel(at, tick=False):
            return party.api.post(f"/api/v1/auctions/{away.id}/what-if", what, format="json")

    early = ask(buyer, now + PERIOD, body)
    assert (early.status_code, early.json()["code"]) == (409, "not_disclosed")
    day = now + PERIOD + timedelta(days=1)
    answer = ask(buyer, day, body).json()
    assert answer["before"] == {
        "clearing_rate_micros_per_mtok": 300_000,
        "quantity_lots": 158,
        "lots": 158,
        "cost_micros": 47_400,
        "fills": [{"bid_id": str(flexible.id), "lots": 158, "cost_micros": 47_400}],
        "other_fills": [
            {
                "grade": "tiny-chat",
                "clearing_rate_micros_per_mtok": 350_000,
                "bid_id": str(flexible.id),
                "lots": 42,
                "cost_micros": 14_700,
            }
        ],
    }
    # The 42 lots fit beside the other's 200 in the bid's own grade.
    assert (answer["after"]["quantity_lots"], answer["after"]["fills"]) == (0, [])
    # Another's order is nobody's, in whichever of the books it stands.
    theirs = ask(buyer, day, {**body, "bid_id": str(fixed.id)})
    assert (theirs.status_code, theirs.json()["field"]) == (404, "bid_id")
    whole = ask(buyer, day, {"bid_id": str(flexible.id), "all_or_none": True})
    assert (whole.status_code, whole.json()["field"]) == (422, "all_or_none")


def test_the_demand_of_a_grade_is_shown_with_those_who_take_it_for_their_own(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    crowd(buyer, rival, now)
    away = run([plant, other_plant], now)["tiny-other"]
    assert disclosure_of(away, now + PERIOD) is None
    shown = disclosure_of(away, now + PERIOD + timedelta(days=1))
    assert shown is not None
    assert [(point.rate_micros_per_mtok, point.lots) for point in shown.demand] == [(450_000, 200)]


def test_a_bid_that_takes_a_grade_nobody_offers_leaves_its_round_as_it_was(
    buyer: Party, plant: Plant, other: Grade, now: datetime
) -> None:
    bid_of(buyer, now, substitutes=(("tiny-other", 0),))
    auctions = run([plant], now)
    home = auctions["tiny-chat"]
    assert (home.quantity_lots, home.joined, home.rule_version) == (60, [], RULE_VERSION)
    assert replay_auction(auction_id=home.id)["matches"]


def test_a_standing_bid_keeps_its_contract_of_the_other_grade_and_has_no_others_of_it(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    flexible, _ = crowd(buyer, rival, now)
    plants = [plant, other_plant]
    run(plants, now)
    first = BidSubstitute.objects.get().contract_id
    assert first is not None
    run(plants, now + PERIOD)
    assert BidSubstitute.objects.get().contract_id == first
    assert Entitlement.objects.filter(contract_id=first).count() == 2
    # Taken back and named again it is the same contract, at the new adjustment.
    later = now + 2 * PERIOD - timedelta(seconds=1)
    flexible.refresh_from_db()
    flexible = revise(buyer, flexible, later, substitutes=())
    revise(buyer, flexible, later, substitutes=(("tiny-other", -60_000),))
    named = BidSubstitute.objects.get()
    assert (named.contract_id, named.withdrawn_at) == (first, None)
    assert named.contract is not None
    assert named.contract.max_rate_micros_per_mtok == 440_000
    cancel_bid(organization_id=buyer.id, bid_id=flexible.id, now=later, actor=SYSTEM)
    assert set(Contract.objects.filter(organization_id=buyer.id).values_list("status", flat=True)) == {
        "ended"
    }
    assert not check_ledger()


def test_tax_is_held_for_every_grade_and_awards_fit_into_it(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    Organization.objects.filter(pk__in=[buyer.id, rival.id]).update(tax_ppm=190_001)
    flexible, _ = crowd(buyer, rival, now)
    run([plant, other_plant], now)
    flexible.refresh_from_db()
    assert flexible.ledger_hold is not None
    assert flexible.ledger_hold.amount_micros >= 0
    assert Entitlement.objects.filter(contract__organization_id=buyer.id).count() == 2
    assert not check_ledger()


def test_nobody_sees_what_another_got_in_a_grade_he_took(
    buyer: Party, rival: Party, plant: Plant, other_plant: Plant, now: datetime
) -> None:
    flexible, _ = crowd(buyer, rival, now)
    run([plant, other_plant], now)
    contract_id = BidSubstitute.objects.get().contract_id
    with time_machine.travel(now + PERIOD, tick=False):
        assert buyer.api.get(f"/api/v1/contracts/{contract_id}").status_code == 200
        own = buyer.api.get(f"/api/v1/bids/{flexible.id}").json()
        assert rival.api.get(f"/api/v1/contracts/{contract_id}").status_code == 404
        assert rival.api.get(f"/api/v1/bids/{flexible.id}").status_code == 404
    assert own["substitutes"][0]["contract_id"] == str(contract_id)
    assert {(trade["grade"], trade["lots"]) for trade in own["trades"]} == {
        ("tiny-chat", 42),
        ("tiny-other", 158),
    }


def test_two_workers_clear_and_publish_joined_books_once(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    rival = make_party("Mallory", ["buyer"], now)
    plants = [
        make_plant(hyperion, make_grade(now, slug=slug, model=slug), now, name=slug, spot_floor=floor)
        for slug, floor in (("tiny-chat", 200_000), ("tiny-other", 300_000))
    ]
    for party in (acme, rival):
        fund(party, 10_000_000, now)
    crowd(acme, rival, now)
    to(plants, now, 0.0)
    to(plants, now, 0.85)
    seal(now)
    after = now + PERIOD * 0.92
    ids: list[UUID] = list(Auction.objects.filter(status="closed").values_list("pk", flat=True))

    def attempt(turn: int) -> bool:
        try:
            return clear_auction(auction_id=ids[turn % 2], now=after)
        finally:
            connections.close_all()

    def beat_once(_: int) -> None:
        try:
            advance_auctions(now=after)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == [False, False, False, True]
        list(pool.map(beat_once, range(4)))
    assert Trade.objects.count() == 3
    assert Entitlement.objects.count() == 3
    assert set(Auction.objects.filter(pk__in=ids).values_list("status", flat=True)) == {"published"}
    assert not check_ledger()


def test_a_change_of_other_substitutes_under_an_old_revision_is_a_conflict(
    buyer: Party, plant: Plant, other: Grade, now: datetime
) -> None:
    bid = bid_of(buyer, now)
    revise(buyer, bid, now, revision=1, substitutes=(("tiny-other", -1),))
    assert revise(buyer, bid, now, revision=1, substitutes=(("tiny-other", -1),)).revision == 2
    with pytest.raises(Conflict):
        revise(buyer, bid, now, revision=1, substitutes=(("tiny-other", -2),))
