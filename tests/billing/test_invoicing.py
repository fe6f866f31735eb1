"""Invoices, statements and payouts: recomputed from the roll-ups, numbered without gaps, never changed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from marketplace.billing.models import Charge, Invoice, Payout, Statement
from marketplace.billing.selectors import rollups_of_charge
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.invoicing import issue_invoice, issue_invoices
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import InvalidInput
from marketplace.periods import calendar_month
from metering.models import UsageRollup
from pricing.models import Grade
from pricing.rating import price_of
from providers.models import Provider
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    accrue,
    assert_books_balance,
    award,
    identify,
    meter,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL_2 = datetime(2026, 4, 2, tzinfo=UTC)


def use(buyer: Party, grade: Grade, plant: Plant, numerator: int, at: datetime, captured: int) -> None:
    contract = on_demand(buyer, grade, at)
    meter(contract, plant.offering.list_rate, plant, numerator, at)
    accrue(contract, at, captured, at)
    result = settle_period(settlement_start=at, now=at + DUE_AFTER)
    assert not result.failed


def test_an_invoice_is_recomputed_from_the_rollups_it_cites(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 20_000_123 * 10**6, now, 13_000_000)
    entitlement = award(acme, grade, [(plant, 1_000)], 300_000, now, now)
    meter(entitlement.contract, entitlement.rate, plant, 700 * LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    usage = sum(row.numerator for row in UsageRollup.objects.filter(rate_id=plant.offering.list_rate_id))
    expected = price_of(usage, 600_000) + price_of(700 * LOT, 300_000)
    assert invoice.subtotal_micros == expected == 12_000_074 + 210_000
    assert (invoice.total_micros, invoice.rounding_micros) == (12_210_000, 74)
    assert (invoice.prepaid_micros, invoice.amount_due_micros, invoice.status) == (12_210_000, 0, "paid")
    lines = list(invoice.lines.all())
    assert sorted((line.kind, line.amount_micros) for line in lines) == [
        ("spot", 210_000),
        ("usage", 12_000_074),
    ]
    for line in lines:
        assert line.amount_micros == sum(charge.amount_micros for charge in line.charges.all())
        for charge in line.charges.all():
            assert charge.numerator == sum(row.numerator for row in rollups_of_charge(charge))
    assert money(acme, "prepaid") == FUNDS - 12_210_000
    assert_books_balance()


def test_tax_is_posted_by_the_invoice_and_the_rest_is_freed(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 200_000)
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 1_668_333_333, now, 1_300)  # 1,001 micros
    use(acme, grade, plant, 1_670_000_000, now + timedelta(hours=1), 1_300)  # 1,002 micros
    assert pending(acme) == 201 + 201
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (invoice.subtotal_micros, invoice.tax_micros) == (2_003, 401)
    assert (invoice.total_micros, invoice.rounding_micros) == (0, 2_404)
    assert (money(operator, "tax"), money(operator, "rounding")) == (401, -2_404)
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS, 0)
    assert_books_balance()


def test_a_month_without_charges_gives_no_invoice_and_an_issued_one_is_not_issued_again(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    assert len(issue_invoices(month_start=MARCH, now=APRIL_2)) == 1
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    assert Invoice.objects.filter(organization_id=mallory.id).count() == 0
    assert issue_invoice(organization_id=mallory.id, month=calendar_month(MARCH), now=APRIL_2) is None
    assert Invoice.objects.count() == 1


def test_a_late_charge_goes_to_the_next_invoice(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    (march,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    meter(on_demand(acme, grade, now), plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=APRIL_2)
    (april,) = issue_invoices(month_start=datetime(2026, 4, 1, tzinfo=UTC), now=APRIL_2 + timedelta(days=31))
    assert [line.kind for line in april.lines.all()] == ["adjustment"]
    assert (march.subtotal_micros, april.subtotal_micros) == (600, 600)
    assert (march.number, april.number) == ("TY-2026-000001", "TY-2026-000002")
    assert_books_balance()


def test_a_running_month_is_refused_unless_asked_for_early(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    with pytest.raises(InvalidInput, match="not over"):
        issue_invoices(month_start=MARCH, now=now)
    assert len(issue_invoices(month_start=MARCH, now=now + DUE_AFTER, early=True)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing_invoice SET total_micros = 1, subtotal_micros = 1",
        "UPDATE billing_invoice SET status = 'draft'",
        "DELETE FROM billing_invoice",
        "UPDATE billing_invoiceline SET amount_micros = 0",
        "DELETE FROM billing_statementline",
    ],
)
def test_a_finalised_document_does_not_change(
    acme: Party, grade: Grade, plant: Plant, now: datetime, statement: str
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    issue_statements(month_start=MARCH, now=APRIL_2)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_a_statement_mirrors_the_earnings_and_pays_out_whole_cents(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 2_000_001 * LOT // 1_000, now, 1_300_000)
    (statement,) = issue_statements(month_start=MARCH, now=APRIL_2)
    assert (statement.gross_micros, statement.fee_micros, statement.net_micros) == (
        1_200_001,
        60_000,
        1_140_001,
    )
    assert statement.number == "TS-2026-000001"
    assert issue_statements(month_start=MARCH, now=APRIL_2) == []
    assert pay_out_statements(now=APRIL_2) == []
    identify(hyperion)
    Provider.objects.filter(organization_id=hyperion.id).update(
        self_billing_consent_at=now, payout_destination="iban:test"
    )
    (payout,) = pay_out_statements(now=APRIL_2)
    assert (payout.amount_micros, payout.status) == (1_140_000, Payout.Status.PAID)
    assert money(hyperion, "payable") == 1
    assert money(operator, "processor") == FUNDS - 1_140_000
    assert pay_out_statements(now=APRIL_2) == []
    assert_books_balance()


def test_beat_issues_the_month_once_it_is_wholly_settled(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    late = now + timedelta(hours=2)
    meter(on_demand(acme, grade, now), plant.offering.list_rate, plant, LOT, late)
    accrue(on_demand(acme, grade, now), late, 600, late)
    first_hour = datetime(2026, 4, 1, 1, tzinfo=UTC)
    assert issue_due_documents(now=first_hour).invoices == []
    settle_period(settlement_start=late, now=first_hour)
    documents = issue_due_documents(now=first_hour)
    assert [invoice.subtotal_micros for invoice in documents.invoices] == [1_200]
    assert [statement.net_micros for statement in documents.statements] == [1_140]
    assert issue_due_documents(now=first_hour).invoices == []


def test_the_commands_print_json(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, now, 600, now)
    out = StringIO()
    call_command("settleperiod", "--settlement-start", now.isoformat(), stdout=out)
    assert [item["amount_micros"] for item in json.loads(out.getvalue())["settled"]] == [600]
    out = StringIO()
    call_command("issueinvoices", "--period", "2026-03", stdout=out)
    report = json.loads(out.getvalue())
    assert [invoice["subtotal_micros"] for invoice in report["invoices"]] == [600]
    assert [statement["gross_micros"] for statement in report["statements"]] == [600]
    for bad in ("2026-13", "march", "2026-3"):
        with pytest.raises(CommandError, match="--period"):
            call_command("issueinvoices", "--period", bad)
    with pytest.raises(CommandError, match="--settlement-start"):
        call_command("settleperiod", "--settlement-start", "2026-03-10T12:00:01Z")


def test_two_settlers_charge_once_and_invoices_have_no_gaps(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_party("Operator", ["operator"], now)
    grade = make_grade(now)
    plant = make_plant(make_party("Hyperion", ["provider"], now), grade, now)
    buyers = [make_party(f"Buyer{n}", ["buyer"], now) for n in range(6)]
    for buyer in buyers:
        fund(buyer, FUNDS, now)
        contract = on_demand(buyer, grade, now)
        meter(contract, plant.offering.list_rate, plant, LOT, now)
        accrue(contract, now, 600, now)

    def settle(_: int) -> int:
        try:
            return len(settle_period(settlement_start=now, now=now + DUE_AFTER).settled)
        finally:
            connection.close()

    def issue(_: int) -> None:
        try:
            issue_invoices(month_start=MARCH, now=APRIL_2)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(settle, range(4))) == len(buyers)
        assert Charge.objects.count() == len(buyers)
        list(pool.map(issue, range(4)))
    numbers = sorted(str(number) for number in Invoice.objects.values_list("number", flat=True))
    assert numbers == [f"TY-2026-{n:06d}" for n in range(1, len(buyers) + 1)]
    assert Statement.objects.count() == 0
    assert all(money(buyer, "prepaid") == FUNDS for buyer in buyers)  # 600 micros are below one cent
    assert_books_balance()
