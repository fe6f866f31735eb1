"""A payment that the buyer's bank takes back: who bears it, in which order, and what happens when it is won.

What had paid an invoice is due again on it: the buyer owes it, providers keep what they were sent. Of all else his
unspent balance pays first. The rest the market bears, and takes it back from providers who were sent part of this
payment: by a reversal, else it is owed by them, and what they owe is taken from what they earn.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import F, Sum

from marketplace.billing.models import DisputeShare, PaymentDispute, ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS, OperationKind
from marketplace.billing.processors.base import DisputeState
from marketplace.billing.processors.registry import processor_named
from marketplace.billing.services.invoice_payments import close_restored, reopen, restore
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.processor_effects import market_account, owed_account
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import InsufficientFunds, NewTransfer, account_id, post_transfers
from marketplace.webhooks.services import record_event

Status = PaymentDispute.Status
_Part = tuple[str, UUID, int]


def record_dispute(*, state: DisputeState, now: datetime) -> PaymentDispute | None:
    """Bring our side to what the processor says now. None where the payment is not (yet) ours. Again: nothing."""
    with transaction.atomic():
        payment = (
            ProcessorOperation.objects.select_for_update()
            .filter(charge_object_id=state.charge, kind__in=COLLECTIONS, status="succeeded")
            .first()
        )
        if payment is None:
            return None
        dispute = PaymentDispute.objects.filter(object_id=state.reference).first()
        if dispute is None and state.status != "inquiry":
            dispute = _open(payment, state, now=now)
        if dispute is not None and state.status in (Status.WON, Status.LOST):
            _close(dispute, state.status, now=now)
    if dispute is not None:
        _reverse(dispute, now=now)
    return dispute


def _open(payment: ProcessorOperation, state: DisputeState, *, now: datetime) -> PaymentDispute:
    dispute_id = derived_id(payment.id, f"dispute:{state.reference}")
    debts: list[_Part] = []
    reopened = 0
    if payment.purpose == ProcessorOperation.Purpose.INVOICE:
        reopened, debt = reopen(payment_id=payment.subject_id, amount_micros=state.amount_micros, now=now)
        debts.append(("reopened", debt, reopened))
    left = state.amount_micros - reopened
    unspent = balance(
        organization_id=payment.organization_id, kind=_own_kind(payment), currency=state.currency
    ).available_micros
    own = min(left, max(0, unspent))
    try:
        with transaction.atomic():
            _post_taken(payment, dispute_id, debts, own, left - own, now=now)
    except InsufficientFunds:
        # Spent in the same moment: the market bears all of it.
        own = 0
        _post_taken(payment, dispute_id, debts, own, left, now=now)
    dispute = PaymentDispute.objects.create(
        id=dispute_id,
        payment=payment,
        object_id=state.reference,
        amount_micros=state.amount_micros,
        from_balance_micros=own,
        reopened_micros=reopened,
        currency=state.currency,
        created_at=now,
    )
    _share_out(dispute, left - own, now=now)
    record_event(
        organization_id=payment.organization_id,
        event_type="dispute.opened",
        fact_id=dispute_id,
        data={
            "dispute_id": str(dispute_id),
            "payment_id": str(payment.subject_id),
            "amount_micros": dispute.amount_micros,
            "due_again_micros": reopened,
            "currency": dispute.currency,
        },
        now=now,
    )
    return dispute


def _own_kind(payment: ProcessorOperation) -> AccountKind:
    """Where the payment went, and comes from first when it is taken back: a bond, or the prepaid balance."""
    return AccountKind.BOND if payment.purpose == ProcessorOperation.Purpose.BOND else AccountKind.PREPAID


def _post_taken(
    payment: ProcessorOperation,
    dispute_id: UUID,
    debts: list[_Part],
    own_micros: int,
    market_micros: int,
    *,
    now: datetime,
) -> None:
    prepaid = account_id(
        organization_id=payment.organization_id, kind=_own_kind(payment), currency=payment.currency, now=now
    )
    operator = market_account(AccountKind.OPERATOR, payment.currency, now)
    parts = [*debts, ("from_balance", prepaid, own_micros), ("from_market", operator, market_micros)]
    transfers = [
        NewTransfer(
            id=derived_id(dispute_id, code),
            debit_id=debit,
            credit_id=market_account(AccountKind.PROCESSOR, payment.currency, now),
            amount_micros=amount,
            code="dispute",
            reference_id=dispute_id,
        )
        for code, debit, amount in parts
        if amount
    ]
    post_transfers(transfers, now=now)


def _share_out(dispute: PaymentDispute, left_micros: int, *, now: datetime) -> None:
    """Newest transfers first: they are the likeliest to lie in the provider's account still."""
    step = processor_named(dispute.payment.processor).step_micros(dispute.currency)
    transfers = ProcessorOperation.objects.filter(
        parent_id=dispute.payment_id, kind=OperationKind.TRANSFER, status="succeeded"
    ).order_by("-id")
    for transfer in transfers:
        taken = DisputeShare.objects.filter(transfer=transfer).exclude(dispute__status=Status.WON)
        before = taken.aggregate(sum=Sum("amount_micros"))["sum"] or 0
        # Down to what the processor can move: below that it stays with the market.
        amount = min(left_micros, transfer.amount_micros - before) // step * step
        if amount <= 0:
            continue
        left_micros -= amount
        share = DisputeShare.objects.create(
            id=derived_id(dispute.id, f"share:{transfer.id}"),
            dispute=dispute,
            organization_id=transfer.organization_id,
            transfer=transfer,
            amount_micros=amount,
            created_at=now,
        )
        request_operation(
            kind=OperationKind.REVERSAL,
            fact_id=share.id,
            subject_id=dispute.id,
            organization_id=share.organization_id,
            amount_micros=amount,
            currency=dispute.currency,
            parent_id=transfer.id,
            terms={"transfer": transfer.object_id},
            now=now,
        )


