"""Dues below what a card is charged for: from the balance, or carried until together they are enough."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import DunningStep, Invoice, InvoicePayment
from marketplace.billing.services.automatic import collect_automatically
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.lifecycle import outstanding
from marketplace.billing.services.paying import pay_invoice, take_small_dues
from marketplace.billing.services.small_dues import TooSmallForCard, chased_from, small_dues, to_charge
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import NewTransfer, account_id, post_transfers, set_overdraft_limit
from marketplace.webhooks.models import Notice
from tests.billing.stripe_invoices import Owing, owing_market
from tests.conftest import TestDatabase

SMALL = 300_000


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    """1.75 and its tax of 20% are credited of the 2.40: 0.30 is due."""
    with owing_market(now) as made:
        line = made.invoice.lines.get()
        issue_credit_note(
            invoice_id=made.invoice.id,
            amounts_micros={line.id: 1_750_000},
            reason="Courtesy",
            operation_id=uuid4(),
            now=made.now,
            actor=SYSTEM,
        )
        assert outstanding(Invoice.objects.get()) == SMALL
        yield made


def next_month(market: Owing, months: int = 1, due: int = SMALL) -> Invoice:
    """Another small invoice of acme's, due 31 days after the one before."""
    made = Invoice.objects.get(pk=market.invoice.pk)
    delta = timedelta(days=31 * months)
    assert made.due_at is not None
    made.pk, made.number = uuid7(), f"{made.number}-{months}"
    made.period_start, made.period_end = made.period_start + delta, made.period_end + delta
    made.due_at, made.created_at, made.status = made.due_at + delta, made.created_at + delta, "finalised"
    made.amount_due_micros, made.tax_unposted_micros = due, due
    made.tax_micros = made.prepaid_micros = made.rounding_micros = made.discount_micros = 0
    made.subtotal_micros = made.total_micros = due
    made.save(force_insert=True)
    receivable = account_id(
        organization_id=market.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=market.now
    )
    set_overdraft_limit(account_id=receivable, limit_micros=10_000_000)
    return made


def give(market: Owing, amount_micros: int) -> None:
    ids: dict[str, Any] = {"currency": "USD", "now": market.now}
    transfer = NewTransfer(
        id=uuid7(),
        debit_id=account_id(organization_id=market.operator.id, kind=AccountKind.OPERATOR, **ids),
        credit_id=account_id(organization_id=market.acme.id, kind=AccountKind.PREPAID, **ids),
        amount_micros=amount_micros,
        code="gift",
    )
    post_transfers([transfer], now=market.now)


def test_a_small_due_is_never_charged_nor_chased(market: Owing) -> None:
    market.save_card()
    with pytest.raises(TooSmallForCard) as refused:
        market.pay()
    assert (refused.value.code, refused.value.field) == ("too_small_for_card", "source")
    assert collect_automatically(now=market.now) == []
    due_at = Invoice.objects.get().due_at
    assert due_at is not None
    for day in (0, 3, 21, 90, 400):
        assert advance_dunning(now=due_at + timedelta(days=day)) == []
    assert market.status() == "finalised"
    assert not InvoicePayment.objects.exists()
    assert not market.objects("payment_intent")
    assert Organization.objects.get(pk=market.acme.id).status == Organization.Status.ACTIVE


def test_over_rest_the_refusal_names_the_field(market: Owing) -> None:
    answer = market.acme.api.post(
        f"/api/v1/invoices/{market.invoice.id}/payments",
        {"source": "processor"},
        format="json",
        HTTP_IDEMPOTENCY_KEY=str(uuid4()),
    )
    assert (answer.status_code, answer.json()["field"]) == (409, "source")


def test_a_small_due_is_taken_from_the_balance_once_that_has_it(market: Owing) -> None:
    assert take_small_dues(now=market.now) == 0
    give(market, SMALL)
    before = market.prepaid()
    assert take_small_dues(now=market.now) == 1
    assert take_small_dues(now=market.now) == 0
    assert (market.status(), market.prepaid()) == ("paid", before - SMALL)
    market.assert_books_balance()


def test_small_dues_are_charged_together_once_they_are_enough(market: Owing) -> None:
    market.save_card()
    second, before = next_month(market), market.prepaid()
    dues = small_dues(market.acme.id, "USD")
    assert (dues.total_micros, dues.reached_by) == (2 * SMALL, second)
    [payment] = collect_automatically(now=market.now)
    assert (payment.invoice_id, payment.amount_micros, payment.status) == (second.id, 600_000, "succeeded")
    assert market.prepaid() == before + SMALL
    assert collect_automatically(now=market.now) == []
    assert take_small_dues(now=market.now) == 1
    assert set(Invoice.objects.values_list("status", flat=True)) == {"paid"}
    assert market.prepaid() == before
    assert [one["amount"] for one in market.objects("payment_intent")] == [60]
    market.assert_books_balance()


def test_once_enough_dunning_counts_from_the_invoice_that_made_it_so(market: Owing) -> None:
    """And later small ones do not put it off."""
    second = next_month(market)
    third = next_month(market, 2)
    first = Invoice.objects.get(pk=market.invoice.pk)
    assert second.due_at is not None
    assert chased_from(first) == chased_from(second) == second.due_at
    assert chased_from(third) == third.due_at
    assert advance_dunning(now=second.due_at + timedelta(days=2)) == []
    advance_dunning(now=second.due_at + timedelta(days=21))
    taken = set(DunningStep.objects.values_list("invoice_id", "step"))
    assert (first.id, "suspension") in taken
    assert not {step for invoice_id, step in taken if invoice_id == third.id}
    organization = Organization.objects.get(pk=market.acme.id)
    assert organization.status == Organization.Status.PAST_DUE
    # The first was due a month before it was chased: the mail counts as the suspension that it speaks of does.
    bodies = Notice.objects.filter(type="invoice.reminder").values_list("body", flat=True)
    assert [("was due 21 days ago" in body) for body in bodies] == [True, True]


def test_who_paid_all_but_a_small_due_may_buy_again(market: Owing) -> None:
    late = next_month(market, due=2_000_000)
    assert late.due_at is not None
    at = late.due_at + timedelta(days=21)
    advance_dunning(now=at)
    assert Organization.objects.get(pk=market.acme.id).status == Organization.Status.PAST_DUE
    give(market, 2_000_000)
    pay_invoice(
        organization_id=market.acme.id,
        invoice_id=late.id,
        source="balance",
        operation_id=uuid4(),
        now=at,
        actor=SYSTEM,
    )
    advance_dunning(now=at)
    assert Organization.objects.get(pk=market.acme.id).status == Organization.Status.ACTIVE
    assert outstanding(Invoice.objects.get(pk=market.invoice.pk)) == SMALL


def test_what_cannot_be_charged_to_the_unit_is_charged_a_step_higher(market: Owing, settings: Any) -> None:
    assert (to_charge(5_124_000, "KWD"), to_charge(5_120_000, "KWD")) == (5_130_000, 5_120_000)
    assert (to_charge(300_000, "USD"), to_charge(12_000_000, "JPY")) == (300_000, 12_000_000)
    settings.PAYMENT_PROCESSOR = "sandbox"
    assert to_charge(5_124_000, "KWD") == 5_124_000
