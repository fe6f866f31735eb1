"""How an invoice's status moves: one step at a time, by compare-and-set, each written down."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection

from marketplace.billing.models import CreditNote, Invoice, InvoicePayment, InvoiceStatusChange
from marketplace.ids import uuid7

Status = Invoice.Status
# Documents that exist for their buyer, and those on which something may still be due.
UNISSUED: Final = (Status.DRAFT, Status.GRACE)
OPEN: Final = (Status.FINALISED, Status.ACTION_REQUIRED, Status.OVERDUE)


def move_invoice(
    *, invoice_id: UUID, expected: Collection[str], to: str, now: datetime, reason: str = ""
) -> bool:
    """Move it and write the step down; False where it stands elsewhere by now and nothing was changed.

    The trigger `billing_invoice_immutable` knows which steps there are.
    """
    assert connection.in_atomic_block, "a step and its record are one"
    locked = Invoice.objects.select_for_update().filter(pk=invoice_id, status__in=list(expected))
    found = locked.values_list("status", flat=True).first()
    if found is None or found == to:
        return False
    Invoice.objects.filter(pk=invoice_id, status=found).update(status=to)
    record_step(invoice_id=invoice_id, before=found, to=to, now=now, reason=reason)
    return True


def record_step(*, invoice_id: UUID, before: str, to: str, now: datetime, reason: str = "") -> None:
    InvoiceStatusChange.objects.create(
        id=uuid7(),
        invoice_id=invoice_id,
        from_status=before,
        to_status=to,
        reason=reason[:300],
        created_at=now,
    )


def outstanding(invoice: Invoice) -> int:
    """What is still due, in micros: the amount due less payments and what credit notes took off. Never below zero."""
    if invoice.status in (Status.VOID, *UNISSUED):
        return 0
    paid = InvoicePayment.objects.filter(invoice=invoice, status=InvoicePayment.Status.SUCCEEDED)
    notes = CreditNote.objects.filter(invoice=invoice)
    gone = sum(paid.values_list("amount_micros", flat=True)) + sum(notes.values_list("due_micros", flat=True))
    return max(0, invoice.amount_due_micros - gone)
