"""Reading usage with a year of it stored: the usage page, an organization by model, the events of a period, one event.

The market is made by SQL straight into the tables, as ingestion would have left it: 10 buyers with 20 contracts each,
400 days, every contract an hour a day, roll-ups of three buckets. `READING_EVENTS` says how many events (default one
million, for a whole run of benchmarks); `python -m tests.benchmarks.reading 10000000` measures with ten million, which
takes some minutes. Values are p95 in milliseconds, the floor what they must stay below: smaller ratios are better.
"""

from __future__ import annotations

import http.client
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import psutil
import psycopg

from tests.benchmarks.servers import web_server

CONTRACTS: Final = 200
BUYERS: Final = 10
DAYS: Final = 400
PERIODS_A_DAY: Final = 12
SAMPLES: Final = 100
WARM_UP: Final = 5
MOST_S: Final = 10
LIMIT_MS: Final = 100
MOST_BYTES: Final = 400
MOST_MEMORY_MB: Final = 300
_DAY: Final = timedelta(days=1)
# A day of all contracts, in the order in which it would have come; its roll-ups in the same statement.
_FILL: Final = """
WITH stored AS (
    INSERT INTO metering_usageevent (
        id, source_id, batch_id, request_id, attempt, part, contract_id, offering_id, grade_id, rate_id, api_key_id,
        period_start, occurred_at, uncached_input_tokens, cache_read_tokens, output_tokens, numerator, flags, finish,
        bytes_in, bytes_out, first_byte_ms, duration_ms
    )
    SELECT uuidv7(made.at - clock_timestamp()), %(source)s, %(source)s, uuidv7(made.at - clock_timestamp()), 0, 0,
           made.contract_id, made.offering_id, %(grade)s, %(rate)s, made.api_key_id, made.period_start, made.at,
           made.fresh, made.cached, made.output,
           made.fresh * 250000 + made.cached * 25000 + made.output * 1000000, 0, 'stop', made.fresh * 4,
           made.output * 4, 120, 900
      FROM (
        SELECT c.contract_id, c.offering_id, c.api_key_id, p.period_start,
               p.period_start + random() * interval '299 seconds' AS at, (random() * 20000)::bigint AS fresh,
               (random() * 100000)::bigint AS cached, (random() * 8000)::bigint AS output
          FROM generate_series(1, %(events)s) AS i
         CROSS JOIN unnest(%(contracts)s::uuid[], %(offerings)s::uuid[], %(api_keys)s::uuid[], %(hours)s::int[])
               AS c (contract_id, offering_id, api_key_id, hour)
         CROSS JOIN LATERAL (
               SELECT %(day)s::timestamptz + c.hour * interval '1 hour' + (i %% 12) * interval '5 minutes'
               ) AS p (period_start)
         ORDER BY 5
      ) AS made
    RETURNING contract_id, rate_id, api_key_id, offering_id, period_start, grade_id, uncached_input_tokens,
              cache_read_tokens, output_tokens
)
INSERT INTO metering_usagerollup (
    contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start, grade_id, events, native_tokens,
    numerator, estimated_events, estimated_numerator, recounted_tokens, recount_o200k_tokens
)
SELECT contract_id, rate_id, api_key_id, offering_id, b.bucket, 'gateway', period_start, grade_id, count(*),
       sum(b.tokens), sum(b.tokens * b.ppm), 0, 0, 0, 0
  FROM stored CROSS JOIN LATERAL (VALUES
       ('uncached_input', uncached_input_tokens, 250000), ('cache_read', cache_read_tokens, 25000),
       ('output', output_tokens, 1000000)
  ) AS b (bucket, tokens, ppm)
 GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 7, 1
"""


@dataclass(frozen=True)
class Filled:
    """What was made: by buyer his organization, secret and contracts."""

    first: datetime
    last: datetime
    buyers: list[Any]
    contracts: dict[UUID, list[UUID]]
    events: int


def run() -> Iterator[dict[str, Any]]:
    """Latencies of every kind of read, bytes a stored event takes, and the memory of a worker that exports."""
    filled = _fill(int(os.environ.get("READING_EVENTS", "1000000")))
    for name, read in _reads(filled):
        yield _milliseconds(name, read)
    with _web() as (port, process):
        yield _milliseconds("reading_page_http", lambda: _ask(port, filled, "json"))
        memory = _export_memory(port, filled, process)
    yield _result("reading_export_memory", memory / 2**20, "MiB", MOST_MEMORY_MB)
    yield _result("reading_event_bytes", _event_bytes(filled), "bytes", MOST_BYTES)


