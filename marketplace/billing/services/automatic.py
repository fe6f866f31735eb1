"""Charging saved cards for what is due, without anybody asking: when an invoice is issued and as dunning goes on."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from marketplace.accounts.organization_clocks import keeping
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Invoice, InvoicePayment, ProcessorPayer
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.lifecycle import Status
from marketplace.billing.services.paying import pay_invoice, payment_id_of
from marketplace.billing.services.small_dues import is_for_card
from marketplace.errors import Conflict
from marketplace.ids import derived_id

logger = logging.getLogger(__name__)


def collect_automatically(*, now: datetime, organization_id: UUID | None = None) -> list[InvoicePayment]:
    """Charge what is due to the cards of organizations that left it so; what was begun. Again begins nothing more.

    One try when an invoice is issued and one at each of DUNNING_REMINDER_DAYS after its due date, of which only the
    last that has come counts: a card that refuses is not asked more often than the buyer is reminded. Nothing is begun
    while a payment is under way or waits for the buyer, nor of what a bank has taken back: that is for the buyer to
    pay. Dues that are too small for a card are charged together, with the one that makes them enough. Of organizations
    that keep real time, or of one. Outside of any transaction.
    """
    payers = ProcessorPayer.objects.filter(processor=payment_processor().name, collect_automatically=True)
    due = (
        keeping(Invoice.objects.all(), organization_id)
        .filter(
            status__in=(Status.FINALISED, Status.OVERDUE),
            amount_due_micros__gt=0,
            organization_id__in=payers.exclude(payment_method_id="").values("organization_id"),
        )
        .exclude(payments__status=InvoicePayment.Status.PENDING)
        .exclude(payments__reversed_micros__gt=0)
    )
    begun = []
    for invoice in list(due.order_by("due_at", "id")):
        if not is_for_card(invoice):
            continue
        operation_id = derived_id(invoice.id, f"collect:{_step(invoice, now)}")
        if InvoicePayment.objects.filter(pk=payment_id_of(operation_id)).exists():
            continue
        try:
            begun.append(_collect(invoice, operation_id, now))
        except Conflict as waiting:
            # Paid, credited or begun by the buyer in this moment.
            logger.info("not collected", extra={"invoice": invoice.number, "why": str(waiting)})
        except Exception:
            # One that always fails must not keep the others from being paid.
            logger.exception("an invoice could not be collected", extra={"invoice": invoice.number})
    return begun


def _collect(invoice: Invoice, operation_id: UUID, now: datetime) -> InvoicePayment:
    return pay_invoice(
        organization_id=invoice.organization_id,
        invoice_id=invoice.id,
        source=InvoicePayment.Source.PROCESSOR,
        operation_id=operation_id,
        now=now,
        actor=SYSTEM,
    )


def _step(invoice: Invoice, now: datetime) -> str:
    late = now - invoice.due_at if invoice.due_at else timedelta(-1)
    come = [days for days in settings.DUNNING_REMINDER_DAYS if late >= timedelta(days=days)]
    return f"reminder:{max(come)}" if come else "issued"
