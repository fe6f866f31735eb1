"""Once and exactly, also with many workers at it and some of them killed."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from uuid import UUID

import psycopg
import pytest
from django.db import connections

from metering.ingesting import count_killed_attempts, ingest_batches, retry_failed_batches
from metering.models import UsageBatch
from metering.services import accept_batch
from tests.conftest import TestDatabase
from tests.metering.meters import Meters, make_host, make_meters, totals

NUMERATOR = 12 * 250_000 + 30 * 1_000_000


def _in_threads(work: Sequence[object], now: datetime, *, limit: int) -> int:
    def drain(_: object) -> int:
        try:
            finished = 0
            while batches := ingest_batches(limit=limit, now=now):
                finished += batches
            return finished
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(work)) as pool:
        return sum(pool.map(drain, work))


def test_parallel_workers_count_every_event_once(committed_db: TestDatabase, now: datetime) -> None:
    meters = make_meters(now)
    others = [meters.other_contract() for _ in range(5)]
    events = [[other.event() for other in others] for _ in range(60)]
    # Each event stands in three batches, each time in another order.
    for batch in events:
        meters.report(batch)
        meters.report(batch[::-1])
    for batch in reversed(events):
        meters.report(batch)
    assert _in_threads(range(4), now, limit=7) == 180
    assert totals() == (300, 300 * NUMERATOR, 300 * NUMERATOR)
    counted = UsageBatch.objects.values_list("accepted_events", "duplicate_events")
    assert sum(row[0] for row in counted) == 300
    assert sum(row[1] for row in counted) == 600


def test_workers_take_different_sources_while_there_are_some(
    committed_db: TestDatabase, now: datetime
) -> None:
    """What repeats usage comes from its own source: two workers at one source would wait for each other."""
    meters = make_meters(now)
    first, second = meters, make_host(meters)
    of_first = [_send(first, number) for number in range(1, 21)]
    of_second = [_send(second, number) for number in range(1, 3)]
    one_batch, all_bytes = 1, 2**40
    with ExitStack() as stack:
        workers = [stack.enter_context(psycopg.connect(committed_db.database_url)) for _ in range(4)]
        claims = [
            [row[0] for row in worker.execute("SELECT metering_claim_batches(1000, %s)", [most])]
            for worker, most in zip(workers, (one_batch, all_bytes, all_bytes, all_bytes), strict=True)
        ]
    assert claims[0] == of_first[:1]
    assert claims[1] == of_second
    # The third finds both sources taken and helps out. Some rows are locked a little ahead, but none is claimed twice.
    assert claims[2]
    assert set(claims[2]) < set(of_first[1:])
    assert claims[3] == []


def _send(host: Meters, number: int) -> UUID:
    return accept_batch(source=host.agent, body=host.sent([host.event()], first=number), now=host.now).pk


def test_two_workers_at_the_same_events_never_deadlock(committed_db: TestDatabase, now: datetime) -> None:
    meters = make_meters(now)
    events = [meters.event() for _ in range(300)]
    for shift in range(0, 300, 30):
        meters.report(events[shift:] + events[:shift])
    assert _in_threads(range(3), now, limit=1) == 10
    assert totals() == (300, 300 * NUMERATOR, 300 * NUMERATOR)


# Runs one ingestion in a process of its own that stops, for ever, when it gets to the named statement.
_STOPPING = """
import sys, time
import django
django.setup()
from datetime import datetime
from uuid import UUID
from django.db import connection
from metering.ingesting import count_killed_attempts, ingest_batches, retry_failed_batches

def stop(execute, sql, params, many, context):
    if sys.argv[2] == "before" and sys.argv[1] in sql:
        print("stopped", flush=True)
        time.sleep(60)
    result = execute(sql, params, many, context)
    if sys.argv[2] == "after" and sys.argv[1] in sql:
        print("stopped", flush=True)
        time.sleep(60)
    return result

with connection.execute_wrapper(stop):
    ingest_batches(now=datetime.fromisoformat(sys.argv[3]))
print("finished", flush=True)
"""


def test_a_batch_that_kills_every_worker_ends_dead_and_the_others_are_stored(
    committed_db: TestDatabase, now: datetime
) -> None:
    meters = make_meters(now)
    poison = meters.report([meters.event()])
    other = meters.report([meters.event()])

    def kill_one(call: str) -> int:
        """A worker that is killed at its work; returns how many attempts that was, as the sweeper sees it."""
        stopping = _STOPPING.replace("ingest_batches", call)
        worker = subprocess.Popen(
            [sys.executable, "-c", stopping, "SET status = 'stored'", "before", now.isoformat()],
            env=committed_db.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "stopped\n"
            assert count_killed_attempts() == 0, "it lives"
        finally:
            worker.kill()
            worker.communicate()
        return _until_counted()

    assert kill_one("ingest_batches") == 2
    for attempt in range(2, 6):
        # The sweeper's turn: each batch alone, the older one first.
        assert kill_one("retry_failed_batches") == 1
        poison.refresh_from_db()
        assert poison.attempts == attempt
    assert (poison.status, poison.error) == ("dead", "the worker was killed while it stored this batch")
    assert retry_failed_batches(now=now) == 1
    other.refresh_from_db()
    assert (other.status, other.error) == ("stored", "")
    assert totals() == (1, NUMERATOR, NUMERATOR)
    assert count_killed_attempts() == 0


def _until_counted() -> int:
    """The database notices a moment later that its client has gone."""
    deadline = time.monotonic() + 20
    while not (counted := count_killed_attempts()):
        assert time.monotonic() < deadline, "a killed worker is not noticed"
        time.sleep(0.05)
    return counted


def test_a_database_that_goes_away_costs_a_batch_no_attempt(
    committed_db: TestDatabase, now: datetime
) -> None:
    meters = make_meters(now)
    batch = meters.report([meters.event()])
    connection = connections["default"]

    def cut(execute, sql, params, many, context):  # type: ignore[no-untyped-def]
        if "INSERT INTO metering_usagerollup" in sql:
            connection.connection.close()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(cut), pytest.raises(Exception, match="closed"):
        ingest_batches(now=now)
    connection.close()
    batch.refresh_from_db()
    assert (batch.status, batch.attempts) == ("pending", 0)
    assert ingest_batches(now=now) == 1
    assert totals() == (1, NUMERATOR, NUMERATOR)


def test_the_same_batch_accepted_by_many_at_once_is_one_batch(
    committed_db: TestDatabase, now: datetime
) -> None:
    meters = make_meters(now)
    body = meters.sent([meters.event()])

    def accept(_: int) -> object:
        try:
            return accept_batch(source=meters.agent, body=body, now=now).id
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(accept, range(6)))) == 1
