"""Released volume: out of the buyer's rights at once, into the book at his floor, back where nobody bought it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import (
    Allocation,
    Contract,
    Entitlement,
    Nomination,
    NominationShare,
)
from marketplace.contracts.services import (
    accept_quote,
    capture_hold,
    extend_hold,
    open_hold,
    request_quote,
    suspend_contract,
    void_hold,
)
from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.orders.models import Ask, Auction, Release, Trade
from marketplace.orders.monitoring import _lots_traded
from marketplace.orders.services.phases import MarketClosed
from marketplace.orders.services.releasing import FEW, NO_ROUND, NOT_LISTED, SUSPENDED, release
from marketplace.orders.services.rounds import advance_auctions
from marketplace.periods import Period
from metering.services import gateway_source
from pricing.models import Grade
from pricing.units import NUMERATOR_PER_LOT as LOT
from providers.models import HostPeriod
from providers.selectors import share_ppm_of, unsold_ppm
from providers.services import open_capacity, take_period_share
from tests.cast import Party, Plant, fund, make_party, make_plant
from tests.orders.world import PERIOD, beat, bid_of, run_round

FIRM = 100
VOLUME = 10_000
FUNDS = 100_000_000
FLOOR = 100_000


def buy(buyer: Party, grade: Grade, now: datetime, *, firm: int = FIRM, payment: str = "prepaid") -> Contract:
    """Firm lots from the next delivery period on."""
    quote = request_quote(
        organization_id=buyer.id,
        grade_slug=grade.family.slug,
        firm_lots=firm,
        volume_lots=VOLUME,
        months=1,
        starts_at=None,
        take_share_ppm=0,
        overage_policy="stop",
        payment=payment,
        now=now,
    )
    return accept_quote(
        organization_id=buyer.id, quote_id=quote.id, operation_id=uuid7(now), now=now, actor=SYSTEM
    )


def let_go(contract: Contract, at: datetime, **terms: Any) -> list[Release]:
    wanted = {
        "period_start": contract.starts_at,
        "periods": 1,
        "lots": 40,
        "floor_micros_per_mtok": FLOOR,
        "operation_id": uuid7(at),
    }
    return release(
        organization_id=contract.organization_id,
        contract_id=contract.id,
        now=at,
        actor=SYSTEM,
        **{**wanted, **terms},
    )


def hold_on(contract: Contract, lots: int, at: datetime) -> tuple[UUID, str]:
    hold_id = uuid7(at)
    opened = open_hold(
        id=hold_id,
        organization_id=contract.organization_id,
        grade_ids=[contract.grade_id],
        numerators=[lots * LOT],
        contract_id=contract.id,
        now=at,
    )
    return hold_id, opened.outcome


@pytest.fixture
def buyer(db: None, operator: Party, now: datetime) -> Party:
    party = make_party("Borealis", ["buyer"], now)
    fund(party, FUNDS, now)
    return party


@pytest.fixture
def contract(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    fund(acme, FUNDS, now)
    return buy(acme, grade, now)


def test_what_is_released_is_asked_once_and_sold_at_the_price_of_the_book(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    [made] = let_go(contract, now)
    month = Entitlement.objects.get(contract=contract)
    assert month.released_numerator == 40 * LOT
    bid = bid_of(buyer, now, steps=((300_000, 60),))
    auction = run_round(plant, now)
    # 40 at 100,000 and 20 of the host's own 142 at 200,000: that ask is partly filled.
    assert (auction.quantity_lots, auction.clearing_rate_micros_per_mtok) == (60, 200_000)
    made.refresh_from_db()
    assert (made.status, made.resold_lots, made.rate_micros_per_mtok) == ("closed", 40, 200_000)
    period = HostPeriod.objects.get(host=plant.host, period_start=contract.starts_at)
    # The released lots are in the firm share already: spot took no more than the host's own twenty.
    assert period.sold_ppm == share_ppm_of(FIRM, plant.offering, 300) + share_ppm_of(20, plant.offering, 300)
    asks: dict[UUID | None, int] = dict(Ask.objects.values_list("release_id", "share_ppm"))
    assert asks[made.id] == 0
    assert asks[None] == share_ppm_of(142, plant.offering, 300)
    # One share of one host, whoever sold its lots.
    [share] = Allocation.objects.filter(contract=bid.contract)
    assert (share.offering_id, share.firm_lots) == (plant.offering.id, 60)
    month.refresh_from_db()
    assert month.released_numerator == 40 * LOT
    [sold] = NominationShare.objects.all()
    assert (sold.offering_id, sold.resold_lots) == (plant.offering.id, 40)


def test_the_committed_buyer_is_the_seller_wherever_sellers_are_named(
    contract: Contract, buyer: Party, acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    let_go(contract, now)
    bid_of(buyer, now, steps=((300_000, 60),))
    auction = run_round(plant, now)
    window = Period(auction.period_start, auction.period_end)
    assert sorted(_lots_traded(window)) == sorted(
        [
            ("tiny-chat", str(buyer.id), str(acme.id), 40),
            ("tiny-chat", str(buyer.id), str(hyperion.id), 20),
        ]
    )
    assert auction.book is not None
    named = {ask["organization_id"]: ask["rate"] for ask in auction.book["asks"]}
    assert named == {str(acme.id): FLOOR, str(hyperion.id): 200_000}


def test_what_nobody_bought_is_the_buyers_again_after_publication(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    [made] = let_go(contract, now, floor_micros_per_mtok=250_000)
    bid_of(buyer, now, steps=((260_000, 150),))
    at_gate = now + PERIOD * 0.92
    for at in (now, at_gate):
        beat(plant, at)
        advance_auctions(now=at)
    month = Entitlement.objects.get(contract=contract)
    auction = Auction.objects.get(period_start=contract.starts_at)
    # 142 of the host at 200,000, then eight released ones: the ask that is partly filled makes the price.
    assert (auction.clearing_rate_micros_per_mtok, auction.quantity_lots) == (250_000, 150)
    made.refresh_from_db()
    assert (made.resold_lots, month.released_numerator) == (8, 8 * LOT)


def test_ones_own_bid_does_not_trade_with_ones_own_release(
    contract: Contract, acme: Party, plant: Plant, now: datetime
) -> None:
    [made] = let_go(contract, now, floor_micros_per_mtok=0)
    bid_of(acme, now, steps=((300_000, 30),))
    auction = run_round(plant, now)
    made.refresh_from_db()
    assert made.resold_lots == 0
    assert auction.quantity_lots == 0
    assert not Trade.objects.exists()
    assert Entitlement.objects.get(contract=contract).released_numerator == 0


def test_what_was_resold_can_not_be_used_and_the_next_period_is_whole(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    let_go(contract, now, lots=70)
    bid_of(buyer, now, steps=((300_000, 70),))
    run_round(plant, now)
    source_id = gateway_source(now).id
    used = 0
    for second in range(0, 300, 10):
        at = contract.starts_at + timedelta(seconds=second)
        beat(plant, at)
        hold_id, outcome = hold_on(contract, 2, at)
        if outcome == "ok":
            capture_hold(id=hold_id, numerator=2 * LOT, event=b"{}\n", source_id=source_id, now=at)
            used += 2
        else:
            assert outcome == "rate_limited"
    # With the burst of an idle minute he would have had more than the thirty that are left to him.
    assert used == 30
    nomination = Nomination.objects.get()
    assert nomination.taken_numerator == 30 * LOT
    after = contract.starts_at + PERIOD + timedelta(seconds=60)
    beat(plant, after)
    assert hold_on(contract, 20, after)[1] == "ok"
    assert Nomination.objects.get().taken_numerator == 30 * LOT


def test_a_stream_is_cut_where_the_period_is_resold_and_what_it_left_is_free_again(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    let_go(contract, now, lots=98)
    bid_of(buyer, now, steps=((300_000, 98),))
    run_round(plant, now)
    at = contract.starts_at
    beat(plant, at)
    hold_id, outcome = hold_on(contract, 1, at)
    assert outcome == "ok"
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=at) == "ok"
    assert extend_hold(id=hold_id, delta_numerator=1, now=at) == "contract_exhausted"
    assert Nomination.objects.get().taken_numerator == 2 * LOT
    assert void_hold(id=hold_id, now=at) == "ok"
    assert Nomination.objects.get().taken_numerator == 0
    assert Entitlement.objects.get(contract=contract).held_numerator == 0


def test_a_period_that_is_resold_whole_admits_nothing(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    let_go(contract, now, lots=FIRM)
    bid_of(buyer, now, steps=((300_000, FIRM),))
    run_round(plant, now)
    beat(plant, contract.starts_at)
    assert hold_on(contract, 1, contract.starts_at)[1] == "no_offering"


def test_released_lots_lie_on_the_listed_hosts_never_more_than_their_part(
    acme: Party, hyperion: Party, buyer: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    other = make_plant(hyperion, grade, now, name="h2", firm_rate=510_000)
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, firm=300)
    parts = dict(Allocation.objects.filter(contract=contract).values_list("offering_id", "firm_lots"))
    assert sorted(parts) == sorted([plant.offering.id, other.offering.id])
    let_go(contract, now, lots=200, floor_micros_per_mtok=20)
    let_go(contract, now, lots=99, floor_micros_per_mtok=10)
    bid_of(buyer, now, steps=((300_000, 299),))
    for share in (0.0, 0.92, 0.93):
        for one in (plant, other):
            beat(one, now + PERIOD * share)
        advance_auctions(now=now + PERIOD * share)
    asked: dict[UUID, int] = {}
    for ask in Ask.objects.filter(release__isnull=False):
        asked[ask.offering_id] = asked.get(ask.offering_id, 0) + ask.lots
    assert sum(asked.values()) == 299
    assert all(lots <= parts[offering] for offering, lots in asked.items())
    resold = dict(NominationShare.objects.values_list("offering_id", "resold_lots"))
    assert resold == asked
    # The one lot that is left to him is served by the host that has it.
    [left] = [offering for offering, lots in parts.items() if lots > resold[offering]]
    at = contract.starts_at
    for one in (plant, other):
        beat(one, at)
    opened = open_hold(
        id=uuid7(at), organization_id=acme.id, grade_ids=[grade.id], numerators=[LOT], contract_id=contract.id,
        now=at,
    )  # fmt: skip
    assert (opened.outcome, opened.offering_id) == ("ok", left)


def test_a_release_is_taken_until_the_gate_and_not_after_it(
    contract: Contract, plant: Plant, now: datetime
) -> None:
    advance_auctions(now=now)
    gate = Auction.objects.get(period_start=contract.starts_at).gate_at
    assert let_go(contract, gate - timedelta(microseconds=1))
    for at in (gate, gate + timedelta(seconds=1), contract.starts_at, contract.starts_at + 3 * PERIOD):
        with pytest.raises(MarketClosed) as refused:
            let_go(contract, at)
        assert refused.value.field == "period_start"
    # The book may be sealed by a worker whose clock is ahead: the state decides, not the clock alone.
    advance_auctions(now=gate)
    with pytest.raises(MarketClosed):
        let_go(contract, gate - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"lots": FIRM + 1}, "lots"),
        ({"lots": 0}, "lots"),
        ({"lots": -1}, "lots"),
        ({"lots": True}, "lots"),
        ({"floor_micros_per_mtok": -1}, "floor_micros_per_mtok"),
        ({"floor_micros_per_mtok": 5_000_001}, "floor_micros_per_mtok"),
        ({"periods": 0}, "periods"),
        ({"periods": 289}, "periods"),
        ({"lots": FIRM, "periods": 101}, "lots"),
        ({"period_start": datetime(2999, 12, 31, 23, 55).astimezone()}, "period_start"),
    ],
)
def test_bad_terms_are_named_and_change_nothing(
    contract: Contract, now: datetime, terms: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        let_go(contract, now, **terms)
    assert refused.value.field == field
    assert not Release.objects.exists()
    assert not Nomination.objects.exists()
    assert Entitlement.objects.get(contract=contract).released_numerator == 0


def test_a_period_off_the_grid_or_outside_the_term_is_refused(contract: Contract, now: datetime) -> None:
    assert contract.ends_at is not None
    for start in (
        contract.starts_at + timedelta(seconds=1),
        contract.ends_at,
        contract.ends_at + 100 * PERIOD,
    ):
        with pytest.raises(InvalidInput) as refused:
            let_go(contract, now, period_start=start)
        assert refused.value.field == "period_start"


def test_a_contract_in_arrears_releases_too(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    arrears = buy(acme, grade, now, firm=40, payment="arrears")
    [made] = let_go(arrears, now, period_start=arrears.starts_at)
    assert made.contract_id == arrears.id
    assert Entitlement.objects.get(contract=arrears).released_numerator > 0


def test_only_a_committed_contract_that_is_paid_and_active_releases(
    contract: Contract, acme: Party, mallory: Party, buyer: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    spot = bid_of(acme, now, client_id="own").contract
    with pytest.raises(Conflict) as refused:
        let_go(spot, now, period_start=contract.starts_at)
    assert refused.value.code == "not_committed"
    with pytest.raises(NotFound):
        release(
            organization_id=mallory.id, contract_id=contract.id, period_start=contract.starts_at, periods=1, lots=1,
            floor_micros_per_mtok=0, operation_id=uuid7(now), now=now, actor=SYSTEM,
        )  # fmt: skip
    suspend_contract(contract_id=contract.id, now=now)
    with pytest.raises(Conflict) as refused:
        let_go(contract, now)
    assert refused.value.code == "contract_suspended"
    Contract.objects.filter(pk=contract.pk).update(status="ended")
    with pytest.raises(Conflict):
        let_go(contract, now)
    assert not Release.objects.exists()


def test_a_suspended_contract_is_not_asked_and_gets_its_lots_back(
    contract: Contract, buyer: Party, plant: Plant, now: datetime
) -> None:
    [made] = let_go(contract, now)
    suspend_contract(contract_id=contract.id, now=now)
    bid_of(buyer, now, steps=((300_000, 60),))
    run_round(plant, now)
    made.refresh_from_db()
    assert (made.status, made.resold_lots, made.reason) == ("closed", 0, SUSPENDED)
    assert not Ask.objects.filter(release=made).exists()
    assert Entitlement.objects.get(contract=contract).released_numerator == 0


def test_a_host_that_is_down_and_a_floor_above_its_list_among_few_sellers_stay_out(
    contract: Contract, plant: Plant, now: datetime
) -> None:
    [dear] = let_go(contract, now, lots=10, floor_micros_per_mtok=500_001)
    [next_] = let_go(contract, now, period_start=contract.starts_at + PERIOD, lots=10)
    run_round(plant, now)
    dear.refresh_from_db()
    assert (dear.resold_lots, dear.reason) == (0, FEW)
    plant.host.status = "paused"
    plant.host.save(update_fields=["status"])
    for share in (0.0, 0.92, 0.93):
        advance_auctions(now=contract.starts_at + PERIOD * share)
    next_.refresh_from_db()
    assert (next_.resold_lots, next_.reason) == (0, NOT_LISTED)
    assert Entitlement.objects.get(contract=contract).released_numerator == 0


@pytest.mark.parametrize("third_has_lots", [True, False])
def test_who_releases_is_bound_by_the_rule_of_few_sellers_and_not_counted(
    contract: Contract, grade: Grade, plant: Plant, now: datetime, third_has_lots: bool
) -> None:
    """Three providers are listed; whether the third has something to sell decides for the release as for the hosts."""
    others = [
        make_plant(make_party(name, ["provider"], now), grade, now, name=name.lower())
        for name in ("Second", "Third")
    ]
    [dear] = let_go(contract, now, lots=10, floor_micros_per_mtok=500_001)
    advance_auctions(now=now)
    open_capacity(now=now)
    if not third_has_lots:
        start, host_id = contract.starts_at, others[1].host.id
        take_period_share(host_id=host_id, period_start=start, share_ppm=unsold_ppm(host_id, start))
    gate = now + PERIOD * 0.92
    for one in (plant, *others):
        beat(one, gate)
    advance_auctions(now=gate)
    dear.refresh_from_db()
    sellers = Ask.objects.filter(release__isnull=True).values("offering__host__provider").distinct().count()
    assert sellers == (3 if third_has_lots else 2)
    assert Ask.objects.filter(release=dear).exists() is third_has_lots
    assert dear.reason == ("" if third_has_lots else FEW)


def test_releases_of_a_period_whose_round_never_came_go_back(
    contract: Contract, plant: Plant, now: datetime
) -> None:
    made = let_go(contract, now, periods=3)
    # The market is down: the first of these periods is missed, the next is traded too late, then it runs again.
    for at in (contract.starts_at + 2 * PERIOD, contract.starts_at + 3 * PERIOD):
        beat(plant, at)
        advance_auctions(now=at)
    found = list(Release.objects.filter(pk__in=[one.pk for one in made]).order_by("period_start"))
    assert [(one.status, one.resold_lots, one.reason) for one in found] == [("closed", 0, NO_ROUND)] * 3
    assert Entitlement.objects.get(contract=contract).released_numerator == 0


def test_more_of_a_period_may_be_released_until_all_of_it_is(contract: Contract, now: datetime) -> None:
    let_go(contract, now, lots=60)
    with pytest.raises(InvalidInput) as refused:
        let_go(contract, now, lots=41)
    assert refused.value.field == "lots"
    let_go(contract, now, lots=40)
    assert Nomination.objects.get().released_lots == FIRM
    assert Entitlement.objects.get(contract=contract).released_numerator == FIRM * LOT


def test_an_operation_releases_once_and_not_something_else(contract: Contract, now: datetime) -> None:
    operation = uuid7(now)
    first = let_go(contract, now, periods=2, operation_id=operation)
    again = let_go(contract, contract.starts_at + 5 * PERIOD, periods=2, operation_id=operation)
    assert [one.pk for one in again] == [one.pk for one in first]
    with pytest.raises(Conflict):
        let_go(contract, now, periods=2, lots=39, operation_id=operation)
    assert Entitlement.objects.get(contract=contract).released_numerator == 80 * LOT


def test_a_range_is_all_or_nothing(contract: Contract, now: datetime) -> None:
    let_go(contract, now, period_start=contract.starts_at + 2 * PERIOD, lots=FIRM)
    with pytest.raises(DomainError):
        let_go(contract, now, periods=3, lots=1)
    assert Release.objects.count() == 1
    assert Nomination.objects.count() == 1


def test_over_rest_with_a_key_of_the_buyer(
    contract: Contract, acme: Party, mallory: Party, now: datetime
) -> None:
    path = f"/api/v1/contracts/{contract.id}/releases"
    body = {
        "period_start": contract.starts_at.isoformat(),
        "periods": 2,
        "lots": 5,
        "floor_micros_per_mtok": 0,
    }
    key = str(uuid4())
    with time_machine.travel(now, tick=False):
        made = acme.api.post(path, body, format="json", HTTP_IDEMPOTENCY_KEY=key)
        again = acme.api.post(path, body, format="json", HTTP_IDEMPOTENCY_KEY=key)
        theirs = mallory.api.post(path, body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
        listed = acme.api.get(path)
        hidden = mallory.api.get(path)
    assert (made.status_code, again.content) == (201, made.content)
    assert [one["lots"] for one in made.json()] == [5, 5]
    assert {one["id"] for one in listed.json()["items"]} == {one["id"] for one in made.json()}
    assert (theirs.status_code, hidden.status_code) == (404, 404)
    assert Release.objects.count() == 2
