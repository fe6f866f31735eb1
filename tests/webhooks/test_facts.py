"""Each kind of event is told by the fact itself: once, to whoever listens, and not at all if the fact is undone.

What only a bank can bring about (a dispute, 3-D Secure) is in tests/billing/test_stripe_invoices.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Statement
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.paying import pay_invoice
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.statements import issue_statements
from marketplace.billing.services.terminating import terminate_contract
from marketplace.contracts.models import Contract
from marketplace.contracts.services import advance_contracts, mark_month_paid, suspend_contract
from marketplace.orders.models import Auction
from marketplace.orders.services.clearing import clear_auction, publish_auction
from marketplace.orders.services.rounds import advance_auctions, close_due_auctions
from marketplace.webhooks.catalogue import EVENT_TYPES
from marketplace.webhooks.models import WebhookDelivery, WebhookEvent
from marketplace.webhooks.services import create_endpoint
from pricing.models import Grade
from providers.models import Provider
from tests.billing.test_committed import buy
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.test_lifecycle import in_arrears
from tests.billing.test_month_ends import buy as buy_terms
from tests.billing.world import HOUR, identify
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, beat, bid_of

ROOT = Path(__file__).resolve().parents[2]


class Undone(Exception):
    pass


def listen(party: Party, now: datetime) -> None:
    create_endpoint(
        organization_id=party.id,
        url="https://hooks.acme.example/all",
        description="",
        event_types=None,
        now=now,
        actor=SYSTEM,
    )


def told(event_type: str) -> list[dict[str, Any]]:
    found = WebhookEvent.objects.filter(type=event_type).order_by("created_at", "id")
    return [json.loads(bytes(event.body))["data"] for event in found]


@transaction.atomic
def undone(step: Callable[[], object], event_type: str, events: int) -> None:
    step()
    assert len(told(event_type)) == events
    raise Undone


def tells_once(event_type: str, step: Callable[[], object], *, again: bool = True) -> dict[str, Any]:
    """The step undone tells nothing, done tells one thing to one endpoint, done again nothing more."""
    before = len(told(event_type))
    with pytest.raises(Undone):
        undone(step, event_type, before + 1)
    assert len(told(event_type)) == before
    for _ in range(2 if again else 1):
        step()
    assert len(told(event_type)) == before + 1
    assert WebhookDelivery.objects.count() == WebhookEvent.objects.count()
    return told(event_type)[-1]


def test_the_page_lists_the_catalogue() -> None:
    text = (ROOT / "docs/webhooks.md").read_text()
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", text, re.MULTILINE)
    assert dict(rows) == dict(EVENT_TYPES)
    assert len(rows) == len(EVENT_TYPES)


def test_money_and_invoices(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    listen(acme, now)
    invoice = in_arrears(acme, grade, plant, now)
    topped = told("top_up.succeeded")
    assert [one["amount_micros"] for one in topped] == [13_000_000]
    (issued,) = told("invoice.issued")
    assert issued == {
        "invoice_id": str(invoice.id),
        "number": invoice.number,
        "currency": "USD",
        "total_micros": 14_400_000,
        "outstanding_micros": 2_400_000,
    }
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    assert len(told("invoice.issued")) == 1
    assert invoice.due_at is not None
    due, late = invoice.due_at, invoice.due_at + timedelta(days=21)
    overdue = tells_once("invoice.overdue", lambda: advance_dunning(now=due))
    assert overdue["number"] == invoice.number
    third_day = due + timedelta(days=3)
    reminder = tells_once("invoice.reminder", lambda: advance_dunning(now=third_day))
    assert (reminder["days"], reminder["outstanding_micros"]) == (3, 2_400_000)
    closed = tells_once("organization.past_due", lambda: advance_dunning(now=late))
    assert closed == {"organization_id": str(acme.id), "invoice_id": str(invoice.id)}
    (suspended,) = told("contract.suspended")
    assert suspended["reason"] == "past_due"
    fund(acme, 3_000_000, late)
    operation = uuid4()

    def pay() -> object:
        return pay_invoice(
            organization_id=acme.id,
            invoice_id=invoice.id,
            source="balance",
            operation_id=operation,
            now=late,
            actor=SYSTEM,
        )

    assert tells_once("invoice.paid", pay)["outstanding_micros"] == 0
    reopened = tells_once("organization.active", lambda: advance_dunning(now=late))
    assert reopened == {"organization_id": str(acme.id)}
    (active,) = told("contract.activated")
    assert active == {"contract_id": suspended["contract_id"], "kind": "on_demand", "reason": "paid"}


def test_a_credit_note(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    listen(acme, now)
    operation = uuid4()

    def credit() -> object:
        return issue_credit_note(
            invoice_id=invoice.id,
            amounts_micros=None,
            reason="All of it",
            operation_id=operation,
            now=APRIL_2,
            actor=SYSTEM,
        )

    note = tells_once("credit_note.issued", credit)
    assert note == {
        "credit_note_id": note["credit_note_id"],
        "number": "TC-2026-000001",
        "invoice_id": str(invoice.id),
        "currency": "USD",
        "total_micros": 14_400_000,
        "due_micros": 2_400_000,
    }
    # Nothing is due any more, which is a fact of its own.
    assert len(told("invoice.paid")) == 1


def test_an_invoice_that_the_balance_pays_is_issued_and_paid(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 100_000_000, now)
    use(acme, grade, plant, 20_000_123 * 10**6, now, 13_000_000)
    listen(acme, now)
    tells_once("invoice.paid", lambda: issue_invoices(month_start=MARCH, now=APRIL_2))
    assert len(told("invoice.issued")) == 1


def test_statements_and_payouts(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 100_000_000, now)
    use(acme, grade, plant, 20_000_123 * 10**6, now, 13_000_000)
    listen(hyperion, now)
    Provider.objects.update(self_billing_consent_at=now, payout_destination="iban:test")
    identify(hyperion)
    stated = tells_once("statement.issued", lambda: issue_statements(month_start=MARCH, now=APRIL_2))
    statement = Statement.objects.get()
    assert (stated["number"], stated["net_micros"]) == (statement.number, statement.net_micros)
    paid = tells_once("payout.paid", lambda: pay_out_statements(now=APRIL_2))
    assert paid["statement_id"] == str(statement.id)
    assert paid["amount_micros"] == statement.net_micros // 10_000 * 10_000
    assert not told("invoice.issued")


def test_committed_contracts(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    fund(acme, 100_000_000, now)
    listen(acme, now)
    start = now + HOUR
    made = tells_once("contract.activated", lambda: buy(acme, grade, now, start), again=False)
    assert (made["kind"], made["reason"]) == ("committed", "accepted")
    contract = Contract.objects.get(kind="committed")
    suspended = tells_once("contract.suspended", lambda: suspend_contract(contract_id=contract.id, now=start))
    assert (suspended["contract_id"], suspended["reason"]) == (str(contract.id), "month_unpaid")
    month = contract.entitlements.get()
    tells_once("contract.activated", lambda: mark_month_paid(entitlement_id=month.id, now=start))
    assert contract.ends_at is not None
    end = contract.ends_at
    assert tells_once("contract.ended", lambda: advance_contracts(now=end))["reason"] == "term_over"
    assert charge_committed_months(now=end).charged == []


def test_an_early_end_is_told_when_it_has_come(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 100_000_000, now)
    listen(acme, now)
    contract = buy_terms(acme, grade, now, months=3)
    terminate_contract(
        organization_id=acme.id,
        contract_id=contract.id,
        ends_at=None,
        reason="moved away",
        operation_id=uuid4(),
        now=now,
        actor=SYSTEM,
    )
    contract.refresh_from_db()
    end = contract.ends_at
    assert end is not None
    assert told("contract.ended") == []
    assert tells_once("contract.ended", lambda: advance_contracts(now=end))["reason"] == "terminated"


def test_awards_are_told_at_publication_in_one_statement(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 100_000_000, now)
    listen(acme, now)
    for number in range(3):
        bid_of(acme, now, client_id=f"b{number}", steps=((450_000, 2),))
    for share in (0.0, 0.85):
        beat(plant, now + PERIOD * share)
        advance_auctions(now=now + PERIOD * share)
    close_due_auctions(now=now + PERIOD * 0.92)
    auction = Auction.objects.get(period_start=now + PERIOD)
    at = now + PERIOD * 0.93
    assert clear_auction(auction_id=auction.id, now=now + PERIOD * 0.92)
    with pytest.raises(Undone):
        undone(lambda: publish_auction(auction_id=auction.id, now=at), "bid.awarded", 3)
    assert told("bid.awarded") == []
    for _ in range(2):
        advance_auctions(now=at)
    assert [one["lots"] for one in told("bid.awarded")] == [2, 2, 2]
    assert {one["auction_id"] for one in told("bid.awarded")} == {str(auction.id)}
    assert {one["contract_id"] for one in told("bid.awarded")} == {
        str(pk) for pk in Contract.objects.filter(kind="spot").values_list("pk", flat=True)
    }
