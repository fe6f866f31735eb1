"""What the processor tells us: written down first, applied later by looking at the object as it is now.

The order, the number and the content of messages decide nothing; only that something happened is taken from them. So a
message twice, late, in the wrong order or not at all (the reconciler finds it) leads to the same books.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db.models import F, Q

from marketplace import clock
from marketplace.billing.models import ProcessorEvent, ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS
from marketplace.billing.processors.base import Notice, ProcessorBusy
from marketplace.billing.processors.registry import processor_named
from marketplace.billing.services.operations import refresh_operation
from marketplace.billing.services.payment_disputes import record_dispute
from marketplace.billing.services.processor_gate import through_gate
from marketplace.billing.services.provider_accounts import refresh_account

logger = logging.getLogger(__name__)
# As long may an operation's row be behind the message about it.
PATIENCE: Final = timedelta(hours=24)
_LEASE: Final = timedelta(seconds=60)
_OF_PAYMENTS: Final = (
    "payment_intent.",
    "charge.",
    "checkout.session.",
    "setup_intent.",
    "refund.",
    "transfer.",
    "payout.",
)


def receive_notice(*, processor: str, notice: Notice, now: datetime) -> bool:
    """Keep it. False where it is here already: the same event may come any number of times, also at once."""
    new = ProcessorEvent(
        processor=processor,
        event_id=notice.event_id,
        event_type=notice.event_type[:80],
        object_id=notice.object_id[:120],
        account_id=notice.account_id,
        operation_id=notice.operation_id,
        occurred_at=notice.occurred_at,
        received_at=now,
        next_attempt_at=clock.wall_now(),
    )
    ProcessorEvent.objects.bulk_create([new], ignore_conflicts=True)
    return ProcessorEvent.objects.filter(pk=new.pk).exists()


def apply_events(*, now: datetime, limit: int = 200) -> int:
    """Apply what has come and is due; how many were looked at."""
    due = ProcessorEvent.objects.filter(
        status=ProcessorEvent.Status.RECEIVED, next_attempt_at__lte=clock.wall_now()
    ).order_by("next_attempt_at")
    ids = list(due.values_list("id", flat=True)[:limit])
    for event_id in ids:
        apply_event(event_id=event_id, now=now)
    return len(ids)


def apply_event(*, event_id: UUID, now: datetime) -> None:
    """One message. What cannot be done yet is tried again; nothing that fails here is lost."""
    wall_now = clock.wall_now()
    due = ProcessorEvent.objects.filter(
        pk=event_id, status=ProcessorEvent.Status.RECEIVED, next_attempt_at__lte=wall_now
    )
    # The lease is the next attempt: who dies here leaves it for then.
    if not due.update(next_attempt_at=wall_now + _LEASE, attempts=F("attempts") + 1):
        return
    event = ProcessorEvent.objects.get(pk=event_id)
    try:
        known = _apply(event, now=now)
    except ProcessorBusy as waiting:
        _later(event, str(waiting))
        return
    except Exception as error:
        logger.exception("a message of the processor could not be applied", extra={"event_id": str(event.id)})
        _later(event, type(error).__name__)
        return
    if known:
        _end(event, ProcessorEvent.Status.APPLIED)
    elif event.operation_id and now - event.received_at < PATIENCE:
        _later(event, "the operation is not here yet")
    else:
        _end(event, ProcessorEvent.Status.IGNORED)


def _apply(event: ProcessorEvent, *, now: datetime) -> bool:
    """Whether it was about something of ours."""
    processor = processor_named(event.processor)
    if event.event_type.startswith("charge.dispute."):
        state = through_gate(processor, lambda: processor.dispute(event.object_id))
        if record_dispute(state=state, now=now) is not None:
            return True
        if now - event.received_at < PATIENCE:
            raise ProcessorBusy("the disputed payment is not here yet")
        return False
    if event.event_type.startswith("account."):
        return refresh_account(account_id=event.account_id or event.object_id, now=now)
    if not event.event_type.startswith(_OF_PAYMENTS):
        return False
    operation = _operation_of(event)
    if operation is None:
        return False
    if operation.status == ProcessorOperation.Status.REQUESTED:
        # It is about something that our own call has not yet come back from, or come to.
        raise ProcessorBusy("the operation has not been sent yet")
    refresh_operation(operation_id=operation.id, now=now)
    return True


def _operation_of(event: ProcessorEvent) -> ProcessorOperation | None:
    by_object = Q(object_id=event.object_id) | Q(charge_object_id=event.object_id, kind__in=COLLECTIONS)
    if event.operation_id is not None:
        found = ProcessorOperation.objects.filter(pk=event.operation_id, processor=event.processor).first()
        if found is not None:
            return found
    return (
        ProcessorOperation.objects.filter(by_object, processor=event.processor).exclude(object_id="").first()
    )


def _later(event: ProcessorEvent, why: str) -> None:
    delay = timedelta(seconds=min(600, 2 ** min(event.attempts, 10)))
    ProcessorEvent.objects.filter(pk=event.pk).update(
        next_attempt_at=clock.wall_now() + delay, error=why[:200]
    )


def _end(event: ProcessorEvent, status: str) -> None:
    ProcessorEvent.objects.filter(pk=event.pk).update(status=status, error="")
