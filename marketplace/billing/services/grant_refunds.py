"""Credit that is given back: to the buyer's balance, and from there to the card that once paid, where that is asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.services import Actor
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.services.operations import run_operation
from marketplace.billing.services.refunds import left_of, locked_payment, request_refund
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.grants import refund_grant
from marketplace.ledger.models import Grant, GrantRefund
from pricing.units import format_micros, micros_per_minor_unit


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A refund of a grant; `sent` is its way to the card, None where it stayed on the balance."""

    refund: GrantRefund
    sent: ProcessorOperation | None


def give_grant_back(
    *,
    grant_id: UUID,
    amount_micros: int | None,
    payment_id: UUID | None,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> GivenBack:
    """Give unused credit back (`amount_micros` of it, None: all that is free), as far as it was paid for.

    The paid part goes to the prepaid balance; with `payment_id`, a payment of the same buyer, its whole minor units go
    on to the card of that payment, in the same transaction or not at all. Where the processor then refuses, they are on
    the balance again. The same `operation_id` again: the first refund as it stands. Raises NotFound (no such grant;
    payment_id), GrantEnded, Conflict, InvalidInput (amount_micros, payment_id).
    """
    grant = Grant.objects.filter(pk=grant_id).first()
    if grant is None:
        raise NotFound("There is no such grant.")
    id_ = refund_id(operation_id)
    fact_id = derived_id(id_, "refund")
    with transaction.atomic():
        payment = None
        if payment_id is not None:
            payment = _payment_of(grant, payment_id)
        # Behind the payment's lock: who repeats the operation with it finds what it began.
        is_new = not GrantRefund.objects.filter(pk=id_).exists()
        refund = refund_grant(id=id_, grant_id=grant_id, amount_micros=amount_micros, now=now, actor=actor)
        kept = ProcessorOperation.objects.filter(kind=OperationKind.REFUND, fact_id=fact_id).first()
        if kept is not None and (payment is None or kept.parent_id != payment.id):
            raise Conflict("this operation was begun with another payment", field="payment_id")
        if payment is not None and kept is None:
            if not is_new:
                raise Conflict("this operation left it on the balance", field="payment_id")
            kept = _send_on(refund, payment, fact_id, now=now, actor=actor)
    sent = None if kept is None else run_operation(operation_id=kept.id, now=now)
    return GivenBack(refund, sent)


def refund_id(operation_id: UUID) -> UUID:
    """The ledger's id of the refund that this operation makes."""
    return derived_id(operation_id, "grant_refund")


def sendable(paid_micros: int, currency: str) -> int:
    """What of it a card can take: whole minor units, down; the rest stays on the balance."""
    return paid_micros - paid_micros % micros_per_minor_unit(currency)


def _payment_of(grant: Grant, payment_id: UUID) -> ProcessorOperation:
    try:
        payment = locked_payment(grant.organization_id, payment_id)
    except NotFound as error:
        raise NotFound("The buyer has no such payment.", field="payment_id") from error
    if payment.currency != grant.currency:
        raise InvalidInput("was paid in another currency", field="payment_id")
    return payment


def _send_on(
    refund: GrantRefund, payment: ProcessorOperation, fact_id: UUID, *, now: datetime, actor: Actor
) -> ProcessorOperation:
    amount = sendable(refund.paid_micros, payment.currency)
    if not amount:
        raise InvalidInput("nothing that a card can take was paid for it", field="payment_id")
    left = left_of(payment)
    if amount > left:
        shown = format_micros(left, payment.currency)
        raise InvalidInput(
            f"may still give back {shown} {payment.currency}, and this would be "
            f"{format_micros(amount, payment.currency)}",
            field="payment_id",
        )
    return request_refund(payment, amount, fact_id, now=now, actor=actor)
