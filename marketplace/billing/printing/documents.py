"""Issued documents as PDF: what their rows say, proved against the digest that they were issued with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from marketplace.billing.models import CreditNote, CreditNoteTax, Invoice
from marketplace.billing.printing.content import (
    content_of_credit_note,
    content_of_invoice,
    content_of_statement,
    digest_of_content,
)
from marketplace.billing.printing.render import pdf_of
from marketplace.billing.selectors import find_invoice, find_statement
from marketplace.billing.services.crediting import taxes_by_title
from marketplace.errors import Conflict, NotFound


class NotPrintable(Conflict):
    """The document was issued before documents had a digest, or its rows do not say what they said then."""

    code = "not_printable"


def invoice_pdf(organization_id: UUID, invoice_id: UUID) -> tuple[str, bytes]:
    """Number and PDF. Raises NotFound, also for another organization's, NotPrintable."""
    invoice = find_invoice(organization_id, invoice_id)
    return str(invoice.number), _proved(content_of(invoice), invoice.content_sha256)


def statement_pdf(organization_id: UUID, statement_id: UUID) -> tuple[str, bytes]:
    """Number and PDF. Raises NotFound, also for another organization's, NotPrintable."""
    statement = find_statement(organization_id, statement_id)
    content = content_of_statement(statement, list(statement.lines.all()))
    return statement.number, _proved(content, statement.content_sha256)


def credit_note_pdf(organization_id: UUID, note_id: UUID) -> tuple[str, bytes]:
    """Number and PDF. Raises NotFound, also for another organization's, NotPrintable."""
    note = find_credit_note(organization_id, note_id)
    taxes = CreditNoteTax.objects.filter(line__note=note).select_related("tax")
    content = content_of_credit_note(note, note.invoice, list(note.lines.all()), taxes_by_title(list(taxes)))
    return note.number, _proved(content, note.content_sha256)


def find_credit_note(organization_id: UUID, note_id: UUID) -> CreditNote:
    """With its lines. Raises NotFound, also for another organization's."""
    rows = CreditNote.objects.filter(organization_id=organization_id, pk=note_id)
    note = rows.select_related("invoice").prefetch_related("lines__line").first()
    if note is None:
        raise NotFound("There is no such credit note.")
    return note


def content_of(invoice: Invoice) -> dict[str, Any]:
    return content_of_invoice(
        invoice, list(invoice.lines.all()), list(invoice.taxes.all()), list(invoice.discounts.all())
    )


def _proved(content: Mapping[str, Any], digest: str) -> bytes:
    if digest_of_content(content) != digest:
        raise NotPrintable("it was issued in a form that this version does not print")
    return pdf_of(content)
