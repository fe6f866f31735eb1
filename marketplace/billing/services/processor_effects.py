"""What follows from an operation's new status: postings and the rows of those who asked, in the caller's transaction.

Ids of postings derive from the business fact, so that whichever way a fact is learnt (answer, webhook, reconciler) and
however often, it is posted once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Least

from marketplace.accounts.selectors import operator_organization
from marketplace.billing.models import (
    BondDeposit,
    DisputeShare,
    PaymentDispute,
    Payout,
    ProcessorAccount,
    ProcessorOperation,
    ProcessorPayer,
    TopUp,
)
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import Outcome
from marketplace.billing.services.invoice_payments import settle_payment, tell_action_required
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, Hold, LedgerAccount, Transfer
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import (
    NewTransfer,
    account_id,
    close_hold,
    post_transfers,
    set_overdraft_limit,
)
from marketplace.webhooks.services import record_event

logger = logging.getLogger(__name__)
Status = ProcessorOperation.Status
Purpose = ProcessorOperation.Purpose


def apply_outcome(operation: ProcessorOperation, outcome: Outcome, *, now: datetime) -> None:
    """The operation's row is locked by the caller and carries its new status, not yet saved."""
    effect = _EFFECTS.get(OperationKind(operation.kind))
    if effect is not None:
        effect(operation, outcome, now)


def market_account(kind: AccountKind, currency: str, now: datetime) -> UUID:
    return account_id(organization_id=operator_organization().id, kind=kind, currency=currency, now=now)


def owed_account(share: DisputeShare, currency: str, now: datetime) -> UUID:
    """What a provider owes of one disputed payment: an account of its own, which may go as far below zero as that."""
    account = account_id(
        organization_id=share.organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=currency,
        reference_id=share.id,
        now=now,
    )
    set_overdraft_limit(account_id=account, limit_micros=share.amount_micros)
    return account


def refund_hold_id(operation: ProcessorOperation) -> UUID:
    return derived_id(operation.id, "hold")


def payout_hold_id(payout_id: UUID) -> UUID:
    return derived_id(payout_id, "hold")


