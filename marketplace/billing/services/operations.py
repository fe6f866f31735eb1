"""The life of an operation: request row -> call -> record, each in a transaction of its own, resumable at any point.

A row is committed before the processor is called. Whoever dies in between leaves it `requested` or `sent`; the sweeper
takes it up when the lease has run out. What may have happened (`sent`, `unknown`) is looked up at the processor before
anything is sent again, and then under the stored key; a key older than 23 hours is not used any more.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q

from marketplace import clock
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import Instruction, Outcome, OutcomeStatus, ProcessorBusy
from marketplace.billing.processors.registry import payment_processor, processor_named
from marketplace.billing.services.bank_accounts import is_held
from marketplace.billing.services.payout_stops import is_stopped
from marketplace.billing.services.processor_effects import apply_outcome, tell_payout_failed
from marketplace.billing.services.processor_gate import through_gate
from marketplace.billing.services.processor_terms import NotReady, terms_of
from marketplace.ids import derived_id

logger = logging.getLogger(__name__)
Status = ProcessorOperation.Status

LEASE: Final = timedelta(seconds=60)
# Stripe keeps a key for 24 hours at least.
KEY_LIVES: Final = timedelta(hours=23)
# A failure that the processor repeats under its key: as long is waited for a late effect before a new key is made.
KEY_SETTLES: Final = timedelta(seconds=60)
OPEN: Final = (Status.REQUESTED, Status.SENT, Status.UNKNOWN)
_RANK: Final = {
    Status.REQUESTED: 0,
    Status.SENT: 1,
    Status.UNKNOWN: 1,
    Status.ACTION_REQUIRED: 2,
    Status.FAILED: 3,
    Status.SUCCEEDED: 4,
}
_STATUS: Final = {
    OutcomeStatus.SUCCEEDED: Status.SUCCEEDED,
    OutcomeStatus.FAILED: Status.FAILED,
    OutcomeStatus.ACTION_REQUIRED: Status.ACTION_REQUIRED,
    OutcomeStatus.UNKNOWN: Status.UNKNOWN,
    OutcomeStatus.PENDING: Status.SENT,
}
_REMEMBERED: Final = "remembered "
STALE: Final = "its key is too old to be used again: to be settled by hand"
# What the processor refuses today it may do tomorrow (requirements due, money not yet available): asked again hourly.
_ASKED_AGAIN: Final = (OperationKind.TRANSFER, OperationKind.PAYOUT)
_TO_PROVIDERS: Final = _ASKED_AGAIN
# A bank may send money back days after it was said to be there: a refund (its posting is undone), a payout (none is).
_SENT_BACK: Final = (OperationKind.REFUND, OperationKind.PAYOUT)


def request_operation(
    *,
    kind: str,
    fact_id: UUID,
    subject_id: UUID,
    organization_id: UUID,
    amount_micros: int = 0,
    currency: str,
    purpose: str = "",
    parent_id: UUID | None = None,
    terms: dict[str, str] | None = None,
    now: datetime,
) -> ProcessorOperation:
    """The row of one thing to ask for, in the caller's transaction; the one there is where it was requested before."""
    operation_id = derived_id(fact_id, kind)
    new = ProcessorOperation(
        id=operation_id,
        kind=kind,
        fact_id=fact_id,
        subject_id=subject_id,
        purpose=purpose,
        organization_id=organization_id,
        parent_id=parent_id,
        processor=payment_processor().name,
        idempotency_key=_key(operation_id, 1),
        amount_micros=amount_micros,
        currency=currency,
        terms=terms or {},
        requested_at=now,
        next_attempt_at=clock.wall_now(),
    )
    ProcessorOperation.objects.bulk_create([new], ignore_conflicts=True)
    return ProcessorOperation.objects.get(pk=operation_id)


def run_operation(*, operation_id: UUID, now: datetime) -> ProcessorOperation:
    """Bring an operation as far as it goes now. Again: nothing is done twice, whoever calls and however often.

    Never raises for the processor's sake: where it cannot be asked the row waits for the sweeper.
    """
    operation = _claim(operation_id)
    if operation is None:
        return ProcessorOperation.objects.get(pk=operation_id)
    try:
        if operation.status == Status.REQUESTED:
            return _send(operation, now=now)
        return _resolve(operation, now=now)
    except (ProcessorBusy, NotReady) as waiting:
        _let_go(operation, delay=timedelta(seconds=min(300, 5 * 2 ** min(operation.attempts, 6))))
        logger.info("operation waits", extra={"operation_id": str(operation.id), "why": str(waiting)})
        return ProcessorOperation.objects.get(pk=operation_id)


