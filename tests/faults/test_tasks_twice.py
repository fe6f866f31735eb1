"""Every Celery task delivered twice, at once and one after the other: the second time changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import count

import psycopg
import pytest
import time_machine
from django.conf import settings
from django.db import OperationalError, connections

from marketplace.billing.auditing import check_charges
from marketplace.celery import app
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from metering.auditing import UsageDifference, check_usage
from metering.models import UsageEvent as StoredEvent
from metering.services import accept_batch, gateway_source
from metering.usage import Finish, UsageEvent, encode_event, encode_lines
from pricing.units import Bucket
from tests.faults.evidence import EVER
from tests.house import NOW, House

app.loader.import_default_modules()
TASKS = sorted(name for name in app.tasks if not name.startswith("celery."))
_STEP = timedelta(minutes=7)
_steps = count(1)


def test_every_hint_of_the_schedule_is_a_task() -> None:
    assert len(TASKS) >= 12
    assert {hint["task"] for hint in settings.CELERY_BEAT_SCHEDULE.values()} <= set(TASKS)


@pytest.fixture(scope="module")
def made_by_hand(house: House) -> list[UsageDifference]:
    """The roll-ups that the house was given without events."""
    return check_usage(since=EVER)


@pytest.fixture
def moment(house: House) -> Iterator[datetime]:
    """Some minutes later than the test before, so that rounds and periods have come due; then time stands still."""
    at = NOW + next(_steps) * _STEP
    with time_machine.travel(at, tick=False):
        yield at


def _new_work(house: House, now: datetime) -> None:
    """Usage in the inbox: new events, one of them twice, and one that cannot be counted."""
    day = house.day
    events = [
        UsageEvent(
            id=uuid7(now), sequence=1, request_id=uuid7(now), attempt=0, part=0, contract_id=day.on_demand.id,
            offering_id=day.plant.offering.id, grade_id=day.grade.id, rate_id=day.plant.offering.list_rate_id,
            period_start=now.replace(minute=0), occurred_at=now, finish=Finish.STOP, bytes_in=120, bytes_out=4_000,
            buckets={Bucket.UNCACHED_INPUT: 12, Bucket.OUTPUT: 30 + number}, duration_ms=40,
        )
        for number in range(5)
    ]  # fmt: skip
    lines = [encode_event(event) for event in [*events, events[0]]]
    accept_batch(source=gateway_source(now), body=encode_lines([*lines, b"{}"]), now=now)


def _deliver(task: str) -> None:
    """As a worker does, and again when the database let it down: late acknowledgement brings the message back."""
    try:
        for _ in range(5):
            try:
                app.tasks[task]()
                return
            except OperationalError as error:
                if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
                    raise
        pytest.fail(f"{task} meets itself in a deadlock every time")
    finally:
        connections.close_all()


def _state(house: House) -> dict[str, tuple[int, str]]:
    """Of every table the number of rows and a digest of all of them."""
    with psycopg.connect(house.database.owner_url, autocommit=True) as owner:
        tables = [
            str(row[0])
            for row in owner.execute(
                """SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"""
            )
        ]
        found = {}
        for table in tables:
            row = owner.execute(
                f"SELECT count(*), coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {table} t".encode()
            ).fetchone()
            assert row is not None
            found[table] = (int(row[0]), str(row[1]))
        return found


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_runs_twice_changes_what_it_changes_once(
    house: House, made_by_hand: list[UsageDifference], moment: datetime, task: str
) -> None:
    _new_work(house, moment)
    connections.close_all()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_deliver, [task, task]))
    # One that stops at a bound goes on at the next hint.
    for _ in range(5):
        before = _state(house)
        _deliver(task)
        after = _state(house)
        if before == after:
            break
    changed = sorted(table for table in after if before[table] != after[table])
    assert changed == []
    assert check_usage(since=EVER) == made_by_hand
    assert check_charges(since=EVER).differences == []
    assert check_ledger() == []


def test_all_tasks_together_did_their_work(house: House, moment: datetime) -> None:
    """What the tests above left in the inbox is counted once each: nothing here was vacuous."""
    ingest = "metering.tasks.ingest_pending"
    _deliver(ingest)
    counted = StoredEvent.objects.filter(contract_id=house.day.on_demand.id).count()
    assert counted == 1 + 5 * len(TASKS)
