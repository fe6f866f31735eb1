"""Usage that never came: asked for at its host, an alarm while it stays away."""

import json
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web
from django.conf import settings
from django.core.management import CommandError, call_command
from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.errors import Conflict, InvalidInput, NotFound
from metering.models import MeterSource, RegisterRead, UsageBatch, UsageEvent
from metering.selectors import overdue_gaps, sequence_gaps
from metering.services import accept_batch, ingest_batches
from providers import tasks
from providers.agent.spool import Batch, Spool
from providers.asking import Answer, Question, ask_hosts
from providers.services import accept_gap, pull_missing_usage
from tests.cast import Party, make_plant
from tests.providers.asked_agent import Agent


def send(agent: Agent, batch: Batch, now: datetime) -> UsageBatch:
    return accept_batch(source=agent.source, body=batch.body, now=now)


def test_missing_batches_are_pulled_and_the_chain_holds_again(agent: Agent, now: datetime) -> None:
    batches = [agent.meter(events) for events in (2, 3, 1_000, 1, 4)]
    assert send(agent, batches[0], now).chain == "linked"
    assert send(agent, batches[4], now).chain == "gap"
    assert sequence_gaps(agent.source) == [(3, 1_006)]
    assert agent.source.gap_since == now
    at = now + timedelta(seconds=30)
    assert pull_missing_usage(now=at) == 3
    assert agent.asked == [f"/meter/usage?after={after}" for after in (2, 5, 1_005)]
    source = agent.source
    assert (source.gap_since, source.next_sequence) == (None, 1_011)
    pulled = UsageBatch.objects.filter(source=source).order_by("sequence_from")
    assert [batch.digest for batch in pulled] == [batch.digest for batch in batches]
    assert [batch.chain for batch in pulled] == ["linked", "linked", "linked", "linked", "gap"]
    assert pull_missing_usage(now=at) == 0
    while ingest_batches(now=at):
        pass
    assert UsageEvent.objects.filter(source=source).count() == 1_010
    # The next one links as if nothing had been.
    assert send(agent, agent.meter(1), at).chain == "linked"


def test_several_gaps_are_filled_and_asking_twice_changes_nothing(agent: Agent, now: datetime) -> None:
    batches = [agent.meter(2) for _ in range(7)]
    for number in (1, 3, 6):
        send(agent, batches[number], now)
    assert sequence_gaps(agent.source) == [(1, 2), (5, 6), (9, 12)]
    assert pull_missing_usage(now=now) == 4
    MeterSource.objects.filter(pk=agent.source.pk).update(gap_since=now, complete_until=0)
    assert pull_missing_usage(now=now) == 0
    for batch in batches:
        send(agent, batch, now)
    while ingest_batches(now=now):
        pass
    assert UsageEvent.objects.filter(source=agent.source).count() == 14
    assert agent.source.gap_since is None