def refresh_operation(*, operation_id: UUID, now: datetime) -> ProcessorOperation:
    """Fetch what has become of it at the processor, and record that. Raises ProcessorBusy."""
    operation = ProcessorOperation.objects.get(pk=operation_id)
    if operation.status == Status.REQUESTED:
        return operation
    processor = processor_named(operation.processor)
    instruction = instruction_of(operation)
    if operation.object_id:
        outcome: Outcome | None = through_gate(processor, lambda: processor.state_of(instruction))
    else:
        outcome = through_gate(processor, lambda: processor.find(instruction))
    if outcome is None or outcome.status == OutcomeStatus.UNKNOWN:
        raise ProcessorBusy("what became of the operation is not known yet", retry_after_s=5)
    return record_outcome(operation_id=operation_id, outcome=outcome, now=now)


def close_page(*, operation_id: UUID, now: datetime) -> ProcessorOperation:
    """Let a page that waits for the buyer be paid on no more, and record that it failed; what he has paid there counts.

    Where the answer is lost it stands where it stood: ask again. Raises ProcessorBusy.
    """
    operation = ProcessorOperation.objects.get(pk=operation_id)
    if operation.kind != OperationKind.CHECKOUT or operation.status != Status.ACTION_REQUIRED:
        return operation
    processor = processor_named(operation.processor)
    outcome = through_gate(processor, lambda: processor.close_page(instruction_of(operation)))
    return record_outcome(operation_id=operation_id, outcome=outcome, now=now)


def resume_operations(*, now: datetime, limit: int = 100) -> int:
    """Take up what dead processes and a busy processor left; how many were looked at."""
    wall_now = clock.wall_now()
    due = (
        ProcessorOperation.objects.filter(status__in=OPEN, next_attempt_at__lte=wall_now)
        .filter(Q(lease_until__isnull=True) | Q(lease_until__lte=wall_now))
        .order_by("next_attempt_at")
        .values_list("id", flat=True)[:limit]
    )
    ids = list(due)
    for operation_id in ids:
        try:
            run_operation(operation_id=operation_id, now=now)
        except Exception:
            # One that always fails must not keep the others waiting; it comes again when its turn is.
            logger.exception(
                "an operation could not be brought on", extra={"operation_id": str(operation_id)}
            )
            ProcessorOperation.objects.filter(pk=operation_id).update(
                lease_until=None, next_attempt_at=clock.wall_now() + timedelta(minutes=10)
            )
    return len(ids)


def record_outcome(*, operation_id: UUID, outcome: Outcome, now: datetime) -> ProcessorOperation:
    """Write down what the processor said, with all that follows from it, in one transaction. Never backwards."""
    with transaction.atomic():
        operation = ProcessorOperation.objects.select_for_update().get(pk=operation_id)
        # While nobody waits for the answer the next look is a while off.
        operation.lease_until = None
        operation.next_attempt_at = clock.wall_now() + _pause(operation, outcome)
        wanted = Status(_STATUS[outcome.status])
        if (
            wanted == Status.FAILED
            and operation.kind in _ASKED_AGAIN
            and operation.status != Status.SUCCEEDED
        ):
            _ask_again(operation, outcome)
            tell_payout_failed(operation, operation.reason, now=now)
        elif _moves(operation, wanted):
            operation.status = wanted
            operation.object_id = outcome.reference or operation.object_id
            operation.charge_object_id = outcome.charge or operation.charge_object_id
            operation.action_url = outcome.action_url if wanted == Status.ACTION_REQUIRED else ""
            operation.reason = f"{_REMEMBERED if outcome.remembered else ''}{outcome.reason}"[:200]
            if wanted in (Status.SUCCEEDED, Status.FAILED):
                operation.ended_at = now
            apply_outcome(operation, outcome, now=now)
        operation.save()
        return operation


def _moves(operation: ProcessorOperation, wanted: Status) -> bool:
    held = Status(operation.status)
    if operation.kind in _SENT_BACK and held == Status.SUCCEEDED:
        return wanted == Status.FAILED
    return _RANK[wanted] > _RANK[held] or (
        _RANK[wanted] == _RANK[held] and wanted not in (Status.FAILED, Status.SUCCEEDED)
    )


def _claim(operation_id: UUID) -> ProcessorOperation | None:
    """Ours for the time of a lease, or None: ended, or somebody else is at it."""
    wall_now = clock.wall_now()
    free = ProcessorOperation.objects.filter(pk=operation_id, status__in=OPEN).filter(
        Q(lease_until__isnull=True) | Q(lease_until__lte=wall_now)
    )
    if not free.update(lease_until=wall_now + LEASE, attempts=F("attempts") + 1):
        return None
    return ProcessorOperation.objects.get(pk=operation_id)


def _let_go(operation: ProcessorOperation, *, delay: timedelta) -> None:
    ProcessorOperation.objects.filter(pk=operation.pk, lease_until=operation.lease_until).update(
        lease_until=None, next_attempt_at=clock.wall_now() + delay
    )


