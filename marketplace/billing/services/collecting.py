"""Taking money from a buyer: by his saved card, or on the processor's own page. For top-ups and for invoices alike."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.billing.models import ProcessorOperation, ProcessorPayer
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.errors import Conflict
from marketplace.ids import derived_id

Status = ProcessorOperation.Status


def request_collection(
    *,
    fact_id: UUID,
    subject_id: UUID,
    purpose: str,
    organization_id: UUID,
    amount_micros: int,
    currency: str,
    on_page: bool,
    now: datetime,
) -> ProcessorOperation:
    """The rows of a collection, in the caller's transaction: the payer's, where he is not known yet, and its own."""
    processor = payment_processor()
    kind = OperationKind.CHARGE
    if processor.needs_card:
        # Locked, so that the card is not removed between this look and the charge that is promised of it.
        payer = (
            ProcessorPayer.objects.select_for_update(no_key=True)
            .filter(organization_id=organization_id, processor=processor.name)
            .first()
        )
        if payer is None:
            request_payer(organization_id=organization_id, currency=currency, now=now)
        if on_page and not (payer and payer.payment_method_id):
            kind = OperationKind.CHECKOUT
    return request_operation(
        kind=kind,
        fact_id=fact_id,
        subject_id=subject_id,
        purpose=purpose,
        organization_id=organization_id,
        amount_micros=amount_micros,
        currency=currency,
        now=now,
    )


def request_payer(*, organization_id: UUID, currency: str, now: datetime) -> ProcessorOperation:
    return request_operation(
        kind=OperationKind.PAYER,
        fact_id=organization_id,
        subject_id=organization_id,
        organization_id=organization_id,
        currency=currency,
        now=now,
    )


def run_collection(*, operation: ProcessorOperation, now: datetime) -> ProcessorOperation:
    """Bring a collection as far as it goes now, the buyer's being made known to the processor before it."""
    payer = ProcessorOperation.objects.filter(
        kind=OperationKind.PAYER,
        fact_id=operation.organization_id,
        status__in=(Status.REQUESTED, Status.SENT, Status.UNKNOWN),
    ).first()
    if payer is not None:
        run_operation(operation_id=payer.id, now=now)
    return run_operation(operation_id=operation.id, now=now)


def save_card(
    *, organization_id: UUID, operation_id: UUID, currency: str, now: datetime
) -> ProcessorOperation:
    """A page where the buyer leaves a card for later charges: `action_required` with `action_url`.

    The same `operation_id` again: the same page. Raises Conflict where the processor keeps no cards (the sandbox).
    """
    if not payment_processor().needs_card:
        raise Conflict("this market's payment processor keeps no cards")
    with transaction.atomic():
        request_payer(organization_id=organization_id, currency=currency, now=now)
        operation = request_operation(
            kind=OperationKind.SAVE_CARD,
            fact_id=derived_id(operation_id, "save_card"),
            subject_id=organization_id,
            organization_id=organization_id,
            currency=currency,
            now=now,
        )
    payer_id = derived_id(organization_id, OperationKind.PAYER)
    run_operation(operation_id=payer_id, now=now)
    return run_operation(operation_id=operation.id, now=now)
