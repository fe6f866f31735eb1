"""Invoices issued together are those that would have been issued one by one; several workers share the buyers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, Invoice, InvoiceLine, InvoiceLineTax, InvoiceStatusChange
from marketplace.billing.services import invoice_batches
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.grace_periods import issue_many_after_grace
from marketplace.billing.services.invoice_batches import issue_many
from marketplace.billing.services.invoicing import buyers_to_invoice, issue_after_grace, issue_invoice
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold, Transfer
from marketplace.periods import calendar_month
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.world import FUNDS, LOT, assert_books_balance, set_tax
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

MONTH = calendar_month(MARCH)


def many(grade: Grade, plant: Plant, now: datetime, count: int) -> list[Party]:
    """Buyers with tax by rule, at a rate of their own and without, one with discounts."""
    rule(now)
    buyers = []
    for number in range(count):
        buyer = make_party(f"Buyer{number}", ["buyer"], now)
        if number % 3 == 0:
            live_in(buyer, "DE")
        set_tax(buyer, (190_000, 70_001, 0)[number % 3])
        fund(buyer, FUNDS, now)
        for hour in range(2):
            use(buyer, grade, plant, (number + 1) * LOT * 33 + 7, now + hour * timedelta(hours=1), 70_000_000)
        buyers.append(buyer)
    give_discount(
        organization_id=buyers[1].id,
        title="Coupon",
        rate_ppm=333_333,
        valid_from=now,
        now=now,
        actor=SYSTEM,
    )
    return buyers


def everything() -> list[Any]:
    """All that invoicing writes, but ids that are made up anew each time."""
    lines = InvoiceLine.objects.order_by("id")
    return [
        list(Invoice.objects.order_by("id").values()),
        list(lines.values()),
        list(lines.values_list("charges", flat=True)),
        list(InvoiceLineTax.objects.order_by("id").values()),
        list(Transfer.objects.order_by("id").values_list("id", "amount_micros", "code", "hold_id", "reference_id")),
        list(Hold.objects.order_by("id").values_list("id", "status", "captured_micros")),
        list(
            InvoiceStatusChange.objects.order_by("invoice_id", "id").values_list(
                "invoice_id", "from_status", "to_status", "reason"
            )
        ),
    ]  # fmt: skip


def test_a_batch_writes_what_single_invoices_would(
    operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    buyers = sorted(buyer.id for buyer in many(grade, plant, now, 5))
    with transaction.atomic():
        for buyer in buyers:
            assert issue_invoice(organization_id=buyer, month=MONTH, now=APRIL_2) is not None
        singly = everything()
        transaction.set_rollback(True)
    issued = list(issue_many(organization_ids=buyers, month=MONTH, now=APRIL_2))
    assert [str(invoice.number) for invoice in issued] == [f"TY-2026-{n:06d}" for n in range(1, 6)]
    assert everything() == singly
    assert_books_balance()
    # Again there is nothing to issue.
    assert list(issue_many(organization_ids=buyers, month=MONTH, now=APRIL_2)) == []


def test_a_batch_after_the_grace_period_writes_what_single_invoices_would(
    operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Any
) -> None:
    """One comes to a credit meanwhile, one has late usage, one's grace period is not over, one had none before."""
    settings.INVOICE_GRACE_S = 3 * 86_400
    parties = many(grade, plant, now, 5)
    buyers = sorted(party.id for party in parties)
    later, over = APRIL_2 + timedelta(days=1), APRIL_2 + timedelta(days=3)
    for party in parties[:4]:
        begun_at = later if party is parties[3] else APRIL_2
        assert issue_after_grace(organization_id=party.id, month=MONTH, now=begun_at) is None
    use(parties[1], grade, plant, LOT * 77, now + timedelta(hours=3), 70_000_000)
    give_back(parties[0], now)
    with transaction.atomic():
        for buyer in buyers:
            issue_after_grace(organization_id=buyer, month=MONTH, now=over)
        singly = everything()
        transaction.set_rollback(True)
    issued = list(issue_many_after_grace(organization_ids=buyers, month=MONTH, now=over))
    assert {invoice.organization_id for invoice in issued} == {parties[1].id, parties[2].id}
    assert everything() == singly
    statuses = dict(Invoice.objects.values_list("organization_id", "status"))
    assert [statuses[party.id] for party in parties] == ["draft", "paid", "paid", "grace", "grace"]
    assert list(issue_many_after_grace(organization_ids=buyers, month=MONTH, now=over)) == []
    # Later still, the others; the statements of a batch are of the batch, not of each.
    with CaptureQueriesContext(connection) as asked:
        issued = list(
            issue_many_after_grace(organization_ids=buyers, month=MONTH, now=over + timedelta(days=3))
        )
    assert {invoice.organization_id for invoice in issued} == {parties[3].id, parties[4].id}
    updates = [query["sql"] for query in asked if query["sql"].startswith('UPDATE "billing_invoice"')]
    assert len(updates) == 2, "grace ends and payment from the balance, once for both"


