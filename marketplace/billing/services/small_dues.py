"""Dues that no card is charged for, being less than the processor takes: from the balance, else carried until together
they are enough. What cannot be charged is nobody's fault: it is not chased either.

Invoices stay in the currency's minor units, whoever collects for the market. What the processor cannot charge to the
unit is charged a step higher, and the rest is the buyer's balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet

from marketplace.billing.models import Invoice, InvoicePayment
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.lifecycle import OPEN, outstanding
from marketplace.errors import Conflict
from pricing.units import div_ceil, format_micros, micros_per_minor_unit


class TooSmallForCard(Conflict):
    """Less is due than a card is charged for: it is paid from the balance, or waits for the next invoice."""

    code = "too_small_for_card"


@dataclass(frozen=True, slots=True)
class SmallDues:
    """An organization's dues below the least charge, oldest due date first, with what is outstanding on each.

    `reached_by` is the invoice with which together they are as much as a card is charged for; None until then.
    """

    outstanding: dict[UUID, int]
    reached_by: Invoice | None

    @property
    def total_micros(self) -> int:
        return sum(self.outstanding.values())


def small_dues(organization_id: UUID, currency: str) -> SmallDues:
    """Those on which no payment is under way."""
    least, _ = payment_processor().charge_bounds_micros(currency)
    found: dict[UUID, int] = {}
    reached_by = None
    for invoice in _candidates(currency).filter(organization_id=organization_id).order_by("due_at", "id"):
        due = outstanding(invoice)
        if due > 0 and to_charge(due, currency) < least:
            found[invoice.id] = due
            if reached_by is None and to_charge(sum(found.values()), currency) >= least:
                reached_by = invoice
    return SmallDues(found, reached_by)


def to_charge(due_micros: int, currency: str) -> int:
    """The least amount of whole steps of the processor's that pays what is due."""
    step = payment_processor().step_micros(currency)
    return div_ceil(due_micros, step) * step


def amount_to_charge(invoice: Invoice) -> int:
    """What a card is charged for an invoice on which something is due, at most the most at a time.

    For a due that is too small by itself it is all of the organization's small dues; what is more than is due on this
    invoice becomes the buyer's balance, out of which `take_small_dues` pays the others. Raises TooSmallForCard.
    """
    least, most = payment_processor().charge_bounds_micros(invoice.currency)
    amount = to_charge(outstanding(invoice), invoice.currency)
    if amount < least:
        amount = to_charge(
            small_dues(invoice.organization_id, invoice.currency).total_micros, invoice.currency
        )
    if amount < least:
        shown = f"{format_micros(least, invoice.currency)} {invoice.currency}"
        raise TooSmallForCard(
            f"the least that a card is charged for is {shown}: pay it from the balance, or let it wait",
            field="source",
        )
    return min(amount, most)


def is_for_card(invoice: Invoice) -> bool:
    """Whether a card is charged because of this invoice: for its due, or for the small ones that end with it."""
    least, _ = payment_processor().charge_bounds_micros(invoice.currency)
    if to_charge(outstanding(invoice), invoice.currency) >= least:
        return True
    return small_dues(invoice.organization_id, invoice.currency).reached_by == invoice


def chased_from(invoice: Invoice) -> datetime | None:
    """From when the days of dunning count: its due date, or that of the invoice that made small dues enough to be
    charged. None while it is carried."""
    due = outstanding(invoice)
    least, _ = payment_processor().charge_bounds_micros(invoice.currency)
    if invoice.status not in OPEN or due == 0 or to_charge(due, invoice.currency) >= least:
        return invoice.due_at
    reached_by = small_dues(invoice.organization_id, invoice.currency).reached_by
    if reached_by is None or invoice.due_at is None or reached_by.due_at is None:
        return None
    return max(invoice.due_at, reached_by.due_at)


def organizations_with_small_dues() -> list[UUID]:
    """Empty where a charge may be as small as a due."""
    currency = settings.MARKET_CURRENCY
    least, _ = payment_processor().charge_bounds_micros(currency)
    if least <= micros_per_minor_unit(currency):
        return []
    # Others are small only once they were paid or credited in part.
    small = _candidates(currency).filter(
        Q(amount_due_micros__lt=least) | Q(payments__isnull=False) | Q(credit_notes__isnull=False)
    )
    return list(small.order_by("organization_id").values_list("organization_id", flat=True).distinct())


def _candidates(currency: str) -> QuerySet[Invoice]:
    return Invoice.objects.filter(
        status__in=OPEN, amount_due_micros__gt=0, due_at__isnull=False, currency=currency
    ).exclude(payments__status=InvoicePayment.Status.PENDING)