def _payer(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    if operation.status == Status.SUCCEEDED:
        made = ProcessorPayer(
            organization_id=operation.organization_id,
            processor=operation.processor,
            payer_id=operation.object_id,
            created_at=now,
        )
        ProcessorPayer.objects.bulk_create([made], ignore_conflicts=True)


def _account(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    if operation.status == Status.SUCCEEDED:
        made = ProcessorAccount(
            organization_id=operation.organization_id,
            processor=operation.processor,
            account_id=operation.object_id,
            requirements_due=["onboarding"],
            created_at=now,
            checked_at=now,
        )
        ProcessorAccount.objects.bulk_create([made], ignore_conflicts=True)


def _card(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    if operation.status != Status.SUCCEEDED or not outcome.facts:
        return
    ProcessorPayer.objects.filter(
        organization_id=operation.organization_id, processor=operation.processor
    ).update(
        payment_method_id=outcome.facts["payment_method"],
        card_brand=outcome.facts["brand"],
        card_last4=outcome.facts["last4"],
        card_expires=outcome.facts["expires"],
    )


def _collection(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    if operation.purpose == Purpose.TOP_UP:
        status = {
            Status.SUCCEEDED: TopUp.Status.SUCCEEDED,
            Status.FAILED: TopUp.Status.FAILED,
        }.get(Status(operation.status), TopUp.Status.PENDING)
        TopUp.objects.filter(pk=operation.subject_id).exclude(status=TopUp.Status.SUCCEEDED).update(
            status=status, processor_reference=operation.object_id, action_url=operation.action_url
        )
        if operation.status == Status.ACTION_REQUIRED:
            tell_action_required(operation, {"top_up_id": str(operation.subject_id)}, now=now)
    elif operation.purpose == Purpose.INVOICE:
        settle_payment(operation, now=now)
    elif operation.purpose == Purpose.BOND:
        _bond(operation, now)
    # The payer's row after the invoice's, as whoever pays an invoice locks them.
    _card(operation, outcome, now)
    if operation.purpose != Purpose.TOP_UP:
        return
    names = {"top_up_id": str(operation.subject_id)}
    if operation.status == Status.FAILED:
        _tell("top_up.failed", operation, names | {"reason": outcome.reason[:200]}, now)
    if operation.status != Status.SUCCEEDED:
        return
    transfer = NewTransfer(
        id=derived_id(operation.subject_id, "transfer"),
        debit_id=market_account(AccountKind.PROCESSOR, operation.currency, now),
        credit_id=account_id(
            organization_id=operation.organization_id,
            kind=AccountKind.PREPAID,
            currency=operation.currency,
            now=now,
        ),
        amount_micros=operation.amount_micros,
        code="top_up",
        reference_id=operation.subject_id,
    )
    post_transfers([transfer], now=now)
    _tell("top_up.succeeded", operation, names, now)


def _tell(
    event_type: str,
    operation: ProcessorOperation,
    names: dict[str, str],
    now: datetime,
    *,
    fact_id: UUID | None = None,
) -> None:
    record_event(
        organization_id=operation.organization_id,
        event_type=event_type,
        fact_id=fact_id or operation.subject_id,
        data=names | {"amount_micros": operation.amount_micros, "currency": operation.currency},
        now=now,
    )


def _bond(operation: ProcessorOperation, now: datetime) -> None:
    """A provider's deposit has come in, or has not."""
    deposit = BondDeposit.objects.filter(pk=operation.subject_id).exclude(status=BondDeposit.Status.SUCCEEDED)
    deposit.update(
        status={
            Status.SUCCEEDED: BondDeposit.Status.SUCCEEDED,
            Status.FAILED: BondDeposit.Status.FAILED,
        }.get(Status(operation.status), BondDeposit.Status.PENDING),
        processor_reference=operation.object_id,
        action_url=operation.action_url,
    )
    if operation.status != Status.SUCCEEDED:
        return
    transfer = NewTransfer(
        id=derived_id(operation.subject_id, "transfer"),
        debit_id=market_account(AccountKind.PROCESSOR, operation.currency, now),
        credit_id=account_id(
            organization_id=operation.organization_id,
            kind=AccountKind.BOND,
            currency=operation.currency,
            now=now,
        ),
        amount_micros=operation.amount_micros,
        code="bond_deposit",
        reference_id=operation.subject_id,
    )
    post_transfers([transfer], now=now)


def _refund(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    if operation.status not in (Status.SUCCEEDED, Status.FAILED):
        return
    prepaid = account_id(
        organization_id=operation.organization_id,
        kind=AccountKind.PREPAID,
        currency=operation.currency,
        now=now,
    )
    if operation.status == Status.FAILED:
        assert operation.parent_id is not None
        ProcessorOperation.objects.filter(pk=operation.parent_id).update(
            refunded_micros=F("refunded_micros") - operation.amount_micros
        )
        posted = list(Transfer.objects.filter(id__in=_refund_ids(operation)))
        if posted:
            _return_refund(operation, posted, now)
        else:
            close_hold(id=refund_hold_id(operation), status="voided", now=now)
        _tell_refund("refund.failed", operation, {"reason": outcome.reason[:200]}, now)
    else:
        hold_id = refund_hold_id(operation)
        if not Hold.objects.filter(pk=hold_id, status=Hold.Status.OPEN).exists():
            _refund_after_all(operation, prepaid, now)
            _tell_refund("refund.succeeded", operation, {}, now)
            return
        transfer = NewTransfer(
            id=derived_id(operation.fact_id, "refund"),
            debit_id=prepaid,
            credit_id=market_account(AccountKind.PROCESSOR, operation.currency, now),
            amount_micros=operation.amount_micros,
            code="refund",
            hold_id=hold_id,
            reference_id=operation.subject_id,
        )
        post_transfers([transfer], now=now)
        close_hold(id=hold_id, status="posted", now=now)
        _tell_refund("refund.succeeded", operation, {}, now)


def _tell_refund(event_type: str, operation: ProcessorOperation, more: dict[str, str], now: datetime) -> None:
    # One payment may be refunded in parts, so the fact is the refund's and not the payment's.
    names = {"refund_id": str(operation.id), "payment_id": str(operation.subject_id)} | more
    _tell(event_type, operation, names, now, fact_id=operation.id)


def _refund_after_all(operation: ProcessorOperation, prepaid: UUID, now: datetime) -> None:
    """A refund that was given up was made all the same: the balance pays what of the freed money is still there.

    The rest the market has lost to the buyer: it is its own, and a person is told.
    """
    assert operation.parent_id is not None
    available = balance_of(LedgerAccount.objects.get(pk=prepaid)).available_micros
    from_balance = min(operation.amount_micros, max(0, available))
    processor = market_account(AccountKind.PROCESSOR, operation.currency, now)
    parts = (
        ("refund", prepaid, from_balance),
        (
            "refund_borne",
            market_account(AccountKind.OPERATOR, operation.currency, now),
            operation.amount_micros - from_balance,
        ),
    )
    transfers = [
        NewTransfer(
            id=derived_id(operation.fact_id, name),
            debit_id=debit,
            credit_id=processor,
            amount_micros=amount,
            code="refund",
            reference_id=operation.subject_id,
        )
        for name, debit, amount in parts
        if amount
    ]
    post_transfers(transfers, now=now)
    # No further than the payment: what was refunded again meanwhile is refunded already.
    ProcessorOperation.objects.filter(pk=operation.parent_id).update(
        refunded_micros=Least(F("amount_micros"), F("refunded_micros") + operation.amount_micros)
    )
    logger.error(
        "a refund that was given up was made",
        extra={"operation_id": str(operation.id), "borne_micros": operation.amount_micros - from_balance},
    )


def _refund_ids(operation: ProcessorOperation) -> dict[UUID, str]:
    """What may have been posted of a refund, with the names of its going back."""
    return {
        derived_id(operation.fact_id, "refund"): "refund_failed",
        derived_id(operation.fact_id, "refund_borne"): "refund_borne_failed",
    }


def _return_refund(operation: ProcessorOperation, posted: Sequence[Transfer], now: datetime) -> None:
    """The card's bank did not take it after all: it lies at the processor again, and is again of whom it was taken."""
    names = _refund_ids(operation)
    transfers = [
        NewTransfer(
            id=derived_id(operation.fact_id, names[transfer.id]),
            debit_id=transfer.credit_account_id,
            credit_id=transfer.debit_account_id,
            amount_micros=transfer.amount_micros,
            code="refund_failed",
            reference_id=operation.subject_id,
        )
        for transfer in posted
    ]
    post_transfers(transfers, now=now)


def _transfer(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    """One part of a payout has left for the provider's account; with the last part the payout is paid."""
    if operation.status != Status.SUCCEEDED:
        return
    payout = Payout.objects.select_for_update().get(pk=operation.subject_id)
    payable = account_id(
        organization_id=payout.organization_id,
        kind=AccountKind.PAYABLE,
        currency=payout.currency,
        now=now,
    )
    transfer = NewTransfer(
        id=derived_id(operation.fact_id, "transfer"),
        debit_id=payable,
        credit_id=market_account(AccountKind.PROCESSOR, payout.currency, now),
        amount_micros=operation.amount_micros,
        code="payout",
        hold_id=payout_hold_id(payout.id),
        reference_id=payout.id,
    )
    post_transfers([transfer], now=now)
    parts = ProcessorOperation.objects.filter(subject_id=payout.id, kind=OperationKind.TRANSFER)
    if not parts.exclude(pk=operation.pk).exclude(status=Status.SUCCEEDED).exists():
        close_hold(id=payout_hold_id(payout.id), status="posted", now=now)
        payout.status = Payout.Status.PAID
        payout.processor_reference = operation.object_id
        payout.save(update_fields=["status", "processor_reference"])
        record_event(
            organization_id=payout.organization_id,
            event_type="payout.paid",
            fact_id=payout.id,
            data={
                "payout_id": str(payout.id),
                "statement_id": str(payout.statement_id) if payout.statement_id else None,
                "amount_micros": payout.amount_micros,
                "currency": payout.currency,
            },
            now=now,
        )


def tell_payout_failed(operation: ProcessorOperation, reason: str, *, now: datetime) -> None:
    """A part of a payout, or its way to the bank, was refused. Asked again hourly, but told once for each reason."""
    names = {
        "payout_id": str(operation.subject_id),
        "sent_to": "bank" if operation.kind == OperationKind.PAYOUT else "account",
        "reason": reason,
    }
    fact_id = derived_id(operation.id, f"failed:{reason}")
    _tell("payout.failed", operation, names, now, fact_id=fact_id)


def _to_bank(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    """No posting hangs on it; what a bank sends back after it was paid the provider must hear of."""
    if operation.status == Status.FAILED:
        tell_payout_failed(operation, outcome.reason[:200], now=now)


def _reversal(operation: ProcessorOperation, outcome: Outcome, now: datetime) -> None:
    """What a provider had of a disputed payment came back, or he owes it. The market had borne it so far."""
    if operation.status not in (Status.SUCCEEDED, Status.FAILED):
        return
    share = DisputeShare.objects.select_for_update().select_related("dispute").get(pk=operation.fact_id)
    # Settled are those, too, who have paid what they owed, or owe nothing as the dispute was won.
    given_up = (DisputeShare.Status.OWED, DisputeShare.Status.SETTLED)
    if operation.status == Status.SUCCEEDED and share.status in given_up:
        _reversed_after_all(share, operation.currency, now)
        return
    if share.status != DisputeShare.Status.REQUESTED:
        return
    currency = operation.currency
    operator = market_account(AccountKind.OPERATOR, currency, now)
    won = share.dispute.status == PaymentDispute.Status.WON
    moves: list[tuple[str, UUID, UUID]] = []
    if operation.status == Status.SUCCEEDED:
        share.status = DisputeShare.Status.REVERSED
        moves.append(("reversed", market_account(AccountKind.PROCESSOR, currency, now), operator))
        if won:
            # It was decided for us meanwhile: what came back is the provider's again.
            payable = account_id(
                organization_id=share.organization_id, kind=AccountKind.PAYABLE, currency=currency, now=now
            )
            moves.append(("returned", operator, payable))
    elif not won:
        share.status = DisputeShare.Status.OWED
        moves.append(("owed", owed_account(share, currency, now), operator))
    if won:
        share.status = DisputeShare.Status.SETTLED
    transfers = [
        NewTransfer(
            id=derived_id(share.id, code),
            debit_id=debit,
            credit_id=credit,
            amount_micros=share.amount_micros,
            code="dispute",
            reference_id=share.dispute_id,
        )
        for code, debit, credit in moves
    ]
    post_transfers(transfers, now=now)
    share.save(update_fields=["status"])


def _reversed_after_all(share: DisputeShare, currency: str, now: datetime) -> None:
    """A reversal that was given up came back all the same: it pays what he owes for it, the rest is his again."""
    owed = owed_account(share, currency, now)
    debt = min(share.amount_micros, max(0, -balance_of(LedgerAccount.objects.get(pk=owed)).posted_micros))
    payable = account_id(
        organization_id=share.organization_id, kind=AccountKind.PAYABLE, currency=currency, now=now
    )
    transfers = [
        NewTransfer(
            id=derived_id(share.id, name),
            debit_id=market_account(AccountKind.PROCESSOR, currency, now),
            credit_id=credit,
            amount_micros=amount,
            code="dispute",
            reference_id=share.dispute_id,
        )
        for name, credit, amount in (
            ("reversed_late", owed, debt),
            ("returned_late", payable, share.amount_micros - debt),
        )
        if amount
    ]
    post_transfers(transfers, now=now)
    if share.dispute.status != PaymentDispute.Status.WON:
        share.status = DisputeShare.Status.REVERSED
        share.save(update_fields=["status"])


_Effect = Callable[[ProcessorOperation, Outcome, datetime], None]
_EFFECTS: Final[dict[OperationKind, _Effect]] = {
    OperationKind.PAYER: _payer,
    OperationKind.ACCOUNT: _account,
    OperationKind.SAVE_CARD: _card,
    OperationKind.CHECKOUT: _collection,
    OperationKind.CHARGE: _collection,
    OperationKind.REFUND: _refund,
    OperationKind.TRANSFER: _transfer,
    OperationKind.PAYOUT: _to_bank,
    OperationKind.REVERSAL: _reversal,
}
