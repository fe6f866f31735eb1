"""kill -9 of the process that has charged a card, between Stripe's effect and our record of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest

from marketplace.api.models import IdempotencyRecord
from marketplace.billing.models import InvoicePayment, ProcessorOperation, TopUp
from tests.billing.stripe_invoices import owing_market
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.market import wait_until
from tests.stripe_sim.app import SECRET_KEY
from tests.stripe_sim.server import stripe_sim

ROOT = Path(__file__).resolve().parents[2]
# The door of the REST API, in a process of its own.
CLIENT = """
import django; django.setup()
from rest_framework.test import APIClient
client = APIClient()
client.credentials(HTTP_AUTHORIZATION="Bearer {secret}")
client.post("/api/v1/top-ups", {{"amount_micros": {micros}}}, format="json", HTTP_IDEMPOTENCY_KEY="{key}")
"""


def kill_in_the_charge(market: StripeMarket, database: TestDatabase, code: str) -> None:
    """Run `code` in a process of its own, and kill -9 that between Stripe's effect and our record of it."""
    environment = database.environment | {
        "PAYMENT_PROCESSOR": "stripe",
        "STRIPE_SECRET_KEY": SECRET_KEY,
        "STRIPE_WEBHOOK_SECRETS": "whsec_simulated",
        "STRIPE_API_BASE": market.sim.url,
        "ALLOWED_HOSTS": "testserver",
    }
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
    try:
        wait_until(lambda: market.objects("payment_intent", status="succeeded"), "the charge at Stripe")
    finally:
        process.kill()
        process.wait()


def let_leases_run_out(key: str) -> None:
    ProcessorOperation.objects.update(lease_until=None)
    record = IdempotencyRecord.objects.get(key=key)
    IdempotencyRecord.objects.filter(pk=record.pk).update(locked_until=record.created_at)


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


@pytest.mark.parametrize("who_goes_on", ["the sweeper", "the buyer, with his key", "a webhook"])
def test_a_process_killed_after_the_charge_leaves_one_payment_and_one_posting(
    market: StripeMarket, committed_db: TestDatabase, who_goes_on: str
) -> None:
    market.save_card()
    market.sim.fail("stall", "POST /v1/payment_intents", seconds=30)
    key = str(uuid4())
    code = CLIENT.format(secret=market.acme.secret, micros=10 * UNIT, key=key)
    kill_in_the_charge(market, committed_db, code)
    operation = ProcessorOperation.objects.get(kind="charge")
    assert (operation.status, operation.object_id) == (ProcessorOperation.Status.SENT, "")
    assert market.prepaid() == 0
    if who_goes_on == "the sweeper":
        market.sweep()
    elif who_goes_on == "a webhook":
        market.settle()
    else:
        let_leases_run_out(key)
        answer = market.acme.api.post(
            "/api/v1/top-ups", {"amount_micros": 10 * UNIT}, format="json", HTTP_IDEMPOTENCY_KEY=key
        )
        assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")
    assert TopUp.objects.get().status == TopUp.Status.SUCCEEDED
    assert market.prepaid() == 10 * UNIT
    market.settle()
    market.sweep()
    assert len(market.objects("payment_intent")) == 1
    assert market.prepaid() == 10 * UNIT
    market.assert_books_balance()


PAYER = """
import django; django.setup()
from rest_framework.test import APIClient
client = APIClient()
client.credentials(HTTP_AUTHORIZATION="Bearer {secret}")
client.post("{url}", {{"source": "processor"}}, format="json", HTTP_IDEMPOTENCY_KEY="{key}")
"""


@pytest.mark.parametrize("who_goes_on", ["the sweeper", "the buyer, with his key", "a webhook"])
def test_a_process_killed_after_charging_an_invoice_leaves_it_paid_once(
    committed_db: TestDatabase, now: datetime, who_goes_on: str
) -> None:
    with owing_market(now) as market:
        market.save_card()
        market.sim.fail("stall", "POST /v1/payment_intents", seconds=30)
        url, key = f"/api/v1/invoices/{market.invoice.id}/payments", str(uuid4())
        kill_in_the_charge(market, committed_db, PAYER.format(secret=market.acme.secret, url=url, key=key))
        operation = ProcessorOperation.objects.get(purpose="invoice")
        payment = InvoicePayment.objects.get()
        assert (operation.status, operation.subject_id) == (ProcessorOperation.Status.SENT, payment.id)
        assert (payment.status, market.status()) == ("pending", "finalised")
        if who_goes_on == "the sweeper":
            market.sweep()
        elif who_goes_on == "a webhook":
            market.settle()
        else:
            let_leases_run_out(key)
            body = {"source": "processor"}
            answer = market.acme.api.post(url, body, format="json", HTTP_IDEMPOTENCY_KEY=key)
            assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")
        for _ in range(2):
            assert (market.status(), market.receivable()) == ("paid", 0)
            market.settle()
            market.sweep()
        assert len(market.objects("payment_intent")) == 1
        assert InvoicePayment.objects.get().status == "succeeded"
        market.assert_books_balance()
