"""An invoice from draft to its end: grace, numbers, taxes and discounts, payment, credit notes, reissue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, connection, transaction
from pytest_django import Settings

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import (
    Charge,
    CreditNote,
    CreditNoteLine,
    Invoice,
    InvoiceLineTax,
    InvoiceStatusChange,
    ProcessorOperation,
)
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.invoicing import issue_invoices, reissue_invoice
from marketplace.billing.services.lifecycle import outstanding
from marketplace.billing.services.paying import NothingDue, pay_invoice
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.taxes import add_tax_rule, end_tax_rule, refresh_holding_rates
from marketplace.contracts.models import Accrual
from marketplace.errors import Conflict, InvalidInput
from marketplace.ledger.services import InsufficientFunds, account_id, open_hold, set_overdraft_limit
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    assert_books_balance,
    meter,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund


def rule(now: datetime, **terms: object) -> UUID:
    given = {"jurisdiction": "DE", "code": "vat", "title": "VAT", "kind": "percent", "rate_ppm": 190_000}
    given |= {"valid_from": now - timedelta(days=30), **terms}
    return add_tax_rule(**given, now=now, actor=SYSTEM).id  # type: ignore[arg-type]


def live_in(party: Party, country: str, *, tax_number: str = "") -> None:
    """Since ever; its tax number is verified."""
    Organization.objects.filter(pk=party.id).update(
        country=country, tax_number=tax_number, tax_number_verified_at=APRIL_2 if tax_number else None
    )


def invoice_of(acme: Party, grade: Grade, plant: Plant, now: datetime, *, funds: int = FUNDS) -> Invoice:
    """One line of 12,000,074 micros, paid from the balance."""
    fund(acme, funds, now)
    use(acme, grade, plant, 20_000_123 * 10**6, now, 13_000_000)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    return invoice


def in_arrears(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Invoice:
    """The same line with tax for which the balance has no cover: 2.40 is due."""
    fund(acme, 13_000_000, now)
    use(acme, grade, plant, 20_000_123 * 10**6, now, 13_000_000)
    set_tax(acme, 200_000)
    # What is left of the balance is spent elsewhere.
    prepaid = account_id(organization_id=acme.id, kind="prepaid", currency="USD", now=now)
    open_hold(id=uuid4(), account_id=prepaid, amount_micros=13_000_000 - 12_000_074, code="bid", now=now)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (invoice.status, invoice.amount_due_micros, invoice.tax_unposted_micros) == (
        "finalised",
        2_400_000,
        2_400_015,
    )
    return invoice


def steps(invoice: Invoice) -> list[tuple[str, str]]:
    return list(
        InvoiceStatusChange.objects.filter(invoice=invoice)
        .order_by("id")
        .values_list("from_status", "to_status")
    )


def test_late_usage_enters_in_the_grace_period_and_not_after(
    acme: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.INVOICE_GRACE_S = 3 * 86_400
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT, now, 600)
    assert issue_due_documents(now=APRIL_2).invoices == []
    waiting = Invoice.objects.get()
    assert (waiting.status, waiting.number) == ("grace", None)
    assert waiting.grace_until == APRIL_2 + timedelta(days=3)
    late = APRIL_2 + timedelta(days=2)
    meter(on_demand(acme, grade, now), plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=late)
    assert issue_due_documents(now=late).invoices == []
    (invoice,) = issue_due_documents(now=APRIL_2 + timedelta(days=3)).invoices
    assert (invoice.number, invoice.subtotal_micros) == ("TY-2026-000001", 1_200)
    assert steps(invoice)[:3] == [("draft", "grace"), ("grace", "draft"), ("draft", "finalised")]
    meter(on_demand(acme, grade, now), plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=late + timedelta(days=2))
    assert issue_due_documents(now=late + timedelta(days=3)).invoices == []
    assert Charge.objects.get(invoiced_as__isnull=True).kind == "adjustment"
    assert_books_balance()


def test_taxes_stack_and_follow_their_dates(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    live_in(acme, "DE")
    vat = rule(now)
    rule(now, code="city", title="City", rate_ppm=5_000)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 195_000
    end_tax_rule(rule_id=vat, valid_until=now + timedelta(hours=1), now=now, actor=SYSTEM)
    rule(now, rate_ppm=210_000, valid_from=now + timedelta(hours=1))
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 1_668_333_333, now, 1_300)  # 1,001 micros
    assert pending(acme) == 196
    assert refresh_holding_rates(now=now + timedelta(hours=1)) == 1
    use(acme, grade, plant, 1_670_000_000, now + timedelta(hours=1), 1_300)  # 1,002 micros
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    taxes = [(tax.title, tax.rate_ppm, tax.base_micros, tax.tax_micros) for tax in invoice.taxes.all()]
    assert sorted(taxes) == [
        ("City", 5_000, 2_003, 10),
        ("VAT", 190_000, 1_001, 190),
        ("VAT", 210_000, 1_002, 210),
    ]
    assert invoice.tax_micros == 410 == sum(line.tax_micros for line in invoice.lines.all())
    assert sum(InvoiceLineTax.objects.values_list("tax_micros", flat=True)) == 410
    assert pending(acme) == 0
    assert_books_balance()


def test_a_second_rule_of_a_code_at_the_same_time_is_refused(operator: Party, now: datetime) -> None:
    rule(now)
    with pytest.raises(Conflict, match="end it first"):
        rule(now, valid_from=now + timedelta(days=9))
    rule(now, jurisdiction="FR")
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_taxrule SET rate_ppm = 0")


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"jurisdiction": "de"}, "jurisdiction"),
        ({"code": "V A T"}, "code"),
        ({"kind": "other"}, "kind"),
        ({"buyers": "some"}, "buyers"),
        ({"rate_ppm": 1_000_001}, "rate_ppm"),
        ({"levy_micros_per_mtok": 1}, "levy_micros_per_mtok"),
        ({"kind": "levy", "levy_micros_per_mtok": 1}, "rate_ppm"),
        ({"kind": "levy", "rate_ppm": 0}, "levy_micros_per_mtok"),
        ({"valid_until": datetime(2000, 1, 1, tzinfo=UTC)}, "valid_until"),
    ],
)
def test_a_rule_says_which_field_is_wrong(
    operator: Party, now: datetime, terms: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        rule(now, **terms)
    assert caught.value.field == field


def test_reverse_charge_between_businesses_of_a_union(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.TAX_UNION_COUNTRIES = ["DE", "FR"]
    live_in(operator, "FR", tax_number="FR12345678901")
    live_in(acme, "DE", tax_number="DE123456789")
    rule(now, reverse_charge=True)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 0
    invoice = invoice_of(acme, grade, plant, now)
    (tax,) = invoice.taxes.all()
    assert (tax.reverse_charge, tax.base_micros, tax.tax_micros) == (True, 12_000_074, 0)
    assert invoice.total_micros == 12_000_000
    live_in(acme, "DE")
    refresh_holding_rates(now=now)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 190_000


def test_a_levy_on_volume_from_abroad_is_set_aside_and_posted(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    live_in(acme, "DE")
    region = plant.host.region
    terms = {"kind": "levy", "rate_ppm": 0, "levy_micros_per_mtok": 25_000, "title": "Levy"}
    home = rule(now, code="levy", home_regions=[region.upper()], **terms)
    fund(acme, FUNDS, now)
    use(acme, grade, plant, 400 * LOT, now, 300_000)
    assert pending(acme) == 0
    end_tax_rule(rule_id=home, valid_until=now + timedelta(hours=1), now=now, actor=SYSTEM)
    rule(now, code="levy", valid_from=now + timedelta(hours=1), **terms)
    use(acme, grade, plant, 400 * LOT, now + timedelta(hours=1), 300_000)
    assert pending(acme) == 10_000
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    taxes = {tax.tax_micros: tax.base_numerator for tax in invoice.taxes.all()}
    assert taxes == {0: 0, 10_000: 400 * LOT}
    assert (money(operator, "tax"), invoice.total_micros) == (10_000, 490_000)
    assert_books_balance()


def test_discounts_reduce_the_taxed_amount_and_are_the_operators(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 100_000)
    common: Any = {"organization_id": acme.id, "valid_from": now, "now": now, "actor": SYSTEM}
    give_discount(title="Tenth", rate_ppm=100_000, **common)
    give_discount(title="Once", amount_micros=1_000_000, line_kind="usage", max_invoices=1, **common)
    invoice = invoice_of(acme, grade, plant, now)
    off = {discount.title: discount.amount_micros for discount in invoice.discounts.all()}
    assert off == {"Once": 1_000_000, "Tenth": 1_100_007}
    assert (invoice.discount_micros, invoice.tax_micros) == (2_100_007, 990_007)
    assert invoice.total_micros == 10_890_000
    assert money(operator, "operator") == -2_100_007
    assert money(acme, "prepaid") == FUNDS - 10_890_000
    assert money(hyperion, "payable") == 12_000_074 - 600_003
    use(acme, grade, plant, 20_000_123 * 10**6, datetime(2026, 4, 3, tzinfo=UTC), 15_000_000)
    (april,) = issue_invoices(
        month_start=datetime(2026, 4, 1, tzinfo=UTC), now=datetime(2026, 5, 2, tzinfo=UTC)
    )
    assert [discount.title for discount in april.discounts.all()] == ["Tenth"]
    assert_books_balance()


def test_what_is_due_is_paid_from_the_balance_once(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    terms = {"organization_id": acme.id, "invoice_id": invoice.id, "now": APRIL_2, "actor": SYSTEM}
    with pytest.raises(InsufficientFunds):
        pay_invoice(source="balance", operation_id=uuid4(), **terms)  # type: ignore[arg-type]
    fund(acme, 3_000_000, now)
    operation = uuid4()
    for _ in range(2):
        payment = pay_invoice(source="balance", operation_id=operation, **terms)  # type: ignore[arg-type]
        assert (payment.status, payment.amount_micros) == ("succeeded", 2_400_000)
    with pytest.raises(NothingDue):
        pay_invoice(source="balance", operation_id=uuid4(), **terms)  # type: ignore[arg-type]
    invoice.refresh_from_db()
    assert (invoice.status, outstanding(invoice)) == ("paid", 0)
    # The remainder below one cent was given on the receivable account, and went to the tax.
    assert (money(operator, "tax"), money(acme, "receivable")) == (2_400_015, 0)
    assert money(operator, "rounding") == -(74 + 15)
    assert_books_balance()


def test_the_processor_collects_what_is_due_once(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    before = money(operator, "processor")
    terms = {"organization_id": acme.id, "invoice_id": invoice.id, "now": APRIL_2, "actor": SYSTEM}
    operation = uuid4()
    for _ in range(2):
        paid = pay_invoice(source="processor", operation_id=operation, **terms)  # type: ignore[arg-type]
        assert (paid.status, paid.amount_micros) == ("succeeded", 2_400_000)
    asked = ProcessorOperation.objects.get(subject_id=paid.id)
    assert (asked.purpose, asked.fact_id, asked.amount_micros) == ("invoice", paid.id, 2_400_000)
    assert money(operator, "processor") - before == 2_400_000
    assert money(acme, "receivable") == 0
    with pytest.raises(NothingDue):
        pay_invoice(source="processor", operation_id=uuid4(), **terms)  # type: ignore[arg-type]
    assert steps(invoice)[-1] == ("finalised", "paid")
    assert_books_balance()


def test_credit_notes_close_on_the_invoice_and_never_exceed_it(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 190_000)
    invoice = invoice_of(acme, grade, plant, now)
    before = money(acme, "prepaid")
    (line,) = invoice.lines.all()
    common = {"invoice_id": invoice.id, "reason": "Courtesy", "now": APRIL_2, "actor": SYSTEM}

    def credit(amounts: dict[UUID, int] | None, operation: UUID | None = None) -> CreditNote:
        return issue_credit_note(amounts_micros=amounts, operation_id=operation or uuid4(), **common)  # type: ignore[arg-type]

    operation = uuid4()
    first = credit({line.id: 3_333_333}, operation)
    assert credit({line.id: 3_333_333}, operation) == first
    assert (first.number, first.net_micros, first.tax_micros) == ("TC-2026-000001", 3_333_333, 633_333)
    assert (first.total_micros, first.due_micros) == (3_960_000, 0)
    for amount in (12_000_074, 0, -1):
        with pytest.raises(InvalidInput, match="left to credit"):
            credit({line.id: amount})
    with pytest.raises(InvalidInput, match="less than"):
        credit({line.id: 1})
    with pytest.raises(InvalidInput, match="no line"):
        credit({uuid4(): 1})
    second = credit({line.id: 5_000_001})
    last = credit(None)
    assert last.number == "TC-2026-000003"
    notes = (first, second, last)
    assert sum(note.net_micros for note in notes) == 12_000_074
    assert sum(note.tax_micros for note in notes) == invoice.tax_micros
    assert sum(note.rounding_micros for note in notes) == invoice.rounding_micros
    assert sum(note.total_micros for note in notes) == invoice.total_micros == money(acme, "prepaid") - before
    assert (money(operator, "tax"), money(operator, "rounding")) == (0, 0)
    with pytest.raises(Conflict, match="all of this"):
        credit(None)
    first.pk, first.number = uuid4(), "TC-2026-999999"
    first.save(force_insert=True)
    with pytest.raises(DatabaseError, match="beyond its amount"), transaction.atomic():
        CreditNoteLine.objects.create(id=uuid4(), note=first, line=line, net_micros=1, tax_micros=0)
    assert_books_balance()


def test_a_credit_note_first_takes_off_what_is_due(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = in_arrears(acme, grade, plant, now)
    note = issue_credit_note(
        invoice_id=invoice.id,
        amounts_micros=None,
        reason="All of it",
        operation_id=uuid4(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    assert (note.total_micros, note.due_micros) == (14_400_000, 2_400_000)
    invoice.refresh_from_db()
    assert (invoice.status, outstanding(invoice)) == ("paid", 0)
    assert (money(operator, "tax"), money(acme, "receivable"), money(operator, "rounding")) == (0, 0, 0)
    assert money(acme, "prepaid") == 13_000_000
    assert_books_balance()


def test_a_reissued_invoice_has_a_new_number_and_the_same_charges(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 190_000)
    old = invoice_of(acme, grade, plant, now)
    assert money(operator, "tax") == 2_280_014
    live_in(acme, "DE")
    rule(now, rate_ppm=70_000)
    new = reissue_invoice(invoice_id=old.id, reason="Wrong country", now=APRIL_2, actor=SYSTEM)
    old.refresh_from_db()
    assert (old.status, old.number, new.number) == ("void", "TY-2026-000001", "TY-2026-000002")
    assert new.replaces == old
    assert (new.tax_micros, new.parties["buyer"]["country"], new.status) == (840_005, "DE", "paid")
    assert (money(operator, "tax"), money(acme, "prepaid")) == (840_005, FUNDS - new.total_micros)
    (line,) = new.lines.all()
    assert [charge.invoiced_as.line for charge in line.charges.all()] == [line]
    assert old.lines.get().charges.count() == 0
    with pytest.raises(Conflict, match="void"):
        reissue_invoice(invoice_id=old.id, reason="Again", now=APRIL_2, actor=SYSTEM)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_invoicelinecharge SET line_id = %s", [old.lines.get().id])
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    assert_books_balance()


@pytest.mark.parametrize("status", ["draft", "finalised", "overdue", "uncollectible"])
def test_a_paid_invoice_goes_nowhere_else(
    acme: Party, grade: Grade, plant: Plant, now: datetime, status: str
) -> None:
    invoice_of(acme, grade, plant, now)
    with pytest.raises(DatabaseError), transaction.atomic():
        Invoice.objects.update(status=status)


def test_arrears_charged_to_the_credit_line_are_paid(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(acme, grade, now)
    contract.payment = "arrears"
    contract.save(update_fields=["payment"])
    line = account_id(organization_id=acme.id, kind="receivable", currency="USD", now=now)
    set_overdraft_limit(account_id=line, limit_micros=FUNDS)
    set_tax(acme, 190_000)
    meter(contract, plant.offering.list_rate, plant, 20_000_123 * 10**6, now)
    accrual = accrue_arrears(contract_id=contract.id, account=line, at=now)
    assert accrual
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (invoice.prepaid_micros, invoice.amount_due_micros) == (0, 14_280_000)
    assert money(acme, "receivable") == -14_280_000
    pay_invoice(
        organization_id=acme.id,
        invoice_id=invoice.id,
        source="processor",
        operation_id=uuid4(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    assert (money(acme, "receivable"), money(operator, "processor")) == (0, 14_280_000)
    assert_books_balance()


def accrue_arrears(*, contract_id: UUID, account: UUID, at: datetime) -> UUID:
    hold = uuid4()
    open_hold(
        id=hold, account_id=account, amount_micros=13_000_000, code="usage", reference_id=contract_id, now=at
    )
    Accrual.objects.create(
        contract_id=contract_id, settlement_start=at, ledger_hold_id=hold, captured_micros=13_000_000
    )
    return hold
