"""Unused balance sent back to where it came from, never more than came."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet

from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS, OperationKind
from marketplace.billing.processors.registry import processor_named
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.processor_effects import refund_hold_id
from marketplace.billing.services.top_ups import check_step
from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, open_hold
from pricing.units import format_micros


def refund_payment(
    *,
    organization_id: UUID,
    payment_id: UUID,
    amount_micros: int,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> ProcessorOperation:
    """Send part of a payment back to where it came from, out of the buyer's prepaid balance.

    The payment is a top-up, or a payment of an invoice by the processor: what a credit note gave back of that lies on
    the balance. The money is held there before the processor is asked.

    The same `operation_id` again: the first refund as it stands. Raises NotFound, Conflict (not paid, or disputed),
    InsufficientFunds (it has been spent), InvalidInput (field amount_micros) where all refunds together would exceed
    the payment.
    """
    fact_id = derived_id(operation_id, "refund")
    with transaction.atomic():
        payment = locked_payment(organization_id, payment_id)
        known = ProcessorOperation.objects.filter(kind=OperationKind.REFUND, fact_id=fact_id).first()
        if known is None:
            refund_id = request_refund(payment, amount_micros, fact_id, now=now, actor=actor).id
        elif known.amount_micros != amount_micros or known.parent_id != payment.id:
            raise Conflict("this operation was begun with other terms")
        else:
            refund_id = known.id
    return run_operation(operation_id=refund_id, now=now)


def locked_payment(organization_id: UUID, payment_id: UUID) -> ProcessorOperation:
    """As `find_payment`, until the transaction ends nobody else's."""
    payment = (
        ProcessorOperation.objects.select_for_update()
        .filter(subject_id=payment_id, organization_id=organization_id, kind__in=COLLECTIONS)
        .first()
    )
    if payment is None:
        raise NotFound("There is no such payment.")
    return payment


def find_payment(organization_id: UUID, payment_id: UUID) -> ProcessorOperation:
    """What the processor collected for a top-up or a payment of an invoice. Raises NotFound."""
    found = ProcessorOperation.objects.filter(
        subject_id=payment_id, organization_id=organization_id, kind__in=COLLECTIONS
    ).first()
    if found is None:
        raise NotFound("There is no such payment.")
    return found


def left_of(payment: ProcessorOperation) -> int:
    """How much of it may still be sent back, the balance allowing it."""
    if payment.status != ProcessorOperation.Status.SUCCEEDED or payment.disputes.exists():
        return 0
    return payment.amount_micros - payment.refunded_micros


def refunds_of(organization_id: UUID) -> QuerySet[ProcessorOperation]:
    return ProcessorOperation.objects.filter(organization_id=organization_id, kind=OperationKind.REFUND)


def request_refund(
    payment: ProcessorOperation, amount_micros: int, fact_id: UUID, *, now: datetime, actor: Actor
) -> ProcessorOperation:
    """Hold the money and write the order to send it back down, in the caller's transaction, which has locked the
    payment; `run_operation` sends it. Raises as `refund_payment` does.
    """
    step = processor_named(payment.processor).step_micros(payment.currency)
    check_step(amount_micros, step=step, currency=payment.currency)
    if payment.status != ProcessorOperation.Status.SUCCEEDED:
        raise Conflict("only a payment that has succeeded can be refunded")
    if payment.disputes.exists():
        raise Conflict("the bank has taken this payment back: it cannot be refunded as well")
    try:
        with transaction.atomic():
            ProcessorOperation.objects.filter(pk=payment.pk).update(
                refunded_micros=F("refunded_micros") + amount_micros
            )
    except IntegrityError as error:
        if constraint_of(error) != "billing_operation_refunds_within_payment":
            raise
        left = format_micros(payment.amount_micros - payment.refunded_micros, payment.currency)
        raise InvalidInput(
            f"no more than {left} {payment.currency} of this payment is left to refund", field="amount_micros"
        ) from error
    refund = request_operation(
        kind=OperationKind.REFUND,
        fact_id=fact_id,
        subject_id=payment.subject_id,
        organization_id=payment.organization_id,
        amount_micros=amount_micros,
        currency=payment.currency,
        parent_id=payment.id,
        terms={"charge": payment.charge_object_id},
        now=now,
    )
    open_hold(
        id=refund_hold_id(refund),
        account_id=account_id(
            organization_id=payment.organization_id,
            kind=AccountKind.PREPAID,
            currency=payment.currency,
            now=now,
        ),
        amount_micros=amount_micros,
        code="refund",
        reference_id=payment.subject_id,
        now=now,
    )
    record_audit(
        organization_id=payment.organization_id,
        actor=actor,
        action="refund.requested",
        object_kind=payment.purpose,
        object_id=payment.subject_id,
        detail={"amount_micros": amount_micros},
        now=now,
    )
    return refund