def test_a_gap_that_stays_raises_an_alarm_until_it_is_filled(
    agent: Agent, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [agent.meter(1) for _ in range(3)]
    send(agent, batches[0], now)
    send(agent, batches[2], now)
    agent.stop()
    late = now + timedelta(seconds=settings.METERING_GAP_ALARM_S)
    with caplog.at_level(logging.ERROR):
        assert pull_missing_usage(now=late - timedelta(seconds=1)) == 0
        assert not caplog.records
        assert not overdue_gaps(late - timedelta(seconds=1))
        assert pull_missing_usage(now=late) == 0
    (record,) = caplog.records
    assert record.__dict__["numbers"] == [(2, 2)]
    assert record.__dict__["host_id"] == str(agent.plant.host.id)
    assert [source.pk for source in overdue_gaps(late)] == [agent.source.pk]
    agent.start()
    assert pull_missing_usage(now=late) == 1
    assert not overdue_gaps(late)


def test_what_a_host_no_longer_keeps_is_passed_over_for_what_it_still_has(
    hyperion: Party, agent: Agent, now: datetime, tmp_path: Path
) -> None:
    agent.stop()
    agent.spool.close()
    agent.spool = Spool(tmp_path / "small", keep_sent_bytes=3_500)
    agent.start()
    batches = [agent.meter(1) for _ in range(8)]
    agent.stop()
    agent.spool.close()
    agent.spool = Spool(tmp_path / "small")
    agent.start()
    batches.append(agent.meter(1))
    send(agent, batches[0], now)
    send(agent, batches[8], now)
    came = pull_missing_usage(now=now)
    assert 1 <= came < 7
    (gap,) = sequence_gaps(agent.source)
    assert gap == (2, 8 - came)
    source_id = agent.source.pk
    with pytest.raises(InvalidInput) as refused:
        accept_gap(source_id=source_id, first=3, last=gap[1], reason="disk died", now=now, actor=SYSTEM)
    assert refused.value.field == "first"
    with pytest.raises(InvalidInput) as refused:
        accept_gap(source_id=source_id, first=2, last=9, reason="disk died", now=now, actor=SYSTEM)
    assert refused.value.field == "last"
    with pytest.raises(InvalidInput) as refused:
        accept_gap(source_id=source_id, first=2, last=gap[1], reason=" ", now=now, actor=SYSTEM)
    assert refused.value.field == "reason"
    assert sequence_gaps(agent.source) == [gap]
    accept_gap(source_id=source_id, first=2, last=gap[1], reason="disk died", now=now, actor=SYSTEM)
    assert (sequence_gaps(agent.source), agent.source.gap_since) == ([], None)
    entry = AuditEntry.objects.get(action="host.gap_accepted")
    assert (entry.organization_id, entry.detail["reason"]) == (hyperion.id, "disk died")
    assert (entry.detail["first"], entry.detail["last"]) == gap
    with pytest.raises(Conflict):
        accept_gap(source_id=source_id, first=2, last=gap[1], reason="again", now=now, actor=SYSTEM)
    with pytest.raises(NotFound):
        accept_gap(source_id=UUID(int=1), first=2, last=3, reason="whose", now=now, actor=SYSTEM)
    # Should it come after all, it counts.
    assert send(agent, batches[1], now).pk is not None
    # And the next gap is a new one.
    agent.meter(1)
    assert send(agent, agent.meter(1), now).chain == "gap"
    assert sequence_gaps(agent.source) == [(10, 10)]


def test_a_forged_batch_is_refused_whatever_the_signature(agent: Agent, now: datetime) -> None:
    batches = [agent.meter(1) for _ in range(3)]
    send(agent, batches[0], now)
    send(agent, batches[2], now)
    other = batches[1].body.replace(str(agent.source.pk).encode(), str(UUID(int=7)).encode())

    def forge(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
        return web.Response(body=other, headers=answer.headers)

    agent.wrap = forge
    assert pull_missing_usage(now=now) == 0
    assert sequence_gaps(agent.source) == [(2, 2)]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (410, b'{"kept_from":"\xff"}'),
        (410, b'{"a":' * 3_000),
        (410, b'{"kept_from":9' + b"9" * 40 + b"}"),
        (410, b'{"kept_from":true}'),
        (410, b"[1]"),
        (200, b'{"a":' * 3_000),
        (200, b"\xff\n\xff\n"),
    ],
)
def test_nonsense_of_one_host_stops_no_other(
    hyperion: Party,
    agent: Agent,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
) -> None:
    bad = make_plant(hyperion, agent.plant.offering.grade, now, name="h2").host
    assert bad.source_id is not None
    # It has waited longest, so that it is the first of those to be looked at.
    MeterSource.objects.filter(pk=bad.source_id).update(gap_since=now - timedelta(days=1), next_sequence=6)
    UsageBatch.objects.create(
        source_id=bad.source_id, body=b"x", body_bytes=1, received_at=now, sequence_from=5, sequence_to=5,
        status="stored", digest="0" * 64, previous_digest="0" * 64, chain="gap",
    )  # fmt: skip
    batches = [agent.meter(1) for _ in range(3)]
    send(agent, batches[0], now)
    send(agent, batches[2], now)

    def ask(questions: Sequence[Question]) -> list[Answer | None]:
        honest = iter(ask_hosts([one for one in questions if one.host_id != bad.pk]))
        return [Answer(status, body) if one.host_id == bad.pk else next(honest) for one in questions]

    monkeypatch.setattr("providers.gaps.ask_hosts", ask)
    with caplog.at_level(logging.ERROR):
        assert pull_missing_usage(now=now) == 1
    assert (sequence_gaps(agent.source), agent.source.gap_since) == ([], None)
    alarms = [record for record in caplog.records if "does not come" in record.message]
    assert [record.__dict__["host_id"] for record in alarms] == [str(bad.pk)]


