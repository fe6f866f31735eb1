"""The agent's parts by themselves: configuration, admission, metering, spool, registers, command line."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from metering.usage import Finish, Flag, UsageEvent, decode_batch, decode_event, encode_event
from pricing.units import Bucket
from providers.agent.__main__ import main
from providers.agent.admission import CHAT, EMBEDDINGS, Gatekeeper, Refused, engine_request
from providers.agent.config import load_config
from providers.agent.engines import Engine
from providers.agent.errors import CannotStart
from providers.agent.hardware import detect_hardware, energy_millijoules
from providers.agent.meter import AttemptMeter
from providers.agent.registers import parse_metrics
from providers.agent.spool import Spool
from providers.agent.state import State
from providers.wire import DeliveryKey, encode_delivery_key
from tests.metering.test_usage import EVENT
from tests.providers.agent_rig import MARKET_KEY

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
OFFERING = uuid4()
EXAMPLE = Path(__file__).parents[2] / "providers/agent/example.toml"
ENGINE = Engine(kind="llamacpp", model="tiny")
SOURCE = UUID(int=9)


def delivery_key(**changes: Any) -> DeliveryKey:
    terms: dict[str, Any] = {
        name: uuid4() for name in ("hold_id", "request_id", "contract_id", "grade_id", "rate_id")
    }
    terms |= {"offering_id": OFFERING, "period_start": NOW, "occurred_at": NOW, "max_output_tokens": 100}
    return DeliveryKey(**(terms | {"expires_at": NOW + timedelta(seconds=30)} | changes))


# Configuration


def test_the_example_is_valid_and_the_environment_overrides_every_key() -> None:
    assert load_config(EXAMPLE, {}).offerings[0].grade == "tiny-chat"
    environment = {
        "TOKENYARD_AGENT_LISTEN_PORT": "9999",
        "TOKENYARD_AGENT_BENCH_REQUESTS": "3",
        "TOKENYARD_AGENT_OFFERINGS": json.dumps(
            [
                {
                    "grade": "other",
                    "spot_floor_micros_per_mtok": 1,
                    "firm_rate_micros_per_mtok": 2,
                    "list_rate_micros_per_mtok": 3,
                }
            ]
        ),
    }
    config = load_config(EXAMPLE, environment, state_dir="/elsewhere")
    assert (config.listen_port, config.bench.requests, config.bench.concurrency) == (9999, 3, 2)
    assert config.offerings[0].grade == "other"
    assert config.state_dir == "/elsewhere"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("market_url = 5", "market_url"),
        ('market_url = "ftp://x"', "market_url"),
        ("listen_port = 70000", "listen_port"),
        ("heartbeat_s = 0", "heartbeat_s"),
        ("surprise = 1", "surprise"),
        ("listen_port = ", "TOML"),
        ("[[offerings]]\ngrade = 'g'\nlist_rate_micros_per_mtok = 1.5", "offerings"),
    ],
)
def test_a_bad_configuration_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "agent.toml"
    good = "" if "market_url" in text else 'market_url = "http://m"\n'
    path.write_text(f'base_url = "http://a"\nengine_url = "http://e"\n{good}{text}\n')
    with pytest.raises(CannotStart, match=named):
        load_config(path, {})


def test_a_bad_environment_names_the_variable() -> None:
    with pytest.raises(CannotStart, match="TOKENYARD_AGENT_LISTEN_PORT"):
        load_config(EXAMPLE, {"TOKENYARD_AGENT_LISTEN_PORT": "many"})


def test_what_cannot_start_says_which_part_why_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENYARD_AGENT_ENROLMENT_CODE", "")
    state = tmp_path / "state"
    assert main(["run", "--config", str(tmp_path / "absent.toml")]) == 1
    assert "cannot start. config: " in capsys.readouterr().err
    assert main(["run", "--config", str(EXAMPLE), "--state", str(state)]) == 1
    assert "not enrolled and has no code. Create a host in the portal" in capsys.readouterr().err
    held = State.open(state)
    assert main(["run", "--config", str(EXAMPLE), "--state", str(state)]) == 1
    assert "another agent uses" in capsys.readouterr().err
    held.close()
    monkeypatch.setenv("TOKENYARD_AGENT_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TOKENYARD_AGENT_ENGINE_WAIT_S", "1")
    enroll = ["enroll", "--url", "http://127.0.0.1:9", "--code", "c", "--config", str(EXAMPLE)]
    assert main([*enroll, "--state", str(state)]) == 1
    assert "engine: no engine answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = State.open(tmp_path / "s")
    public_key = first.public_key
    first.close()
    second = State.open(tmp_path / "s")
    assert second.public_key == public_key
    second.close()
    (tmp_path / "s" / "agent.key").write_text("nonsense")
    with pytest.raises(CannotStart, match="not an agent key"):
        State.open(tmp_path / "s")


def test_hardware_is_detected() -> None:
    hardware = detect_hardware()
    assert hardware["cpu_model"]
    assert hardware["memory_bytes"] > 10**8
    assert isinstance(hardware["accelerators"], list)
    energy = energy_millijoules()
    assert energy is None or energy > 0


# Admission


def test_each_key_is_admitted_once_until_it_expires() -> None:
    gatekeeper = Gatekeeper(market_key=MARKET_KEY.public_key(), offering_ids={OFFERING})
    key = delivery_key()
    header = f"Bearer {encode_delivery_key(key, private_key=MARKET_KEY)}"
    assert gatekeeper.admit(header, now=NOW) == key
    for when, code in ((NOW, "delivery_key_used"), (key.expires_at, "delivery_key_expired")):
        with pytest.raises(Refused) as refusal:
            gatekeeper.admit(header, now=when)
        assert refusal.value.code == code
    retry = encode_delivery_key(replace(key, attempt=1), private_key=MARKET_KEY)
    assert gatekeeper.admit(f"Bearer {retry}", now=NOW).attempt == 1


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, 100),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 500}, 100),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 7),
    ],
)
def test_the_engine_is_asked_for_at_most_what_was_held(asked: dict[str, Any], sent: int) -> None:
    body = json.dumps({"messages": [], "ignore_eos": True, **asked}).encode()
    request = json.loads(engine_request(CHAT, body, key=delivery_key(), engine=ENGINE).body)
    assert request == {"messages": [], "model": "tiny", "max_tokens": sent, "stream": False}


def test_embeddings_carry_no_output_limit() -> None:
    request = engine_request(EMBEDDINGS, b'{"input":"x","user":"u"}', key=delivery_key(), engine=ENGINE)
    assert json.loads(request.body) == {"input": "x", "model": "tiny"}
    assert not request.stream


# Metering


def meter(source: str = "llamacpp") -> AttemptMeter:
    return AttemptMeter(key=delivery_key(), usage_source=source, bytes_in=10)


def test_a_cut_stream_is_metered_by_its_last_running_counts() -> None:
    stream = meter()
    for count in (1, 2):
        timings = {"cache_n": 4, "prompt_n": 6, "predicted_n": count}
        chunk = {"choices": [{"delta": {"content": "x"}, "finish_reason": None}], "timings": timings}
        assert not stream.feed_stream(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    event = stream.event(finish=Finish.CLIENT_GONE, flags=(Flag.CLIENT_GONE,))
    assert event.buckets == {Bucket.UNCACHED_INPUT: 6, Bucket.CACHE_READ: 4, Bucket.OUTPUT: 2}


def test_a_stream_without_counts_is_estimated_and_said_so() -> None:
    stream = meter("openai_chat")
    for _ in range(3):
        stream.feed_stream(b'data: {"choices":[{"delta":{"content":"a \\"usage\\" b"}}]}\n\n')
    event = stream.event()
    assert event.buckets == {Bucket.OUTPUT: 3}
    assert event.flags == (Flag.ESTIMATED,)


def test_time_to_first_token_ends_at_output_and_not_at_a_role() -> None:
    moments = iter([0.0, 0.25, 0.4])  # Its start, the first text, the end: a role is not even timed.
    stream = AttemptMeter(
        key=delivery_key(), usage_source="vllm", bytes_in=10, monotonic=lambda: next(moments, 0.4)
    )
    stream.feed_stream(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
    stream.feed_stream(b'data: not JSON\n\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\n')
    assert stream.event().first_byte_ms == 250


def test_usage_that_contradicts_itself_claims_nothing() -> None:
    answer = meter("openai_chat")
    answer.feed_answer(b'{"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":99}}')
    event = answer.event()
    assert event.buckets == {}
    assert event.flags == (Flag.UNPROVABLE,)
    # For people to look at: the engine's own figures, and what is wrong with them.
    assert event.unproved is not None
    assert "99" in event.unproved
    assert decode_event(encode_event(event)) == event


def test_registers_are_summed_over_labels_and_nonsense_is_skipped() -> None:
    text = '# HELP x\nx{engine="0"} 1.5e3\nx{engine="1"} 500\ny NaN\nz +Inf\nlonely\n'
    assert parse_metrics(text) == {"x": 2000}


# Spool


def drain(spool: Spool) -> tuple[int, list[UsageEvent]]:
    async def run() -> tuple[int, list[UsageEvent]]:
        events: list[UsageEvent] = []
        batches = 0
        while batch := await spool.next_batch(SOURCE):
            again = await spool.next_batch(SOURCE)
            assert again == batch  # Frozen until acknowledged.
            events += [event for event in decode_batch(batch.body)[1] if isinstance(event, UsageEvent)]
            await spool.acknowledge(batch)
            batches += 1
        return batches, events

    return asyncio.run(run())


def test_the_spool_numbers_events_without_gaps_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    for expected in ([1, 2, 3], [4, 5, 6]):
        spool = Spool(path)
        futures = [spool.append(EVENT) for _ in range(3)]
        assert [future.result(5) for future in futures] == expected
        batches, events = drain(spool)
        assert batches == 1
        assert [event.sequence for event in events] == expected
        assert drain(spool) == (0, [])
        spool.close()


def test_a_frozen_batch_is_sent_again_as_it_was_although_more_came(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append(EVENT).result(5)
    first = asyncio.run(spool.next_batch(SOURCE))
    spool.append(EVENT).result(5)
    spool.close()
    spool = Spool(tmp_path / "spool")
    assert asyncio.run(spool.next_batch(SOURCE)) == first
    assert [event.sequence for event in drain(spool)[1]] == [1, 2]
    spool.close()


def test_a_write_that_fails_is_told_and_leaves_no_gap(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append(EVENT).result(5)
    blocker = sqlite3.connect(tmp_path / "spool", isolation_level=None)
    blocker.execute("DROP TABLE event")
    with pytest.raises(sqlite3.Error):
        spool.append(EVENT).result(5)
    assert isinstance(spool.failed, sqlite3.Error)
    blocker.execute("CREATE TABLE event (sequence INTEGER PRIMARY KEY, line BLOB NOT NULL)")
    blocker.close()
    assert spool.append(EVENT).result(5) == 2
    assert not spool.failed
    spool.close()


def test_what_the_spool_confirmed_survives_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from providers.agent.spool import Spool;"
        "from tests.metering.test_usage import EVENT\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "while True: print(spool.append(EVENT).result(), flush=True)"
    )
    path = tmp_path / "spool"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        confirmed = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        confirmed += [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    spool = Spool(path)
    _, events = drain(spool)
    spool.close()
    stored = [event.sequence for event in events]
    assert stored == list(range(1, len(stored) + 1))
    assert set(confirmed) <= set(stored)
