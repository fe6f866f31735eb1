"""Usage events a second from a signed HTTP batch to durable, deduplicated and rolled up, beside the bare database.

Two hosts' worth of posts go to the real application under gunicorn; two ingesters, as a worker with two processes has
them, empty the inbox at the same time. The floor is one connection that copies the same rows to a staging table and
inserts them with ON CONFLICT DO NOTHING into a table of the same form. Needs a migrated, empty database
(`DATABASE_URL`, and `DATABASE_OWNER_URL` for the floor's table): `python -m tests.benchmarks ingest`.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from random import randrange
from typing import Any
from uuid import uuid4

import psycopg
from django.db import connections
from msgspec.structs import astuple

from marketplace.local.ports import any_free_port
from metering.models import UsageBatch, UsageEvent, UsageRollup
from metering.staging import (
    COLUMN_TYPES,
    COLUMNS,
    HEADER,
    TRAILER,
    microseconds,
    pack_content,
    pack_owner,
    pack_row,
    pack_terms,
)
from metering.usage import LeanEvent, decode_event, decode_lean
from pricing.units import Bucket
from providers.wire import sign_request
from tests.metering.meters import make_meters

BATCHES = 20
EVENTS_PER_BATCH = 5_000
INGESTERS = 2
TIMEOUT_S = 120
_INGEST = """
import django, time
django.setup()
from marketplace.clock import wall_now
from metering.ingesting import ingest_batches
ingest_batches(now=wall_now())
print("ready", flush=True)
while True:
    if not ingest_batches(now=wall_now()):
        time.sleep(0.005)
"""


def run() -> Iterator[dict[str, Any]]:
    """One result: 100,000 events in batches of 5,000."""
    meters = make_meters(datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    bodies, previous = [], "0" * 64
    for number in range(BATCHES):
        events = [meters.event(buckets=_counts()) for _ in range(EVENTS_PER_BATCH)]
        body = meters.sent(events, first=1 + number * EVENTS_PER_BATCH, previous_digest=previous)
        previous = json.loads(body.partition(b"\n")[0])["digest"]
        bodies.append(body)
    port = any_free_port()
    url = f"http://127.0.0.1:{port}/api/v1/usage"
    with _processes(port):
        requests = [(body, _signed(meters, url, body)) for body in bodies]
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda request: _post(port, *request), requests))
        while UsageBatch.objects.filter(status="pending").exists():
            assert time.perf_counter() < start + TIMEOUT_S, "the inbox does not empty"
            time.sleep(0.01)
        seconds = time.perf_counter() - start
    total = BATCHES * EVENTS_PER_BATCH
    assert UsageEvent.objects.count() == total
    assert UsageRollup.objects.get(bucket="output").events == total
    connections.close_all()
    value, floor = total / seconds, _floor(bodies)
    yield {"name": "ingest", "value": value, "unit": "events/s", "floor": floor, "ratio": value / floor}


def _counts() -> dict[Bucket, int | None]:
    """Different for every event, so that nothing is gained from having seen the same before."""
    return {
        Bucket.UNCACHED_INPUT: randrange(20_000),
        Bucket.CACHE_READ: randrange(100_000),
        Bucket.OUTPUT: randrange(8_000),
    }


def _signed(meters: Any, url: str, body: bytes) -> dict[str, str]:
    return sign_request(
        method="POST",
        url=url,
        body=body,
        private_key=meters.private_key,
        key_id=str(meters.host_id),
        nonce=uuid4().hex,
        now=datetime.now(UTC),
    )


def _post(port: int, body: bytes, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("POST", "/api/v1/usage", body, headers | {"Content-Type": "application/x-ndjson"})
    answer = connection.getresponse()
    told = answer.read()
    assert answer.status == 202, told
    connection.close()


@contextmanager
def _processes(port: int) -> Iterator[None]:
    """The web server and the ingesters, warm; ended by their own handles."""
    gunicorn = [
        sys.executable, "-m", "gunicorn", "marketplace.wsgi:application", "--bind", f"127.0.0.1:{port}",
        "--worker-class", "gthread", "--workers", "1", "--threads", "2", "--no-control-socket",
        "--log-level", "error",
    ]  # fmt: skip
    web: subprocess.Popen[Any] = subprocess.Popen(gunicorn)
    ingesters: list[subprocess.Popen[Any]] = [
        subprocess.Popen([sys.executable, "-c", _INGEST], stdout=subprocess.PIPE, text=True)
        for _ in range(INGESTERS)
    ]
    try:
        for ingester in ingesters:
            assert ingester.stdout is not None
            assert ingester.stdout.readline() == "ready\n"
        _wait_until_up(port)
        yield
    finally:
        for process in [web, *ingesters]:
            process.terminate()
        for process in [web, *ingesters]:
            process.wait(timeout=30)


def _wait_until_up(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            connection.close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the web server does not answer"
            time.sleep(0.05)


def _floor(bodies: list[bytes]) -> float:
    """Rows a second of COPY + INSERT ... ON CONFLICT DO NOTHING, rows packed beforehand, keyed as the real table."""
    names = ", ".join(COLUMNS)
    types = ", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, COLUMN_TYPES, strict=True))
    batches = [HEADER + b"".join(_packed(body)) + TRAILER for body in bodies]
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as connection:
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
        return BATCHES * EVENTS_PER_BATCH / (time.perf_counter() - start)


def _packed(body: bytes) -> Iterator[bytes]:
    owner = pack_owner(source_id=uuid4(), batch_id=uuid4())
    for line in body.splitlines()[1:]:
        event = decode_event(line)
        (lean,) = decode_lean([line])
        assert isinstance(lean, LeanEvent)
        terms = pack_terms(
            contract_id=event.contract_id,
            offering_id=event.offering_id,
            grade_id=event.grade_id,
            rate_id=event.rate_id,
            period_start=event.period_start,
            api_key_id=event.api_key_id,
        )
        content = pack_content(
            lean,
            terms=terms,
            event_id=event.id.bytes,
            request_id=event.request_id.bytes,
            occurred_us=microseconds(event.occurred_at),
            counts=astuple(lean.buckets),
        )
        yield pack_row(owner, 1, content)
