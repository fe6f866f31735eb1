"""What a buyer has spent of money that turns out not to be his: he owes it, and the settlement does not wait for him.

A remedy, service credit or refund may shrink when a period is settled again. Where his account does not cover that, the
difference is posted to a receivable of his of this contract alone, which may go as far below zero as that and gives no
credit; what he has next pays it. Nobody but the buyer bears it, and no provider waits for it.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from marketplace.contracts.models import Contract, Payment
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import (
    NewTransfer,
    account_id,
    lock_books,
    post_transfers,
    set_overdraft_limit,
)


def owed_account(contract: Contract, *, now: datetime) -> UUID:
    return account_id(
        organization_id=contract.organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=contract.currency,
        reference_id=contract.id,
        now=now,
    )


def let_owe(contract: Contract, amount_micros: int, *, now: datetime) -> UUID:
    """The account that takes so much more of debt, in the caller's transaction, which posts it."""
    account = owed_account(contract, now=now)
    set_overdraft_limit(account_id=account, limit_micros=_debt(account) + amount_micros)
    return account


def collect_owed(contract: Contract, *, now: datetime) -> int:
    """Take what is owed on a contract of what its buyer has now, in micros; 0 where nothing is owed or there.

    Of a prepaid contract from the balance; in arrears from what he has paid above what he owes. The contract is locked.
    """
    account = LedgerAccount.objects.filter(
        organization_id=contract.organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=contract.currency,
        reference_id=contract.id,
    ).first()
    if account is None or _debt(account.id) == 0:
        return 0
    is_arrears = contract.payment == Payment.ARREARS
    source = account_id(
        organization_id=contract.organization_id,
        kind=AccountKind.RECEIVABLE if is_arrears else AccountKind.PREPAID,
        currency=contract.currency,
        now=now,
    )
    lock_books(accounts=[account.id, source])
    found = balance_of(LedgerAccount.objects.get(pk=source))
    there = min(found.available_micros, found.posted_micros) if is_arrears else found.available_micros
    amount = min(_debt(account.id), max(0, there))
    if amount:
        credits_before = LedgerAccount.objects.get(pk=account.id).credits_posted_micros
        transfer = NewTransfer(
            id=derived_id(account.id, f"collected:{credits_before}"),
            debit_id=source,
            credit_id=account.id,
            amount_micros=amount,
            code="collection",
            reference_id=contract.id,
        )
        post_transfers([transfer], now=now)
    # What was paid of a debt is no credit line.
    set_overdraft_limit(account_id=account.id, limit_micros=_debt(account.id))
    return amount


def _debt(account: UUID) -> int:
    return max(0, -balance_of(LedgerAccount.objects.get(pk=account)).posted_micros)
