"""Reads of the books: balances, entries, and the check that re-adds everything."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet

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


@dataclass(frozen=True)
class Difference:
    """A fact of the books that their transfers do not bear out."""

    what: str
    object_id: UUID
    recorded_micros: int
    recomputed_micros: int


def balance_of(account: LedgerAccount) -> Balance:
    credit_micros = account.credits_posted_micros - account.debits_posted_micros
    return Balance(
        posted_micros=-credit_micros if account.kind in _DEBIT_NORMAL else credit_micros,
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


# Per account the newest rows by index, then the newest of those: a page costs the same at ten rows and ten million.
_ENTRIES: Final = """
SELECT e.id, a.account_id, e.amount_micros, e.code, e.hold_id, e.reference_id, e.occurred_at
FROM unnest(%(accounts)s::uuid[]) AS a (account_id)
CROSS JOIN LATERAL (
    (SELECT id, -amount_micros AS amount_micros, code, hold_id, reference_id, occurred_at FROM ledger_transfer
     WHERE debit_account_id = a.account_id AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
     ORDER BY id DESC LIMIT %(limit)s)
    UNION ALL
    (SELECT id, amount_micros, code, hold_id, reference_id, occurred_at FROM ledger_transfer
     WHERE credit_account_id = a.account_id AND (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
     ORDER BY id DESC LIMIT %(limit)s)
) AS e
ORDER BY e.id DESC, e.amount_micros
LIMIT 2 * %(limit)s
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


# One statement, so one snapshot: the check may run while money moves.
_CHECK: Final = """
WITH debited AS (SELECT debit_account_id AS id, sum(amount_micros) AS micros FROM ledger_transfer GROUP BY 1),
credited AS (SELECT credit_account_id AS id, sum(amount_micros) AS micros FROM ledger_transfer GROUP BY 1),
captured AS (
    SELECT hold_id AS id, sum(amount_micros) AS micros FROM ledger_transfer WHERE hold_id IS NOT NULL GROUP BY 1
),
pending AS (
    SELECT account_id AS id, sum(amount_micros - captured_micros) AS micros
    FROM ledger_hold WHERE status = 'open' GROUP BY 1
),
found AS (
    SELECT 'debits_posted' AS what, a.id, a.debits_posted_micros AS recorded, coalesce(d.micros, 0) AS recomputed
    FROM ledger_ledgeraccount AS a LEFT JOIN debited AS d USING (id)
    UNION ALL
    SELECT 'credits_posted', a.id, a.credits_posted_micros, coalesce(c.micros, 0)
    FROM ledger_ledgeraccount AS a LEFT JOIN credited AS c USING (id)
    UNION ALL
    SELECT 'debits_pending', a.id, a.debits_pending_micros, coalesce(p.micros, 0)
    FROM ledger_ledgeraccount AS a LEFT JOIN pending AS p USING (id)
    UNION ALL
    SELECT 'hold_captured', h.id, h.captured_micros, coalesce(c.micros, 0)
    FROM ledger_hold AS h LEFT JOIN captured AS c USING (id)
    UNION ALL
    SELECT 'transfer_account_missing', t.id, t.amount_micros, 0
    FROM ledger_transfer AS t
    LEFT JOIN ledger_ledgeraccount AS d ON d.id = t.debit_account_id
    LEFT JOIN ledger_ledgeraccount AS c ON c.id = t.credit_account_id
    WHERE d.id IS NULL OR c.id IS NULL OR d.currency <> c.currency
    UNION ALL
    SELECT 'transfer_hold_of_another_account', t.id, t.amount_micros, 0
    FROM ledger_transfer AS t LEFT JOIN ledger_hold AS h ON h.id = t.hold_id
    WHERE t.hold_id IS NOT NULL AND h.account_id IS DISTINCT FROM t.debit_account_id
    UNION ALL
    SELECT 'overdrawn', a.id, a.debits_posted_micros + a.debits_pending_micros,
        a.credits_posted_micros + a.overdraft_limit_micros
    FROM ledger_ledgeraccount AS a
    WHERE a.debits_must_not_exceed_credits
      AND a.debits_posted_micros + a.debits_pending_micros > a.credits_posted_micros + a.overdraft_limit_micros
)
SELECT what, id, recorded::bigint, recomputed::bigint FROM found WHERE recorded <> recomputed ORDER BY what, id
"""


def check_ledger() -> list[Difference]:
    """Re-adds every account and hold from the transfers; empty when all agree to the micro."""
    with connection.cursor() as cursor:
        cursor.execute(_CHECK)
        return [Difference(*row) for row in cursor.fetchall()]


def totals() -> dict[str, int]:
    """How much there is to check: accounts, transfers, open holds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM ledger_ledgeraccount), (SELECT count(*) FROM ledger_transfer), "
            "(SELECT count(*) FROM ledger_hold WHERE status = 'open')"
        )
        row = cursor.fetchone()
        assert row is not None
        return {"accounts": row[0], "transfers": row[1], "open_holds": row[2]}