def _reads(filled: Filled) -> Iterator[tuple[str, Callable[[], object]]]:
    from marketplace.accounts.models import OrganizationRole
    from marketplace.contracts.usage import UsageTerms, reach_of, usage_query
    from metering.events import events_of_period, find_evidence
    from metering.models import UsageRollup
    from metering.reading import Group, Slice, usage_page

    def page(groups: tuple[Group, ...], slice_by: Slice, days: int, *, one: bool) -> Callable[[], object]:
        def read() -> object:
            buyer, contract_id, since = _anything(filled, days)
            query = usage_query(
                buyer.organization,
                OrganizationRole.BUYER,
                UsageTerms(
                    since=since,
                    until=since + days * _DAY,
                    slice_by=slice_by,
                    groups=groups,
                    contract_id=contract_id if one else None,
                ),
            )
            rows, _ = usage_page(query, after=None, size=50)
            assert len(rows) == 50, len(rows)
            return rows

        return read

    yield "reading_page", page((Group.API_KEY, Group.BUCKET), Slice.DAY, 30, one=True)
    yield "reading_page_of_a_year", page((Group.API_KEY, Group.BUCKET), Slice.DAY, DAYS, one=True)
    yield "reading_organization_by_model", page((Group.MODEL, Group.BUCKET), Slice.DAY, 30, one=False)
    yield "reading_organization_by_hour", page((Group.PROJECT, Group.HOST), Slice.HOUR, 30, one=False)

    def months() -> object:
        """The heaviest: every roll-up of an organization's year, in one row a month and bucket."""
        buyer, _, since = _anything(filled, DAYS)
        terms = UsageTerms(
            since=since, until=since + DAYS * _DAY, slice_by=Slice.MONTH, groups=(Group.BUCKET,)
        )
        return usage_page(usage_query(buyer.organization, OrganizationRole.BUYER, terms), after=None, size=50)

    def period() -> object:
        _, contract_id, since = _anything(filled, 1)
        start = (
            UsageRollup.objects.filter(contract_id=contract_id, period_start__gte=since)
            .order_by("period_start")
            .values_list("period_start", flat=True)[0]
        )
        events = events_of_period(start, contract_ids=[contract_id], size=51)
        assert events
        return events

    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        sampled = connection.execute(
            "SELECT id, contract_id FROM metering_usageevent TABLESAMPLE SYSTEM (0.1) LIMIT 5000"
        ).fetchall()

    def single() -> object:
        event_id, contract_id = random.choice(sampled)
        buyer = next(buyer for buyer in filled.buyers if contract_id in filled.contracts[buyer.id])
        reach = reach_of(buyer.organization, OrganizationRole.BUYER)
        return find_evidence(event_id, contract_ids=reach.contract_ids)

    yield "reading_organization_year", months
    yield "reading_events_of_period", period
    yield "reading_single_event", single


