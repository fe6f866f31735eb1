"""Invoices: one for each buyer and UTC calendar month, of every charge that no invoice has yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from marketplace.accounts.models import Organization
from marketplace.accounts.organization_clocks import billing_now, keeping
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.documents import InvoiceTotals
from marketplace.billing.models import Charge, CreditNote, Invoice, InvoicePayment
from marketplace.billing.printing.content import content_of_invoice, digest_of_content
from marketplace.billing.services.discounts import discounts_for
from marketplace.billing.services.identity import id_at
from marketplace.billing.services.invoice_lines import Written, draw, write
from marketplace.billing.services.invoice_money import post_invoice, take_back
from marketplace.billing.services.lifecycle import UNISSUED, Status, move_invoice, record_step
from marketplace.billing.services.numbers import next_number, series_of
from marketplace.billing.services.parties import party
from marketplace.billing.services.taxes import taxation_of
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.periods import Period, calendar_month

SERIES: Final = "TY"


def buyers_to_invoice(*, month: Period, organization_id: UUID | None = None) -> list[UUID]:
    """Organizations with charges up to the month's end that no invoice has, and without an issued one of the month.

    Of those that keep real time, or whether this one is to be invoiced.
    """
    invoiced = Invoice.objects.filter(period_start=month.start).exclude(status__in=[*UNISSUED, Status.VOID])
    rows = (
        keeping(uninvoiced_charges(month), organization_id)
        .exclude(organization_id__in=invoiced.values("organization_id"))
        .order_by("organization_id")
        .values_list("organization_id", flat=True)
        .distinct()
    )
    return list(rows)


def issue_invoices(*, month_start: datetime, now: datetime, early: bool = False) -> list[Invoice]:
    """Issue the invoices of a month to every buyer who has charges; a month without charges gives no invoice.

    Does not wait for a grace period, and again issues nothing new. Raises InvalidInput (field month_start) while the
    month runs, unless `early`: then what is charged so far is invoiced, and later charges go to the next invoice.
    """
    month = calendar_month(month_start)
    if now < month.start:
        raise InvalidInput("the month has not begun", field="month_start")
    if now < month.end and not early:
        raise InvalidInput("the month is not over yet", field="month_start")
    # Batches are made of what single invoices are made of here.
    from marketplace.billing.services.invoice_batches import issue_many

    return list(issue_many(organization_ids=buyers_to_invoice(month=month), month=month, now=now))


def issue_after_grace(*, organization_id: UUID, month: Period, now: datetime) -> Invoice | None:
    """Begin the grace period of a month's invoice, or finalise it where that is over; None while it is not final.

    Usage of the month that arrives in the grace period still enters the invoice; afterwards it is an adjustment on the
    next one. Without a grace period (INVOICE_GRACE_S = 0) it is final at once.
    """
    grace = timedelta(seconds=settings.INVOICE_GRACE_S)
    if not grace:
        return issue_invoice(organization_id=organization_id, month=month, now=now)
    with transaction.atomic():
        invoice = _locked(organization_id, month, now)
        if invoice.status == Status.DRAFT:
            charges = list(_charges_of(organization_id, month))
            if charges and sum(charge.amount_micros for charge in charges) >= 0:
                invoice.status, invoice.grace_until = Status.GRACE, now + grace
                invoice.currency = charges[0].contract.currency
                invoice.save(update_fields=["status", "grace_until", "currency"])
                record_step(invoice_id=invoice.id, before=Status.DRAFT, to=Status.GRACE, now=now)
            return None
        if invoice.status != Status.GRACE or (invoice.grace_until is not None and now < invoice.grace_until):
            return None
    issued = issue_invoice(organization_id=organization_id, month=month, now=now)
    if issued is None:
        # It came to a credit meanwhile: nobody's document again, and its charges wait for the next month.
        with transaction.atomic():
            move_invoice(
                invoice_id=invoice.id, expected=[Status.GRACE], to=Status.DRAFT, now=now, reason="credit"
            )
    return issued


@transaction.atomic
def issue_invoice(*, organization_id: UUID, month: Period, now: datetime) -> Invoice | None:
    """Draw up, finalise and, where the prepaid balance has paid all of it, mark paid one buyer's invoice.

    All in one transaction: a number is never lost. None when there is nothing to invoice, when what there is comes
    to a credit (it waits for the next month), or when the month's invoice was issued before.
    """
    invoice = _locked(organization_id, month, now)
    if invoice.status not in UNISSUED:
        return None
    charges = list(_charges_of(organization_id, month))
    if not charges or sum(charge.amount_micros for charge in charges) < 0:
        transaction.set_rollback(True)
        return None
    if invoice.status == Status.GRACE:
        move_invoice(invoice_id=invoice.id, expected=[Status.GRACE], to=Status.DRAFT, now=now)
        invoice.status = Status.DRAFT
    _finalise(invoice, charges, month, moved=False, now=now)
    return invoice


@transaction.atomic
def reissue_invoice(*, invoice_id: UUID, reason: str, now: datetime, actor: Actor) -> Invoice:
    """Void an invoice and issue its charges anew, with the identity, tax rules and discounts as they are now.

    The new invoice has a number of its own and refers to the old one, which keeps its own. For a document that was
    wrong; for money that is given back there are credit notes. Raises NotFound, InvalidInput (reason), Conflict where
    it is not final or has payments or credit notes, InsufficientFunds where its discounts have been spent.
    """
    if not reason.strip():
        raise InvalidInput("say why", field="reason")
    old = Invoice.objects.select_for_update().filter(pk=invoice_id).exclude(status__in=UNISSUED).first()
    if old is None:
        raise NotFound("There is no such invoice.")
    # A payment that failed moved nothing; one that is under way or was made is of this document.
    paid = InvoicePayment.objects.filter(invoice=old).exclude(status=InvoicePayment.Status.FAILED)
    if CreditNote.objects.filter(invoice=old).exists() or paid.exists():
        raise Conflict("it has credit notes or payments: credit the rest instead")
    now = billing_now(old.organization_id, now)
    if not move_invoice(
        invoice_id=old.id,
        expected=[Status.FINALISED, Status.OVERDUE, Status.PAID],
        to=Status.VOID,
        now=now,
        reason=reason,
    ):
        raise Conflict(f"it is {old.status} and cannot be voided")
    take_back(old, now=now)
    charges = list(
        Charge.objects.filter(invoiced_as__line__invoice=old)
        .select_related("contract", "grade__family")
        .order_by("period_start", "id")
    )
    month = Period(old.period_start, old.period_end)
    new = _draft(derived_id(old.id, "reissue"), old.organization_id, old.issuer_id, month, now)
    new.replaces = old
    new.save(force_insert=True)
    _finalise(new, charges, month, moved=True, now=now)
    record_audit(
        organization_id=old.organization_id,
        actor=actor,
        action="invoice.reissued",
        object_kind="invoice",
        object_id=old.id,
        detail={"number": old.number, "replaced_by": new.number, "reason": reason},
        now=now,
    )
    return new


def _finalise(
    invoice: Invoice, charges: Sequence[Charge], month: Period, *, moved: bool, now: datetime
) -> None:
    buyer = Organization.objects.get(pk=invoice.organization_id)
    issuer = operator_organization()
    invoice.currency = charges[0].contract.currency
    discounts = discounts_for(organization_id=buyer.id, month=month)
    drawn = draw(charges, taxation_of(buyer, issuer, as_now=moved), discounts)
    written = write(invoice, drawn, moved=moved)
    totals = post_invoice(invoice, charges, drawn, now=now)
    set_figures(invoice, totals, buyer=buyer, issuer=issuer, now=now)
    invoice.number = next_number(issuer_id=issuer.id, series=series_of(SERIES, buyer.id, now=now))
    set_digest(invoice, written)
    invoice.save()
    record_step(invoice_id=invoice.id, before=Status.DRAFT, to=Status.FINALISED, now=now)
    if invoice.amount_due_micros <= 0:
        invoice.status = Status.PAID
        invoice.save(update_fields=["status"])
        record_step(
            invoice_id=invoice.id, before=Status.FINALISED, to=Status.PAID, now=now, reason="from the balance"
        )


def set_figures(
    invoice: Invoice, totals: InvoiceTotals, *, buyer: Organization, issuer: Organization, now: datetime
) -> None:
    """What a draft comes to, who it is between, and that it is final; not its number."""
    invoice.parties = {"buyer": party(buyer), "issuer": party(issuer)}
    invoice.subtotal_micros = totals.subtotal
    invoice.discount_micros = totals.discount
    invoice.tax_micros = totals.tax
    invoice.total_micros = totals.total
    invoice.prepaid_micros = totals.prepaid
    invoice.amount_due_micros = totals.amount_due
    invoice.rounding_micros = totals.rounding
    invoice.finalised_at = now
    invoice.due_at = now + timedelta(days=settings.INVOICE_DUE_DAYS)
    invoice.status = Status.FINALISED


def set_digest(invoice: Invoice, written: Written) -> None:
    """The digest of what the numbered document says."""
    content = content_of_invoice(invoice, written.lines, written.taxes, written.discounts)
    invoice.content_sha256 = digest_of_content(content)


def _locked(organization_id: UUID, month: Period, now: datetime) -> Invoice:
    """The month's invoice, made now where there is none; its row is the lock of everything about the month."""
    draft = draft_of(organization_id, month, issuer_id=operator_organization().id, now=now)
    Invoice.objects.bulk_create([draft], ignore_conflicts=True)
    rows = Invoice.objects.select_for_update().exclude(status=Status.VOID)
    return rows.get(organization_id=organization_id, period_start=month.start)


def draft_of(organization_id: UUID, month: Period, *, issuer_id: UUID, now: datetime) -> Invoice:
    """A month's first invoice of a buyer, unsaved: its id is derived, so there is one."""
    return _draft(id_at(organization_id, month.start, "invoice"), organization_id, issuer_id, month, now)


def _draft(id_: UUID, organization_id: UUID, issuer_id: UUID, month: Period, now: datetime) -> Invoice:
    return Invoice(
        id=id_,
        organization_id=organization_id,
        issuer_id=issuer_id,
        period_start=month.start,
        period_end=month.end,
        created_at=now,
    )


def _charges_of(organization_id: UUID, month: Period) -> QuerySet[Charge]:
    """What no invoice has, up to the month's end."""
    return (
        uninvoiced_charges(month)
        .filter(organization_id=organization_id)
        .select_related("contract", "grade__family")
        .order_by("period_start", "id")
    )


def uninvoiced_charges(month: Period) -> QuerySet[Charge]:
    """Anyone's."""
    return Charge.objects.filter(invoiced_as__isnull=True, period_start__lt=month.end)
