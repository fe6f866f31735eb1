"""Discounts that the operator gives an organization, and which of them an invoice bears."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.amounts import DiscountTerm
from marketplace.billing.models import ChargeKind, Discount, Invoice, InvoiceDiscount
from marketplace.errors import InvalidInput, NotFound
from marketplace.periods import Period


@transaction.atomic
def give_discount(
    *,
    organization_id: UUID,
    title: str,
    rate_ppm: int | None = None,
    amount_micros: int | None = None,
    line_kind: str = "",
    max_invoices: int | None = None,
    valid_from: datetime,
    valid_until: datetime | None = None,
    now: datetime,
    actor: Actor,
) -> Discount:
    """A share or an amount off each invoice of a month that the discount's validity touches.

    Raises NotFound (organization), InvalidInput naming the field.
    """
    buyer = Organization.objects.filter(pk=organization_id).first()
    if buyer is None or not buyer.has_role(OrganizationRole.BUYER):
        raise NotFound("There is no such buyer.")
    if (rate_ppm is None) == (amount_micros is None):
        raise InvalidInput("give either rate_ppm or amount_micros", field="rate_ppm")
    if line_kind and line_kind not in ChargeKind.values:
        raise InvalidInput(f"must be one of {', '.join(ChargeKind.values)}", field="line_kind")
    if valid_until is not None and valid_until <= valid_from:
        raise InvalidInput("must lie after valid_from", field="valid_until")
    discount = Discount.objects.create(
        organization=buyer,
        title=title,
        rate_ppm=rate_ppm,
        amount_micros=amount_micros,
        line_kind=line_kind,
        max_invoices=max_invoices,
        valid_from=valid_from,
        valid_until=valid_until,
        created_at=now,
    )
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="discount.given",
        object_kind="discount",
        object_id=discount.id,
        detail={"title": title},
        now=now,
    )
    return discount


@transaction.atomic
def end_discount(*, discount_id: UUID, now: datetime, actor: Actor) -> Discount:
    """From now on no further month is reduced. Ending it twice ends it once. Raises NotFound."""
    discount = Discount.objects.select_for_update().filter(pk=discount_id).first()
    if discount is None:
        raise NotFound("There is no such discount.")
    if discount.valid_until is None or discount.valid_until > now:
        discount.valid_until = max(now, discount.valid_from)
        discount.save(update_fields=["valid_until"])
        record_audit(
            organization_id=discount.organization_id,
            actor=actor,
            action="discount.ended",
            object_kind="discount",
            object_id=discount.id,
            now=now,
        )
    return discount


def discounts_for(*, organization_id: UUID, month: Period) -> list[Discount]:
    """What may reduce the invoice of a month, in order of giving; locked, so that a coupon of one use is used once."""
    still_valid = Q(valid_until__isnull=True) | Q(valid_until__gt=month.start)
    rows = Discount.objects.filter(still_valid, organization_id=organization_id, valid_from__lt=month.end)
    locked = list(rows.order_by("id").select_for_update(no_key=True))
    return [
        discount
        for discount in locked
        if discount.max_invoices is None or _uses(discount) < discount.max_invoices
    ]


def term_of(discount: Discount) -> DiscountTerm:
    return DiscountTerm(
        str(discount.id),
        ppm=discount.rate_ppm,
        amount=discount.amount_micros,
        kind=discount.line_kind or None,
    )


def _uses(discount: Discount) -> int:
    return (
        InvoiceDiscount.objects.filter(discount=discount).exclude(invoice__status=Invoice.Status.VOID).count()
    )
