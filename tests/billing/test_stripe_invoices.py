"""An invoice paid through the simulated Stripe: cards, 3-D Secure, pages, lost answers, and banks that take it back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import DatabaseError, transaction

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import (
    DunningStep,
    InvoicePayment,
    InvoiceStatusChange,
    PaymentDispute,
    ProcessorOperation,
    ProcessorPayer,
)
from marketplace.billing.services.automatic import collect_automatically
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.lifecycle import outstanding
from marketplace.errors import Conflict
from marketplace.ledger.models import AccountKind
from tests.billing.stripe_invoices import DUE, Owing, owing_market
from tests.cast import fund
from tests.conftest import TestDatabase
from tests.webhooks.test_facts import listen, told

CHARGES = "POST /v1/payment_intents"


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    with owing_market(now) as made:
        yield made


def credit(market: Owing, amount: int | None) -> None:
    line = market.invoice.lines.get()
    issue_credit_note(
        invoice_id=market.invoice.id,
        amounts_micros=None if amount is None else {line.id: amount},
        reason="Courtesy",
        operation_id=uuid4(),
        now=market.now,
        actor=SYSTEM,
    )


def test_the_saved_card_pays_an_invoice_once(market: Owing) -> None:
    market.save_card()
    before = market.balance(market.operator, AccountKind.PROCESSOR).posted_micros
    key = uuid4()
    for _ in range(2):
        assert market.pay(operation_id=key).status == "succeeded"
    market.settle()
    market.sweep()
    assert (market.status(), market.receivable()) == ("paid", 0)
    assert len(market.objects("payment_intent", status="succeeded")) == 1
    assert market.balance(market.operator, AccountKind.PROCESSOR).posted_micros == before + DUE
    market.assert_books_balance()


def test_3d_secure_is_asked_once_and_paid_at_the_link(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    asked = market.pay()
    assert (asked.status, market.status()) == ("pending", "action_required")
    assert asked.action_url.startswith("https://hooks.stripe.test/")
    calls = len(market.sim.calls(CHARGES))
    for _ in range(3):  # no storm of retries
        with pytest.raises(Conflict, match="under way"):
            market.pay()
        market.sweep()
        market.settle()
    assert len(market.sim.calls(CHARGES)) == calls
    market.sim.world.authenticate(market.operation_of(asked).object_id)
    market.settle()
    asked.refresh_from_db()
    assert (asked.status, asked.action_url, market.status()) == ("succeeded", "", "paid")
    assert market.receivable() == 0
    steps = InvoiceStatusChange.objects.filter(invoice=market.invoice).values_list("to_status", flat=True)
    assert list(steps)[-3:] == ["finalised", "action_required", "paid"]
    market.assert_books_balance()


def test_without_a_card_the_invoice_is_paid_on_the_page(market: Owing) -> None:
    asked = market.pay()
    assert asked.action_url.startswith("https://checkout.stripe.test/")
    assert market.status() == "action_required"
    market.sim.world.pay_checkout(market.operation_of(asked).object_id)
    market.settle()
    assert (market.status(), market.receivable()) == ("paid", 0)
    market.assert_books_balance()


def test_a_declined_card_fails_the_payment_and_is_asked_again_only_by_the_buyer(market: Owing) -> None:
    market.save_card("pm_card_chargeDeclinedInsufficientFunds")
    refused = market.pay()
    assert (refused.status, refused.failure) == ("failed", "insufficient_funds")
    assert market.status() == "finalised"
    market.sweep()
    market.settle()
    assert len(market.objects("payment_intent")) == 1
    market.save_card("pm_card_visa")
    assert market.pay().status == "succeeded"
    assert (market.status(), market.receivable()) == ("paid", 0)


def test_3d_secure_that_fails_leaves_the_invoice_to_be_paid(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    asked = market.pay()
    market.sim.world.fail_authentication(market.operation_of(asked).object_id)
    market.settle()
    asked.refresh_from_db()
    # Nobody may pay it behind our back at the link that is still in his browser.
    assert [one["status"] for one in market.objects("payment_intent")] == ["canceled"]
    assert asked.failure == "payment_intent_authentication_failure"
    assert (asked.status, asked.action_url, market.status()) == ("failed", "", "finalised")
    market.save_card()
    assert market.pay().status == "succeeded"


@pytest.mark.parametrize("fault", ["drop", "500_after", "hang"])
def test_whatever_befalls_the_charge_the_invoice_is_paid_once(market: Owing, fault: str) -> None:
    market.save_card()
    market.sim.fail(fault, CHARGES, seconds=4)
    asked = market.pay()
    assert (asked.status, market.status()) == ("pending", "finalised")
    with pytest.raises(Conflict):
        market.pay("balance")
    market.sweep()
    assert (market.status(), market.receivable()) == ("paid", 0)
    market.settle()
    assert len(market.objects("payment_intent", status="succeeded")) == 1
    market.assert_books_balance()


def test_what_was_credited_while_the_charge_was_under_way_goes_to_the_balance(market: Owing) -> None:
    market.save_card()
    market.sim.fail("drop", CHARGES)
    market.pay()
    prepaid = market.prepaid()
    credit(market, 1_000_000)  # with tax, 1.20 of the 2.40 that are due
    market.sweep()
    assert (market.status(), market.receivable()) == ("paid", 0)
    assert market.prepaid() == prepaid + 1_200_000
    market.assert_books_balance()


def test_over_rest_no_transaction_is_open_and_the_link_is_in_the_answer(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    url, key = f"/api/v1/invoices/{market.invoice.id}/payments", str(uuid4())
    bodies = [
        market.acme.api.post(url, {"source": "processor"}, format="json", HTTP_IDEMPOTENCY_KEY=key)
        for _ in range(2)
    ]
    assert bodies[0].status_code == 201
    assert bodies[0].content == bodies[1].content
    made = bodies[0].json()
    assert made["action_url"].startswith("https://hooks.stripe.test/")
    assert market.acme.api.get(url).json()["items"] == [made]
    other = market.acme.api.post(url, {"source": "balance"}, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


def disputed(market: Owing, amount: int | None = None) -> dict[str, Any]:
    market.save_card()
    paid = market.pay()
    charge = market.operation_of(paid).charge_object_id
    found: dict[str, Any] = market.sim.world.dispute(charge, amount)
    market.settle()
    return found


def test_a_payment_that_a_bank_takes_back_is_due_again_and_owed_by_the_buyer_alone(market: Owing) -> None:
    operator = market.balance(market.operator, AccountKind.OPERATOR).posted_micros
    disputed(market)
    dispute = PaymentDispute.objects.get()
    assert (dispute.reopened_micros, dispute.from_balance_micros, dispute.shares.count()) == (DUE, 0, 0)
    assert (market.status(), market.receivable(), outstanding(market.invoice)) == ("finalised", -DUE, DUE)
    assert market.balance(market.operator, AccountKind.OPERATOR).posted_micros == operator
    market.assert_books_balance()
    # Paid anew, the debt is gone and is no credit line.
    assert market.pay().status == "succeeded"
    assert (market.status(), market.receivable()) == ("paid", 0)
    assert market.balance(market.acme, AccountKind.RECEIVABLE).available_micros == 0
    market.assert_books_balance()


def test_a_dispute_that_is_won_pays_the_invoice_again(market: Owing) -> None:
    found = disputed(market, 100)
    assert (market.status(), market.receivable()) == ("finalised", -1_000_000)
    market.sim.world.close_dispute(found["id"], won=True)
    market.settle()
    assert (market.status(), market.receivable()) == ("paid", 0)
    assert InvoicePayment.objects.get().reversed_micros == 0
    assert market.balance(market.acme, AccountKind.RECEIVABLE).available_micros == 0
    market.assert_books_balance()


def test_a_dispute_won_after_the_buyer_paid_again_is_his_balance(market: Owing) -> None:
    found = disputed(market)
    before = market.prepaid()
    market.pay()
    market.sim.world.close_dispute(found["id"], won=True)
    market.settle()
    assert (market.status(), market.receivable()) == ("paid", 0)
    assert market.prepaid() == before + DUE
    market.assert_books_balance()


def test_a_credit_note_takes_off_what_a_bank_made_due_again(market: Owing) -> None:
    disputed(market)
    credit(market, None)
    assert (market.status(), market.receivable(), outstanding(market.invoice)) == ("paid", 0, 0)
    market.assert_books_balance()


def test_what_is_due_again_is_chased_and_closes_purchases_again(market: Owing) -> None:
    assert market.invoice.due_at is not None
    late = market.invoice.due_at + timedelta(days=30)
    advance_dunning(now=late)
    assert DunningStep.objects.filter(step="suspension").count() == 1
    market.acme.organization.refresh_from_db()
    assert market.acme.organization.status == "past_due"
    market.now = late
    found = disputed(market)
    assert market.status() == "overdue"
    advance_dunning(now=late)
    market.acme.organization.refresh_from_db()
    assert market.acme.organization.status == "past_due"
    market.sim.world.close_dispute(found["id"], won=True)
    market.settle()
    advance_dunning(now=late)
    market.acme.organization.refresh_from_db()
    assert market.acme.organization.status == "active"


def test_of_a_payment_only_what_a_bank_took_back_ever_changes(market: Owing) -> None:
    market.save_card()
    paid = market.pay()
    for change in ({"amount_micros": 1}, {"status": "failed"}, {"reversed_micros": DUE + 1}):
        with pytest.raises(DatabaseError), transaction.atomic():
            InvoicePayment.objects.filter(pk=paid.pk).update(**change)
    assert ProcessorOperation.objects.filter(subject_id=paid.pk).count() == 1


def test_from_the_balance_nobody_outside_is_asked(market: Owing, settings: Any) -> None:
    settings.PAYMENT_PROCESSOR = "sandbox"
    fund(market.acme, 5_000_000, market.now)
    settings.PAYMENT_PROCESSOR = "stripe"
    assert market.pay("balance").status == "succeeded"
    assert not market.sim.app.calls
    assert (market.status(), market.receivable()) == ("paid", 0)


def test_programs_are_told_once_that_a_payment_waits_and_that_a_bank_took_one_back(market: Owing) -> None:
    listen(market.acme, market.now)
    market.save_card("pm_card_authenticationRequired")
    asked = market.pay()
    market.settle()
    market.sweep()
    assert told("payment.action_required") == [
        {
            "invoice_id": str(market.invoice.id),
            "payment_id": str(asked.id),
            "amount_micros": DUE,
            "currency": "USD",
        }
    ]
    market.sim.world.authenticate(market.operation_of(asked).object_id)
    market.settle()
    assert len(told("invoice.paid")) == 1
    market.sim.world.dispute(market.operation_of(asked).charge_object_id)
    market.settle()
    market.settle()
    (opened,) = told("dispute.opened")
    assert (opened["payment_id"], opened["due_again_micros"]) == (str(asked.id), DUE)
    market.save_card()
    market.pay()
    assert [one["outstanding_micros"] for one in told("invoice.paid")] == [0, 0]


def test_a_saved_card_is_charged_when_the_invoice_is_issued(market: Owing) -> None:
    market.save_card()
    (begun,) = collect_automatically(now=market.now)
    assert (begun.status, market.status()) == ("succeeded", "paid")
    assert collect_automatically(now=market.now) == []
    assert len(market.objects("payment_intent")) == 1


def test_a_card_that_refuses_is_asked_once_at_each_reminder(market: Owing) -> None:
    market.save_card("pm_card_chargeDeclinedInsufficientFunds")
    assert market.invoice.due_at is not None
    tried = {}
    for day in range(-2, 21):
        for _ in range(3):
            collect_automatically(now=market.invoice.due_at + timedelta(days=day))
            advance_dunning(now=market.invoice.due_at + timedelta(days=day))
        tried[day] = len(market.objects("payment_intent"))
    assert [tried[day] for day in (-2, 2, 3, 6, 7, 13, 14, 20)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert DunningStep.objects.count() == 3
    assert InvoicePayment.objects.filter(status="failed").count() == 4


def test_what_needs_the_buyer_or_an_answer_is_not_charged_again(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    assert market.invoice.due_at is not None
    (begun,) = collect_automatically(now=market.now)
    assert begun.action_url
    advance_dunning(now=market.invoice.due_at)  # overdue, though the payment still waits
    for days in (3, 7, 14):
        assert collect_automatically(now=market.invoice.due_at + timedelta(days=days)) == []
    assert len(market.objects("payment_intent")) == 1


def test_nothing_is_charged_without_a_card_or_against_the_buyers_choice(market: Owing) -> None:
    assert collect_automatically(now=market.now) == []
    market.save_card()
    ProcessorPayer.objects.update(collect_automatically=False)
    assert collect_automatically(now=market.now) == []
    ProcessorPayer.objects.update(collect_automatically=True)
    disputed(market)
    # What a bank took back is not taken from the same card by ourselves.
    assert collect_automatically(now=market.now + timedelta(days=60)) == []
    assert len(market.objects("payment_intent")) == 1
