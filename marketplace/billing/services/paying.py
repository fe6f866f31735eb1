"""Paying what is due on an invoice: from the prepaid balance, or through the payment processor."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, transaction

from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import Invoice, InvoicePayment
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.invoice_money import Ledger
from marketplace.billing.services.lifecycle import OPEN, UNISSUED, Status, move_invoice, outstanding
from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind


class NothingDue(Conflict):
    """The invoice is paid, credited or void."""

    code = "nothing_due"


def pay_invoice(
    *, organization_id: UUID, invoice_id: UUID, source: str, operation_id: UUID, now: datetime, actor: Actor
) -> InvoicePayment:
    """Pay all that is outstanding. The same operation again answers what the first one did.

    From the `balance` it is one transaction; through the `processor` the asking lies between two, and a charge that
    needs the buyer leaves the invoice `action_required` and the payment pending. Raises NotFound, NothingDue,
    Conflict while another payment is under way, InvalidInput (source), InsufficientFunds.
    """
    if source not in InvoicePayment.Source.values:
        raise InvalidInput(f"must be one of {', '.join(InvoicePayment.Source.values)}", field="source")
    payment = _begin(
        payment_id=derived_id(operation_id, "invoice_payment"),
        organization_id=organization_id,
        invoice_id=invoice_id,
        source=source,
        now=now,
        actor=actor,
    )
    return finish_payment(payment_id=payment.id, now=now)


def finish_payment(*, payment_id: UUID, now: datetime) -> InvoicePayment:
    """Ask the processor about a pending payment, outside of any transaction of ours, and record what it says.

    Asking again asks with the same id. A payment that has ended is returned as it is.
    """
    payment = InvoicePayment.objects.select_related("invoice").get(pk=payment_id)
    if payment.status != InvoicePayment.Status.PENDING:
        return payment
    outcome = payment_processor().collect(
        movement_id=payment.id,
        organization_id=payment.organization_id,
        amount_micros=payment.amount_micros,
        currency=payment.invoice.currency,
    )
    return record_outcome(payment_id=payment_id, outcome=outcome, now=now)


@transaction.atomic
def record_outcome(*, payment_id: UUID, outcome: Outcome, now: datetime) -> InvoicePayment:
    """What the processor says about a payment becomes money and status, once; later answers change nothing."""
    invoice_id = InvoicePayment.objects.values_list("invoice_id", flat=True).get(pk=payment_id)
    invoice = Invoice.objects.select_for_update().get(pk=invoice_id)
    payment = InvoicePayment.objects.select_for_update().get(pk=payment_id)
    if payment.status != InvoicePayment.Status.PENDING:
        return payment
    payment.processor_reference = outcome.reference
    if outcome.status == OutcomeStatus.PENDING:
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.FINALISED, Status.OVERDUE],
            to=Status.ACTION_REQUIRED,
            now=now,
            reason=outcome.reason,
        )
    elif outcome.status == OutcomeStatus.FAILED:
        payment.status, payment.failure = InvoicePayment.Status.FAILED, outcome.reason[:300]
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.ACTION_REQUIRED],
            to=_unpaid_status(invoice, now),
            now=now,
            reason=outcome.reason,
        )
    else:
        payment.status = InvoicePayment.Status.SUCCEEDED
        _receive(invoice, payment, of_processor=True, now=now)
    payment.save(update_fields=["status", "processor_reference", "failure"])
    if payment.status == InvoicePayment.Status.SUCCEEDED:
        settle_if_nothing_is_due(invoice, reason="paid through the processor", now=now)
    return payment


def settle_if_nothing_is_due(invoice: Invoice, *, reason: str, now: datetime) -> bool:
    """Mark an invoice paid whose due has been paid or credited, and post the tax that nothing had covered.

    In the caller's transaction, which holds the invoice's row.
    """
    invoice.refresh_from_db(fields=["status"])
    if outstanding(invoice) > 0:
        return False
    if not move_invoice(
        invoice_id=invoice.id, expected=[*OPEN, Status.UNCOLLECTIBLE], to=Status.PAID, now=now, reason=reason
    ):
        return False
    ledger = Ledger(invoice, now)
    ledger.move(
        derived_id(invoice.id, "tax_unposted"),
        debit=ledger.of_buyer(AccountKind.RECEIVABLE),
        credit=ledger.of_issuer(AccountKind.TAX),
        amount=invoice.tax_unposted_micros,
        code="tax",
    )
    ledger.post()
    return True


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
        _receive(invoice, payment, of_processor=False, now=now)
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
    return payment


def _receive(invoice: Invoice, payment: InvoicePayment, *, of_processor: bool, now: datetime) -> None:
    ledger = Ledger(invoice, now, reference_id=payment.id)
    source = ledger.of_issuer(AccountKind.PROCESSOR) if of_processor else ledger.of_buyer(AccountKind.PREPAID)
    # What was credited while the charge was under way leaves less due than was taken: the rest is the buyer's balance.
    due = min(payment.amount_micros, outstanding(invoice))
    ledger.move(
        derived_id(payment.id, "transfer"),
        debit=source,
        credit=ledger.of_buyer(AccountKind.RECEIVABLE),
        amount=due,
        code="invoice_payment",
    )
    if of_processor:
        ledger.move(
            derived_id(payment.id, "surplus"),
            debit=source,
            credit=ledger.of_buyer(AccountKind.PREPAID),
            amount=payment.amount_micros - due,
            code="invoice_payment",
        )
    ledger.post()


def _unpaid_status(invoice: Invoice, now: datetime) -> Status:
    return Status.OVERDUE if invoice.due_at is not None and now >= invoice.due_at else Status.FINALISED
