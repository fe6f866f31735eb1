"""PostgreSQL and Redis killed under the way of usage, and batches sent more than once: each event counts once."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import redis
import requests
from celery import Celery
from pytest_django import DjangoDbBlocker

from marketplace.clock import wall_now
from marketplace.ids import uuid7
from metering.models import UsageBatch
from metering.usage import UsageEvent
from tests.database import Services
from tests.faults.breakpoints import remove_stops, stop_at
from tests.faults.evidence import assert_charged_as_metered, assert_counted_once
from tests.faults.intake import Intake, running_intake
from tests.faults.world import as_agent_saw, make_events
from tests.market import wait_until


@pytest.fixture(scope="module")
def running(
    services: Services,
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    worker_name: str,
    session_folder: Path,
) -> Iterator[Intake]:
    now = wall_now() - timedelta(minutes=30)
    with running_intake(services, django_db_blocker, worker_name, session_folder, now) as intake:
        yield intake


@pytest.fixture
def intake(running: Intake) -> Iterator[Intake]:
    """After every test, whatever it did: each event once, sums of events, charges of sums."""
    if not running.database.is_running:  # The test before failed.
        running.database.start()
        remove_stops(running.market.owner_url)
    yield running
    running.await_stored()
    assert_counted_once(running.sent.events)
    assert_charged_as_metered(wall_now())


def _batch(intake: Intake, count: int = 40, *, host: int = 0) -> bytes:
    """The next batch of a host's agent; the gateway has metered the same requests."""
    meters = intake.world.hosts[host]
    events = make_events(meters, count, at=wall_now())
    for start in range(0, count, 20):
        intake.metered(intake.sent.by_gateway(events[start : start + 20]))
    return intake.sent.by_agent(meters, as_agent_saw(events))


def _batches_of(body: bytes) -> int:
    digest = msgspec.json.decode(body.partition(b"\n")[0])["digest"]
    return UsageBatch.objects.filter(digest=digest).count()


@pytest.mark.parametrize("point", ["before the inbox", "at the inbox's commit"])
def test_a_batch_cut_off_before_it_is_durable_is_sent_again(intake: Intake, point: str) -> None:
    host, body = intake.world.hosts[0], _batch(intake)
    with stop_at(point, intake.market.owner_url) as stop:
        sending = intake.post_somehow(host, body)
        stop.wait()
        intake.database.kill()
    sending.join(timeout=30)
    assert intake.answers != [202]
    intake.database.start()
    remove_stops(intake.market.owner_url)
    assert _batches_of(body) == 0
    batch_id = intake.post_until_accepted(host, body)
    assert intake.post_until_accepted(host, body) == batch_id


def test_a_batch_that_was_durable_when_the_server_died_untold_is_one_batch(intake: Intake) -> None:
    host, body = intake.world.hosts[0], _batch(intake)
    with stop_at("at the inbox's commit", intake.market.owner_url) as stop:
        sending = intake.post_somehow(host, body)
        [backend] = stop.wait()
        with intake.database.commits_told_to_nobody():
            stop.release()
            intake.database.wait_for_untold_commit(backend)
            intake.database.kill()
    sending.join(timeout=30)
    assert intake.answers != [202]
    intake.database.start()
    remove_stops(intake.market.owner_url)
    assert _batches_of(body) == 1
    intake.post_until_accepted(host, body)
    assert _batches_of(body) == 1


@pytest.mark.parametrize("victim", ["server", "backend"])
def test_a_server_that_dies_amid_the_events_loses_nothing(intake: Intake, victim: str) -> None:
    """`backend`: one server process is killed, whereupon PostgreSQL ends all others and recovers."""
    host = intake.world.hosts[0]
    body = _batch(intake)
    middle = sorted(intake.sent.events[host.agent.id])[-20]
    with stop_at("amid the events", intake.market.owner_url, middle=middle) as stop:
        intake.post_until_accepted(host, body)
        [backend] = stop.wait()
        if victim == "server":
            intake.database.kill()
        else:
            intake.database.kill_backend(backend)
    if victim == "server":
        intake.database.start()
    wait_until(lambda: _can_remove_stops(intake), "the server to recover")


def test_an_ingestion_that_was_durable_when_the_server_died_untold_counts_once(intake: Intake) -> None:
    host = intake.world.hosts[1]
    body = _batch(intake, host=1)
    intake.await_stored()
    with stop_at("at commit", intake.market.owner_url) as stop:
        more = _batch(intake, host=1)
        intake.post_until_accepted(host, body)
        [backend, *_] = stop.wait()
        with intake.database.commits_told_to_nobody():
            stop.release()
            intake.database.wait_for_untold_commit(backend)
            intake.database.kill()
    intake.database.start()
    remove_stops(intake.market.owner_url)
    assert UsageBatch.objects.filter(source=host.gateway, status="stored").exists()
    intake.post_until_accepted(host, more)


