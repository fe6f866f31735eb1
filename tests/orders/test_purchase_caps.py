"""What is bought is under the caps of the organization and of the key that buys: bids, their top-ups, months."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.db import connection, transaction
from django.test import Client

from marketplace.accounts.models import ApiKey
from marketplace.accounts.organization_clocks import create_clock
from marketplace.accounts.services import SYSTEM, Actor
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.contracts.models import Contract, PurchaseSpend, SpendCap, SpendCounter
from marketplace.contracts.purchases import SpendCapReached, buyer_of
from marketplace.contracts.services import accept_quote, advance_contracts, request_quote
from marketplace.contracts.spending import set_spend_cap, spend_window, spent_of
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import change_hold
from marketplace.orders.models import Bid
from marketplace.orders.services.bids import cancel_bid, place_bid
from marketplace.orders.services.revising import revise_bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.services.topping_up import NO_CAP, NO_FUNDS, cover, lock_standing_bids
from marketplace.orders.terms import BidTerms
from pricing.models import Grade
from tests.billing.test_clocks import advance
from tests.cast import PASSWORD, Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.contracts.world import commit, give_money, make_world
from tests.orders.world import PERIOD, held, run_round

# One lot at 250,000 micros per Mtok costs 250 micros; a round of four, 1,000.
RATE = 250_000
LOT_MICROS = 250


def cap(party: Party, limit: int | None, at: datetime, **terms: Any) -> SpendCap:
    terms = {"scope": "api_key", "period": "day", **terms}
    if terms["scope"] == "api_key":
        terms.setdefault("api_key_id", party.api_key_id)
    return set_spend_cap(organization_id=party.id, limit_micros=limit, now=at, actor=SYSTEM, **terms)


def spent(one: SpendCap, at: datetime) -> int:
    return spent_of([one], now=at)[0].spent_micros


def key_of(party: Party) -> Actor:
    return Actor("api_key", party.api_key_id)


def bid(party: Party, now: datetime, lots: int, *, actor: Actor | None = None, **changes: Any) -> Bid:
    terms = {"grade": "tiny-chat", "client_id": str(uuid7()), "steps": ((RATE, lots),), **changes}
    return place_bid(
        organization_id=party.id,
        terms=BidTerms(**terms),
        operation_id=uuid7(),
        now=now,
        actor=actor or key_of(party),
    )


def revise(party: Party, placed: Bid, lots: int, now: datetime) -> Bid:
    placed.refresh_from_db()
    return revise_bid(
        organization_id=party.id,
        bid_id=placed.id,
        changes={"steps": ((RATE, lots),)},
        revision=placed.revision,
        now=now,
        actor=key_of(party),
    )


def cancel(party: Party, placed: Bid, now: datetime) -> None:
    cancel_bid(organization_id=party.id, bid_id=placed.id, now=now, actor=key_of(party))


def test_bids_of_a_key_fit_under_its_cap_and_are_given_back_when_cancelled(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    capped = cap(acme, 4 * LOT_MICROS, now)
    first = bid(acme, now, 3)
    assert spent(capped, now) == 3 * LOT_MICROS
    with pytest.raises(SpendCapReached, match="this API key per UTC day") as refused:
        bid(acme, now, 2)
    assert refused.value.retry_after_s == (spend_window("day", now).end - now).total_seconds()
    assert (Bid.objects.count(), Contract.objects.count(), Hold.objects.count()) == (1, 1, 1)
    assert (spent(capped, now), held(acme)) == (3 * LOT_MICROS, 3 * LOT_MICROS)
    # What a person decides counts under no key.
    bid(acme, now, 50, actor=Actor("user", acme.user.pk))
    assert spent(capped, now) == 3 * LOT_MICROS
    for _ in range(2):
        cancel(acme, first, now)
    assert spent(capped, now) == 0
    bid(acme, now, 4)
    assert spent(capped, now) == 4 * LOT_MICROS
    assert check_ledger() == []


def test_a_revision_counts_what_it_adds(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    fund(acme, 10**9, now)
    capped = cap(acme, 4 * LOT_MICROS, now)
    placed = bid(acme, now, 1)
    revise(acme, placed, 4, now)
    assert spent(capped, now) == 4 * LOT_MICROS
    with pytest.raises(SpendCapReached):
        revise(acme, placed, 5, now)
    assert held(acme) == 4 * LOT_MICROS
    # Down and up again is not counted twice.
    revise(acme, placed, 2, now)
    revise(acme, placed, 4, now)
    assert spent(capped, now) == 4 * LOT_MICROS
    cancel(acme, placed, now)
    assert spent(capped, now) == 0
    assert sorted(PurchaseSpend.objects.values_list("amount_micros", "returned_micros")) == [
        (LOT_MICROS, LOT_MICROS),
        (3 * LOT_MICROS, 3 * LOT_MICROS),
    ]


def test_what_an_award_took_stays_counted(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    """A single bid ends with its auction, a standing one when it is cancelled: both keep what they bought."""
    fund(acme, 10**9, now)
    capped = cap(acme, 10**6, now)
    single = bid(acme, now, 4, period_start=now + PERIOD)
    standing = bid(acme, now, 4)
    auction = run_round(plant, now)
    at = now + PERIOD
    advance_auctions(now=at)
    bought = {
        trade.bid_id: -(-trade.lots * trade.rate_micros_per_mtok // 1_000) for trade in auction.trades.all()
    }
    assert set(bought) == {single.id, standing.id}
    assert 0 < bought[single.id] < 4 * LOT_MICROS
    single.refresh_from_db()
    assert single.status == Bid.Status.EXPIRED
    # The standing one bids with all of it again.
    assert spent(capped, now) == bought[single.id] + bought[standing.id] + 4 * LOT_MICROS
    cancel(acme, standing, at)
    assert spent(capped, now) == bought[single.id] + bought[standing.id]


def test_a_quote_that_a_key_accepts_counts_its_months_price(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    # 100 lots at 500,000 micros per Mtok are 50,000 micros a month.
    capped = cap(acme, 60_000, now)
    whole = cap(acme, 60_000, now, scope="organization", period="month")

    def accept(operation: UUID) -> Contract:
        return accept_quote(
            organization_id=acme.id, quote_id=quotes[operation], operation_id=operation, now=now, actor=key_of(acme)
        )  # fmt: skip

    operations = [uuid7() for _ in range(2)]
    quotes = {
        operation: request_quote(
            organization_id=acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=1,
            starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
        ).id
        for operation in operations
    }  # fmt: skip
    for _ in range(2):
        accept(operations[0])
    assert (spent(capped, now), spent(whole, now)) == (50_000, 50_000)
    cap(acme, None, now)
    with pytest.raises(SpendCapReached, match="your organization per calendar month"):
        accept(operations[1])
    assert Contract.objects.count() == 1
    assert (spent(capped, now), spent(whole, now)) == (50_000, 50_000)
    assert held(acme) == 50_000


def test_what_people_buy_in_the_portal_is_under_the_organizations_caps(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    person = Actor("user", acme.user.pk)
    whole = cap(acme, 4 * LOT_MICROS, now, scope="organization", api_key_id=None)
    cap(acme, 0, now)
    bid(acme, now, 3, actor=person)
    with pytest.raises(SpendCapReached, match="your organization per UTC day"):
        bid(acme, now, 2, actor=person)
    client = Client()
    assert client.login(username=acme.user.email, password=PASSWORD)
    quote = request_quote(
        organization_id=acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=1,
        starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
    )  # fmt: skip
    with time_machine.travel(now, tick=False):
        page = client.post(f"/buyer/quotes/{quote.id}", {"operation": str(uuid7())})
        assert (page.status_code, b"spend cap of your organization" in page.content) == (422, True)
        assert spent(whole, now) == 3 * LOT_MICROS
        cap(acme, 60_000, now, scope="organization", api_key_id=None)
        assert client.post(f"/buyer/quotes/{quote.id}", {"operation": str(uuid7())}).status_code == 302
    assert spent(whole, now) == 3 * LOT_MICROS + 50_000


def test_the_later_months_of_what_a_key_bought_count_and_are_never_refused(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """They were promised when it was bought: they take room from what is new, above the limit if need be."""
    fund(acme, 10**9, now)
    quote = request_quote(
        organization_id=acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=3,
        starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
    )  # fmt: skip
    contract = accept_quote(
        organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=key_of(acme)
    )
    by_key = cap(acme, 30_000, now)
    by_month = cap(acme, 120_000, now, scope="organization", period="month", api_key_id=None)
    charge_committed_months(now=contract.starts_at)
    # What was bought before the caps were set counts under none.
    assert (spent(by_key, contract.starts_at), spent(by_month, contract.starts_at)) == (0, 0)
    second = contract.starts_at + timedelta(days=31)
    for _ in range(2):
        advance_contracts(now=second)
        charge_committed_months(now=second)
    assert (spent(by_key, second), spent(by_month, second)) == (50_000, 50_000)
    contract.refresh_from_db()
    assert contract.status == "active"
    with pytest.raises(SpendCapReached, match="this API key per UTC day"):
        bid(acme, second, 1)
    bid(acme, second, 1, actor=Actor("user", acme.user.pk))
    # The next calendar month has all of its room.
    third = second + timedelta(days=30)
    assert spent(by_month, third) == 0
    # Who bought a contract that has no history is not known, and it is charged all the same.
    assert (buyer_of(contract.id), buyer_of(uuid7())) == (key_of(acme), SYSTEM)
    assert check_ledger() == []


def test_months_of_a_test_clock_count_in_the_real_day(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    quote = request_quote(
        organization_id=acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=3,
        starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
    )  # fmt: skip
    whole = cap(acme, 10**6, now, scope="organization", api_key_id=None)
    accept_quote(
        organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=key_of(acme)
    )
    create_clock(organization_id=acme.id, now=now, actor=SYSTEM)
    advance(acme, now + timedelta(days=100), now)
    assert spent(whole, now) == 3 * 50_000
    assert SpendCounter.objects.count() == 1


def test_books_of_two_grades_are_filled_up_at_once_without_a_deadlock(
    committed_db: TestDatabase, now: datetime
) -> None:
    """Each book has bids of both buyers under caps of theirs and of their keys, and each of them in another order."""
    world = make_world(now)
    second = make_grade(now, slug="other-chat", model="other-chat")
    make_plant(world.hyperion, second, now, name="h2")
    mallory = make_party("Beta", ["buyer"], now)
    for party in (world.acme, mallory):
        fund(party, 10**9, now)
        for terms in ({}, {"scope": "organization", "api_key_id": None}, {"period": "month"}):
            cap(party, 10**9, now, **terms)
    slugs = [world.grade.family.slug, "other-chat"]
    parties = [world.acme, mallory]
    placed = [
        bid(party, now, 4, grade=slug, actor=actor)
        for slug, order in zip(slugs, (parties, parties[::-1]), strict=True)
        for party in order
        for actor in (key_of(party), Actor("user", party.user.pk))
    ]
    barrier = Barrier(2)

    def fill(grade_id: UUID) -> int:
        try:
            with transaction.atomic():
                locked = lock_standing_bids(grade_id, gate_at=now + PERIOD)
            for turn in range(10):
                barrier.wait(timeout=60)
                with transaction.atomic():
                    worse = [one._replace(worst_micros=one.worst_micros * (turn + 2)) for one in locked]
                    assert len(cover(worse, now=now)) == 4
            return 10
        finally:
            connection.close()

    # Their holds were carved from: not one of them is whole.
    for one in placed:
        assert one.ledger_hold_id is not None
        with transaction.atomic():
            change_hold(id=one.ledger_hold_id, delta_micros=-1, now=now)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fill, [world.grade.id, second.id])) == [10, 10]
    # Counted to the micro, however the two took turns: every bid's worst case eleven times, and what was carved.
    for party in parties:
        [whole] = SpendCap.objects.filter(organization=party.id, scope="organization")
        assert spent(whole, now) == 4 * (11 * 4 * LOT_MICROS + 1)
        assert held(party) == 4 * 11 * 4 * LOT_MICROS
    assert check_ledger() == []


def test_a_standing_bid_is_topped_up_under_the_caps_of_its_key_or_sits_out(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    capped = cap(acme, 4 * LOT_MICROS, now)
    standing = bid(acme, now, 4)
    auction = run_round(plant, now)
    [trade] = auction.trades.all()
    bought = -(-trade.lots * trade.rate_micros_per_mtok // 1_000)
    at = now + PERIOD
    advance_auctions(now=at)
    standing.refresh_from_db()
    assert standing.skip_reason == NO_CAP
    assert (spent(capped, at), held(acme)) == (4 * LOT_MICROS, 4 * LOT_MICROS)
    # Raised, it is in the next book again, and what was bought counts.
    cap(acme, 10 * LOT_MICROS, at)
    later = at + PERIOD
    advance_auctions(now=later)
    standing.refresh_from_db()
    assert standing.skip_reason == ""
    assert spent(capped, later) == bought + 4 * LOT_MICROS
    cancel(acme, standing, later)
    assert spent(capped, later) == bought
    assert check_ledger() == []


def test_what_the_balance_does_not_top_up_is_not_counted(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000, now)
    capped = cap(acme, 10**9, now)
    standing = bid(acme, now, 40)
    run_round(plant, now)
    at = now + PERIOD
    before = spent(capped, at)
    advance_auctions(now=at)
    standing.refresh_from_db()
    assert standing.skip_reason == NO_FUNDS
    assert (before, spent(capped, at)) == (10_000, 10_000)
    assert PurchaseSpend.objects.count() == 1
    fund(acme, 10**8, at)
    later = at + PERIOD
    advance_auctions(now=later)
    assert spent(capped, later) > 10_000
    assert PurchaseSpend.objects.count() == 2
    assert check_ledger() == []


def test_a_project_is_held_to_its_cap_by_all_of_its_keys(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10**9, now)
    cap(acme, LOT_MICROS, now, scope="project", project="bots")
    bid(acme, now, 4)
    ApiKey.objects.filter(pk=acme.api_key_id).update(project="bots")
    bid(acme, now, 1)
    with pytest.raises(SpendCapReached, match="this API key's project"):
        bid(acme, now, 1)


def test_fifty_bids_over_rest_at_once_under_a_cap_for_ten_are_ten(
    committed_db: TestDatabase, now: datetime
) -> None:
    with time_machine.travel(now, tick=False):
        world = make_world(now)
        give_money(world, 10**9, now)
        capped = cap(world.acme, 10 * LOT_MICROS, now)

        def one(index: int) -> tuple[int, str]:
            try:
                body = {
                    "grade": "tiny-chat",
                    "client_id": f"b{index}",
                    "steps": [{"rate_micros_per_mtok": RATE, "lots": 1}],
                }
                answer = world.acme.api.post(
                    "/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=f"k{index}"
                )
                return answer.status_code, answer.json().get("code", "")
            finally:
                connection.close()

        with ThreadPoolExecutor(16) as pool:
            answers = Counter(pool.map(one, range(50)))
        assert answers == {(201, ""): 10, (402, "spend_cap_reached"): 40}
        assert (Bid.objects.count(), Hold.objects.count()) == (10, 10)
        assert spent(capped, now) == 10 * LOT_MICROS
        assert SpendCounter.objects.count() == 1
        # Counted with the key that asked, also where a quote is accepted.
        with pytest.raises(SpendCapReached):
            commit(world, now)
        assert check_ledger() == []
