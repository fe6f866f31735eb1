"""Transfers and holds per second, through the services on one connection; each floor is measured in the same run.

Needs a migrated database (`DATABASE_URL`, and `DATABASE_OWNER_URL` for the floor's own tables) that may be written to:
what it posts stays there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import UUID

import psycopg
from django.db import connections

from marketplace import clock
from marketplace.accounts.services import create_organization, ensure_operator
from marketplace.billing.services.posting import fees_account
from marketplace.ids import uuid7
from marketplace.ledger.services import NewTransfer, account_id, close_hold, open_hold, post_transfers

SINGLES: Final = 1_000
BATCH: Final = 1_000
BATCHES: Final = 12
HOLDS: Final = 400
# Settlers at once, how often each settles, and what it writes for after it has posted.
SETTLERS: Final = 8
SETTLEMENTS: Final = 40
WRITING_S: Final = 0.01
ROUNDS: Final = 3

_POST: Final = (
    "SELECT ledger_post_transfers("
    "%s::uuid[], %s::uuid[], %s::uuid[], %s::bigint[], %s::text[], %s::uuid[], %s::uuid[], %s)"
)
_FLOOR_TABLES: Final = """
DROP TABLE IF EXISTS benchmark_transfer, benchmark_account;
CREATE TABLE benchmark_transfer (LIKE ledger_transfer INCLUDING ALL);
CREATE TABLE benchmark_account (LIKE ledger_ledgeraccount INCLUDING ALL);
INSERT INTO benchmark_account SELECT * FROM ledger_ledgeraccount;
"""
# The least that keeps the same promises: an id once, a bounded balance; no look at terms, currencies or holds.
_FLOOR_BATCH: Final = """
WITH fresh AS (
    INSERT INTO benchmark_transfer (id, debit_account_id, credit_account_id, amount_micros, code, occurred_at)
    SELECT id, debit, credit, amount, code, %s FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::bigint[], %s::text[])
        AS n (id, debit, credit, amount, code)
    ON CONFLICT (id) DO NOTHING RETURNING debit_account_id, credit_account_id, amount_micros
), moves AS (
    SELECT m.account, sum(m.debited)::bigint AS debited, sum(m.credited)::bigint AS credited
    FROM fresh, LATERAL (VALUES (debit_account_id, amount_micros, 0), (credit_account_id, 0, amount_micros))
        AS m (account, debited, credited) GROUP BY 1
)
UPDATE benchmark_account AS a SET debits_posted_micros = a.debits_posted_micros + m.debited,
    credits_posted_micros = a.credits_posted_micros + m.credited
FROM moves AS m WHERE a.id = m.account
"""
# What one writes by hand for one transfer, and pgbench would send: the same promises, statement by statement.
_LOCK_TWO: Final = "SELECT id FROM benchmark_account WHERE id IN (%s, %s) ORDER BY id FOR NO KEY UPDATE"
_INSERT_ONE: Final = """
INSERT INTO benchmark_transfer (id, debit_account_id, credit_account_id, amount_micros, code, occurred_at)
VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING
"""
_DEBIT: Final = """
UPDATE benchmark_account SET debits_posted_micros = debits_posted_micros + %s
WHERE id = %s AND (NOT debits_must_not_exceed_credits OR debits_posted_micros + debits_pending_micros + %s
    <= credits_posted_micros + overdraft_limit_micros)