def _send(operation: ProcessorOperation, *, now: datetime) -> ProcessorOperation:
    processor = processor_named(operation.processor)
    if operation.kind in _TO_PROVIDERS and is_stopped(operation.organization_id):
        raise NotReady("the operator has stopped payouts")
    if operation.kind == OperationKind.PAYOUT and is_held(operation.organization_id, now=now):
        raise NotReady("the bank account was changed: payouts wait")
    if operation.sent_at is None:
        operation.terms |= terms_of(operation, now=now)
    if operation.status == Status.REQUESTED and operation.key_number > 1:
        # Asked again under another key, which would not answer what the old one did: look first. A person may have
        # given up what had happened all the same.
        made = through_gate(processor, lambda: processor.find(instruction_of(operation)))
        if made is not None and made.status not in (OutcomeStatus.FAILED, OutcomeStatus.UNKNOWN):
            return record_outcome(operation_id=operation.pk, outcome=made, now=now)
    wall_now = clock.wall_now()

    def call() -> Outcome:
        # Behind the gate, before the network: from here on it may have happened.
        marked = ProcessorOperation.objects.filter(
            pk=operation.pk, lease_until=operation.lease_until
        ).exclude(status__in=(Status.FAILED, Status.SUCCEEDED))
        if not marked.update(
            status=Status.SENT,
            sent_at=operation.sent_at or now,
            called_at=operation.called_at or wall_now,
            key_sent_at=operation.key_sent_at or wall_now,
            terms=operation.terms,
        ):
            raise ProcessorBusy("somebody else has taken the operation up", retry_after_s=1)
        operation.called_at = operation.called_at or wall_now
        return processor.perform(instruction_of(operation))

    try:
        outcome = through_gate(processor, call)
    except ProcessorBusy:
        # Refused before anything was done, so it stands where it stood: what was unknown before still is.
        ProcessorOperation.objects.filter(pk=operation.pk, status=Status.SENT, object_id="").update(
            status=operation.status
        )
        raise
    return record_outcome(operation_id=operation.pk, outcome=outcome, now=now)


def _resolve(operation: ProcessorOperation, *, now: datetime) -> ProcessorOperation:
    """It may have happened: look first, then send again under the same key while that is still good."""
    processor = processor_named(operation.processor)
    instruction = instruction_of(operation)
    if operation.object_id:
        outcome: Outcome | None = through_gate(processor, lambda: processor.state_of(instruction))
    else:
        outcome = through_gate(processor, lambda: processor.find(instruction))
    if outcome is not None:
        return record_outcome(operation_id=operation.pk, outcome=outcome, now=now)
    assert operation.key_sent_at is not None
    age = clock.wall_now() - operation.key_sent_at
    if age >= KEY_LIVES:
        return _leave_to_people(operation)
    if operation.reason.startswith(_REMEMBERED) and age >= KEY_SETTLES:
        # The processor would only repeat its failure, and it has made nothing in all that time.
        _new_key(operation)
        operation.save(update_fields=["idempotency_key", "key_number", "key_sent_at", "reason"])
    return _send(operation, now=now)


def _leave_to_people(operation: ProcessorOperation) -> ProcessorOperation:
    operation.status, operation.reason = Status.UNKNOWN, STALE
    operation.lease_until, operation.next_attempt_at = None, clock.wall_now() + timedelta(hours=1)
    operation.save(update_fields=["status", "reason", "lease_until", "next_attempt_at"])
    logger.error(
        "operation needs a person", extra={"operation_id": str(operation.id), "kind": operation.kind}
    )
    return operation


def _ask_again(operation: ProcessorOperation, outcome: Outcome) -> None:
    """Back to the start under a new key: the old one would answer the old refusal."""
    _new_key(operation)
    operation.status = Status.REQUESTED
    operation.object_id = ""
    operation.reason = outcome.reason[:200]
    operation.next_attempt_at = clock.wall_now() + timedelta(hours=1)


def _new_key(operation: ProcessorOperation) -> None:
    operation.key_number += 1
    operation.idempotency_key = _key(operation.id, operation.key_number)
    operation.key_sent_at = None
    operation.reason = ""


def _key(operation_id: UUID, number: int) -> str:
    return f"tokenyard-{operation_id.hex}-{number}"


def _pause(operation: ProcessorOperation, outcome: Outcome) -> timedelta:
    if outcome.status == OutcomeStatus.UNKNOWN:
        return timedelta(seconds=min(600, 5 * 2 ** min(operation.attempts, 7)))
    return timedelta(minutes=10)


def instruction_of(operation: ProcessorOperation) -> Instruction:
    """What the processor is told of it."""
    return Instruction(
        operation_id=operation.id,
        kind=operation.kind,
        key=operation.idempotency_key,
        organization_id=operation.organization_id,
        amount_micros=operation.amount_micros,
        currency=operation.currency,
        sent_at=operation.called_at,
        reference=operation.object_id,
        terms=operation.terms,
    )
