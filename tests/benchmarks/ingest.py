"""Usage events a second from signed HTTP batches to durable, deduplicated, normalised and rolled up, beside the bare
database.

Two hosts, each with a client process of its own, post batches of 5,000 to the real application under gunicorn; two
ingesters, as a worker with two processes has them, empty the inbox meanwhile. The floor is one connection that copies
the same rows to a staging table and inserts them with ON CONFLICT DO NOTHING into a table of the same form.
Needs a migrated, empty database (`DATABASE_URL`, and `DATABASE_OWNER_URL` for the floor's table):
`python -m tests.benchmarks ingest`.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, NamedTuple
from uuid import uuid4

import numpy as np
import psycopg
from django.db import connections
from django.db.models import Sum

from marketplace.ids import uuid7
from metering.columns import Columns, Fields, Rows
from metering.models import UsageBatch, UsageEvent, UsageRollup
from metering.packing import COLUMN_TYPES, COLUMNS, HEADER, TRAILER, pack_terms
from metering.usage import LeanEvent, read_lean
from metering.usage import UsageEvent as WireEvent
from metering.validating import Terms, read_terms
from pricing.units import Bucket
from providers.wire import sign_request
from tests.benchmarks.servers import web_server
from tests.metering.meters import Meters, digest_of, make_host, make_meters

HOSTS = 2
BATCHES_PER_HOST = 15
EVENTS_PER_BATCH = 5_000
CONTRACTS_PER_HOST = 10
INGESTERS = 2
ROUNDS = 3
# A host's requests end one after the other, all of them within one delivery period.
BETWEEN_REQUESTS = timedelta(minutes=5) / (BATCHES_PER_HOST * EVENTS_PER_BATCH)
# The bound on the inbox is for a market that cannot follow; here the whole burst may wait.
NO_BOUND = {"USAGE_INBOX_MAX_BATCHES": "100000", "USAGE_INBOX_MAX_BYTES": str(2**40)}
TIMEOUT_S = 120
TOTAL: Final = HOSTS * BATCHES_PER_HOST * EVENTS_PER_BATCH
_INGEST = """
import django, sys, time
django.setup()
from marketplace.clock import wall_now
from metering.ingesting import ingest_batches
ingest_batches(now=wall_now())
print("ready", flush=True)
while True:
    if not ingest_batches(now=wall_now()):
        time.sleep(0.005)
"""
# A host's process: everything is prepared and signed, so that what it costs is sending.
_POST = """
import http.client, pickle, sys
port, requests = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
sys.stdin.buffer.readline()
for body, headers in requests:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/api/v1/usage", body, headers)
    answer = connection.getresponse()
    told = answer.read()
    assert answer.status == 202, told
    connection.close()
