"""Once and exactly, also with many workers at it and some of them killed."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from django.db import connections

from metering.ingesting import ingest_batches
from metering.models import UsageBatch
from metering.services import accept_batch
from tests.conftest import TestDatabase
from tests.metering.meters import make_meters, totals

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
from django.db import connection
from metering.ingesting import ingest_batches

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


@pytest.mark.parametrize(
    ("statement", "when"),
    [
        ("metering_claim_batches", "after"),
        ("FROM metering_meterpoint", "after"),
        ("INSERT INTO metering_usageevent", "before"),
        ("INSERT INTO metering_usageevent", "after"),
        ("SET status = 'stored'", "before"),
        ("SET status = 'stored'", "after"),
    ],
)
def test_a_worker_killed_at_any_point_loses_and_doubles_nothing(
    committed_db: TestDatabase, now: datetime, statement: str, when: str
) -> None:
    meters = make_meters(now)
    event = meters.event()
    meters.report([event, event])
    accept_batch(source=meters.agent, body=meters.sent([meters.event() for _ in range(20)]), now=now)
    worker = subprocess.Popen(
        [sys.executable, "-c", _STOPPING, statement, when, now.isoformat()],
        env=committed_db.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "stopped\n"
        # Its batches are its own as long as it lives, and nothing of them is to be seen.
        assert ingest_batches(now=now) == 0
        assert totals() == (0, 0, 0)
    finally:
        worker.kill()
        worker.communicate()
    deadline = time.monotonic() + 20
    while not ingest_batches(now=now):
        assert time.monotonic() < deadline, "the batches of a killed worker stay claimed"
        time.sleep(0.05)
    assert totals() == (21, 21 * NUMERATOR, 21 * NUMERATOR)
    assert ingest_batches(now=now) == 0


def test_a_database_that_goes_away_costs_a_batch_no_attempt(
    committed_db: TestDatabase, now: datetime
) -> None:
    meters = make_meters(now)
    batch = meters.report([meters.event()])
    connection = connections["default"]

    def cut(execute, sql, params, many, context):  # type: ignore[no-untyped-def]
        if "INSERT INTO metering_usageevent" in sql:
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
