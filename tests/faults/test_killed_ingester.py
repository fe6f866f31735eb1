"""kill -9 of an ingesting process at every point between claim and commit, and at any moment: nothing changes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest
from django.db import connections
from pytest_django import DjangoDbBlocker

from metering.ingesting import ingest_batches
from metering.models import UsageBatch, UsageEvent, UsageRollup
from metering.services import accept_batch
from tests.conftest import TestDatabase, own_database
from tests.database import Services
from tests.faults.breakpoints import OF_INGESTION, stop_at
from tests.faults.evidence import assert_charged_as_metered, assert_counted_once
from tests.faults.world import Sent, World, as_agent_saw, make_events, make_world
from tests.market import wait_until

NOW = datetime.fromisoformat("2026-03-10T12:30:00Z")
TEMPLATE = "tokenyard_fault_world"
NAME = "faults"

# Loaded once; each order is worked off by a forked process of its own, with connections of its own.
_INGESTERS = """
import os, signal, sys
from datetime import datetime
import django
django.setup()
from metering.ingesting import ingest_batches
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for order in sys.stdin:
    limit, now = order.split()
    child = os.fork()
    if child == 0:
        try:
            while ingest_batches(limit=int(limit), now=datetime.fromisoformat(now)):
                pass
        finally:
            os._exit(0)
    print(child, flush=True)
"""


class Ingesters:
    """Starts ingesting processes of one database by the dozen."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _INGESTERS],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._tell() == "ready"

    def start(self, *, limit: int = 1_000) -> psutil.Process:
        assert self._parent.stdin is not None
        self._parent.stdin.write(f"{limit} {NOW.isoformat()}\n")
        self._parent.stdin.flush()
        return psutil.Process(int(self._tell()))

    def close(self) -> None:
        self._parent.communicate(timeout=30)

    def _tell(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().strip()


@pytest.fixture(scope="module")
def world(
    services: Services, django_db_setup: None, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[World]:
    """Made once; every test has a copy of its database."""
    template = f"{TEMPLATE}_{worker_name}"
    with own_database(services, django_db_blocker, worker_name, "first_world") as first:
        made = make_world(NOW - timedelta(hours=1))
        connections.close_all()
        services.clone(template, template=first.name)
    yield made
    services.drop(template)


@pytest.fixture
def database(
    services: Services, world: World, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[TestDatabase]:
    with own_database(
        services, django_db_blocker, worker_name, NAME, template=f"{TEMPLATE}_{worker_name}"
    ) as own:
        yield own


@pytest.fixture(scope="module")
def ingesters(services: Services, world: World, worker_name: str) -> Iterator[Ingesters]:
    name = f"tests_{worker_name}_{NAME}"
    urls = {"DATABASE_URL": services.database_url(name), "DATABASE_OWNER_URL": services.owner_url(name)}
    made = Ingesters(dict(os.environ) | urls)
    yield made
    made.close()


def _fill_inbox(world: World) -> Sent:
    """Every kind of batch: of gateway and agents, with repetitions in and across batches, a conflict, a stray event."""
    sent = Sent(world)
    first, second = world.hosts
    for start in range(0, 60, 20):
        events = make_events(first, 20, at=NOW - timedelta(minutes=start))
        accept_batch(source=world.gateway, body=sent.by_gateway(events), now=NOW)
        accept_batch(source=world.gateway, body=sent.by_gateway(events[::-1] + events[:5]), now=NOW)
        seen = as_agent_saw(events)
        accept_batch(source=first.agent, body=sent.by_agent(first, [*seen, seen[0]]), now=NOW)
    other = make_events(second, 30, at=NOW)
    for event in other:
        accept_batch(source=world.gateway, body=sent.by_gateway([event]), now=NOW)
    liar = [msgspec.structs.replace(event, bytes_out=1) for event in other[:3]]
    accept_batch(source=world.gateway, body=sent.by_gateway(liar), now=NOW)
    accept_batch(source=second.agent, body=sent.by_agent(second, as_agent_saw(other)), now=NOW)
    stray = second.event(id=other[0].id.__class__(int=4), period_start=NOW, occurred_at=NOW)
    accept_batch(source=second.agent, body=sent.by_agent(second, [stray], counted=False), now=NOW)
    return sent


def _drain() -> int:
    """Ingest what is there, as the next worker does; waits for locks of the dead to be gone."""
    finished = 0

    def done() -> bool:
        nonlocal finished
        while count := ingest_batches(now=NOW):
            finished += count
        return not UsageBatch.objects.filter(status=UsageBatch.Status.PENDING).exists()

    wait_until(done, "the inbox to be empty", seconds=30)
    return finished


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # It may have done all its work.
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=30)


@pytest.mark.parametrize("point", OF_INGESTION)
def test_an_ingester_killed_between_claim_and_commit_leaves_nothing_behind(
    database: TestDatabase, ingesters: Ingesters, world: World, point: str
) -> None:
    sent = _fill_inbox(world)
    batches = UsageBatch.objects.count()
    ids = sorted(event for events in sent.events.values() for event in events)
    with stop_at(point, database.owner_url, first=ids[0], middle=ids[len(ids) // 2]) as stop:
        process = ingesters.start()
        [backend] = stop.wait()
        # What it has claimed is its own as long as it lives, and nothing of it is to be seen.
        assert ingest_batches(now=NOW) == 0
        assert not UsageEvent.objects.exists()
        assert not UsageRollup.objects.exists()
        _kill(process)
        # Its server process learns of it when it next speaks; at commit that is too late, so the server dies, too.
        with psycopg.connect(database.database_url, autocommit=True) as app:
            app.execute("SELECT pg_terminate_backend(%s)", [backend])
    assert _drain() == batches
    assert_counted_once(sent.events)
    assert_charged_as_metered(NOW)


def test_an_ingester_killed_while_it_commits_has_counted_once(
    database: TestDatabase, ingesters: Ingesters, world: World
) -> None:
    """Nobody was left to be told, and the commit took place: the next worker finds nothing to do."""
    sent = _fill_inbox(world)
    with stop_at("at commit", database.owner_url) as stop:
        process = ingesters.start()
        stop.wait()
        _kill(process)
    wait_until(UsageEvent.objects.exists, "the commit that nobody waits for")
    assert _drain() == 0
    assert_counted_once(sent.events)
    # The agents, unsure, send everything again under new numbers.
    for meters, events in list(sent.by_agents):
        accept_batch(source=meters.agent, body=sent.by_agent(meters, events), now=NOW)
    assert _drain() == len(sent.by_agents) // 2
    assert_counted_once(sent.events)
    assert_charged_as_metered(NOW)


def test_ingesters_killed_at_any_moment_again_and_again_count_once(
    database: TestDatabase, ingesters: Ingesters, world: World
) -> None:
    sent = _fill_inbox(world)
    for meters in world.hosts:
        events = make_events(meters, 1_500, at=NOW)
        for start in range(0, 1_500, 500):
            accept_batch(source=world.gateway, body=sent.by_gateway(events[start : start + 500]), now=NOW)
        accept_batch(source=meters.agent, body=sent.by_agent(meters, as_agent_saw(events)), now=NOW)
    chance = random.Random(20_260_310)
    for _ in range(15):
        pair = [ingesters.start(limit=4), ingesters.start(limit=7)]
        time.sleep(chance.uniform(0.01, 0.25))
        for process in pair:
            _kill(process)
    _drain()
    assert_counted_once(sent.events)
    assert_charged_as_metered(NOW)
