"""Money sent to providers: what was stated, after the holding time, less what is retained.

A payout leaves in parts, each moved out of one payment of a buyer whom the statement is about (so that a payment that
is taken back later can be followed), the rest out of what lies free at the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, Sum

from marketplace.accounts.organization_clocks import keeping
from marketplace.billing.models import (
    Payout,
    ProcessorAccount,
    ProcessorOperation,
    Statement,
    StatementLineEarning,
)
from marketplace.billing.payout_status import PayoutStatus, payout_status
from marketplace.billing.processor_models import COLLECTIONS, OperationKind
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.processors.registry import payment_processor, processor_named
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.bank_accounts import is_held
from marketplace.billing.services.bonds import retain_for_bond
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.payment_disputes import recover_owed
from marketplace.billing.services.payout_destinations import apply_due_destination, apply_due_destinations
from marketplace.billing.services.processor_effects import payout_hold_id
from marketplace.billing.services.provider_accounts import refresh_account
from marketplace.ids import derived_id
from marketplace.isolating import for_each, isolated
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import available_by_organization
from marketplace.ledger.services import InsufficientFunds, account_id, open_hold
from providers.models import Provider

Status = ProcessorOperation.Status
_OPEN = (Status.REQUESTED, Status.SENT, Status.UNKNOWN)


def pay_out_statements(*, now: datetime, organization_id: UUID | None = None) -> list[Payout]:
    """Begin the payouts that are due, and bring every pending one as far as it goes.

    Of the providers that keep real time, or of one, at its own time; then what fails is raised.
    """
    strict = organization_id is not None
    isolated(
        "billing.payout_destinations",
        lambda: apply_due_destinations(now=now, organization_id=organization_id),
        now=now,
        strict=strict,
    )
    kept = keeping(Provider.objects.order_by("id"), organization_id)
    providers = kept.values_list("organization_id", flat=True)
    owed = available_by_organization(providers, kind=AccountKind.PAYABLE, currency=settings.MARKET_CURRENCY)
    for_each(
        "billing.begin_payout",
        [owner for owner, amount in owed.items() if amount > 0],
        lambda owner: begin_payout(organization_id=owner, now=now),
        key=str,
        now=now,
        strict=strict,
    )
    pending = keeping(Payout.objects.all(), organization_id).filter(status=Payout.Status.PENDING)
    done: list[Payout] = []
    for_each(
        "billing.finish_payout",
        list(pending.order_by("id").values_list("id", flat=True)),
        lambda payout_id: done.append(finish_payout(payout_id=payout_id, now=now)),
        key=str,
        now=now,
        strict=strict,
    )
    isolated("billing.send_to_banks", lambda: send_to_banks(now=now), now=now, strict=strict)
    return done


def begin_payout(*, organization_id: UUID, now: datetime) -> Payout | None:
    """Set what is ready of a provider's balance aside on the payable account, in whole steps; the rest stays.

    What he owes for disputed payments is taken first, then what his bond lacks. None where something stands against
    it (`payout_status` says what). With a new statement a payout begins as soon as that is payable, without one at
    most once in a UTC day. Two runs at once wait for each other at the lock of the profile.
    """
    recover_owed(organization_id=organization_id, now=now)
    with transaction.atomic():
        provider = apply_due_destination(organization_id=organization_id, now=now)
        retain_for_bond(organization_id=organization_id, now=now)
        status = payout_status(organization_id, now=now)
        if status.reasons:
            return None
        statements = _unpaid_statements(organization_id, now=now)
        payout_id = derived_id(
            statements[-1].id if statements else organization_id,
            "payout" if statements else f"payout:{now.astimezone(UTC).date().isoformat()}",
        )
        if Payout.objects.filter(pk=payout_id).exists():
            return None
        try:
            with transaction.atomic():
                return _request(payout_id, provider, statements, status, now=now)
        except InsufficientFunds:
            return None  # A remedy took it in the same moment; the next run sees what is left.


def _unpaid_statements(organization_id: UUID, *, now: datetime) -> list[Statement]:
    """Payable statements after the last one that was paid out, oldest first."""
    statements = Statement.objects.filter(organization_id=organization_id)
    paid = statements.filter(payout__isnull=False).order_by("-period_start").first()
    if paid is not None:
        statements = statements.filter(period_start__gt=paid.period_start)
    payable = statements.filter(Q(payable_at__isnull=True) | Q(payable_at__lte=now), net_micros__gt=0)
    return list(payable.order_by("period_start"))


def _request(
    payout_id: UUID,
    provider: Provider,
    statements: Sequence[Statement],
    status: PayoutStatus,
    *,
    now: datetime,
) -> Payout:
    payout = Payout.objects.create(
        id=payout_id,
        organization_id=provider.organization_id,
        statement=statements[-1] if statements else None,
        destination=_destination_of(provider),
        amount_micros=status.ready_micros,
        retained_micros=status.retained_micros,
        currency=settings.MARKET_CURRENCY,
        processor=payment_processor().name,
        created_at=now,
    )
    payable = account_id(
        organization_id=payout.organization_id, kind=AccountKind.PAYABLE, currency=payout.currency, now=now
    )
    for number, (payment, part_micros) in enumerate(_parts(statements, payout)):
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
        amount_micros=payout.amount_micros,
        code="payout",
        reference_id=payout.id,
        now=now,
    )
    return payout


def _destination_of(provider: Provider) -> str:
    """The bank reference, or the provider's account at the processor, which keeps the bank's."""
    if not payment_processor().needs_card:
        return provider.payout_destination
    accounts = ProcessorAccount.objects.filter(
        organization_id=provider.organization_id, processor=payment_processor().name
    )
    return accounts.values_list("account_id", flat=True).first() or ""


def _parts(
    statements: Sequence[Statement], payout: Payout
) -> Iterator[tuple[ProcessorOperation | None, int]]:
    """Which payments a payout is taken from: each buyer's own, oldest first, at most what he brought to it."""
    left = payout.amount_micros
    step = processor_named(payout.processor).step_micros(payout.currency)
    buyers = (
        StatementLineEarning.objects.filter(line__statement__in=list(statements))
        .values("earning__charge__organization")
        .annotate(net=Sum(F("earning__gross_micros") - F("earning__fee_micros")))
        .order_by("earning__charge__organization")
    )
    for row in buyers:
        share = min(left, max(0, int(row["net"]))) // step * step
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
    organization_id = Payout.objects.values_list("organization_id", flat=True).get(pk=payout_id)
    if payout_blocked_reason(organization_id) is None:
        for operation_id in list(parts.values_list("id", flat=True)):
            run_operation(operation_id=operation_id, now=now)
    return Payout.objects.get(pk=payout_id)


def _may_go_to_bank(payout: Payout, *, now: datetime) -> bool:
    """Whether the bank account there now is one that has been there long enough, by what the processor says now."""
    account = ProcessorAccount.objects.filter(
        organization_id=payout.organization_id, processor=payout.processor
    ).first()
    try:
        if account is not None:
            refresh_account(account_id=account.account_id, now=now)
    except ProcessorBusy:
        return False
    return not is_held(payout.organization_id, now=now)


def send_to_banks(*, now: datetime) -> int:
    """From the provider's account at the processor to his bank, once it has arrived there; how many were begun.

    No posting hangs on it: since the transfer the money is the provider's own.
    """
    asked = ProcessorOperation.objects.filter(kind=OperationKind.PAYOUT).values("subject_id")
    paid = Payout.objects.filter(status=Payout.Status.PAID, processor="stripe").exclude(pk__in=asked)
    begun = 0
    for payout in list(paid.order_by("id")):
        assert processor_named(payout.processor).needs_card
        if not _may_go_to_bank(payout, now=now):
            continue
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
