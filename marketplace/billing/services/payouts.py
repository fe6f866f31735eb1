"""Money sent to providers, after their statement, where consent and destination are given.

A payout leaves in parts, each moved out of one payment of a buyer whom the statement is about (so that a payment that
is taken back later can be followed), the rest out of what lies free at the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import F, Sum

from marketplace.billing.documents import whole_minor_units
from marketplace.billing.models import Payout, ProcessorOperation, Statement, StatementLineEarning
from marketplace.billing.processor_models import COLLECTIONS, OperationKind
from marketplace.billing.processors.registry import payment_processor, processor_named
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.locks import lock_until_commit
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.payment_disputes import recover_owed
from marketplace.billing.services.processor_effects import payout_hold_id
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import account_id, open_hold

Status = ProcessorOperation.Status
_OPEN = (Status.REQUESTED, Status.SENT, Status.UNKNOWN)


def pay_out_statements(*, now: datetime) -> list[Payout]:
    """Begin the payouts of statements that have none, and bring every pending one as far as it goes."""
    payable = Statement.objects.filter(
        payout__isnull=True, net_micros__gt=0, organization__provider__self_billing_consent_at__isnull=False
    )
    for statement_id in list(payable.order_by("id").values_list("id", flat=True)):
        begin_payout(statement_id=statement_id, now=now)
    pending = Payout.objects.filter(status=Payout.Status.PENDING).order_by("id").values_list("id", flat=True)
    done = [finish_payout(payout_id=payout_id, now=now) for payout_id in list(pending)]
    send_to_banks(now=now)
    return done


def begin_payout(*, statement_id: UUID, now: datetime) -> Payout | None:
    """Set a statement's net aside on the payable account, in whole minor units; the rest stays there.

    None where payouts are blocked (`payout_blocked_reason` says why), where there is nothing to send, or where it
    was begun before. What the provider owes for disputed payments is taken first.
    """
    statement = Statement.objects.get(pk=statement_id)
    recover_owed(organization_id=statement.organization_id, now=now)
    with transaction.atomic():
        lock_until_commit(derived_id(statement_id, "payout"))
        if Payout.objects.filter(statement=statement).exists() or payout_blocked_reason(
            statement.organization_id
        ):
            return None
        available = balance(
            organization_id=statement.organization_id, kind=AccountKind.PAYABLE, currency=statement.currency
        ).available_micros
        amount = whole_minor_units(max(0, min(statement.net_micros, available)), statement.currency)
        if amount == 0:
            return None
        return _request(statement, amount, now=now)


def _request(statement: Statement, amount_micros: int, *, now: datetime) -> Payout:
    payout = Payout.objects.create(
        id=derived_id(statement.id, "payout"),
        organization_id=statement.organization_id,
        statement=statement,
        amount_micros=amount_micros,
        currency=statement.currency,
        processor=payment_processor().name,
        created_at=now,
    )
    payable = account_id(
        organization_id=payout.organization_id, kind=AccountKind.PAYABLE, currency=payout.currency, now=now
    )
    for number, (payment, part_micros) in enumerate(_parts(statement, payout)):
        request_operation(
            kind=OperationKind.TRANSFER,
            fact_id=derived_id(payout.id, f"part:{number}"),
            subject_id=payout.id,
            organization_id=payout.organization_id,
            amount_micros=part_micros,
            currency=payout.currency,
            parent_id=payment.id if payment else None,
            terms={"charge": payment.charge_object_id} if payment else {},
            now=now,
        )
        if payment:
            ProcessorOperation.objects.filter(pk=payment.pk).update(
                transferred_micros=F("transferred_micros") + part_micros
            )
    open_hold(
        id=payout_hold_id(payout.id),
        account_id=payable,
        amount_micros=amount_micros,
        code="payout",
        reference_id=payout.id,
        now=now,
    )
    return payout


def _parts(statement: Statement, payout: Payout) -> Iterator[tuple[ProcessorOperation | None, int]]:
    """Which payments a payout is taken from: each buyer's own, oldest first, at most what he brought to it."""
    left = payout.amount_micros
    buyers = (
        StatementLineEarning.objects.filter(line__statement=statement)
        .values("earning__charge__organization")
        .annotate(net=Sum(F("earning__gross_micros") - F("earning__fee_micros")))
        .order_by("earning__charge__organization")
    )
    for row in buyers:
        share = whole_minor_units(min(left, max(0, int(row["net"]))), payout.currency)
        payments = (
            ProcessorOperation.objects.select_for_update()
            .filter(
                organization_id=row["earning__charge__organization"],
                processor=payout.processor,
                kind__in=COLLECTIONS,
                status=Status.SUCCEEDED,
                currency=payout.currency,
                disputes__isnull=True,
            )
            .order_by("id")
        )
        for payment in payments.select_for_update(of=("self",)):
            free = payment.amount_micros - payment.transferred_micros - payment.refunded_micros
            part = min(share, free)
            if part > 0:
                share, left = share - part, left - part
                yield payment, part
            if share == 0:
                break
    if left:
        yield None, left


def finish_payout(*, payout_id: UUID, now: datetime) -> Payout:
    """Ask the processor for every part that has not been sent, outside of any transaction of ours."""
    parts = ProcessorOperation.objects.filter(
        subject_id=payout_id, kind=OperationKind.TRANSFER, status__in=_OPEN
    ).order_by("id")
    if (
        payout_blocked_reason(Payout.objects.values_list("organization_id", flat=True).get(pk=payout_id))
        is None
    ):
        for operation_id in list(parts.values_list("id", flat=True)):
            run_operation(operation_id=operation_id, now=now)
    return Payout.objects.get(pk=payout_id)


def send_to_banks(*, now: datetime) -> int:
    """From the provider's account at the processor to his bank, once it has arrived there; how many were begun.

    No posting hangs on it: since the transfer the money is the provider's own.
    """
    asked = ProcessorOperation.objects.filter(kind=OperationKind.PAYOUT).values("subject_id")
    paid = Payout.objects.filter(status=Payout.Status.PAID, processor="stripe").exclude(pk__in=asked)
    begun = 0
    for payout in list(paid.order_by("id")):
        assert processor_named(payout.processor).needs_card
        operation = request_operation(
            kind=OperationKind.PAYOUT,
            fact_id=payout.id,
            subject_id=payout.id,
            organization_id=payout.organization_id,
            amount_micros=payout.amount_micros,
            currency=payout.currency,
            now=now,
        )
        run_operation(operation_id=operation.id, now=now)
        begun += 1
    return begun