def test_grace_periods_begun_together_are_those_that_would_have_been_begun_singly(
    operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Any
) -> None:
    """One comes to a credit, one had begun before, one has nothing to be invoiced."""
    settings.INVOICE_GRACE_S = 3 * 86_400
    parties = many(grade, plant, now, 4)
    parties.append(make_party("Idle", ["buyer"], now))
    give_back(parties[0], now)
    buyers = sorted(party.id for party in parties)
    assert issue_after_grace(organization_id=parties[1].id, month=MONTH, now=APRIL_2) is None
    later = APRIL_2 + timedelta(days=1)
    with transaction.atomic():
        for buyer in buyers:
            issue_after_grace(organization_id=buyer, month=MONTH, now=later)
        singly = everything()
        transaction.set_rollback(True)
    assert list(issue_many_after_grace(organization_ids=buyers, month=MONTH, now=later)) == []
    assert everything() == singly
    statuses = dict(Invoice.objects.values_list("organization_id", "status"))
    assert [statuses[party.id] for party in parties] == ["draft", "grace", "grace", "grace", "draft"]
    until = dict(Invoice.objects.values_list("organization_id", "grace_until"))
    assert [until[party.id] for party in parties[1:3]] == [APRIL_2 + timedelta(days=days) for days in (3, 4)]


def give_back(party: Party, now: datetime) -> None:
    """A charge that makes his month a credit."""
    credit = Charge.objects.filter(organization_id=party.id).latest("id")
    credit.pk, credit.kind, credit.amount_micros = uuid7(now), "remedy", -40_000_000
    credit.numerator = credit.estimated_numerator = credit.tax_held_micros = 0
    credit.save(force_insert=True)


def test_a_batch_is_bounded_by_its_charges(
    operator: Party,
    hyperion: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buyers = sorted(buyer.id for buyer in many(grade, plant, now, 3))
    monkeypatch.setattr(invoice_batches, "CHARGES_AT_ONCE", 4)
    assert list(invoice_batches._batches(buyers, MONTH)) == [buyers[:2], buyers[2:]]
    assert len(list(issue_many(organization_ids=buyers, month=MONTH, now=APRIL_2))) == 3


def test_workers_share_the_buyers_and_numbers_have_no_gaps(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    grade = make_grade(now)
    plant = make_plant(make_party("Hyperion", ["provider"], now), grade, now)
    buyers = sorted(buyer.id for buyer in many(grade, plant, now, 4))

    def issue(_: int) -> int:
        try:
            return len(list(issue_many(organization_ids=buyers, month=MONTH, now=APRIL_2)))
        finally:
            connection.close()

    # One buyer is in another worker's hands: the others are issued without waiting for him.
    with transaction.atomic():
        Organization.objects.select_for_update(no_key=True).get(pk=buyers[0])
        with ThreadPoolExecutor(1) as pool:
            assert sum(pool.map(issue, range(1))) == 3
    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(issue, range(2))) == 1
    numbers = sorted(str(number) for number in Invoice.objects.values_list("number", flat=True))
    assert numbers == [f"TY-2026-{n:06d}" for n in range(1, 5)]
    assert not Charge.objects.filter(invoiced_as__isnull=True).exists()
    assert buyers_to_invoice(month=MONTH) == []
    assert_books_balance()
