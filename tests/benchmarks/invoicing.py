"""Invoicing 10,000 organizations with 1,000 roll-up rows each, and one with 1,000,000: seconds and memory.

The month is made by SQL straight into the tables, as metering and settlement would have left it: each buyer was charged
in 21 hours (250 delivery periods of four buckets, 1,000 roll-up rows, lie in so many), the tax of each hour held on his
balance. Invoicing reads charges and never roll-ups, so of the 10,000,000 rows only `INVOICING_ROLLUPS` a buyer are
made (40; making all takes longer than a benchmark may); the large buyer has all of his. Values are wall seconds once
the processes have started, the floor what they must stay below; the processes' own processor time stands on stderr.
`INVOICING_ORGANIZATIONS` says how many there are, `INVOICING_ONE_BY_ONE=1` issues each invoice in a transaction of its
own. Two processes issue side by side, as workers do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

MONTH: Final = datetime(2026, 3, 1, tzinfo=UTC)
ISSUED_AT: Final = datetime(2026, 4, 2, tzinfo=UTC)
PROCESSES: Final = 2
HOURS: Final = 21
LARGE_ROLLUPS: Final = 1_000_000
MOST_S: Final = 60
MOST_ONE_S: Final = 5
MOST_MEMORY_MB: Final = 300
TAX_PPM: Final = 190_000
_SETTLEMENT: Final = timedelta(hours=1)
_ROLLUPS: Final = """
INSERT INTO metering_usagerollup (
    contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start, grade_id, events, native_tokens,
    numerator, estimated_events, estimated_numerator, recounted_tokens, recount_o200k_tokens
)
SELECT contract_id, %(rate)s, '00000000-0000-0000-0000-000000000001', %(offering)s, bucket, 'gateway',
       %(month)s::timestamptz + n * interval '5 minutes', %(grade)s, 3, 1000, 250000000, 0, 0, 0, 0
  FROM generate_series(0, %(rows)s / 4 - 1) AS n
 CROSS JOIN unnest(ARRAY['uncached_input', 'cache_read', 'output', 'reasoning']) AS bucket
 CROSS JOIN unnest(%(contracts)s::uuid[]) AS contract_id
