"""The check of the books: everything is added again, and every seal is opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

from marketplace.ledger import extract_verifier as tree

_MEMBER_BYTES: Final = 48


@dataclass(frozen=True)
class Difference:
    """A fact of the books that their transfers do not bear out. `seal`: the number of the one that shows it."""

    what: str
    object_id: str
    recorded_micros: int
    recomputed_micros: int
    seal: int | None = None


# One statement, so one snapshot: the check may run while money moves. What `since` and `sealed` leave out is taken
# from the sums of the last seal; 0 and 0 leave out nothing.
_CHECK: Final = """
WITH fresh AS (SELECT * FROM ledger_transfer WHERE number > %(since)s),
debited AS (SELECT debit_account_id AS id, sum(amount_micros) AS micros FROM fresh GROUP BY 1),
credited AS (SELECT credit_account_id AS id, sum(amount_micros) AS micros FROM fresh GROUP BY 1),
before AS (
    SELECT a.id, s.debits_micros, s.credits_micros FROM ledger_ledgeraccount AS a CROSS JOIN LATERAL (
        SELECT debits_micros, credits_micros FROM ledger_sealedbalance
        WHERE account_id = a.id AND seal_id <= %(sealed)s ORDER BY seal_id DESC LIMIT 1
    ) AS s
),
looked_at AS (SELECT * FROM ledger_hold WHERE %(sealed)s = 0 OR status = 'open'),
captured AS (
    SELECT t.hold_id AS id, sum(t.amount_micros) AS micros FROM ledger_transfer AS t
    WHERE t.hold_id IN (SELECT id FROM looked_at) GROUP BY 1
),
pending AS (
    SELECT account_id AS id, sum(amount_micros - captured_micros) AS micros
    FROM ledger_hold WHERE status = 'open' GROUP BY 1
),
found AS (
    SELECT 'debits_posted' AS what, a.id::text AS id, a.debits_posted_micros AS recorded,
        coalesce(b.debits_micros, 0) + coalesce(d.micros, 0) AS recomputed
    FROM ledger_ledgeraccount AS a LEFT JOIN debited AS d USING (id) LEFT JOIN before AS b USING (id)
    UNION ALL
    SELECT 'credits_posted', a.id::text, a.credits_posted_micros,
        coalesce(b.credits_micros, 0) + coalesce(c.micros, 0)
    FROM ledger_ledgeraccount AS a LEFT JOIN credited AS c USING (id) LEFT JOIN before AS b USING (id)
    UNION ALL
    SELECT 'debits_pending', a.id::text, a.debits_pending_micros, coalesce(p.micros, 0)
    FROM ledger_ledgeraccount AS a LEFT JOIN pending AS p USING (id)
    UNION ALL
    SELECT 'debits_and_credits_of_currency', currency, sum(debits_posted_micros), sum(credits_posted_micros)
    FROM ledger_ledgeraccount GROUP BY currency
    UNION ALL
    SELECT 'hold_captured', h.id::text, h.captured_micros, coalesce(c.micros, 0)
    FROM looked_at AS h LEFT JOIN captured AS c USING (id)
    UNION ALL
    SELECT 'grant_free', g.id::text, g.free_micros,
        a.credits_posted_micros - a.debits_posted_micros - a.debits_pending_micros
    FROM ledger_grant AS g JOIN ledger_ledgeraccount AS a ON a.id = g.account_id
    UNION ALL
    SELECT 'transfer_account_missing', t.id::text, t.amount_micros, 0
    FROM fresh AS t
    LEFT JOIN ledger_ledgeraccount AS d ON d.id = t.debit_account_id
    LEFT JOIN ledger_ledgeraccount AS c ON c.id = t.credit_account_id
    WHERE d.id IS NULL OR c.id IS NULL OR d.currency <> c.currency
    UNION ALL
    SELECT 'transfer_hold_of_another_account', t.id::text, t.amount_micros, 0
    FROM fresh AS t LEFT JOIN ledger_hold AS h ON h.id = t.hold_id
    WHERE t.hold_id IS NOT NULL AND h.account_id IS DISTINCT FROM t.debit_account_id
    UNION ALL
    SELECT 'overdrawn', a.id::text, a.debits_posted_micros + a.debits_pending_micros,
        a.credits_posted_micros + a.overdraft_limit_micros
    FROM ledger_ledgeraccount AS a
    WHERE a.debits_must_not_exceed_credits
      AND a.debits_posted_micros + a.debits_pending_micros > a.credits_posted_micros + a.overdraft_limit_micros
)
SELECT what, id, recorded::bigint, recomputed::bigint FROM found WHERE recorded <> recomputed ORDER BY what, id
"""
_SEALS: Final = """
SELECT number, first_number, last_number, transfer_count, root, accounts_root, previous_digest, digest, sealed_at
FROM ledger_seal ORDER BY number
"""
_RANGE: Final = """
SELECT number, id, debit_account_id, credit_account_id, amount_micros, occurred_at, created_at, hold_id,
       reference_id, code
