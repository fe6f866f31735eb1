"""An invoice that nobody pays, by a moved clock: reminded, purchases closed and opened again, given up."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM, PastDue, check_may_buy
from marketplace.billing.models import DunningStep
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.paying import pay_invoice
from marketplace.contracts.services import open_hold
from marketplace.ids import uuid7
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2
from tests.billing.test_lifecycle import in_arrears, steps
from tests.billing.world import assert_books_balance, on_demand
from tests.cast import Party, Plant, fund, make_grade

DUE = APRIL_2 + timedelta(days=14)


def opened(acme: Party, grade: Grade, at: datetime) -> str:
    """What the gateway is told."""
    return open_hold(
        id=uuid7(at),
        organization_id=acme.id,
        grade_ids=[grade.id],
        numerators=[10**9],
        contract_id=None,
        exclude=(),
        now=at,
    ).outcome


def test_from_the_due_date_to_the_end_and_back(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    assert invoice.due_at == DUE
    assert advance_dunning(now=DUE - timedelta(seconds=1)) == []
    assert advance_dunning(now=DUE) == []
    invoice.refresh_from_db()
    assert invoice.status == "overdue"
    taken: dict[int, list[str]] = {}
    for day in range(21):
        issue_due_documents(now=DUE + timedelta(days=day))
        taken[day] = list(DunningStep.objects.filter(invoice=invoice).values_list("step", flat=True))
    assert (taken[2], taken[3]) == ([], ["reminder:3"])
    assert taken[20] == ["reminder:3", "reminder:7", "reminder:14"]
    check_may_buy(Organization.objects.get(pk=acme.id))
    late = DUE + timedelta(days=21)
    assert [step.step for step in advance_dunning(now=late)] == ["suspension"]
    assert advance_dunning(now=late) == []
    with pytest.raises(PastDue):
        check_may_buy(Organization.objects.get(pk=acme.id))
    assert opened(acme, grade, late) == "contract_suspended"
    # A grade that was never bought begins suspended too.
    other = make_grade(late, slug="other", model="other")
    assert opened(acme, other, late) == "contract_suspended"
    fund(acme, 3_000_000, late)
    paid = acme.api.post(
        f"/api/v1/invoices/{invoice.id}/payments",
        {"source": "balance"},
        format="json",
        HTTP_IDEMPOTENCY_KEY=str(uuid4()),
    )
    assert (paid.status_code, paid.json()["status"]) == (201, "succeeded")
    advance_dunning(now=late + timedelta(minutes=1))
    check_may_buy(Organization.objects.get(pk=acme.id))
    assert on_demand(acme, grade, late).status == on_demand(acme, other, late).status == "active"
    assert [to for _, to in steps(invoice)] == ["finalised", "overdue", "paid"]
    assert_books_balance()


def test_what_is_not_paid_for_long_is_given_up_and_may_still_be_paid(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    end = DUE + timedelta(days=90)
    assert [step.step for step in advance_dunning(now=end)] == [
        "reminder:3",
        "reminder:7",
        "reminder:14",
        "suspension",
    ]
    invoice.refresh_from_db()
    assert invoice.status == "uncollectible"
    advance_dunning(now=end + timedelta(days=1))
    with pytest.raises(PastDue):
        check_may_buy(Organization.objects.get(pk=acme.id))
    pay_invoice(
        organization_id=acme.id,
        invoice_id=invoice.id,
        source="processor",
        operation_id=uuid4(),
        now=end,
        actor=SYSTEM,
    )
    invoice.refresh_from_db()
    assert invoice.status == "paid"
    advance_dunning(now=end + timedelta(days=1))
    check_may_buy(Organization.objects.get(pk=acme.id))


def test_a_past_due_buyer_can_neither_bid_nor_accept(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    Organization.objects.filter(pk=acme.id).update(status="past_due")
    fund(acme, 3_000_000, now)
    body = {
        "grade": grade.family.slug,
        "client_id": "mine",
        "steps": [{"rate_micros_per_mtok": 450_000, "lots": 5}],
        "min_fill_lots": 0,
        "all_or_none": False,
    }
    answer = acme.api.post("/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
    assert (answer.status_code, answer.json()["code"]) == (402, "past_due"), answer.content