def _reverse(dispute: PaymentDispute, *, now: datetime) -> None:
    waiting = ProcessorOperation.objects.filter(
        subject_id=dispute.id, kind=OperationKind.REVERSAL, status=ProcessorOperation.Status.REQUESTED
    )
    for operation_id in list(waiting.values_list("id", flat=True)):
        run_operation(operation_id=operation_id, now=now)


def _close(dispute: PaymentDispute, status: str, *, now: datetime) -> None:
    """Won: everybody gets back what was taken from him. Lost: it stays as it was booked."""
    locked = PaymentDispute.objects.select_for_update().get(pk=dispute.pk)
    if locked.status != Status.OPEN:
        return
    PaymentDispute.objects.filter(pk=locked.pk).update(status=status, ended_at=now)
    dispute.status = status
    record_event(
        organization_id=locked.payment.organization_id,
        event_type="dispute.closed",
        fact_id=locked.id,
        data={
            "dispute_id": str(locked.id),
            "payment_id": str(locked.payment.subject_id),
            "status": str(status),
            "amount_micros": locked.amount_micros,
            "currency": locked.currency,
        },
        now=now,
    )
    if status != Status.WON:
        return
    currency = locked.currency
    operator = market_account(AccountKind.OPERATOR, currency, now)
    processor = market_account(AccountKind.PROCESSOR, currency, now)
    prepaid = account_id(
        organization_id=locked.payment.organization_id,
        kind=_own_kind(locked.payment),
        currency=currency,
        now=now,
    )
    own = locked.from_balance_micros
    moves: list[tuple[str, UUID, UUID, int]] = []
    of_invoice = locked.payment.purpose == ProcessorOperation.Purpose.INVOICE
    if of_invoice:
        paid, debt = restore(
            payment_id=locked.payment.subject_id, amount_micros=locked.amount_micros, now=now
        )
        paid = min(paid, locked.reopened_micros)
        moves.append(("won_debt", processor, debt, paid))
        own += locked.reopened_micros - paid
    borne = locked.amount_micros - locked.from_balance_micros - locked.reopened_micros
    moves += [("won_balance", processor, prepaid, own), ("won_market", processor, operator, borne)]
    for share in locked.shares.select_for_update().order_by("id"):
        payable = account_id(
            organization_id=share.organization_id, kind=AccountKind.PAYABLE, currency=currency, now=now
        )
        if share.status == DisputeShare.Status.REVERSED:
            moves.append((f"won:{share.id}", operator, payable, share.amount_micros))
        elif share.status in (DisputeShare.Status.OWED, DisputeShare.Status.SETTLED):
            owed = owed_account(share, currency, now)
            moves.append(
                (f"won_owed:{share.id}", operator, owed, share.amount_micros - share.recovered_micros)
            )
            moves.append((f"won:{share.id}", operator, payable, share.recovered_micros))
        if share.status != DisputeShare.Status.REQUESTED:  # else the reversal under way settles it
            DisputeShare.objects.filter(pk=share.pk).update(status=DisputeShare.Status.SETTLED)
    transfers = [
        NewTransfer(
            id=derived_id(locked.id, code),
            debit_id=debit,
            credit_id=credit,
            amount_micros=amount,
            code="dispute_won",
            reference_id=locked.id,
        )
        for code, debit, credit, amount in moves
        if amount
    ]
    post_transfers(transfers, now=now)
    if of_invoice:
        close_restored(payment_id=locked.payment.subject_id, now=now)


def recover_owed(*, organization_id: UUID, now: datetime) -> int:
    """Take what a provider owes for disputed payments from what he has earned since; how much was taken."""
    taken = 0
    owing = DisputeShare.objects.filter(organization_id=organization_id, status=DisputeShare.Status.OWED)
    for share_id in list(owing.order_by("id").values_list("id", flat=True)):
        with transaction.atomic():
            share = DisputeShare.objects.select_for_update().select_related("dispute").get(pk=share_id)
            if share.status != DisputeShare.Status.OWED:
                continue
            currency = share.dispute.currency
            available = balance(
                organization_id=organization_id, kind=AccountKind.PAYABLE, currency=currency
            ).available_micros
            amount = min(max(0, available), share.amount_micros - share.recovered_micros)
            if amount == 0:
                continue
            transfer = NewTransfer(
                id=derived_id(share.id, f"recovered:{share.recovered_micros}"),
                debit_id=account_id(
                    organization_id=organization_id, kind=AccountKind.PAYABLE, currency=currency, now=now
                ),
                credit_id=owed_account(share, currency, now),
                amount_micros=amount,
                code="dispute_recovered",
                reference_id=share.dispute_id,
            )
            post_transfers([transfer], now=now)
            DisputeShare.objects.filter(pk=share.pk).update(recovered_micros=F("recovered_micros") + amount)
            if share.recovered_micros + amount == share.amount_micros:
                DisputeShare.objects.filter(pk=share.pk).update(status=DisputeShare.Status.SETTLED)
            taken += amount
    return taken