def _anything(filled: Filled, days: int) -> tuple[Any, UUID, datetime]:
    """A buyer, a contract of his, and a day with `days` of usage from it on."""
    buyer = random.choice(filled.buyers)
    since = filled.first + random.randrange((filled.last - filled.first) // _DAY - days + 1) * _DAY
    return buyer, random.choice(filled.contracts[buyer.id]), since


def _milliseconds(name: str, read: Callable[[], object]) -> dict[str, Any]:
    """The p95 of up to SAMPLES calls; of fewer where they take long, so that a whole run ends."""
    taken: list[float] = []
    for _ in range(WARM_UP):
        read()
    began = time.perf_counter()
    while len(taken) < SAMPLES and (len(taken) < 20 or time.perf_counter() < began + MOST_S):
        start = time.perf_counter()
        read()
        taken.append((time.perf_counter() - start) * 1000)
    return _result(name, sorted(taken)[len(taken) * 95 // 100 - 1], "ms p95", LIMIT_MS)


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}


# The market ----------------------------------------------------------------------------------------------------


def _fill(events: int) -> Filled:
    from marketplace.contracts.models import Contract, ContractKind
    from marketplace.ids import uuid7
    from metering.services import gateway_source
    from tests.cast import make_grade, make_party, make_plant

    now = datetime.now(UTC)
    last = now.replace(hour=0, minute=0, second=0, microsecond=0)
    first = last - DAYS * _DAY
    make_party("Operator", ["operator"], first)
    hyperion = make_party("Hyperion", ["provider"], first)
    buyers = [make_party(f"Buyer-{number}", ["buyer"], first) for number in range(BUYERS)]
    grade = make_grade(first)
    plants = [make_plant(hyperion, grade, now, name=f"h{number}") for number in range(4)]
    contracts: dict[UUID, list[UUID]] = {}
    for buyer in buyers:
        made = Contract.objects.bulk_create(
            Contract(
                id=uuid7(first),
                organization_id=buyer.id,
                grade=grade,
                kind=ContractKind.SPOT,
                currency="USD",
                starts_at=first,
                created_at=first,
            )
            for _ in range(CONTRACTS // BUYERS)
        )
        contracts[buyer.id] = [contract.id for contract in made]
    owned = [(contract_id, buyer.api_key_id) for buyer in buyers for contract_id in contracts[buyer.id]]
    values: dict[str, Any] = {
        "source": gateway_source(now).id,
        "grade": grade.id,
        "rate": plants[0].offering.list_rate_id,
        "contracts": [contract_id for contract_id, _ in owned],
        "api_keys": [api_key_id for _, api_key_id in owned],
        "offerings": [plants[number % len(plants)].offering.id for number in range(CONTRACTS)],
        "events": max(1, events // (CONTRACTS * DAYS)),
    }
    days = [first + number * _DAY for number in range(DAYS)]
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as connection:
        connection.execute("SELECT metering_make_partitions(%s)", [now])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda part: _fill_days(part, values), [days[0::2], days[1::2]]))
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) metering_usageevent")
        connection.execute("VACUUM (ANALYZE) metering_usagerollup")
    return Filled(first, last, buyers, contracts, values["events"] * CONTRACTS * DAYS)


def _fill_days(days: Sequence[datetime], values: dict[str, Any]) -> None:
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as connection:
        # What is lost when this process dies is made again.
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET timezone = 'UTC'")
        for day in days:
            # Everybody has his own hour, another one every day.
            hours = [(number * 7 + day.day) % 24 for number in range(CONTRACTS)]
            connection.execute(_FILL, values | {"day": day, "hours": hours})


def _event_bytes(filled: Filled) -> float:
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as connection:
        row = connection.execute(
            """SELECT sum(pg_total_relation_size(inhrelid))::bigint, (SELECT count(*) FROM metering_usageevent)
                 FROM pg_inherits WHERE inhparent = 'metering_usageevent'::regclass"""
        ).fetchone()
    assert row is not None
    total, stored = row
    assert stored == filled.events
    return float(total / stored)


# Over HTTP -----------------------------------------------------------------------------------------------------


@contextmanager
def _web() -> Iterator[tuple[int, psutil.Process]]:
    with web_server() as (port, web):
        [worker] = psutil.Process(web.pid).children()
        yield port, worker


def _ask(port: int, filled: Filled, form: str, read: Callable[[Any], None] | None = None) -> None:
    buyer, contract_id, since = _anything(filled, 30 if form == "json" else DAYS)
    terms: dict[str, Any] = {
        "since": since,
        "until": since + 30 * _DAY,
        "slice": "day",
        "contract_id": contract_id,
    }
    if form != "json":
        terms = {"since": since, "until": since + DAYS * _DAY, "slice": "period", "format": form}
    text = urlencode(
        {name: value.isoformat() if name in ("since", "until") else value for name, value in terms.items()}
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", f"/api/v1/usage?{text}", headers={"Authorization": f"Bearer {buyer.secret}"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    if read is None:
        assert b'"items":[{' in answer.read()
    else:
        read(answer)
    connection.close()


def _export_memory(port: int, filled: Filled, worker: psutil.Process) -> int:
    """The most resident bytes of the worker while it exports all roll-ups of a buyer's 400 days, line by line."""
    most, lines = worker.memory_info().rss, 0

    def read(answer: Any) -> None:
        nonlocal most, lines
        while chunk := answer.read(1 << 20):
            most = max(most, worker.memory_info().rss)
            lines += chunk.count(b"\n")

    _ask(port, filled, "ndjson", read)
    # Three buckets of every period that a contract of the buyer's was used in.
    per_day = min(PERIODS_A_DAY, filled.events // (CONTRACTS * DAYS))
    assert lines == 3 * per_day * DAYS * CONTRACTS // BUYERS, lines
    return int(most)


def main(events: str) -> int:
    """One run with another number of events, on servers of its own, without the limit of a whole run."""
    import tests.environment  # noqa: F401  (sets the environment of the processes below)
    from tests.benchmarks.servers import durable_services, environment

    with durable_services() as services:
        services.clone("benchmark_reading")
        command = [sys.executable, "-m", "tests.benchmarks", "--one", "reading"]
        settings = environment(services, "benchmark_reading") | {"READING_EVENTS": events}
        return subprocess.run(command, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
