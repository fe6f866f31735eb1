"""How an invoice's status moves: one step at a time, by compare-and-set, each written down."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection

from marketplace.billing.models import CreditNote, DunningStep, Invoice, InvoicePayment, InvoiceStatusChange
from marketplace.ids import uuid7
from marketplace.webhooks.services import Fact, organizations_listening, record_events

Status = Invoice.Status
# Documents that exist for their buyer, and those on which something may still be due.
UNISSUED: Final = (Status.DRAFT, Status.GRACE)
OPEN: Final = (Status.FINALISED, Status.ACTION_REQUIRED, Status.OVERDUE)
_TOLD: Final = {Status.PAID: "invoice.paid", Status.OVERDUE: "invoice.overdue"}


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
    step = InvoiceStatusChange.objects.create(
        id=uuid7(),
        invoice_id=invoice_id,
        from_status=before,
        to_status=to,
        reason=reason[:300],
        created_at=now,
    )
    if (before, to) == (Status.DRAFT, Status.FINALISED):
        _tell("invoice.issued", invoice_id, invoice_id, now)
    elif to in _TOLD:
        # A fact of its own each time: what a bank takes back is due, overdue and paid again.
        _tell(_TOLD[Status(to)], invoice_id, step.id, now)


def _tell(event_type: str, invoice_id: UUID, fact_id: UUID, now: datetime) -> None:
    invoice = Invoice.objects.get(pk=invoice_id)
    fact = _fact(invoice, fact_id, outstanding(invoice))
    record_events([fact], event_type=event_type, now=now)


def tell_of_batch(steps: Iterable[tuple[Invoice, UUID, str]], *, now: datetime) -> None:
    """As `record_step` tells of one, of many that were issued at once: (invoice, id of its step, status it went to).

    Nothing has been paid on them yet but from the balance at the issue.
    """
    steps = list(steps)
    for event_type in ("invoice.issued", "invoice.paid"):
        told = set(organizations_listening(event_type))
        facts = [
            # The issue is the invoice's own fact; every later step is one of itself.
            _fact(
                invoice,
                step_id if to == Status.PAID else invoice.id,
                0 if to == Status.PAID else max(0, invoice.amount_due_micros),
            )
            for invoice, step_id, to in steps
            if (event_type == "invoice.paid") == (to == Status.PAID) and invoice.organization_id in told
        ]
        record_events(facts, event_type=event_type, now=now)


def tell_of_reminder(invoice: Invoice, step: DunningStep, *, due_at: datetime, now: datetime) -> None:
    """Once for each step: the step is the fact. `due_at` is when the days of dunning began to count: what was carried
    for months is not overdue for months, and is not said to be.
    """
    fact = _fact(invoice, step.id, step.amount_micros)
    more = {
        "days": (now - due_at).days,
        "suspended_after_days": settings.DUNNING_SUSPEND_DAYS,
    }
    record_events([fact._replace(data={**fact.data, **more})], event_type="invoice.reminder", now=now)


def _fact(invoice: Invoice, fact_id: UUID, outstanding_micros: int) -> Fact:
    data = {
        "invoice_id": str(invoice.id),
        "number": invoice.number,
        "currency": invoice.currency,
        "total_micros": invoice.total_micros,
        "outstanding_micros": outstanding_micros,
    }
    return Fact(invoice.organization_id, fact_id, data)


def outstanding(invoice: Invoice) -> int:
    """What is still due, in micros: the amount due less payments and what credit notes took off. Never below zero.

    What a bank took back of a payment does not count as paid.
    """
    if invoice.status in (Status.VOID, *UNISSUED):
        return 0
    paid = InvoicePayment.objects.filter(invoice=invoice, status=InvoicePayment.Status.SUCCEEDED)
    notes = CreditNote.objects.filter(invoice=invoice)
    kept = (amount - taken for amount, taken in paid.values_list("amount_micros", "reversed_micros"))
    gone = sum(kept) + sum(notes.values_list("due_micros", flat=True))
    return max(0, invoice.amount_due_micros - gone)
