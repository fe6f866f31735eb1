"""The engine's registers, read by the market each minute; by heartbeats where that fails."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from metering.models import RegisterRead
from providers.asking import Answer, Question, ask_hosts
from providers.models import Host
from providers.services import check_heartbeats, read_registers, record_registers
from tests.cast import Party, Plant, make_plant
from tests.providers.asked_agent import Agent
from tests.providers.test_services import beat


def test_each_host_is_read_once_a_minute(agent: Agent, now: datetime) -> None:
    counts = []
    for second in (1, 6, 59, 61, 66):
        at = now + timedelta(seconds=second)
        beat(agent.plant, at)
        counts.append(read_registers(now=at))
    assert counts == [1, 0, 0, 1, 0]
    reads = list(RegisterRead.objects.filter(host_id=agent.plant.host.id).order_by("read_at"))
    assert len(reads) == len(agent.asked) == 2
    read = reads[0]
    assert timedelta(0) <= read.read_at - (now + timedelta(seconds=1)) < timedelta(seconds=5)
    assert (read.boot_id, read.input_tokens, read.cache_read_tokens, read.output_tokens) == (
        "e1",
        500,
        20,
        90,
    )
    assert (read.energy_millijoules, read.bench_input_tokens, read.bench_output_tokens) == (7, 40, 16)


def test_of_two_workers_one_asks_and_one_read_is_kept(agent: Agent, now: datetime) -> None:
    at = now + timedelta(seconds=1)
    hosts = Host.objects.filter(pk=agent.plant.host.pk)
    hosts.update(registers_asked_at=at)  # By another worker, which waits for the answer.
    assert read_registers(now=at) == 0
    assert agent.asked == []
    hosts.update(registers_asked_at=None)
    assert read_registers(now=at) == 1
    hosts.update(registers_read_at=None, registers_asked_at=None)
    assert read_registers(now=at + timedelta(seconds=1)) == 1
    hosts.update(registers_asked_at=None)  # The other one was quicker.
    assert read_registers(now=at + timedelta(seconds=2)) == 0
    assert RegisterRead.objects.count() == 2


def test_a_host_that_hangs_up_is_asked_again_and_one_that_is_down_is_not(agent: Agent, now: datetime) -> None:
    agent.stop()
    assert read_registers(now=now + timedelta(seconds=1)) == 0
    agent.start()
    assert read_registers(now=now + timedelta(seconds=6)) == 0
    assert agent.asked == []
    agent.engine_answers = False
    assert read_registers(now=now + timedelta(seconds=21)) == 0
    agent.engine_answers = True
    check_heartbeats(now=now + timedelta(seconds=45))
    assert read_registers(now=now + timedelta(seconds=45)) == 0
    assert len(agent.asked) == 1
    beat(agent.plant, now + timedelta(seconds=50))
    assert read_registers(now=now + timedelta(seconds=50)) == 1


@pytest.mark.parametrize(
    "said",
    [
        {"registers": {"output_tokens_total": -1}},
        {"registers": {"output_tokens_total": 1.5}},
        {"registers": {"engine_boot": "b" * 65, "output_tokens_total": 1}},
        {"registers": {"bench_input_tokens": "many", "output_tokens_total": 1}},
        {"registers": {}},
        {},
        {"energy_millijoules": 2**63},
        {"energy_millijoules": "7"},
        {"registers": [1]},
        {"registers": "x"},
        {"registers": {"engine_boot": ["a"], "prompt_tokens_total": 1}},
        {"registers": {"prompt_tokens_total": True}},
    ],
)
def test_nonsense_is_not_kept(agent: Agent, now: datetime, said: dict[str, Any]) -> None:
    agent.registers = said
    assert read_registers(now=now + timedelta(seconds=1)) == 0
    assert RegisterRead.objects.count() == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"registers":[1]}',
        b'{"a":' * 3_000,
        b"[" * 5_000,
        b'{"registers":{"engine_boot":"\xff","output_tokens_total":1}}',
        b'{"registers":{"engine_boot":"\\ud800","output_tokens_total":1}}',
        b'{"registers":{"output_tokens_total":1' + b"0" * 5_000 + b"}}",
    ],
)
def test_nonsense_of_one_host_stops_no_other(
    hyperion: Party, agent: Agent, now: datetime, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    others = [make_plant(hyperion, agent.plant.offering.grade, now, name=name) for name in ("h2", "h3")]
    bad = others[0].host.pk
    Host.objects.update(last_heartbeat_at=now)

    def ask(questions: Sequence[Question], *, timeout_s: float) -> list[Answer | None]:
        assert len(questions) == 3
        (honest,) = ask_hosts([one for one in questions if one.host_id == agent.plant.host.id])
        assert honest is not None
        # What the third says is as good as any.
        return [Answer(200, body) if one.host_id == bad else honest for one in questions]

    monkeypatch.setattr("providers.reads.ask_hosts", ask)
    assert read_registers(now=now + timedelta(seconds=1)) == 2
    assert not RegisterRead.objects.filter(host_id=bad).exists()


def test_an_answer_of_another_key_or_to_another_question_is_not_believed(agent: Agent, now: datetime) -> None:
    agent.stop()
    agent.start(private_key=Ed25519PrivateKey.generate())
    assert read_registers(now=now + timedelta(seconds=1)) == 0
    agent.stop()
    agent.start()
    earlier: list[web.Response] = []

    def replay(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
        assert isinstance(answer, web.Response)
        earlier.append(answer)
        return web.Response(body=earlier[0].body, headers=earlier[0].headers)

    agent.wrap = replay
    assert read_registers(now=now + timedelta(seconds=22)) == 1
    assert read_registers(now=now + timedelta(seconds=61)) == 0
    assert RegisterRead.objects.count() == 1


def test_an_agent_answers_only_the_market_and_each_question_once(
    agent: Agent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MARKET_SIGNING_KEY", bytes(32))
    assert read_registers(now=now + timedelta(seconds=1)) == 0
    assert len(agent.asked) == 1


@pytest.mark.parametrize("after", ["", "-1", "x", "1.5", "9" * 17, "٣"])
def test_an_agent_refuses_a_number_that_is_none(agent: Agent, after: str) -> None:
    from urllib.parse import quote

    (answer,) = ask_hosts([Question.to(agent.plant.host, f"/meter/usage?after={quote(after)}")])
    assert answer is not None
    assert answer.status == 400
    assert b"after" in answer.body


def test_registers_are_kept_once_a_minute_and_when_the_engine_was_restarted(
    plant: Plant, now: datetime
) -> None:
    def registers(boot: str, output: int) -> dict[str, object]:
        counted = {"prompt_tokens_total": 30, "cached_tokens_total": None, "output_tokens_total": output}
        return {**counted, "engine_boot": boot, "bench_input_tokens": 20, "bench_output_tokens": 8}

    def read(second: int, boot: str, output: int) -> bool:
        at = now + timedelta(seconds=second)
        return record_registers(
            host_id=plant.host.id, registers=registers(boot, output), energy_millijoules=7, now=at
        )

    # The market's own reading, once in each minute.
    assert [read(second, "e1", 10 + second) for second in (1, 5, 59, 60, 65)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    # Heartbeats only while that fails, and at a restart of the engine (not of the agent).
    for second, boot in ((70, "e1"), (140, "e1"), (151, "e1"), (155, "e1"), (160, "e2")):
        at = now + timedelta(seconds=second)
        beat(plant, at, boot_id=f"agent-{second}", registers=registers(boot, 10 + second))
    # An engine that does not answer was not restarted by that.
    beat(plant, now + timedelta(seconds=165), registers={}, energy_millijoules=9)
    beat(plant, now + timedelta(seconds=170), registers=registers("e2", 200))
    rows = RegisterRead.objects.order_by("read_at").values_list(
        "boot_id", "input_tokens", "output_tokens", "bench_input_tokens", "bench_output_tokens"
    )
    assert list(rows) == [
        ("e1", 30, 11, 20, 8),
        ("e1", 30, 70, 20, 8),
        ("e1", 30, 161, 20, 8),
        ("e2", 30, 170, 20, 8),
    ]


def test_an_engine_without_counters_leaves_only_its_energy(plant: Plant, now: datetime) -> None:
    at = now + timedelta(seconds=1)
    nothing: dict[str, object] = {"prompt_tokens_total": None, "engine_boot": None}
    record = record_registers
    assert not record(host_id=plant.host.id, registers=nothing, energy_millijoules=None, now=at)
    assert record(host_id=plant.host.id, registers=nothing, energy_millijoules=5, now=at)
    kept = RegisterRead.objects.get()
    assert (kept.boot_id, kept.input_tokens, kept.energy_millijoules) == ("unmarked", None, 5)
