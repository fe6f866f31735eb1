"""Ending a charge that waits for the buyer at his bank: by him, or after a day, so that he may pay another way.

The processor decides: what succeeded in the same moment counts as paid, whoever asked to cancel it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import OutcomeStatus, ProcessorBusy
from marketplace.billing.processors.registry import processor_named
from marketplace.billing.services.operations import instruction_of, record_outcome
from marketplace.billing.services.processor_gate import through_gate
from marketplace.billing.services.refunds import find_payment
from marketplace.errors import Conflict

logger = logging.getLogger(__name__)
Status = ProcessorOperation.Status

# As long a page of the processor's own stays open.
ABANDONED_AFTER: Final = timedelta(hours=24)


def cancel_payment(
    *, organization_id: UUID, payment_id: UUID, now: datetime, actor: Actor
) -> ProcessorOperation:
    """End a top-up or a payment of an invoice whose charge waits for the buyer at his bank.

    What has ended stays as it is, and is returned: also what succeeded meanwhile. Raises NotFound, ProcessorBusy,
    Conflict where it does not wait for him at his bank (a page of the processor's ends by itself within a day).
    """
    operation = find_payment(organization_id, payment_id)
    if operation.status in (Status.FAILED, Status.SUCCEEDED):
        return operation
    if operation.kind != OperationKind.CHARGE or operation.status != Status.ACTION_REQUIRED:
        raise Conflict("only a charge that waits for you at your bank can be cancelled")
    return _cancel(operation, now=now, actor=actor)


def cancellable_of(organization_id: UUID, payment_ids: Iterable[UUID]) -> set[UUID]:
    """Which of these payments wait for their buyer at his bank."""
    waiting = ProcessorOperation.objects.filter(
        organization_id=organization_id,
        subject_id__in=list(payment_ids),
        kind=OperationKind.CHARGE,
        status=Status.ACTION_REQUIRED,
    )
    return set(waiting.values_list("subject_id", flat=True))


def cancel_abandoned(*, now: datetime, limit: int = 100) -> int:
    """End the charges that have waited for their buyer for a day; how many have ended."""
    waiting = ProcessorOperation.objects.filter(
        kind=OperationKind.CHARGE, status=Status.ACTION_REQUIRED, sent_at__lte=now - ABANDONED_AFTER
    ).order_by("sent_at")
    ended = 0
    for operation in list(waiting[:limit]):
        try:
            _cancel(operation, now=now, actor=SYSTEM)
        except (ProcessorBusy, Conflict) as later:
            logger.info("not cancelled", extra={"operation_id": str(operation.id), "why": str(later)})
            continue
        ended += 1
    return ended


def _cancel(operation: ProcessorOperation, *, now: datetime, actor: Actor) -> ProcessorOperation:
    processor = processor_named(operation.processor)
    instruction = instruction_of(operation)
    outcome = through_gate(processor, lambda: processor.cancel(instruction))
    if outcome.status == OutcomeStatus.UNKNOWN:
        raise ProcessorBusy("whether the payment was cancelled is not known yet", retry_after_s=5)
    operation = record_outcome(operation_id=operation.id, outcome=outcome, now=now)
    if operation.status not in (Status.FAILED, Status.SUCCEEDED):
        raise Conflict("the bank is at it: the payment can no longer be cancelled")
    if operation.status == Status.FAILED:
        record_audit(
            organization_id=operation.organization_id,
            actor=actor,
            action="payment.cancelled",
            object_kind=operation.purpose,
            object_id=operation.subject_id,
            detail={"amount_micros": operation.amount_micros},
            now=now,
        )
    return operation