def test_a_fault_at_one_host_is_logged_and_stops_no_other(
    hyperion: Party,
    agent: Agent,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = make_plant(hyperion, agent.plant.offering.grade, now, name="h2").host
    assert bad.source_id is not None
    MeterSource.objects.filter(pk=bad.source_id).update(gap_since=now - timedelta(days=1), next_sequence=6)
    UsageBatch.objects.create(
        source_id=bad.source_id, body=b"x", body_bytes=1, received_at=now, sequence_from=5, sequence_to=5,
        status="stored", digest="0" * 64, previous_digest="0" * 64, chain="gap",
    )  # fmt: skip
    batches = [agent.meter(1) for _ in range(3)]
    send(agent, batches[0], now)
    send(agent, batches[2], now)

    def accept(*, source: MeterSource, body: bytes, now: datetime) -> UsageBatch:
        if source.pk == bad.source_id:
            raise ZeroDivisionError
        return accept_batch(source=source, body=body, now=now)

    def ask(questions: Sequence[Question]) -> list[Answer | None]:
        honest = iter(ask_hosts([one for one in questions if one.host_id != bad.pk]))
        return [Answer(200, b"") if one.host_id == bad.pk else next(honest) for one in questions]

    monkeypatch.setattr("providers.gaps.ask_hosts", ask)
    monkeypatch.setattr("providers.gaps.accept_batch", accept)
    with caplog.at_level(logging.ERROR):
        assert pull_missing_usage(now=now) == 1
    assert sequence_gaps(agent.source) == []
    (failed,) = [record for record in caplog.records if record.exc_info]
    assert failed.__dict__["host_id"] == str(bad.pk)


def test_what_was_forgotten_after_its_retention_is_no_gap(agent: Agent, now: datetime) -> None:
    for _ in range(3):
        send(agent, agent.meter(2), now)
    UsageBatch.objects.filter(sequence_from__lt=5).delete()
    assert sequence_gaps(agent.source) == []
    agent.meter(1)
    send(agent, agent.meter(1), now)
    assert sequence_gaps(agent.source) == [(7, 7)]


def test_the_tasks_call_the_services(agent: Agent, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketplace.clock.now", lambda: now + timedelta(seconds=1))
    tasks.read_registers()
    tasks.read_registers()
    tasks.pull_missing_usage()
    assert RegisterRead.objects.count() == 1


def test_the_operator_sees_what_is_missing_and_takes_it_for_lost(
    agent: Agent, operator: Party, now: datetime, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    late = now + timedelta(seconds=settings.METERING_GAP_ALARM_S)
    monkeypatch.setattr("marketplace.clock.now", lambda: late)
    for figure in ("gaps 0.0", "overdue_gaps 0.0"):
        assert f"tokenyard_metering_{figure}" in client.get("/metrics").content.decode()
    client.force_login(operator.user)
    assert "Usage is missing" not in client.get("/operator").content.decode()
    agent.meter(2)
    send(agent, agent.meter(1), now)
    agent.stop()
    for figure in ("gaps 1.0", "overdue_gaps 1.0"):
        assert f"tokenyard_metering_{figure}" in client.get("/metrics").content.decode()
    page = client.get("/operator").content.decode()
    assert "Usage is missing" in page
    assert str(agent.plant.host.id) in page
    shown = json.loads(run_command("acceptgap"))
    source_id = shown["source_id"]
    assert (shown["missing"], UUID(source_id)) == ([[1, 2]], agent.source.pk)
    with pytest.raises(CommandError, match="reason: It must not be empty"):
        run_command("acceptgap", source_id, "1", "2")
    with pytest.raises(CommandError, match="first, last"):
        run_command("acceptgap", source_id)
    assert run_command("acceptgap", source_id, "1", "2", "--reason", "disk died") == ""
    assert "tokenyard_metering_gaps 0.0" in client.get("/metrics").content.decode()
    assert "Usage is missing" not in client.get("/operator").content.decode()


def run_command(*arguments: str) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()
