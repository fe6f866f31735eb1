"""Money in through the simulated Stripe: cards, pages, 3-D Secure, refunds, and every way a call can fail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import connection

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import ProcessorGate, ProcessorOperation, ProcessorPayer, TopUp
from marketplace.billing.services.operations import STALE, run_operation
from marketplace.billing.services.refunds import refund_payment
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import InsufficientFunds, account_id, open_hold
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim

CHARGES = "POST /v1/payment_intents"


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def paid(market: StripeMarket) -> list[dict[str, Any]]:
    return market.objects("payment_intent", status="succeeded")


def test_without_a_card_the_buyer_pays_on_the_page_and_his_card_is_kept(market: StripeMarket) -> None:
    made = market.top_up()
    assert made.status == TopUp.Status.PENDING
    assert made.action_url.startswith("https://checkout.stripe.test/")
    assert market.prepaid() == 0
    market.sim.world.pay_checkout(market.collection(made.id).object_id)
    market.settle()
    made.refresh_from_db()
    assert (made.status, made.action_url) == (TopUp.Status.SUCCEEDED, "")
    assert market.prepaid() == 10 * UNIT
    again = market.top_up(5)
    assert again.status == TopUp.Status.SUCCEEDED
    assert market.prepaid() == 15 * UNIT
    assert len(market.objects("customer")) == 1
    market.assert_books_balance()


def test_a_page_that_runs_out_fails_the_top_up(market: StripeMarket) -> None:
    made = market.top_up()
    session = market.objects("checkout.session")[0]
    session |= {"status": "expired", "url": None}
    market.sim.world.emit("checkout.session.expired", session)
    market.settle()
    made.refresh_from_db()
    assert made.status == TopUp.Status.FAILED


def test_a_saved_card_pays_at_once_and_shows_its_last_digits(market: StripeMarket) -> None:
    market.save_card()
    payer = ProcessorPayer.objects.get()
    assert (payer.card_last4, payer.card_expires) == ("4242", "2034-12")
    assert market.top_up().status == TopUp.Status.SUCCEEDED
    assert market.prepaid() == 10 * UNIT


def test_a_declined_card_ends_the_intent_so_that_it_cannot_be_paid_later(market: StripeMarket) -> None:
    market.save_card("pm_card_chargeDeclinedInsufficientFunds")
    made = market.top_up()
    assert made.status == TopUp.Status.FAILED
    assert market.collection(made.id).reason == "insufficient_funds"
    assert [one["status"] for one in market.objects("payment_intent")] == ["canceled"]
    market.settle()
    assert market.prepaid() == 0


@pytest.mark.parametrize("fault", ["drop", "500_after", "500", "429", "hang"])
def test_whatever_befalls_a_charge_the_buyer_pays_once(market: StripeMarket, fault: str) -> None:
    market.save_card()
    market.sim.fail(fault, CHARGES, seconds=4)
    made = market.top_up()
    assert made.status == TopUp.Status.PENDING
    assert market.prepaid() == 0
    market.sweep()
    if fault == "500":
        # Stripe repeats a failure under its key: only after a while, and having looked, a new key is made.
        assert market.collection(made.id).status == ProcessorOperation.Status.UNKNOWN
        market.sweep()
        assert not paid(market)
        market.make_older(timedelta(minutes=2))
        market.sweep()
    made.refresh_from_db()
    assert made.status == TopUp.Status.SUCCEEDED
    assert len(paid(market)) == 1
    assert market.prepaid() == 10 * UNIT
    keys = set(market.sim.calls(CHARGES))
    assert len(keys) == (2 if fault == "500" else 1)
    market.settle()
    assert market.prepaid() == 10 * UNIT
    market.assert_books_balance()


def test_what_is_unknown_is_looked_up_before_anything_is_sent_again(market: StripeMarket) -> None:
    market.save_card()
    market.sim.fail("drop", CHARGES)
    market.top_up()
    sent = len(market.sim.calls(CHARGES))
    market.sweep()
    assert len(paid(market)) == 1
    assert len(market.sim.calls(CHARGES)) == sent


def test_a_key_older_than_23_hours_is_left_to_people_and_never_sent_again(market: StripeMarket) -> None:
    market.save_card()
    market.sim.fail("500", CHARGES)
    made = market.top_up()
    market.make_older(timedelta(hours=23))
    sent = len(market.sim.calls(CHARGES))
    market.sweep()
    operation = market.collection(made.id)
    assert (operation.status, operation.reason) == (ProcessorOperation.Status.UNKNOWN, STALE)
    assert len(market.sim.calls(CHARGES)) == sent


def test_no_transaction_is_open_while_stripe_is_called(market: StripeMarket) -> None:
    """Over REST, where every answer is kept by its key: asked in the middle of the call, from another connection."""
    market.save_card()
    seen: list[int] = []
    place = connection.settings_dict

    def look(event: dict[str, Any]) -> None:
        market.sim.queue.append(event)
        if event["type"] != "payment_intent.created":
            return
        with psycopg.connect(
            host=place["HOST"],
            port=place["PORT"],
            dbname=place["NAME"],
            user=place["USER"],
            password=place["PASSWORD"],
        ) as other:
            found = other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            ).fetchone()
            row = other.execute(
                "SELECT status FROM billing_processoroperation WHERE kind = 'charge'"
            ).fetchone()
        assert found is not None
        assert row is not None
        seen.append(int(found[0]))
        assert row[0] == "sent"

    market.sim.world.told = look
    answer = market.acme.api.post(
        "/api/v1/top-ups", {"amount_micros": 10 * UNIT}, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4())
    )
    assert answer.status_code == 201
    assert answer.json()["status"] == "succeeded"
    assert seen == [0]


def test_the_same_key_over_rest_moves_money_once_and_another_body_is_refused(market: StripeMarket) -> None:
    market.save_card()
    key = str(uuid4())
    first, second = (
        market.acme.api.post(
            "/api/v1/top-ups", {"amount_micros": 10 * UNIT}, format="json", HTTP_IDEMPOTENCY_KEY=key
        )
        for _ in range(2)
    )
    assert first.content == second.content
    other = market.acme.api.post(
        "/api/v1/top-ups", {"amount_micros": 11 * UNIT}, format="json", HTTP_IDEMPOTENCY_KEY=key
    )
    assert other.status_code == 422
    assert len(paid(market)) == 1
    assert market.prepaid() == 10 * UNIT


def test_refunds_never_exceed_the_payment_and_the_excess_never_reaches_stripe(market: StripeMarket) -> None:
    market.save_card()
    made = market.top_up()
    refund: Any = {
        "organization_id": market.acme.id,
        "payment_id": made.id,
        "now": market.now,
        "actor": SYSTEM,
    }
    key = uuid7()
    for _ in range(2):
        done = refund_payment(**refund, amount_micros=6 * UNIT, operation_id=key)
        assert done.status == ProcessorOperation.Status.SUCCEEDED
    with pytest.raises(Conflict):
        refund_payment(**refund, amount_micros=5 * UNIT, operation_id=key)
    with pytest.raises(InvalidInput) as refused:
        refund_payment(**refund, amount_micros=5 * UNIT, operation_id=uuid7())
    assert refused.value.field == "amount_micros"
    assert len(market.sim.calls("POST /v1/refunds")) == 1
    refund_payment(**refund, amount_micros=4 * UNIT, operation_id=uuid7())
    assert market.prepaid() == 0
    assert market.balance(market.operator, AccountKind.PROCESSOR).posted_micros == 0
    market.settle()
    market.assert_books_balance()


def test_money_that_is_spent_is_not_refunded(market: StripeMarket) -> None:
    market.save_card()
    made = market.top_up()
    prepaid = account_id(
        organization_id=market.acme.id, kind=AccountKind.PREPAID, currency="USD", now=market.now
    )
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=8 * UNIT, code="test", now=market.now)
    with pytest.raises(InsufficientFunds):
        refund_payment(
            organization_id=market.acme.id,
            payment_id=made.id,
            amount_micros=3 * UNIT,
            operation_id=uuid7(),
            now=market.now,
            actor=SYSTEM,
        )
    assert market.collection(made.id).refunded_micros == 0
    assert not market.sim.calls("POST /v1/refunds")


def test_the_breaker_opens_and_prepaid_money_goes_on_being_spent(market: StripeMarket) -> None:
    market.save_card()
    market.top_up()
    market.sim.fail("500", CHARGES, times=5)
    for _ in range(5):
        market.top_up()
    gate = ProcessorGate.objects.get()
    assert gate.failures == 5
    assert gate.open_until is not None
    sent = len(market.sim.app.calls)
    waiting = market.top_up()
    assert waiting.status == TopUp.Status.PENDING
    assert len(market.sim.app.calls) == sent
    # Buying from the balance asks nobody outside.
    prepaid = account_id(
        organization_id=market.acme.id, kind=AccountKind.PREPAID, currency="USD", now=market.now
    )
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=UNIT, code="test", now=market.now)
    ProcessorGate.objects.update(open_until=gate.open_until - timedelta(minutes=1))
    run_operation(operation_id=market.collection(waiting.id).id, now=market.now)
    market.make_older(timedelta(minutes=2))
    for _ in range(3):
        market.sweep()
    waiting.refresh_from_db()
    assert waiting.status == TopUp.Status.SUCCEEDED
    assert ProcessorGate.objects.get().failures == 0


def test_calls_stay_within_their_budget(market: StripeMarket, settings: Any) -> None:
    market.save_card()
    settings.STRIPE_CALLS_PER_S = 1
    ProcessorGate.objects.update(allowance_millis=0)
    before = len(market.sim.app.calls)
    statuses = [market.top_up(1).status for _ in range(3)]
    assert len(market.sim.app.calls) - before <= 1
    assert statuses.count(TopUp.Status.PENDING) >= 2
    settings.STRIPE_CALLS_PER_S = 20
    ProcessorGate.objects.update(allowance_millis=20_000)
    market.sweep()
    assert market.prepaid() == 3 * UNIT