FROM ledger_transfer WHERE number BETWEEN %s AND %s ORDER BY number
"""


def check_ledger(*, incremental: bool = False) -> list[Difference]:
    """Opens the seals and re-adds every account and hold from the transfers; empty when all agree to the micro.

    What the seals show comes first, as it names the transfer. Memory grows with accounts and with one seal, not with
    transfers. `incremental` follows the chain's digests, opens the last seal only, and adds what came after it to the
    sums under it: as long as new business takes, and blind to what was changed below an older seal.
    """
    differences = list(_check_seals(incremental=incremental))
    since = sealed = 0
    if incremental:
        [(since, sealed)] = _rows(
            "SELECT coalesce(max(last_number), 0), coalesce(max(number), 0) FROM ledger_seal"
        )
    return differences + [Difference(*row) for row in _rows(_CHECK, {"since": since, "sealed": sealed})]


def totals() -> dict[str, int]:
    """How much there is to check: accounts, transfers, open holds, seals; transfers not under a seal yet."""
    [row] = _rows(
        "SELECT (SELECT count(*) FROM ledger_ledgeraccount), (SELECT count(*) FROM ledger_transfer), "
        "(SELECT count(*) FROM ledger_hold WHERE status = 'open'), (SELECT count(*) FROM ledger_seal), "
        "(SELECT count(*) FROM ledger_transfer WHERE number > (SELECT coalesce(max(last_number), 0) FROM ledger_seal))"
    )
    return dict(zip(("accounts", "transfers", "open_holds", "seals", "unsealed_transfers"), row, strict=True))


def _check_seals(*, incremental: bool) -> Iterator[Difference]:
    previous_digest, previous_number, previous_last = tree.NO_DIGEST, 0, 0
    sums: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    seals = _rows(_SEALS)
    for row in seals:
        number, first, last, count, root, accounts_root, previous, digest, sealed_at = row
        root, accounts_root, previous, digest = map(bytes, (root, accounts_root, previous, digest))
        follows = (previous, number, first) == (previous_digest, previous_number + 1, previous_last + 1)
        recomputed = tree.seal_digest(
            number=number,
            first_number=first,
            last_number=last,
            transfer_count=count,
            root=root,
            accounts_root=accounts_root,
            previous_digest=previous,
            sealed_at=sealed_at,
        )
        if not follows:
            yield Difference("seal_chain", str(number), first, previous_last + 1, number)
        if recomputed != digest:
            yield Difference("seal_digest", str(number), 0, 0, number)
        if not incremental or row is seals[-1]:
            yield from _open_seal(number, first, last, root, accounts_root, None if incremental else sums)
        previous_digest, previous_number, previous_last = digest, number, last


def _open_seal(
    number: int, first: int, last: int, root: bytes, accounts_root: bytes, sums: dict[Any, list[int]] | None
) -> Iterator[Difference]:
    """What the range holds now against what was sealed: each transfer, each account's sums, both roots."""
    [(members,)] = _rows("SELECT members FROM ledger_seal WHERE number = %s", [number])
    members = bytes(members)
    starts = range(0, len(members), _MEMBER_BYTES)
    sealed = {members[at : at + 16]: members[at + 16 : at + _MEMBER_BYTES] for at in starts}
    if tree.root_of(list(sealed.values())) != root:
        yield Difference("seal_root", str(number), 0, 0, number)
    touched: dict[Any, None] = {}
    for row in _rows(_RANGE, [first, last]):
        transfer_number, id_, debit, credit, amount, occurred_at, created_at, hold_id, reference_id, code = (
            row
        )
        leaf = tree.transfer_leaf(
            number=transfer_number,
            transfer_id=id_,
            debit=tree.debit_party(id_, debit, hold_id),
            credit=tree.credit_party(id_, credit),
            amount_micros=amount,
            occurred_at=occurred_at,
            created_at=created_at,
            reference_id=reference_id,
            code=code,
        )
        known = sealed.pop(id_.bytes, None)
        if known != leaf:
            what = "transfer_added" if known is None else "transfer_changed"
            yield Difference(what, str(id_), 0, amount, number)
        touched.update({debit: None, credit: None})
        if sums is not None:
            for account, side in ((debit, 1), (credit, 2)):
                sums[account][0] += 1
                sums[account][side] += amount
    for id_bytes in sealed:
        yield Difference("transfer_missing", str(UUID(bytes=id_bytes)), 0, 0, number)
    yield from _check_sealed_balances(number, accounts_root, touched, sums)


def _check_sealed_balances(
    number: int, accounts_root: bytes, touched: dict[Any, None], sums: dict[Any, list[int]] | None
) -> Iterator[Difference]:
    leaves = []
    for account, entries, debits_micros, credits_micros in _rows(
        "SELECT account_id, entries, debits_micros, credits_micros FROM ledger_sealedbalance "
        "WHERE seal_id = %s ORDER BY place",
        [number],
    ):
        leaves.append(tree.account_leaf(account, entries, debits_micros, credits_micros))
        recorded = [entries, debits_micros, credits_micros]
        again = sums[account] if sums is not None else recorded
        if recorded != again or account not in touched:
            yield Difference(
                "sealed_balance", str(account), credits_micros - debits_micros, again[2] - again[1], number
            )
        touched.pop(account, None)
    for account in touched:
        yield Difference("sealed_balance_missing", str(account), 0, 0, number)
    if tree.root_of(leaves) != accounts_root:
        yield Difference("seal_accounts_root", str(number), 0, 0, number)


def _rows(statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
