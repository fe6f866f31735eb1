"""What the machine does not settle by itself: operations whose key is too old or that stand open for long."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db.models import Q, QuerySet

from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import OPEN, STALE, record_outcome, run_operation
from marketplace.billing.services.processor_reconciling import ALARM_AFTER
from marketplace.errors import Conflict, InvalidInput, NotFound

Status = ProcessorOperation.Status


def operations_left_to_people(now: datetime) -> QuerySet[ProcessorOperation]:
    """Open for an hour and more, or not to be asked again under their key."""
    return ProcessorOperation.objects.filter(status__in=OPEN).filter(
        Q(requested_at__lt=now - ALARM_AFTER) | Q(reason=STALE)
    )


def give_up_operation(*, operation_id: UUID, reason: str, now: datetime, actor: Actor) -> ProcessorOperation:
    """A person has looked and says that it never happened: recorded as failed, with all that follows from that.

    The processor is asked once more before; what is found there counts instead. Raises NotFound, InvalidInput
    (reason), Conflict where it is not `unknown` with a key too old to be used.
    """
    if not reason.strip():
        raise InvalidInput("say why", field="reason")
    if not ProcessorOperation.objects.filter(pk=operation_id).exists():
        raise NotFound("There is no such operation.")
    operation = run_operation(operation_id=operation_id, now=now)
    if operation.status != Status.UNKNOWN or operation.reason != STALE:
        raise Conflict(f"it is {operation.status}: only what is left to people is given up")
    outcome = Outcome(OutcomeStatus.FAILED, reason=f"given up: {reason.strip()}")
    operation = record_outcome(operation_id=operation_id, outcome=outcome, now=now)
    record_audit(
        organization_id=operation.organization_id,
        actor=actor,
        action="processor_operation.given_up",
        object_kind="processor_operation",
        object_id=operation.id,
        detail={"kind": operation.kind, "reason": reason.strip()},
        now=now,
    )
    return operation
