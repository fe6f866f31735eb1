"""Top-ups that begin by themselves: once, within the month's limit, with pauses after declines, and told of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.models import ProcessorPayer, TopUp
from marketplace.billing.services.auto_top_ups import NoSavedCard, set_auto_top_up, top_up_low_balances
from marketplace.errors import Forbidden, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import NewTransfer, account_id, open_hold, post_transfers
from marketplace.webhooks.models import WebhookEvent
from marketplace.webhooks.services import create_endpoint
from pricing.months import calendar_month
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.contracts.world import World, available, give_money, make_world
from tests.peers.cases import runs
from tests.stripe_sim.server import stripe_sim


@pytest.fixture
def world(db: None, now: datetime) -> World:
    return make_world(now)


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def watch(buyer: Any, now: datetime, **terms: Any) -> AutoTopUp:
    given = {
        "enabled": True,
        "threshold_micros": 5 * UNIT,
        "amount_micros": 10 * UNIT,
        "monthly_limit_micros": 30 * UNIT,
        **terms,
    }
    return set_auto_top_up(organization_id=buyer.id, **given, now=now, actor=SYSTEM)


def spend(world: World, amount: int, now: datetime) -> None:
    prepaid = account_id(organization_id=world.acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    fees = account_id(organization_id=world.operator.id, kind=AccountKind.FEES, currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), prepaid, fees, amount, "usage")], now=now)


def told() -> list[tuple[str, dict[str, Any]]]:
    events = WebhookEvent.objects.order_by("created_at", "id")
    return [(event.type, json.loads(bytes(event.body))["data"]) for event in events]


@runs("credit-17")
def test_a_balance_below_its_threshold_is_topped_up_once(world: World, now: datetime) -> None:
    """balance 10, used 6, threshold 5, top up 10: 14 afterwards."""
    give_money(world, 10 * UNIT, now)
    watch(world.acme, now)
    assert top_up_low_balances(now=now) == 0
    spend(world, 6 * UNIT, now)
    assert top_up_low_balances(now=now) == 1
    assert available(world) == 14 * UNIT
    assert top_up_low_balances(now=now) == 0
    assert AutoTopUp.objects.get().running_id is None
    assert TopUp.objects.get().auto_top_up_id == AutoTopUp.objects.get().id
    assert check_ledger() == []


def test_what_is_held_is_not_free(world: World, now: datetime) -> None:
    give_money(world, 10 * UNIT, now)
    watch(world.acme, now)
    prepaid = account_id(organization_id=world.acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=5 * UNIT, code="usage", now=now)
    assert top_up_low_balances(now=now) == 0  # At the threshold is not below it.
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=1, code="usage", now=now)
    assert top_up_low_balances(now=now) == 1


def test_the_months_limit_is_never_passed_and_ends_with_the_month(world: World, now: datetime) -> None:
    watch(world.acme, now, monthly_limit_micros=25 * UNIT)
    for expected in (1, 1, 0, 0):
        assert top_up_low_balances(now=now) == expected
        if expected:
            spend(world, available(world), now)
    assert TopUp.objects.count() == 2
    end = calendar_month(now).end
    assert AutoTopUp.objects.get().next_attempt_at == end
    assert top_up_low_balances(now=end - timedelta(microseconds=1)) == 0
    assert top_up_low_balances(now=end) == 1


def test_low_is_told_once_each_time_it_happens(world: World, now: datetime) -> None:
    create_endpoint(
        organization_id=world.acme.id,
        url="https://hooks.acme.example/",
        description="",
        event_types=None,
        now=now,
        actor=SYSTEM,
    )
    give_money(world, 10 * UNIT, now)
    watch(world.acme, now, enabled=False)
    spend(world, 6 * UNIT, now)
    for _ in range(3):
        assert top_up_low_balances(now=now) == 0
    assert told() == [
        (
            "balance.low",
            {
                "currency": "USD",
                "available_micros": 4 * UNIT,
                "threshold_micros": 5 * UNIT,
                "auto_top_up": "off",
            },
        )
    ]
    give_money(world, 10 * UNIT, now)
    later = now + timedelta(seconds=2)
    top_up_low_balances(now=later)
    spend(world, 10 * UNIT, later)
    top_up_low_balances(now=later)
    assert [kind for kind, _ in told()] == ["balance.low", "balance.low"]
    assert not TopUp.objects.exists()


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"amount_micros": 1}, "amount_micros"),
        ({"amount_micros": 10**13}, "amount_micros"),
        ({"threshold_micros": 0}, "threshold_micros"),
        ({"monthly_limit_micros": 10 * UNIT - 1}, "monthly_limit_micros"),
        ({"monthly_limit_micros": 10**15 + 1}, "monthly_limit_micros"),
    ],
)
def test_terms_that_are_refused_name_the_field(
    world: World, now: datetime, terms: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        watch(world.acme, now, **terms)
    assert refused.value.field == field
    with pytest.raises(Forbidden):
        watch(world.hyperion, now)
    assert not AutoTopUp.objects.exists()


def test_rest_sets_and_shows(world: World, now: datetime) -> None:
    never = world.acme.api.get("/api/v1/auto-top-up").json()
    assert (never["status"], never["threshold_micros"]) == ("off", 0)
    body = {
        "enabled": True,
        "threshold_micros": 5 * UNIT,
        "amount_micros": 10 * UNIT,
        "monthly_limit_micros": 30 * UNIT,
    }
    made = world.acme.api.put("/api/v1/auto-top-up", body, format="json")
    assert (made.status_code, made.json()["status"]) == (200, "active"), made.content
    assert world.acme.api.get("/api/v1/auto-top-up").json() == made.json()
    assert AuditEntry.objects.filter(action="auto_top_up.set").count() == 1


def test_without_a_card_nothing_is_charged(market: StripeMarket) -> None:
    with pytest.raises(NoSavedCard):
        watch(market.acme, market.now)
    market.save_card()
    watch(market.acme, market.now)
    ProcessorPayer.objects.update(payment_method_id="")
    assert top_up_low_balances(now=market.now) == 0
    stopped = AutoTopUp.objects.get()
    assert (stopped.status, stopped.stopped_reason) == ("stopped", "no saved card")
    assert not market.objects("payment_intent")


def test_a_saved_card_is_charged_once_whoever_looks_at_once(market: StripeMarket) -> None:
    market.save_card()
    watch(market.acme, market.now)

    def look(_: int) -> int:
        try:
            return top_up_low_balances(now=market.now)
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(look, range(12))) == 1
    assert market.prepaid() == 10 * UNIT
    assert len(market.objects("payment_intent", status="succeeded")) == 1
    market.assert_books_balance()


def test_declines_are_told_and_waited_for_and_the_third_stops(market: StripeMarket) -> None:
    create_endpoint(
        organization_id=market.acme.id,
        url="https://hooks.acme.example/",
        description="",
        event_types=["auto_top_up.failed"],
        now=market.now,
        actor=SYSTEM,
    )
    market.save_card("pm_card_chargeDeclinedInsufficientFunds")
    watch(market.acme, market.now)
    at = market.now
    for pause in (timedelta(minutes=15), timedelta(hours=1)):
        assert top_up_low_balances(now=at) == 1
        assert top_up_low_balances(now=at + pause - timedelta(microseconds=1)) == 0
        at += pause
    assert top_up_low_balances(now=at) == 1
    stopped = AutoTopUp.objects.get()
    assert (stopped.status, stopped.failures, stopped.stopped_reason) == ("stopped", 3, "insufficient_funds")
    assert top_up_low_balances(now=at + timedelta(days=40)) == 0
    assert [(kind, data["failures"]) for kind, data in told()] == [
        ("auto_top_up.failed", 1), ("auto_top_up.failed", 2), ("auto_top_up.failed", 3),
    ]  # fmt: skip
    assert told()[-1][1]["auto_top_up"] == "stopped"
    # What failed does not count into the month; set again it begins afresh.
    market.save_card()
    watch(market.acme, at, monthly_limit_micros=10 * UNIT)
    assert top_up_low_balances(now=at) == 1
    assert market.prepaid() == 10 * UNIT


def test_one_that_the_bank_asks_about_keeps_the_next_waiting(market: StripeMarket) -> None:
    market.save_card("pm_card_authenticationRequired")
    watch(market.acme, market.now)
    assert top_up_low_balances(now=market.now) == 1
    for _ in range(3):
        assert top_up_low_balances(now=market.now) == 0
    running = AutoTopUp.objects.get().running
    assert running is not None
    assert running.action_url.startswith("https://hooks.stripe.test/")
    market.sim.world.authenticate(market.collection(running.id).object_id)
    market.settle()
    assert top_up_low_balances(now=market.now) == 0
    assert AutoTopUp.objects.get().running_id is None
    assert market.prepaid() == 10 * UNIT
