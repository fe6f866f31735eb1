"""Documents as PDF: the same bytes each time, whatever stands in a name, and what was issued or nothing."""

from __future__ import annotations

import re
import zlib
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Invoice, Statement
from marketplace.billing.printing.content import NO_IDENTITY, REVERSE_CHARGE, content_of_statement
from marketplace.billing.printing.documents import content_of, credit_note_pdf, invoice_pdf, statement_pdf
from marketplace.billing.printing.render import pdf_of, png_of
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import NotFound
from pricing.models import Grade
from providers.models import Provider
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.test_lifecycle import invoice_of
from tests.billing.world import FUNDS, award
from tests.cast import Party, Plant, fund

HOSTILE = '#import "@preview/x" ] $ * _ ` \\ #read("/etc/passwd") </x> {{ }}'


def content(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "form": 1,
        "title": "Invoice",
        "number": "TY-2026-000001",
        "currency": "USD",
        "parties": [
            {"label": "From", "name": "Operator", "details": []},
            {"label": "Bill to", "name": "Acme", "details": ["1 Road"]},
        ],
        "facts": [["Invoice number", "TY-2026-000001"]],
        "columns": ["Description", "Standard tokens", "Amount, USD"],
        "rows": [["Usage", "March", "1", "0.30"]],
        "foot": [["Total", "0.30", "total"]],
        "notes": [],
        "at": 1_775_088_000,
    }
    return made | changes


def pages(pdf: bytes) -> int:
    """Page objects, also those within compressed object streams."""
    text = pdf
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            text += zlib.decompress(stream)
        except zlib.error:
            continue
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", text))


def test_the_same_content_gives_the_same_bytes() -> None:
    first = pdf_of(content())
    assert first[:5] == b"%PDF-"
    assert first == pdf_of(content())
    assert first != pdf_of(content(number="TY-2026-000002"))


def test_names_are_text_and_never_markup() -> None:
    hostile = {"label": "Bill to", "name": HOSTILE, "details": [HOSTILE]}
    made = content(
        parties=[hostile, hostile],
        rows=[[HOSTILE] * 4],
        foot=[[HOSTILE, HOSTILE, ""]],
        notes=[HOSTILE],
        number=HOSTILE,
    )
    assert pages(pdf_of(made)) == 1


def test_many_lines_and_long_names_break_over_pages() -> None:
    rows = [[f"Spot, a grade with a long name {n} " * 3, "March", "1", "0.30"] for n in range(200)]
    pdf = pdf_of(content(rows=rows))
    assert pages(pdf) == len(png_of(content(rows=rows))) > 5
    assert pages(pdf_of(content(rows=[["x" * 3_000, "", "1", "0.30"]]))) >= 1


@pytest.mark.parametrize("name", ["Ελλάς Москва", "חברה", "شركة الكويت", "株式会社"])
def test_other_scripts_print(name: str) -> None:
    """What has no glyph among the built-in fonts (the last one) is a box, not an error."""
    party = {"label": "Bill to", "name": name, "details": []}
    assert pages(pdf_of(content(parties=[party, party]))) == 1


def test_an_issued_invoice_prints_what_it_was_issued_with(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    Organization.objects.filter(pk=acme.id).update(legal_name=HOSTILE)
    invoice = Invoice.objects.get(pk=invoice_of(acme, grade, plant, now).pk)
    number, pdf = invoice_pdf(acme.id, invoice.id)
    assert number == "TY-2026-000001"
    Organization.objects.filter(pk=acme.id).update(legal_name="Acme Ltd", address="1 Road", country="DE")
    assert invoice_pdf(acme.id, invoice.id) == (number, pdf)
    said = content_of(invoice)
    assert said["parties"][1]["name"] == HOSTILE
    assert NO_IDENTITY in said["notes"]
    assert REVERSE_CHARGE not in said["notes"]
    assert ["Total", "12.00", "total"] in said["foot"]
    with pytest.raises(NotFound):
        invoice_pdf(mallory.id, invoice.id)
    with pytest.raises(NotFound):
        invoice_pdf(acme.id, uuid4())


@pytest.mark.parametrize(("currency", "total"), [("JPY", "12"), ("KWD", "12.000"), ("USD", "12.00")])
def test_amounts_have_the_decimals_of_their_currency(
    acme: Party, grade: Grade, plant: Plant, now: datetime, currency: str, total: str
) -> None:
    invoice = Invoice.objects.get(pk=invoice_of(acme, grade, plant, now).pk)
    invoice.currency, invoice.total_micros = currency, 12_000_000
    assert ["Total", total, "total"] in content_of(invoice)["foot"]


def test_credit_notes_and_statements_print(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    for rate in (300_000, 310_000, 320_000):
        award(acme, grade, [(plant, 1_000)], rate, now, now)
    for title in ("One", "Two", "Three"):
        give_discount(
            organization_id=acme.id, title=title, amount_micros=7, valid_from=now, now=now, actor=SYSTEM
        )
    invoice = invoice_of(acme, grade, plant, now)
    assert (invoice.lines.count(), invoice.discounts.count()) == (4, 3)
    assert pages(invoice_pdf(acme.id, invoice.id)[1]) == 1
    note = issue_credit_note(
        invoice_id=invoice.id,
        amounts_micros=None,
        reason=HOSTILE,
        operation_id=uuid4(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    number, pdf = credit_note_pdf(acme.id, note.id)
    assert (number, pages(pdf)) == ("TC-2026-000001", 1)
    with pytest.raises(NotFound):
        credit_note_pdf(hyperion.id, note.id)
    Provider.objects.filter(organization_id=hyperion.id).update(self_billing_consent_at=now)
    (statement,) = issue_statements(month_start=MARCH, now=APRIL_2)
    Provider.objects.filter(organization_id=hyperion.id).update(self_billing_consent_at=None)
    assert statement.consented_at == now
    number, pdf = statement_pdf(hyperion.id, statement.id)
    assert (number, pages(pdf)) == ("TS-2026-000001", 1)
    kept = Statement.objects.get()
    said = content_of_statement(kept, list(kept.lines.all()))
    assert said["notes"] == ["Self-billed with the provider's consent of 10 March 2026."]
    with connection.cursor() as cursor:
        cursor.execute("SELECT content_sha256 FROM billing_statement")
        assert len(cursor.fetchone()[0]) == 64


def test_an_invoice_is_paid_and_fetched_over_rest(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    invoice = invoice_of(acme, grade, plant, now)
    answer = acme.api.get(f"/api/v1/invoices/{invoice.id}/pdf")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/pdf")
    assert answer["Content-Disposition"] == 'attachment; filename="TY-2026-000001.pdf"'
    assert answer.content == invoice_pdf(acme.id, invoice.id)[1]
    assert mallory.api.get(f"/api/v1/invoices/{invoice.id}/pdf").status_code == 404
    shown = acme.api.get(f"/api/v1/invoices/{invoice.id}").json()
    assert (shown["outstanding_micros"], shown["taxes"], shown["discounts"]) == (0, [], [])
    assert [step["to_status"] for step in shown["history"]] == ["finalised", "paid"]
    refused = acme.api.post(
        f"/api/v1/invoices/{invoice.id}/payments",
        {"source": "balance"},
        format="json",
        HTTP_IDEMPOTENCY_KEY=str(uuid4()),
    )
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_due")
