"""Paying what is due on an invoice: from the prepaid balance, or through the payment processor."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.billing.models import Invoice, InvoicePayment, ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS, OperationKind
from marketplace.billing.services.collecting import request_collection, run_collection
from marketplace.billing.services.invoice_payments import receive, settle_if_nothing_is_due
from marketplace.billing.services.lifecycle import UNISSUED, outstanding
from marketplace.billing.services.operations import close_page
from marketplace.billing.services.small_dues import (
    amount_to_charge,
    organizations_with_small_dues,
    small_dues,
)
from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.ids import derived_id, uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import InsufficientFunds


class NothingDue(Conflict):
    """The invoice is paid, credited or void."""

    code = "nothing_due"


def pay_invoice(
    *, organization_id: UUID, invoice_id: UUID, source: str, operation_id: UUID, now: datetime, actor: Actor
) -> InvoicePayment:
    """Pay all that is outstanding. The same operation again answers what the first one did.

    From the `balance` it is one transaction, before which a page of the processor's that waits for the buyer is
    closed (what he has paid there counts instead); through the `processor` the asking lies between two, outside of
    both: the saved card is charged, without one `action_url` is the processor's page. A charge that needs the buyer
    leaves the invoice `action_required` and the payment pending with `action_url`; whatever dies in between is
    finished by the sweeper, a webhook, or the same call again. Raises NotFound, NothingDue, Conflict while another
    payment is under way, TooSmallForCard (field source), InvalidInput (source), InsufficientFunds, ProcessorBusy where
    a page could not be closed.
    """
    if source not in InvoicePayment.Source.values:
        raise InvalidInput(f"must be one of {', '.join(InvoicePayment.Source.values)}", field="source")
    now = billing_now(organization_id, now)
    payment_id = payment_id_of(operation_id)
    if source == InvoicePayment.Source.BALANCE:
        _close_open_page(payment_id, organization_id, invoice_id, now=now)
    payment = _begin(
        payment_id=payment_id,
        organization_id=organization_id,
        invoice_id=invoice_id,
        source=source,
        now=now,
        actor=actor,
    )
    return finish_payment(payment_id=payment.id, now=now)


def _close_open_page(payment_id: UUID, organization_id: UUID, invoice_id: UUID, *, now: datetime) -> None:
    """A page on which the invoice could still be paid is closed first, where the balance is enough to pay it.

    Outside of any transaction of ours. If he has paid there meanwhile, that is the payment. What comes of an old page
    all the same goes to the balance (`receive`).
    """
    invoice = Invoice.objects.filter(pk=invoice_id, organization_id=organization_id).first()
    if invoice is None or InvoicePayment.objects.filter(pk=payment_id).exists():
        return
    found = balance(organization_id=organization_id, kind=AccountKind.PREPAID, currency=invoice.currency)
    if found.available_micros < outstanding(invoice):
        return
    open_payments = invoice.payments.filter(status=InvoicePayment.Status.PENDING).values("id")
    pages = ProcessorOperation.objects.filter(
        subject_id__in=open_payments,
        kind=OperationKind.CHECKOUT,
        status=ProcessorOperation.Status.ACTION_REQUIRED,
    )
    for page_id in list(pages.values_list("id", flat=True)):
        close_page(operation_id=page_id, now=now)


def take_small_dues(*, now: datetime) -> int:
    """Pay what no card is charged for out of the balance, where that has it; how many invoices were paid."""
    taken = 0
    for organization_id in organizations_with_small_dues():
        for invoice_id in small_dues(organization_id, settings.MARKET_CURRENCY).outstanding:
            try:
                pay_invoice(
                    organization_id=organization_id,
                    invoice_id=invoice_id,
                    source=InvoicePayment.Source.BALANCE,
                    operation_id=uuid7(now),
                    now=now,
                    actor=SYSTEM,
                )
            except (InsufficientFunds, Conflict):
                continue  # Not now; or paid by somebody else in this moment.
            taken += 1
    return taken


def payment_id_of(operation_id: UUID) -> UUID:
    return derived_id(operation_id, "invoice_payment")


def finish_payment(*, payment_id: UUID, now: datetime) -> InvoicePayment:
    """Bring the operation of a pending payment as far as it goes, outside of any transaction of ours.

    A payment that has ended, or waits for the buyer, is returned as it is.
    """
    payment = InvoicePayment.objects.get(pk=payment_id)
    if payment.status != InvoicePayment.Status.PENDING:
        return payment
    collection = ProcessorOperation.objects.get(subject_id=payment.id, kind__in=COLLECTIONS)
    run_collection(operation=collection, now=now)
    return InvoicePayment.objects.get(pk=payment_id)


def payments_of(organization_id: UUID, invoice_id: UUID) -> QuerySet[InvoicePayment]:
    """An invoice's payments, with those that failed. Raises NotFound."""
    invoices = Invoice.objects.filter(pk=invoice_id, organization_id=organization_id)
    if not invoices.exclude(status__in=UNISSUED).exists():
        raise NotFound("There is no such invoice.")
    return InvoicePayment.objects.filter(invoice_id=invoice_id)


@transaction.atomic
def _begin(
    *, payment_id: UUID, organization_id: UUID, invoice_id: UUID, source: str, now: datetime, actor: Actor
) -> InvoicePayment:
    invoice = (
        Invoice.objects.select_for_update()
        .filter(pk=invoice_id, organization_id=organization_id)
        .exclude(status__in=UNISSUED)
        .first()
    )
    if invoice is None:
        raise NotFound("There is no such invoice.")
    kept = InvoicePayment.objects.filter(pk=payment_id).first()
    if kept is not None:
        if (kept.invoice_id, kept.source) != (invoice_id, source):
            raise Conflict("this operation was begun with other terms")
        return kept
    amount = outstanding(invoice)
    if amount == 0:
        raise NothingDue("nothing is due on this invoice")
    if source == InvoicePayment.Source.PROCESSOR:
        amount = amount_to_charge(invoice)
    payment = InvoicePayment(
        id=payment_id,
        invoice=invoice,
        organization_id=organization_id,
        source=source,
        amount_micros=amount,
        created_at=now,
    )
    is_from_balance = source == InvoicePayment.Source.BALANCE
    if is_from_balance and invoice.payments.filter(status=InvoicePayment.Status.PENDING).exists():
        raise Conflict("a payment of this invoice is under way")
    if is_from_balance:
        payment.status = InvoicePayment.Status.SUCCEEDED
        receive(invoice, payment, of_processor=False, now=now)
    try:
        with transaction.atomic():
            payment.save(force_insert=True)
    except IntegrityError as error:
        if constraint_of(error) != "billing_invoicepayment_one_pending":
            raise
        raise Conflict("a payment of this invoice is under way") from error
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="invoice.payment",
        object_kind="invoice",
        object_id=invoice_id,
        detail={"amount_micros": amount, "source": source},
        now=now,
    )
    if is_from_balance:
        settle_if_nothing_is_due(invoice, reason="paid from the balance", now=now)
    else:
        request_collection(
            fact_id=payment_id,
            subject_id=payment_id,
            purpose=ProcessorOperation.Purpose.INVOICE,
            organization_id=organization_id,
            amount_micros=amount,
            currency=invoice.currency,
            on_page=True,
            now=now,
        )
    return payment