"""


class Mix(NamedTuple):
    """How much of the usage is not new and in order, in events of a thousand."""

    name: str
    duplicates: int
    late: int


def run() -> Iterator[dict[str, Any]]:
    """Clean usage beside the floor; usage with 5% duplicates and 1% late beside clean usage, to hold 0.8. In turns,
    since tables grow and machines are shared; medians.
    """
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    market = make_meters(now, valid_from=now - timedelta(days=40))
    clean: list[_Measured] = []
    unclean: list[_Measured] = []
    for _ in range(ROUNDS):
        clean.append(_measure(market, Mix("clean", 0, 0)))
        unclean.append(_measure(market, Mix("unclean", 50, 10)))
    rate = median(one.rate for one in clean)
    floor = median(one.floor for one in clean)
    unclean_rate = median(one.rate for one in unclean)
    peak_mib = max(one.peak_mib for one in clean + unclean)
    yield {"name": "ingest", "value": rate, "unit": "events/s", "floor": floor, "ratio": rate / floor}
    yield {
        "name": "ingest_duplicates_late",
        "value": unclean_rate,
        "unit": "events/s",
        "floor": rate,
        "ratio": unclean_rate / rate,
    }
    yield {
        "name": "ingest_worker_memory",
        "value": float(peak_mib),
        "unit": "MiB",
        "floor": 300.0,
        "ratio": peak_mib / 300,
    }


class _Measured(NamedTuple):
    rate: float
    floor: float
    peak_mib: int


def _measure(market: Meters, mix: Mix) -> _Measured:
    hosts = [make_host(market) for _ in range(HOSTS)]
    random = Random(mix.name)
    batches = {host.host_id: _batches(host, mix, random) for host in hosts}
    stored_before = UsageEvent.objects.count()
    summed_before = _output_events()
    with web_server(**NO_BOUND) as (port, _), _ingesters() as ingesters:
        requests = {
            host.host_id: [(body, _signed(host, port, body)) for body in batches[host.host_id]]
            for host in hosts
        }
        clients = [_client(port, requests[host.host_id]) for host in hosts]
        start = time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(b"\n")
            client.stdin.flush()
        for client in clients:
            assert client.wait(TIMEOUT_S) == 0, "a client was refused"
        while UsageBatch.objects.filter(status="pending").exists():
            assert time.perf_counter() < start + TIMEOUT_S, "the inbox does not empty"
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        peak_mib = max(_peak_mib(ingester.pid) for ingester in ingesters)
    told = UsageBatch.objects.filter(source__in=[host.agent for host in hosts]).aggregate(
        accepted=Sum("accepted_events"), duplicates=Sum("duplicate_events")
    )
    assert told["accepted"] + told["duplicates"] == TOTAL
    assert (told["duplicates"] > 0) == (mix.duplicates > 0)
    assert UsageEvent.objects.count() - stored_before == told["accepted"]
    assert _output_events() - summed_before == told["accepted"]
    connections.close_all()
    bodies = [body for host in hosts for body in batches[host.host_id]]
    return _Measured(TOTAL / seconds, _floor(bodies) if mix.duplicates == 0 else 0.0, peak_mib)


def _output_events() -> int:
    return int(UsageRollup.objects.filter(bucket="output").aggregate(n=Sum("events"))["n"] or 0)


def _batches(host: Meters, mix: Mix, random: Random) -> list[bytes]:
    """Signed-for bodies of one host, chained. Duplicates are of any batch before, late events up to 30 days old."""
    contracts = [host, *[host.other_contract() for _ in range(CONTRACTS_PER_HOST - 1)]]
    bodies: list[bytes] = []
    sent: list[WireEvent] = []
    previous = "0" * 64
    for number in range(BATCHES_PER_HOST):
        events = []
        for place in range(EVENTS_PER_BATCH):
            if sent and random.randrange(1_000) < mix.duplicates:
                events.append(random.choice(sent))
                continue
            late = (
                timedelta(hours=random.randrange(1, 720))
                if random.randrange(1_000) < mix.late
                else timedelta()
            )
            ended = host.now + (number * EVENTS_PER_BATCH + place) * BETWEEN_REQUESTS - late
            events.append(_event(random.choice(contracts), host.now - late, ended, random))
        sent += random.sample(events, 500)
        body = host.sent(events, first=1 + number * EVENTS_PER_BATCH, previous_digest=previous)
        previous = digest_of(body, previous)
        bodies.append(body)
    return bodies


def _event(contract: Meters, period_start: datetime, ended: datetime, random: Random) -> WireEvent:
    """Different counts for every event, so that nothing is gained from having seen the same before. A meter makes the
    id when the request has ended."""
    counts: dict[Bucket, int | None] = {
        Bucket.UNCACHED_INPUT: random.randrange(20_000),
        Bucket.CACHE_READ: random.randrange(100_000),
        Bucket.OUTPUT: random.randrange(8_000),
    }
    duration_ms = random.randrange(60_000)
    return contract.event(
        id=uuid7(ended),
        request_id=uuid7(ended - timedelta(milliseconds=duration_ms)),
        period_start=period_start,
        occurred_at=ended - timedelta(milliseconds=duration_ms),
        buckets=counts,
        first_byte_ms=random.randrange(2_000),
        duration_ms=duration_ms,
    )


def _signed(host: Meters, port: int, body: bytes) -> dict[str, str]:
    signed = sign_request(
        method="POST",
        url=f"http://127.0.0.1:{port}/api/v1/usage",
        body=body,
        private_key=host.private_key,
        key_id=str(host.host_id),
        nonce=uuid4().hex,
        now=datetime.now(UTC),
    )
    return signed | {"Content-Type": "application/x-ndjson"}


def _client(port: int, requests: list[tuple[bytes, dict[str, str]]]) -> subprocess.Popen[bytes]:
    client = subprocess.Popen(
        [sys.executable, "-c", _POST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert client.stdin is not None
    assert client.stdout is not None
    pickle.dump((port, requests), client.stdin)
    assert client.stdout.readline() == b"ready\n"
    return client


@contextmanager
def _ingesters() -> Iterator[list[subprocess.Popen[str]]]:
    """Warm; ended by their own handles."""
    ingesters = [
        subprocess.Popen([sys.executable, "-c", _INGEST], stdout=subprocess.PIPE, text=True)
        for _ in range(INGESTERS)
    ]
    try:
        for ingester in ingesters:
            assert ingester.stdout is not None
            assert ingester.stdout.readline() == "ready\n"
        yield ingesters
    finally:
        for ingester in ingesters:
            ingester.terminate()
        for ingester in ingesters:
            ingester.wait(timeout=30)


def _peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


def _floor(bodies: list[bytes]) -> float:
    """Rows a second of COPY + INSERT ... ON CONFLICT DO NOTHING, rows packed beforehand, keyed as the real table."""
    names = ", ".join(COLUMNS)
    types = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, COLUMN_TYPES, strict=True))
    batches = [HEADER + b"".join(_packed(body)) + TRAILER for body in bodies]
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as connection:
        connection.execute("DROP TABLE IF EXISTS benchmark_floor")
        connection.execute("CREATE TABLE benchmark_floor (LIKE metering_usageevent INCLUDING INDEXES)")
        connection.execute(f"CREATE TEMP TABLE benchmark_staging ({types}) ON COMMIT DELETE ROWS")
        connection.commit()
        start = time.perf_counter()
        for packed_batch in batches:
            with connection.cursor() as cursor:
                with cursor.copy(f"COPY benchmark_staging ({names}) FROM STDIN (FORMAT BINARY)") as copy:
                    copy.write(packed_batch)
                cursor.execute(
                    f"""INSERT INTO benchmark_floor ({names}) SELECT {names} FROM benchmark_staging
                        ON CONFLICT DO NOTHING"""
                )
                assert cursor.rowcount == EVENTS_PER_BATCH
            connection.commit()
        return TOTAL / (time.perf_counter() - start)


def _packed(body: bytes) -> Iterator[bytes]:
    fields, events = Fields(), []
    for part in read_lean(body.partition(b"\n")[2]):
        events += [event for event in part if isinstance(event, LeanEvent)]
    fields.extend(events)
    assert len(events) == EVENTS_PER_BATCH
    nothing = np.zeros(len(events), np.int64)
    by_terms: dict[Terms, int] = {}
    terms_of = []
    for event in events:
        texts = event.contract_id, event.offering_id, event.grade_id, event.rate_id, event.period_start
        terms = read_terms((*texts, event.api_key_id))
        assert terms is not None
        terms_of.append(by_terms.setdefault(terms, len(by_terms)))
    rows = Rows(
        Columns(fields),
        np.arange(len(events)),
        owners=[(uuid4().bytes, uuid4().bytes)],
        owner_of=nothing,
        terms=[pack_terms(**terms._asdict()) for terms in by_terms],
        terms_of=np.array(terms_of, np.int64),
        numerators=nothing,
    )
    yield from rows.rows(np.arange(len(events)))
