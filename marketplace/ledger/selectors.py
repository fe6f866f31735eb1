"""Reads of the books as they are: balances and entries. Of the past: `history.py`; the check: `checking.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet

from marketplace.ledger.checking import Difference as Difference
from marketplace.ledger.checking import check_ledger as check_ledger
from marketplace.ledger.checking import totals as totals
from marketplace.ledger.models import AccountKind, LedgerAccount

# Where money lies: it grows by debits. All other kinds say whose money it is and grow by credits.
_DEBIT_NORMAL: Final = (AccountKind.PROCESSOR,)


@dataclass(frozen=True)
class Balance:
    """In micros. `posted` in the kind's own direction (a receivable that is owed is negative), `pending` held,
    `available` what may still be debited: the overdraft limit counts, holds are off.
    """

    posted_micros: int
    pending_micros: int
    available_micros: int


@dataclass(frozen=True)
class Entry:
    """A transfer as one of its accounts sees it: `amount_micros` negative for the debited side."""

    transfer_id: UUID
    account_id: UUID
    amount_micros: int
    code: str
    hold_id: UUID | None
    reference_id: UUID | None
    occurred_at: datetime


def direction_of(account: LedgerAccount) -> int:
    """-1 for an account that grows by debits, else 1."""
    return -1 if account.kind in _DEBIT_NORMAL else 1


def balance_of(account: LedgerAccount) -> Balance:
    credit_micros = account.credits_posted_micros - account.debits_posted_micros
    return Balance(
        posted_micros=direction_of(account) * credit_micros,
        pending_micros=account.debits_pending_micros,
        available_micros=credit_micros + account.overdraft_limit_micros - account.debits_pending_micros,
    )


def accounts_of(organization_id: UUID) -> QuerySet[LedgerAccount]:
    return LedgerAccount.objects.filter(organization_id=organization_id).order_by("-id")


def balance(*, organization_id: UUID, kind: AccountKind | str, currency: str) -> Balance:
    """Over all the organization's accounts of this kind and currency (deferred has one per contract); zeros if none."""
    found = LedgerAccount.objects.filter(organization_id=organization_id, kind=kind, currency=currency)
    balances = [balance_of(account) for account in found]
    return Balance(
        posted_micros=sum(one.posted_micros for one in balances),
        pending_micros=sum(one.pending_micros for one in balances),
        available_micros=sum(one.available_micros for one in balances),
    )


def available_by_organization(
    organization_ids: Iterable[UUID], *, kind: AccountKind | str, currency: str
) -> dict[UUID, int]:
    """What may still be debited of each one's accounts of this kind, in micros; 0 where there is none. One query."""
    found = dict.fromkeys(organization_ids, 0)
    accounts = LedgerAccount.objects.filter(organization_id__in=list(found), kind=kind, currency=currency)
    for account in accounts:
        found[account.organization_id] += balance_of(account).available_micros
    return found


# Per account the newest rows by index, then the newest of those: a page costs the same at ten rows and ten million.
_ENTRIES: Final = """
WITH start AS MATERIALIZED (SELECT number FROM ledger_transfer WHERE id = %(before)s::uuid)
SELECT e.id, a.account_id, e.amount_micros, e.code, e.hold_id, e.reference_id, e.occurred_at
FROM unnest(%(accounts)s::uuid[]) AS a (account_id)
CROSS JOIN LATERAL (
    (SELECT id, number, -amount_micros AS amount_micros, code, hold_id, reference_id, occurred_at FROM ledger_transfer
     WHERE debit_account_id = a.account_id
       AND number < CASE WHEN %(before)s::uuid IS NULL THEN 9223372036854775807 ELSE (SELECT number FROM start) END
     ORDER BY number DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT id, number, amount_micros, code, hold_id, reference_id, occurred_at FROM ledger_transfer
     WHERE credit_account_id = a.account_id
       AND number < CASE WHEN %(before)s::uuid IS NULL THEN 9223372036854775807 ELSE (SELECT number FROM start) END
     ORDER BY number DESC LIMIT %(limit)s)
) AS e
ORDER BY e.number DESC, e.amount_micros LIMIT 2 * %(limit)s
"""


def entries_of(account_ids: list[UUID], *, before: UUID | None = None, limit: int = 50) -> list[Entry]:
    """The newest `limit` transfers below `before` that touch these accounts, newest first.

    A transfer between two of the accounts gives two entries, so there may be up to twice as many as `limit`.
    """
    if not account_ids:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_ENTRIES, {"accounts": account_ids, "before": before, "limit": limit})
        entries = [Entry(*row) for row in cursor.fetchall()]
    transfers = dict.fromkeys(entry.transfer_id for entry in entries)
    kept = set(list(transfers)[:limit])
    return [entry for entry in entries if entry.transfer_id in kept]