"""
_CREDIT: Final = (
    "UPDATE benchmark_account SET credits_posted_micros = credits_posted_micros + %s WHERE id = %s"
)


def run() -> Iterator[dict[str, Any]]:
    """One dict per benchmark: name, value, unit, floor, ratio."""
    accounts = fifty_accounts()
    with _bare("default") as app, _bare("owner") as owner:
        owner.execute(_FLOOR_TABLES)
        try:
            yield from _single(accounts, owner)
            yield _batched(accounts, owner)
            yield from _hold_settle(accounts, app)
            yield from _hot_fees()
        finally:
            owner.execute("DROP TABLE benchmark_transfer, benchmark_account")


def fifty_accounts() -> list[UUID]:
    """A processor and fifty prepaid accounts with money on them."""
    now = clock.now()
    operator = ensure_operator(now=now)
    accounts = [account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)]
    buyer = create_organization(name=f"Benchmark {uuid7()}", roles=["buyer"], now=now)
    accounts += [
        account_id(organization_id=buyer.id, kind="deferred", currency="USD", reference_id=uuid7(), now=now)
        for _ in range(50)
    ]
    top_ups = [NewTransfer(uuid7(), accounts[0], account, 10**12, "top_up") for account in accounts[1:]]
    post_transfers(top_ups, now=now)
    return accounts


def transfers_between(accounts: list[UUID], count: int) -> list[NewTransfer]:
    spread = len(accounts) - 1
    return [
        NewTransfer(uuid7(), accounts[1 + index % spread], accounts[1 + (index + 7) % spread], 5, "usage")
        for index in range(count)
    ]


def _single(accounts: list[UUID], owner: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """Beside the transaction that one writes by hand, and beside all of it in one statement and one round trip."""
    now = clock.now()

    def through_service(transfers: list[NewTransfer]) -> None:
        for transfer in transfers:
            post_transfers([transfer], now=now)

    def by_hand(transfers: list[NewTransfer]) -> None:
        for one in transfers:
            with owner.transaction():
                owner.execute(_LOCK_TWO, (one.debit_id, one.credit_id))
                row = (one.id, one.debit_id, one.credit_id, one.amount_micros, one.code, now)
                if owner.execute(_INSERT_ONE, row).rowcount:
                    paid = owner.execute(_DEBIT, (one.amount_micros, one.debit_id, one.amount_micros))
                    assert paid.rowcount == 1, "the account does not cover it"
                    owner.execute(_CREDIT, (one.amount_micros, one.credit_id))

    def one_statement(transfers: list[NewTransfer]) -> None:
        for one in transfers:
            owner.execute(_FLOOR_BATCH, (now, *_arrays([one], now)[:5]))

    for name, floor_of in (("ledger_single", by_hand), ("ledger_single_one_statement", one_statement)):
        value, floor = _interleaved(
            through_service, floor_of, lambda count: transfers_between(accounts, count), count=SINGLES
        )
        yield _result(name, value, "transfers/s", floor)


def _batched(accounts: list[UUID], owner: psycopg.Connection[Any]) -> dict[str, Any]:
    now = clock.now()

    def through_service(transfers: list[NewTransfer]) -> None:
        for start in range(0, len(transfers), BATCH):
            post_transfers(transfers[start : start + BATCH], now=now)

    def bare(transfers: list[NewTransfer]) -> None:
        for start in range(0, len(transfers), BATCH):
            columns = _arrays(transfers[start : start + BATCH], now)[:5]
            owner.execute(_FLOOR_BATCH, (now, *columns))

    value, floor = _interleaved(
        through_service, bare, lambda count: transfers_between(accounts, count), count=BATCH * BATCHES
    )
    return _result("ledger_batched", value, "transfers/s", floor)


def _hold_settle(accounts: list[UUID], app: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """All on one account: a hot contract."""
    now = clock.now()
    buyer, seller = accounts[1], accounts[2]
    taken_ms: list[float] = []

    def through_service(hold_ids: list[UUID]) -> None:
        for hold_id in hold_ids:
            began = time.perf_counter()
            open_hold(id=hold_id, account_id=buyer, amount_micros=9, code="usage", now=now)
            post_transfers([NewTransfer(hold_id, buyer, seller, 5, "usage", hold_id=hold_id)], now=now)
            close_hold(id=hold_id, status="posted", now=now)
            taken_ms.append((time.perf_counter() - began) * 1_000)

    def bare(hold_ids: list[UUID]) -> None:
        for hold_id in hold_ids:
            app.execute("SELECT ledger_open_hold(%s, %s, 9, 'usage', NULL, NULL, %s)", (hold_id, buyer, now))
            capture = NewTransfer(hold_id, buyer, seller, 5, "usage", hold_id=hold_id)
            app.execute(_POST, _arrays([capture], now))
            app.execute("SELECT ledger_close_hold(%s, 'posted', %s)", (hold_id, now))

    value, floor = _interleaved(
        through_service, bare, lambda count: [uuid7() for _ in range(count)], count=HOLDS
    )
    yield _result("ledger_hold_settle", value, "holds/s", floor)
    p99_ms = sorted(taken_ms)[len(taken_ms) * 99 // 100]
    yield {
        "name": "ledger_hold_settle_p99",
        "value": round(p99_ms, 2),
        "unit": "ms",
        "floor": 50,
        "ratio": round(p99_ms / 50, 3),
    }


def _hot_fees() -> Iterator[dict[str, Any]]:
    """Settlements at once: each posts a fee beside its own accounts and goes on writing for a while before it commits.

    As the market spreads its fees, and all of them on one account, each against an account for every settler.
    """
    now = clock.now()
    operator = ensure_operator(now=now)
    buyer = create_organization(name=f"Benchmark {uuid7()}", roles=["buyer"], now=now)
    contracts = [uuid7() for _ in range(SETTLERS)]
    own = [
        account_id(organization_id=buyer.id, kind="deferred", currency="USD", reference_id=one, now=now)
        for one in contracts
    ]
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, one, 10**9, "top_up") for one in own], now=now)
    sides = {
        "ledger_hot_fees": [
            fees_account(one, operator_id=operator.id, currency="USD", now=now) for one in contracts
        ],
        "ledger_hot_single": [
            account_id(organization_id=operator.id, kind="fees", currency="USD", now=now) for _ in contracts
        ],
        "floor": [
            account_id(organization_id=operator.id, kind="fees", currency="USD", reference_id=one, now=now)
            for one in contracts
        ],
    }
    per_s = {name: _settled_per_s(own, fees, now) for name, fees in sides.items()}
    for name in ("ledger_hot_fees", "ledger_hot_single"):
        yield _result(name, per_s[name], "settlements/s", per_s["floor"])


def _settled_per_s(own: list[UUID], fees: list[UUID], now: Any) -> float:
    def settle(index: int) -> None:
        with _bare("default") as app:
            for _ in range(SETTLEMENTS):
                with app.transaction():
                    pair = [NewTransfer(uuid7(), own[index], fees[index], 5, "fee") for _ in range(2)]
                    app.execute(_POST, _arrays(pair, now))
                    app.execute("SELECT pg_sleep(%s)", (WRITING_S,))

    began = time.perf_counter()
    with ThreadPoolExecutor(len(own)) as pool:
        list(pool.map(settle, range(len(own))))
    return len(own) * SETTLEMENTS / (time.perf_counter() - began)


def _interleaved(
    work: Callable[[list[Any]], None],
    floor: Callable[[list[Any]], None],
    inputs: Callable[[int], list[Any]],
    *,
    count: int,
) -> tuple[float, float]:
    """Per second, the best round of each: noise of the machine only ever takes away."""
    best = [0.0, 0.0]
    for side in (work, floor):
        side(inputs(max(1, count // 10)))
    for _ in range(ROUNDS):
        for index, side in enumerate((work, floor)):
            given = inputs(count)
            began = time.perf_counter()
            side(given)
            best[index] = max(best[index], count / (time.perf_counter() - began))
    return best[0], best[1]


def _arrays(transfers: list[NewTransfer], now: Any) -> tuple[Any, ...]:
    return (
        [transfer.id for transfer in transfers],
        [transfer.debit_id for transfer in transfers],
        [transfer.credit_id for transfer in transfers],
        [transfer.amount_micros for transfer in transfers],
        [transfer.code for transfer in transfers],
        [transfer.hold_id for transfer in transfers],
        [transfer.reference_id for transfer in transfers],
        now,
    )


def _bare(alias: str) -> psycopg.Connection[Any]:
    settings = connections[alias].settings_dict
    return psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname=settings["NAME"],
        autocommit=True,
    )


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value),
        "unit": unit,
        "floor": round(floor),
        "ratio": round(value / floor, 3),
    }