"""
_COPIES: Final = {
    "settlements": "billing_settlement (id, contract_id, settlement_start, settlement_end, run, usage_numerator,"
    " usage_digest, created_at)",
    "charges": "billing_charge (id, organization_id, contract_id, settlement_id, kind, grade_id, rate_id,"
    " period_start, period_end, numerator, estimated_numerator, rate_micros_per_mtok, amount_micros, tax_held_micros,"
    " created_at)",
    "holds": "ledger_hold (id, account_id, amount_micros, opened_micros, captured_micros, code, reference_id, status,"
    " created_at)",
}


def run() -> Iterator[dict[str, Any]]:
    """Wall seconds for all buyers, for the large one, and the most memory that a process held."""
    buyers = int(os.environ.get("INVOICING_ORGANIZATIONS", "10000"))
    rollups = int(os.environ.get("INVOICING_ROLLUPS", "40"))
    _fill(buyers, rollups)
    floor = MOST_S * buyers / 10_000
    wall, memory = _issue(PROCESSES)
    yield _result("invoicing_10k" if buyers == 10_000 else f"invoicing_{buyers}", wall, "s", floor)
    yield _result("invoicing_memory", memory, "MiB", MOST_MEMORY_MB)
    # 744 hours, each with charges at two rates, behind a million roll-up rows.
    _fill(1, LARGE_ROLLUPS, hours=744, rates=2)
    wall, memory = _issue(1)
    yield _result("invoicing_one_1m", wall, "s", MOST_ONE_S)
    yield _result("invoicing_one_1m_memory", memory, "MiB", MOST_MEMORY_MB)


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}


def _issue(processes: int) -> tuple[float, float]:
    """Seconds that the slowest process took, once it had started, and the most memory of one, in MiB."""
    command = [sys.executable, "-m", "tests.benchmarks.invoicing"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    told = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    issued = sum(int(line[0]) for line in told)
    cpu = sum(float(line[1]) for line in told)
    print(f"{issued} invoices, {cpu:.1f} s of processor time beside PostgreSQL's", file=sys.stderr)
    assert issued > 0
    return max(float(line[3]) for line in told), max(int(line[2]) for line in told) / 1024


def _issue_here() -> None:
    """In a process of its own: prints how many it issued, processor seconds, peak memory in KiB, wall seconds."""
    import django

    django.setup()
    from marketplace.billing.services.invoicing import buyers_to_invoice, issue_invoice, issue_invoices
    from marketplace.periods import calendar_month

    before, began = time.process_time(), time.perf_counter()
    if os.environ.get("INVOICING_ONE_BY_ONE"):
        month = calendar_month(MONTH)
        buyers = buyers_to_invoice(month=month)
        made = [issue_invoice(organization_id=buyer, month=month, now=ISSUED_AT) for buyer in buyers]
        issued = len([invoice for invoice in made if invoice is not None])
    else:
        issued = len(issue_invoices(month_start=MONTH, now=ISSUED_AT))
    wall = time.perf_counter() - began
    print(issued, time.process_time() - before, _peak_kib(), wall)


def _peak_kib() -> int:
    """Of this program: `ru_maxrss` would count what its parent held before it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def _fill(buyers: int, rollups: int, *, hours: int = HOURS, rates: int = 1) -> None:
    from marketplace.accounts.models import Organization
    from marketplace.contracts.models import Contract, ContractKind
    from marketplace.ids import uuid7

    plants = _plants(rates)
    grade = plants[0].offering.grade
    organizations = Organization.objects.bulk_create(
        (
            Organization(
                id=uuid7(MONTH),
                name=f"Buyer {hours}-{number}",
                roles=["buyer"],
                own_tax_ppm=TAX_PPM,
                tax_ppm=TAX_PPM,
                created_at=MONTH,
            )
            for number in range(buyers)
        ),
        batch_size=1_000,
    )
    contracts = Contract.objects.bulk_create(
        (
            Contract(
                id=uuid7(MONTH),
                organization=organization,
                grade=grade,
                kind=ContractKind.ON_DEMAND,
                currency="USD",
                starts_at=MONTH,
                created_at=MONTH,
            )
            for organization in organizations
        ),
        batch_size=1_000,
    )
    amount, tax, volume = 600_003, 114_001, rollups // hours // rates * 250_000_000
    pending = hours * rates * tax
    accounts = {organization.id: uuid7(MONTH) for organization in organizations}
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as owner:
        _copy(
            owner,
            "ledger_ledgeraccount (id, organization_id, kind, currency, debits_must_not_exceed_credits,"
            " overdraft_limit_micros, debits_posted_micros, credits_posted_micros, debits_pending_micros, created_at)",
            (
                (account, organization, "prepaid", "USD", True, 0, 0, 10**12, pending, MONTH)
                for organization, account in accounts.items()
            ),
        )
        rate_ids = [plant.offering.list_rate_id for plant in plants]
        rows = _rows(contracts, accounts, rate_ids, hours, (amount, tax, volume))
        for name, columns in _COPIES.items():
            _copy(owner, columns, rows[name])
        for plant in plants:
            values = {
                "rate": plant.offering.list_rate_id,
                "offering": plant.offering.id,
                "grade": grade.id,
                "rows": rollups // rates,
                "month": MONTH,
                "contracts": [contract.id for contract in contracts],
            }
            owner.execute(_ROLLUPS, values)
        owner.execute("VACUUM (ANALYZE) billing_charge")
        owner.execute("VACUUM (ANALYZE) ledger_hold")


def _plants(count: int) -> list[Any]:
    from marketplace.accounts.models import Organization
    from tests.cast import make_grade, make_party, make_plant

    if not Organization.objects.filter(roles__contains=["operator"]).exists():
        make_party("Operator", ["operator"], MONTH)
    name = f"Hyperion{Organization.objects.count()}"
    hyperion = make_party(name, ["provider"], MONTH)
    grade = make_grade(MONTH, slug=name.lower(), model=name.lower())
    return [make_plant(hyperion, grade, MONTH, name=f"h{number}") for number in range(count)]


def _rows(
    contracts: list[Any],
    accounts: dict[UUID, UUID],
    rate_ids: list[UUID],
    hours: int,
    figures: tuple[int, int, int],
) -> dict[str, list[tuple[Any, ...]]]:
    from marketplace.billing.services.setting_aside import tax_hold_id
    from marketplace.ids import derived_id

    amount, tax, volume = figures
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _COPIES}
    for contract in contracts:
        for hour in range(hours):
            start = MONTH + hour * _SETTLEMENT
            settlement = derived_id(contract.id, f"settlement:{hour}")
            end = start + _SETTLEMENT
            rows["settlements"].append((settlement, contract.id, start, end, 1, volume, 1, end))
            for rate in rate_ids:
                charge = derived_id(settlement, f"usage:{rate}")
                rows["charges"].append(
                    (
                        charge,
                        contract.organization_id,
                        contract.id,
                        settlement,
                        "usage",
                        contract.grade_id,
                        rate,
                        *(start, end, volume, 0, 600_000, amount, tax, end),
                    )
                )
            held = tax * len(rate_ids)
            hold = tax_hold_id(settlement_id=settlement, charge_id=charge)
            account = accounts[contract.organization_id]
            rows["holds"].append((hold, account, held, held, 0, "tax", contract.id, "open", end))
    return rows


def _copy(connection: psycopg.Connection[Any], columns: str, rows: Any) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {columns} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


if __name__ == "__main__":
    _issue_here()
