"""Balances of the past, and statements with running balances in the order of posting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection

from marketplace.errors import NotFound
from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import direction_of

_CHUNK: Final = 1_000


@dataclass(frozen=True, slots=True)
class Line:
    """One transfer as the account sees it. `amount_micros` is negative where its balance fell, `balance_micros` what
    the account had after it, both in its kind's own direction.
    """

    number: int
    transfer_id: UUID
    amount_micros: int
    balance_micros: int
    code: str
    reference_id: UUID | None
    occurred_at: datetime


# The sums under the last seal all of whose transfers, and all before it, occurred before `at`; then what came after it.
# A seal in between whose transfers all occurred later is not looked into.
_AT: Final = """
WITH below AS (
    SELECT coalesce(min(number), 9223372036854775807) - 1 AS seal FROM ledger_seal WHERE occurred_to >= %(at)s
),
since AS (SELECT coalesce(max(last_number), 0) AS number FROM ledger_seal WHERE number <= (SELECT seal FROM below)),
until AS (SELECT coalesce(max(last_number), 0) AS number FROM ledger_seal WHERE occurred_from < %(at)s),
head AS (SELECT coalesce(max(last_number), 0) AS number FROM ledger_seal)
SELECT a.id, coalesce((
    SELECT credits_micros - debits_micros FROM ledger_sealedbalance
    WHERE account_id = a.id AND seal_id <= (SELECT seal FROM below) ORDER BY seal_id DESC LIMIT 1
), 0) + coalesce((
    SELECT sum(t.amount_micros) FROM ledger_transfer AS t WHERE t.credit_account_id = a.id AND t.occurred_at < %(at)s
       AND t.number > (SELECT number FROM since) AND t.number <= (SELECT number FROM until)
), 0) + coalesce((
    SELECT sum(t.amount_micros) FROM ledger_transfer AS t WHERE t.credit_account_id = a.id AND t.occurred_at < %(at)s
       AND t.number > (SELECT number FROM head)
), 0) - coalesce((
    SELECT sum(t.amount_micros) FROM ledger_transfer AS t WHERE t.debit_account_id = a.id AND t.occurred_at < %(at)s
       AND t.number > (SELECT number FROM since) AND t.number <= (SELECT number FROM until)
), 0) - coalesce((
    SELECT sum(t.amount_micros) FROM ledger_transfer AS t WHERE t.debit_account_id = a.id AND t.occurred_at < %(at)s
       AND t.number > (SELECT number FROM head)
), 0)
FROM unnest(%(accounts)s::uuid[]) AS a (id)
"""
_THROUGH: Final = """
WITH base AS (
    SELECT s.last_number AS number, b.credits_micros - b.debits_micros AS micros
    FROM ledger_sealedbalance AS b JOIN ledger_seal AS s ON s.number = b.seal_id
    WHERE b.account_id = %(account)s AND s.last_number <= %(number)s ORDER BY b.seal_id DESC LIMIT 1
)
SELECT coalesce((SELECT micros FROM base), 0) + coalesce((
    SELECT sum(amount_micros) FROM ledger_transfer WHERE credit_account_id = %(account)s
       AND number > coalesce((SELECT number FROM base), 0) AND number <= %(number)s
), 0) - coalesce((
    SELECT sum(amount_micros) FROM ledger_transfer WHERE debit_account_id = %(account)s
       AND number > coalesce((SELECT number FROM base), 0) AND number <= %(number)s
), 0)
"""
_NEWEST: Final = """
(SELECT number, id, -amount_micros, code, reference_id, occurred_at FROM ledger_transfer
 WHERE debit_account_id = %(account)s AND number < %(before)s ORDER BY number DESC LIMIT %(limit)s)
UNION ALL
(SELECT number, id, amount_micros, code, reference_id, occurred_at FROM ledger_transfer
 WHERE credit_account_id = %(account)s AND number < %(before)s ORDER BY number DESC LIMIT %(limit)s)
