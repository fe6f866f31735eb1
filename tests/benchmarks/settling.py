"""Settling ordinary contracts of one period together, beside settling each of them: contracts a second, statements.

1,000 buyers with tax, each with an on-demand contract that used two hosts in every delivery period of the hour, as the
gateway and metering would have left it: 24 roll-up rows, and an accrual whose hold covers the charge with its tax. Of
them `SETTLING_SINGLY` (60) are settled singly first, in an hour of their own, then all together in the next. Then one
hour more by two processes at once, as workers do, in batches of a quarter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from django.db import connection

HOUR: Final = timedelta(hours=1)
START: Final = datetime(2026, 3, 10, 12, tzinfo=UTC)
DUE_AFTER: Final = HOUR + timedelta(minutes=20)
CONTRACTS: Final = 1_000
PROCESSES: Final = 2
TAX_PPM: Final = 190_000
_HELD: Final = 20_000
_FILL: Final = (
    """INSERT INTO metering_usagerollup (
           contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start, grade_id, events, native_tokens,
           numerator, estimated_events, estimated_numerator, recounted_tokens, recount_o200k_tokens
       )
       SELECT contract_id, rate_id, '00000000-0000-0000-0000-000000000001', offering_id, 'output', 'gateway',
              %(hour)s::timestamptz + n * interval '5 minutes', %(grade)s, 3, 1000, 1000000007, 0, 0, 0, 0
         FROM generate_series(0, 11) AS n CROSS JOIN unnest(%(contracts)s::uuid[]) AS contract_id
        CROSS JOIN unnest(%(rates)s::uuid[], %(offerings)s::uuid[]) AS sold (rate_id, offering_id)""",
    """WITH made AS (
           INSERT INTO ledger_hold (
               id, account_id, amount_micros, opened_micros, captured_micros, code, reference_id, status, created_at
           )
           SELECT uuidv7(), a.id, %(held)s, 0, 0, 'usage', c.id, 'open', %(hour)s
             FROM contracts_contract c
             JOIN ledger_ledgeraccount a ON a.organization_id = c.organization_id AND a.kind = 'prepaid'
            WHERE c.id = ANY (%(contracts)s)
           RETURNING id, reference_id
       )
       INSERT INTO contracts_accrual (contract_id, settlement_start, ledger_hold_id, held_micros, captured_micros)
       SELECT reference_id, %(hour)s, id, 0, %(held)s FROM made""",
    """UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + %(held)s
        WHERE kind = 'prepaid' AND organization_id IN (
            SELECT organization_id FROM contracts_contract WHERE id = ANY (%(contracts)s))""",
)


def run() -> Iterator[dict[str, Any]]:
    """Contracts a second and statements a contract, together beside singly; then a second by two workers."""
    from marketplace.billing.selectors import unsettled_contracts
    from marketplace.billing.services.settlement_batches import settle_together
    from marketplace.billing.services.settling import settle_contract
    from marketplace.ledger.selectors import check_ledger

    world = _world()
    few = int(os.environ.get("SETTLING_SINGLY", "60"))
    _fill(world, START, few)
    _fill(world, START + HOUR, CONTRACTS)
    due = unsettled_contracts(since=START, until=START + HOUR)

    def singly() -> int:
        made = [
            settle_contract(
                contract_id=item.contract_id, settlement_start=item.settlement_start, now=START + DUE_AFTER
            )
            for item in due
        ]
        return len([one for one in made if one is not None])

    # The first of a process pays for what is read once.
    settle_together(due[:1], now=START + DUE_AFTER)
    due = due[1:]
    alone_s, alone_statements = _measured(singly, few - 1)
    many = unsettled_contracts(since=START + HOUR, until=START + 2 * HOUR)
    later = START + HOUR + DUE_AFTER
    together_s, statements = _measured(lambda: len(settle_together(many, now=later).settled), CONTRACTS)
    yield _result("settling_together", CONTRACTS / together_s, "contracts/s", (few - 1) / alone_s)
    yield _result(
        "settling_statements", statements / CONTRACTS, "statements/contract", alone_statements / (few - 1)
    )
    _fill(world, START + 2 * HOUR, CONTRACTS)
    yield _result("settling_two_workers", CONTRACTS / _by_processes(), "contracts/s", CONTRACTS / together_s)
    assert check_ledger() == []


def _measured(work: Callable[[], int], expected: int) -> tuple[float, int]:
    """Seconds and statements."""
    statements = 0

    def count(execute: Any, sql: Any, parameters: Any, many: Any, context: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(sql, parameters, many, context)

    began = time.perf_counter()
    with connection.execute_wrapper(count):
        settled = work()
    assert settled == expected, f"{settled} of {expected} settled"
    return time.perf_counter() - began, statements


def _by_processes() -> float:
    """Seconds that the slower of two processes took, once it had started."""
    command = [sys.executable, "-m", "tests.benchmarks.settling"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    told = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    settled = [int(line[0]) for line in told]
    print(f"settled by each of the processes: {settled}", file=sys.stderr)
    assert sum(settled) == CONTRACTS
    return max(float(line[1]) for line in told)


def _settle_here() -> None:
    """In a process of its own: prints how many it settled, and in how many seconds."""
    import django

    django.setup()
    from marketplace.billing.selectors import unsettled_contracts
    from marketplace.billing.services.settlement_batches import settle_together

    start = START + 2 * HOUR
    due = unsettled_contracts(since=start, until=start + HOUR)
    began, settled, size = time.perf_counter(), 0, CONTRACTS // 4
    for first in range(0, len(due), size):
        settled += len(settle_together(due[first : first + size], now=start + DUE_AFTER).settled)
    print(settled, time.perf_counter() - began)


def _world() -> dict[str, Any]:
    from marketplace.accounts.models import Organization
    from marketplace.contracts.models import Contract, ContractKind
    from marketplace.ids import uuid7
    from tests.cast import make_grade, make_party, make_plant

    make_party("Operator", ["operator"], START)
    grade = make_grade(START)
    plants = [
        make_plant(make_party(name, ["provider"], START), grade, START, name=name)
        for name in ("Hyperion", "Borealis")
    ]
    buyers = [
        Organization(
            id=uuid7(START),
            name=f"Buyer {number}",
            roles=["buyer"],
            own_tax_ppm=TAX_PPM,
            tax_ppm=TAX_PPM,
            created_at=START,
        )
        for number in range(CONTRACTS)
    ]
    Organization.objects.bulk_create(buyers)
    contracts = Contract.objects.bulk_create(
        Contract(
            id=uuid7(START),
            organization=buyer,
            grade=grade,
            kind=ContractKind.ON_DEMAND,
            currency="USD",
            starts_at=START,
            created_at=START,
        )
        for buyer in buyers
    )
    with (
        psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as owner,
        owner.cursor() as cursor,
    ):
        cursor.executemany(
            """INSERT INTO ledger_ledgeraccount (
                   id, organization_id, kind, currency, debits_must_not_exceed_credits, overdraft_limit_micros,
                   debits_posted_micros, credits_posted_micros, debits_pending_micros, created_at
               ) VALUES (uuidv7(), %s, 'prepaid', 'USD', true, 0, 0, 0, 0, %s)""",
            [(buyer.id, START) for buyer in buyers],
        )
    _top_up(START)
    return {
        "contracts": sorted(contract.id for contract in contracts),
        "rates": [plant.offering.list_rate_id for plant in plants],
        "offerings": [plant.offering.id for plant in plants],
        "grade": grade.id,
    }


def _top_up(now: datetime) -> None:
    """Every buyer has money, by transfers: the ledger is checked at the end."""
    from marketplace.accounts.selectors import operator_organization
    from marketplace.ids import uuid7
    from marketplace.ledger.models import LedgerAccount
    from marketplace.ledger.services import NewTransfer, account_id, post_transfers

    operator = operator_organization().id
    processor = account_id(organization_id=operator, kind="processor", currency="USD", now=now)
    prepaid = LedgerAccount.objects.filter(kind="prepaid").values_list("id", flat=True)
    post_transfers([NewTransfer(uuid7(), processor, one, 1_000_000, "top_up") for one in prepaid], now=now)


def _fill(world: dict[str, Any], hour: datetime, count: int) -> None:
    values = world | {"hour": hour, "held": _HELD, "contracts": world["contracts"][:count]}
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as owner:
        for statement in _FILL:
            owner.execute(statement.encode(), values)
        owner.execute("ANALYZE")


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}


if __name__ == "__main__":
    _settle_here()