def _can_remove_stops(intake: Intake) -> bool:
    try:
        remove_stops(intake.market.owner_url)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("how", ["flushed", "killed and empty"])
def test_a_broker_that_forgets_a_full_queue_delays_and_loses_nothing(intake: Intake, how: str) -> None:
    market, host = intake.market, intake.world.hosts[0]
    url = market.environment["REDIS_URL"]
    with intake.suspended("worker"), Celery(broker=url) as hints, redis.Redis.from_url(url) as broker:
        for _ in range(10):
            intake.post_until_accepted(host, _batch(intake))
            for _ in range(3):
                hints.send_task("metering.tasks.ingest_pending", queue="ingest", ignore_result=True)
        assert broker.llen("ingest") >= 10
        assert UsageBatch.objects.filter(status=UsageBatch.Status.PENDING).count() >= 10
        if how == "flushed":
            broker.flushall()
        else:
            market.kill("redis")
            shutil.rmtree(market.directory / "redis")
            market.start("redis")
        assert broker.llen("ingest") < 10
    intake.await_stored()
    assert market.processes["beat"].poll() is None
    assert market.processes["worker"].poll() is None


def test_a_batch_sent_five_times_at_once_is_one_batch(intake: Intake) -> None:
    host = intake.world.hosts[0]
    for _ in range(4):
        body = _batch(intake)
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _, body=body: intake.post(host, body), range(5)))
        assert [answer.status_code for answer in answers] == [202] * 5
        assert len({answer.json()["batch_id"] for answer in answers}) == 1
    # The very same signed request is believed once.
    body = _batch(intake)
    headers = intake.signed(host, body)
    with ThreadPoolExecutor(5) as pool:
        answers = list(
            pool.map(lambda _: requests.post(intake.url, data=body, headers=headers, timeout=30), range(5))
        )
    assert sorted(answer.status_code for answer in answers) == [202, 401, 401, 401, 401]


def test_batches_out_of_order_count_once_and_are_marked(intake: Intake) -> None:
    host = intake.world.hosts[1]
    bodies = [_batch(intake, 10, host=1) for _ in range(8)]
    shuffled = bodies[:]
    random.Random(7).shuffle(shuffled)
    for body in shuffled:
        intake.post_until_accepted(host, body)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda body: intake.post(host, body).status_code, bodies))
    assert again == [202] * 8
    first = msgspec.json.decode(bodies[0].partition(b"\n")[0])["sequence_from"]
    chains = UsageBatch.objects.filter(source=host.agent, sequence_from__gte=first).values_list("chain")
    assert len(chains) == 8
    # The first of them that came was ahead of its time.
    assert ("gap",) in set(chains)


def test_a_host_with_a_wrong_clock_spoils_only_what_it_dated(intake: Intake) -> None:
    host, now = intake.world.hosts[0], wall_now()
    dated = {
        "now": now,
        "slow": now - timedelta(minutes=10),
        "fast": now + timedelta(minutes=9),
        "far ahead": now + timedelta(minutes=11),
        "1970": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        "2099": datetime(2099, 1, 1, tzinfo=UTC),
    }
    events = make_events(host, len(dated), at=now)
    marked: list[UsageEvent] = [
        msgspec.structs.replace(event, id=uuid7(at)) for event, at in zip(events, dated.values(), strict=True)
    ]
    intake.sent.events[host.agent.id] |= {event.id for event in marked[:3]}
    batch_id = intake.post_until_accepted(host, intake.sent.by_agent(host, marked, counted=False))
    # It says itself when it is off: such a request is not believed, and kept by the agent.
    body = _batch(intake)
    for skew in (
        timedelta(minutes=10),
        -timedelta(minutes=10),
        timedelta(days=26_000),
        -timedelta(days=20_000),
    ):
        assert intake.post(host, body, skew=skew).status_code == 401
    assert _batches_of(body) == 0
    intake.post_until_accepted(host, body)
    intake.await_stored()
    batch = UsageBatch.objects.get(pk=batch_id)
    assert batch.accepted_events == 3
    assert [(told["index"], told["result"], told["field"]) for told in batch.exceptions] == [
        (index, "quarantined", "id") for index in (3, 4, 5)
    ]