ORDER BY 1 DESC LIMIT %(limit)s
"""
_OLDEST: Final = """
(SELECT number, id, -amount_micros, code, reference_id, occurred_at FROM ledger_transfer
 WHERE debit_account_id = %(account)s AND number > %(after)s AND number <= %(until)s ORDER BY number LIMIT %(limit)s)
UNION ALL
(SELECT number, id, amount_micros, code, reference_id, occurred_at FROM ledger_transfer
 WHERE credit_account_id = %(account)s AND number > %(after)s AND number <= %(until)s ORDER BY number LIMIT %(limit)s)
ORDER BY 1 LIMIT %(limit)s
"""
# Seals that lie wholly outside the span at either end are not read.
_SPAN: Final = """
SELECT coalesce((SELECT max(last_number) FROM ledger_seal WHERE number < coalesce(
           (SELECT min(number) FROM ledger_seal WHERE occurred_to >= %(start)s),
           (SELECT max(number) + 1 FROM ledger_seal))), 0),
       coalesce((SELECT max(number) FROM ledger_transfer), 0)
"""


def own_account(*, organization_id: UUID, account_id: UUID) -> LedgerAccount:
    """Raises NotFound, also for another organization's."""
    found = LedgerAccount.objects.filter(organization_id=organization_id, pk=account_id).first()
    if found is None:
        raise NotFound("no such account")
    return found


def balances_at(accounts: Sequence[LedgerAccount], *, at: datetime) -> dict[UUID, int]:
    """What each account had posted at this instant, in its kind's own direction: the sum of what occurred before it.

    What was posted later for an earlier time counts. Holds leave no past: what was pending then is not known.
    """
    directions = {account.id: direction_of(account) for account in accounts}
    found = _rows(_AT, {"accounts": list(directions), "at": at})
    return {account_id: directions[account_id] * int(micros) for account_id, micros in found}


def statement_page(account: LedgerAccount, *, before: UUID | None, limit: int) -> list[Line]:
    """The newest `limit` lines below the transfer `before`; none where it is not one of the account's."""
    number = 2**63 - 1
    if before is not None:
        found = _rows(
            "SELECT number FROM ledger_transfer WHERE id = %s AND %s IN (debit_account_id, credit_account_id)",
            [before, account.id],
        )
        if not found:
            return []
        number = found[0][0]
    rows = _rows(_NEWEST, {"account": account.id, "before": number, "limit": limit})
    if not rows:
        return []
    [(balance,)] = _rows(_THROUGH, {"account": account.id, "number": rows[0][0]})
    lines = []
    for row in rows:
        lines.append(_line(row, int(balance), direction_of(account)))
        balance -= row[2]
    return lines


def statement(account: LedgerAccount, *, start: datetime | None, end: datetime | None) -> Iterator[Line]:
    """Every line that occurred in `[start, end)`, in the order of posting; read while it is consumed, in flat memory.

    Running balances are those of the books: what was posted in between for another time is in them.
    """
    # Where it ends is fixed now: a busy account would otherwise be read for ever.
    [(first, until)] = _rows(_SPAN, {"start": start})
    after = 0 if start is None else first
    [(balance,)] = _rows(_THROUGH, {"account": account.id, "number": after})
    while True:
        rows = _rows(_OLDEST, {"account": account.id, "after": after, "until": until, "limit": _CHUNK})
        for row in rows:
            balance += row[2]
            if (start is None or row[5] >= start) and (end is None or row[5] < end):
                yield _line(row, int(balance), direction_of(account))
        if len(rows) < _CHUNK:
            return
        after = rows[-1][0]


def _line(row: tuple[Any, ...], balance: int, direction: int) -> Line:
    number, transfer_id, amount, code, reference_id, occurred_at = row
    return Line(number, transfer_id, direction * amount, direction * balance, code, reference_id, occurred_at)


def _rows(statement: str, parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
