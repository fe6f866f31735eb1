"""What no message told us, and whether the processor's balance is what the books say.

Every five minutes: events that never arrived are put into the inbox and applied, what stands open is looked up, and so
are providers' accounts; what has waited for a buyer for a day is cancelled. Once a day: the processor's fees are posted
and its balance is compared with the books.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction

from marketplace import clock
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.models import (
    PaymentDispute,
    ProcessorEvent,
    ProcessorOperation,
    ProcessorReport,
)
from marketplace.billing.operator_models import OperatorPosting
from marketplace.billing.processors.base import Movement, PaymentProcessor, ProcessorBusy
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.cancelling import cancel_abandoned
from marketplace.billing.services.operations import resume_operations
from marketplace.billing.services.processor_effects import market_account
from marketplace.billing.services.processor_events import apply_events, receive_notice
from marketplace.billing.services.processor_gate import through_gate
from marketplace.billing.services.provider_accounts import refresh_unsure_accounts
from marketplace.ids import derived_id
from marketplace.jobs import claim_job, finish_job
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import NewTransfer, post_transfers
from marketplace.periods import period_at

# Messages that should have come long before: as far back is looked each time, the processor keeps 30 days.
LOOK_BACK: Final = timedelta(hours=2)
_FIRST_LOOK_BACK: Final = timedelta(days=29)
ALARM_AFTER: Final = timedelta(hours=1)
_DAY_S: Final = 86_400
_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Reconciled:
    """`missed` events that no message brought, `overdue` operations open for an hour, the day's report if due."""

    missed: int
    overdue: int
    report: ProcessorReport | None = None


def reconcile_processor(*, now: datetime) -> Reconciled:
    """Catch up with what was missed; with the day's first call, compare balances. Again: nothing changes."""
    processor = payment_processor()
    if not processor.needs_card:
        return Reconciled(0, 0)
    missed = _catch_up(processor, now=now)
    cancel_abandoned(now=now)
    refresh_unsure_accounts(now=now)
    report = None
    day = period_at(now, _DAY_S).start
    if claim_job(job="reconcile_processor", period_start=day, now=now):
        report = compare_balances(now=now)
        finish_job(job="reconcile_processor", period_start=day, now=now)
    return Reconciled(missed, len(_overdue(now)), report)


def _catch_up(processor: PaymentProcessor, *, now: datetime) -> int:
    wall_now = clock.wall_now()
    known = ProcessorEvent.objects.filter(processor=processor.name).order_by("-occurred_at").first()
    since = wall_now - _FIRST_LOOK_BACK
    if known is not None:
        since = max(since, min(known.occurred_at, wall_now) - LOOK_BACK)
    try:
        notices = through_gate(processor, lambda: list(processor.notices(since=since)))
    except ProcessorBusy:
        return 0
    missed = sum(
        receive_notice(processor=processor.name, notice=notice, now=now) for notice in reversed(notices)
    )
    apply_events(now=now, limit=1_000)
    resume_operations(now=now)
    return missed


def compare_balances(*, now: datetime) -> ProcessorReport:
    """Post the processor's fees and write a report of what differs. Raises ProcessorBusy."""
    processor = payment_processor()
    currency = settings.MARKET_CURRENCY
    last = ProcessorReport.objects.filter(processor=processor.name).order_by("-until").first()
    wall_now = clock.wall_now()
    since = last.until - LOOK_BACK if last else wall_now - timedelta(days=365)
    movements = through_gate(processor, lambda: list(processor.movements(since=since)))
    theirs = through_gate(processor, lambda: processor.balance_micros(currency))
    assert theirs is not None
    with transaction.atomic():
        fees = _post_fees(processor, movements, now=now)
        ours = balance(
            organization_id=operator_organization().id, kind=AccountKind.PROCESSOR, currency=currency
        ).posted_micros
        strangers = [
            f"{one.kind} {one.source or one.reference} {one.amount_micros}"
            for one in movements
            if not _is_ours(processor, one)
        ]
        details = {
            "fees_posted": fees,
            "movements": len(movements),
            "unknown_movements": strangers[:_NAMED],
            "open_operations": [str(one) for one in _overdue(now)[:_NAMED]],
        }
        return ProcessorReport.objects.create(
            processor=processor.name,
            since=since,
            until=wall_now,
            currency=currency,
            ledger_micros=ours,
            processor_micros=theirs,
            difference_micros=theirs - ours,
            details=details,
            created_at=now,
        )


def _post_fees(processor: PaymentProcessor, movements: list[Movement], *, now: datetime) -> int:
    """What the processor keeps for itself is the operator's cost; once for each of its movements."""
    operator = operator_organization().id
    transfers = []
    for one in movements:
        if one.fee_micros == 0 or one.currency != settings.MARKET_CURRENCY:
            continue
        debit = market_account(AccountKind.OPERATOR, one.currency, now)
        credit = market_account(AccountKind.PROCESSOR, one.currency, now)
        if one.fee_micros < 0:
            debit, credit = credit, debit
        transfers.append(
            NewTransfer(
                id=derived_id(operator, f"fee:{processor.name}:{one.reference}"),
                debit_id=debit,
                credit_id=credit,
                amount_micros=abs(one.fee_micros),
                code="processor_fee",
            )
        )
    return post_transfers(transfers, now=now)


def _is_ours(processor: PaymentProcessor, one: Movement) -> bool:
    posted = OperatorPosting.objects.exclude(reference="")
    if posted.filter(reference__in=[one.source, one.reference]).exists():
        return True
    if not one.source:
        return False  # What it bills for itself has none, as have operations that were never made there.
    operations = ProcessorOperation.objects.filter(processor=processor.name)
    return (
        operations.filter(object_id=one.source).exists()
        or operations.filter(charge_object_id=one.source).exists()
        or PaymentDispute.objects.filter(object_id=one.source).exists()
    )


def _overdue(now: datetime) -> list[object]:
    open_statuses = (
        ProcessorOperation.Status.REQUESTED,
        ProcessorOperation.Status.SENT,
        ProcessorOperation.Status.UNKNOWN,
    )
    rows = ProcessorOperation.objects.filter(status__in=open_statuses, requested_at__lt=now - ALARM_AFTER)
    return list(rows.order_by("id").values_list("id", flat=True))
