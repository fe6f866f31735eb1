"""What the operator looks at when he mends documents: everybody's invoices, discounts, grants and what came of them."""

from __future__ import annotations

from uuid import UUID

from django.db.models import F, Q, QuerySet

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.billing.models import Discount, Invoice, ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS
from marketplace.billing.services.lifecycle import UNISSUED
from marketplace.errors import NotFound
from marketplace.ledger.models import Grant


def issued_invoices(*, named: str = "", status: str = "") -> QuerySet[Invoice]:
    """Newest first; `named` is part of a buyer's name or of a number."""
    rows = Invoice.objects.exclude(status__in=UNISSUED).select_related("organization").order_by("-id")
    if named:
        rows = rows.filter(Q(organization__name__icontains=named) | Q(number__icontains=named))
    return rows.filter(status=status) if status else rows


def issued_invoice(invoice_id: UUID) -> Invoice:
    """Anybody's, with who replaces whom. Raises NotFound."""
    rows = issued_invoices().select_related("organization", "replaces", "replaced_by")
    found = rows.filter(pk=invoice_id).first()
    if found is None:
        raise NotFound("There is no such invoice.")
    return found


def all_discounts() -> QuerySet[Discount]:
    return Discount.objects.select_related("organization").order_by("-id")


def all_grants(*, organization_id: UUID | None = None) -> QuerySet[Grant]:
    rows = Grant.objects.select_related("organization").order_by("-id")
    return rows if organization_id is None else rows.filter(organization_id=organization_id)


def find_grant(grant_id: UUID) -> Grant:
    """Anybody's. Raises NotFound."""
    found = all_grants().filter(pk=grant_id).first()
    if found is None:
        raise NotFound("There is no such grant.")
    return found


def buyers() -> QuerySet[Organization]:
    return Organization.objects.filter(roles__contains=[OrganizationRole.BUYER]).order_by("name")


def refundable_payments(organization_id: UUID, *, most: int = 50) -> list[ProcessorOperation]:
    """Payments of a buyer of which something may still go back to where it came from, newest first."""
    rows = ProcessorOperation.objects.filter(
        organization_id=organization_id,
        kind__in=COLLECTIONS,
        status=ProcessorOperation.Status.SUCCEEDED,
        purpose__in=(ProcessorOperation.Purpose.TOP_UP, ProcessorOperation.Purpose.INVOICE),
        refunded_micros__lt=F("amount_micros"),
        disputes__isnull=True,
    )
    return list(rows.order_by("-id")[:most])
