"""The agent as a process, between a real engine and a real (small) market."""

import json
import signal
import stat
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from marketplace.ids import uuid7_time_ms
from metering.usage import GENESIS_DIGEST, Finish, Flag, UsageEvent, split_batch
from pricing.units import Bucket
from providers.agent.registers import parse_metrics
from tests.engine import RunningEngine, run_engine
from tests.providers.agent_rig import (
    CODE,
    AgentProcess,
    Market,
    Wire,
    run_market,
    run_wire,
    wait_for,
    write_agent,
)

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "seed": 3}
LONG = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 1500, "logit_bias": [[2, False]]}


@pytest.fixture
def market() -> Iterator[Market]:
    with run_market() as market:
        yield market


@pytest.fixture
def wire(engine: RunningEngine) -> Iterator[Wire]:
    with run_wire(int(engine.url.rpartition(":")[2])) as wire:
        yield wire


@pytest.fixture
def agent(tmp_path: Path, market: Market, wire: Wire) -> Iterator[AgentProcess]:
    agent = write_agent(tmp_path, market=market, engine_url=f"http://127.0.0.1:{wire.port}")
    agent.start()
    yield agent
    agent.stop()


def wait_for_events(market: Market, count: int) -> list[UsageEvent]:
    wait_for(lambda: len(market.events) >= count, f"{count} events")
    assert len(market.events) == count
    return market.events


def test_it_enrols_benches_lists_and_beats(
    agent: AgentProcess, market: Market, engine: RunningEngine
) -> None:
    enrolment = market.enrolments[0]
    assert enrolment["base_url"] == agent.url
    assert enrolment["hardware"]["cpu_cores"] >= 1
    assert enrolment["hardware"]["memory_bytes"] > 0
    found = enrolment["engine"]
    assert (found["kind"], found["quantisation"], found["parallel"]) == (
        "llamacpp",
        "all F32",
        engine.parallel,
    )
    assert found["context_tokens"] == engine.context_tokens
    assert len(found["chat_template_digest"]) == 64
    bench = market.benches[0]
    assert bench["requests"] == 2
    assert bench["output_tokens"] == 16
    assert bench["input_tokens"] > 20
    assert bench["duration_ms"] >= 1
    assert market.offerings[0]["list_rate_micros_per_mtok"] == 3
    wait_for(lambda: any(beat["ready"] for beat in market.heartbeats), "a ready heartbeat")
    registers = market.heartbeats[-1]["registers"]
    assert registers["output_tokens_total"] >= 16
    assert registers["prompt_tokens_total"] >= bench["input_tokens"]
    assert market.refused == []
    assert stat.S_IMODE((agent.state / "agent.key").stat().st_mode) == 0o600


def test_a_stream_passes_unchanged_and_is_metered_once(agent: AgentProcess, market: Market) -> None:
    key = agent.key()
    status, body = agent.ask({**CHAT, "stream": True}, key=key)
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line and "[DONE]" not in line]
    usage = next(chunk["usage"] for chunk in chunks if "usage" in chunk)
    assert "timings" in chunks[1]
    (event,) = wait_for_events(market, 1)
    assert event.buckets[Bucket.OUTPUT] == usage["completion_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert event.buckets[Bucket.CACHE_READ] == cached
    assert event.buckets[Bucket.UNCACHED_INPUT] == usage["prompt_tokens"] - cached
    assert (event.request_id, event.contract_id, event.offering_id) == (
        key.request_id,
        key.contract_id,
        key.offering_id,
    )
    assert (event.rate_id, event.grade_id, event.period_start, event.occurred_at) == (
        key.rate_id,
        key.grade_id,
        key.period_start,
        key.occurred_at,
    )
    assert event.finish in (Finish.STOP, Finish.LENGTH)
    assert event.bytes_out == len(body)
    assert event.api_key_id is None


def test_a_whole_answer_is_metered(agent: AgentProcess, market: Market) -> None:
    status, body = agent.ask(CHAT)
    assert status == 200
    usage = json.loads(body)["usage"]
    (event,) = wait_for_events(market, 1)
    assert sum(tokens or 0 for tokens in event.buckets.values()) == usage["total_tokens"]
    status, body = agent.ask({"prompt": "hello", "max_tokens": 3}, path="/v1/completions")
    assert status == 200
    assert (
        wait_for_events(market, 2)[1].buckets[Bucket.OUTPUT] == json.loads(body)["usage"]["completion_tokens"]
    )


def test_only_allowed_headers_and_fields_reach_the_engine(agent: AgentProcess, wire: Wire) -> None:
    wire.sent.clear()
    extra = {
        "cache_prompt": False,
        "id_slot": 1,
        "n": 4,
        "priority": 1,
        "model": "buyers-name",
        "user": "someone",
    }
    headers = {
        "X-Conversation-Id": "resume-me",
        "X-Request-Id": "r",
        "Cookie": "a=b",
        "Accept": "text/event-stream",
    }
    status, _ = agent.ask({**CHAT, **extra, "stream": True}, headers=headers)
    assert status == 200
    sent = bytes(wire.sent).lower()
    assert b"post /v1/chat/completions" in sent
    assert b"text/event-stream" in sent
    for unwanted in (b"conversation-id", b"x-request-id", b"cookie", b"authorization", b"bearer", b"dk1."):
        assert unwanted not in sent
    for field in (b"cache_prompt", b"id_slot", b'"n"', b"priority", b"buyers-name", b"someone"):
        assert field not in sent
    assert b'"include_usage":true' in sent
    assert b'"timings_per_token":true' in sent


def test_output_is_capped_by_the_delivery_key(agent: AgentProcess, market: Market) -> None:
    for body in (LONG, {**LONG, "max_completion_tokens": 900}, {**LONG, "max_tokens": None}):
        status, answer = agent.ask(body, key=agent.key(max_output_tokens=7))
        assert status == 200
        assert json.loads(answer)["usage"]["completion_tokens"] == 7
    assert [event.buckets[Bucket.OUTPUT] for event in wait_for_events(market, 3)] == [7, 7, 7]


def test_wrong_used_expired_and_foreign_keys_are_refused_and_not_metered(
    agent: AgentProcess, market: Market, wire: Wire
) -> None:
    key = agent.key()
    assert agent.ask(CHAT, key=key)[0] == 200
    wait_for_events(market, 1)
    wire.sent.clear()
    expired = agent.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for bad_key, status, code in (
        (key, 409, "delivery_key_used"),
        (expired, 401, "delivery_key_expired"),
        (agent.key(offering_id=uuid4()), 403, "offering_not_served"),
    ):
        answered, body = agent.ask(CHAT, key=bad_key)
        assert (answered, json.loads(body)["error"]["code"]) == (status, code)
    for header in ("", "Bearer", "Bearer nonsense", "Basic abc"):
        answered, body = agent.ask(CHAT, headers={"Authorization": header})
        assert answered == 401
    for bad_body in (
        b"",
        b"[]",
        b"{",
        b'{"stream":"yes"}',
        b'{"max_tokens":"7"}',
        b'{"max_tokens":0}',
        b"\xff",
    ):
        assert agent.ask(bad_body)[0] == 400
    assert b"POST" not in bytes(wire.sent)
    assert len(market.events) == 1


def test_a_connection_that_the_engine_closed_meanwhile_is_replaced(
    agent: AgentProcess, market: Market
) -> None:
    # llama.cpp closes a kept connection after 100 requests without saying so beforehand.
    for _ in range(120):
        assert agent.ask({**CHAT, "max_tokens": 1})[0] == 200
    wait_for_events(market, 120)
    assert [event.sequence for event in market.events] == list(range(1, 121))


def test_a_body_that_is_too_large_is_refused(tmp_path: Path, market: Market, engine: RunningEngine) -> None:
    agent = write_agent(tmp_path, market=market, engine_url=engine.url, max_body_bytes=2_000)
    agent.start()
    try:
        status, body = agent.ask({"messages": [{"role": "user", "content": "x" * 5_000}]})
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        assert agent.ask(CHAT)[0] == 200
    finally:
        agent.stop()


def test_a_gateway_that_hangs_up_stops_the_engine_and_is_metered(
    agent: AgentProcess, market: Market, engine: RunningEngine
) -> None:
    def generated() -> int:
        with urllib.request.urlopen(f"{engine.url}/metrics", timeout=5) as answer:
            return parse_metrics(answer.read().decode())["llamacpp:tokens_predicted_total"]

    request = agent.request(
        {**LONG, "stream": True, "max_tokens": 1500}, key=agent.key(max_output_tokens=1500)
    )
    before = generated()
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read(2_000)
    (event,) = wait_for_events(market, 1)
    assert event.finish is Finish.CLIENT_GONE
    assert event.flags == (Flag.CLIENT_GONE,)
    counted = event.buckets[Bucket.OUTPUT]
    assert counted is not None
    assert 0 < counted < 1500
    time.sleep(0.3)
    stopped_at = generated()
    time.sleep(0.3)
    assert generated() == stopped_at
    assert stopped_at - before < 1500


def test_usage_waits_while_the_market_refuses_and_arrives_in_an_unbroken_chain(
    agent: AgentProcess, market: Market
) -> None:
    market.usage_status = 500
    for _ in range(3):
        assert agent.ask(CHAT)[0] == 200
    time.sleep(0.3)
    market.usage_status = 403
    time.sleep(0.6)
    assert market.batches == []
    market.usage_status = 202
    wait_for_events(market, 3)
    assert agent.ask(CHAT)[0] == 200
    events = wait_for_events(market, 4)
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    digest = GENESIS_DIGEST
    for batch in market.batches:
        header, _ = split_batch(batch)
        assert header.previous_digest == digest
        assert header.source_id == market.source_id
        digest = header.digest


def test_kill_9_loses_nothing_that_was_answered(agent: AgentProcess, market: Market) -> None:
    market.usage_status = 503
    keys = [agent.key() for _ in range(4)]
    for key in keys:
        assert agent.ask({**CHAT, "stream": True}, key=key)[1].endswith(b"[DONE]\n\n")
    agent.stop(signal.SIGKILL)
    market.usage_status = 202
    agent.start()
    events = wait_for_events(market, 4)
    assert [event.request_id for event in events] == [key.request_id for key in keys]
    assert len(market.enrolments) == 1
    assert len(market.benches) == 1
    assert agent.ask(CHAT)[0] == 200
    assert wait_for_events(market, 5)[-1].sequence == 5


def test_a_stop_finishes_running_requests_and_flushes(agent: AgentProcess, market: Market) -> None:
    request = agent.request({**LONG, "stream": True}, key=agent.key(max_output_tokens=1500))
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read(100)
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"[DONE]\n\n")
    assert agent.stop() == 0
    assert len(market.events) == 1
    assert market.heartbeats[-1]["ready"] is False


@pytest.mark.parametrize(
    "wrong",
    ["ten minutes fast", "ten minutes slow", "1970-01-02T00:00:00+00:00", "2099-06-01T00:00:00+00:00"],
)
def test_a_host_with_a_wrong_clock_serves_and_is_paid_all_the_same(
    tmp_path: Path, market: Market, engine: RunningEngine, wrong: str
) -> None:
    """Signatures, delivery keys and event ids are of the market's time; only what it says of its clock is its own."""
    now = datetime.now(UTC)
    minutes = {"ten minutes fast": 10, "ten minutes slow": -10}
    offset = timedelta(minutes=minutes[wrong]) if wrong in minutes else datetime.fromisoformat(wrong) - now
    agent = write_agent(
        tmp_path,
        market=market,
        engine_url=engine.url,
        test_clock_offset_s=int(offset.total_seconds()),
    )
    agent.start()
    try:
        key = agent.key()
        assert agent.ask({**CHAT, "stream": True}, key=key)[0] == 200
        assert agent.ask(CHAT, key=key)[0] == 409
        stale = agent.key(expires_at=datetime.now(UTC) - timedelta(seconds=5))
        assert agent.ask(CHAT, key=stale)[0] == 401
        (event,) = wait_for_events(market, 1)
        time_of_id = datetime.fromtimestamp(uuid7_time_ms(event.id) / 1_000, UTC)
        assert timedelta(0) <= time_of_id - key.occurred_at.replace(microsecond=0) < timedelta(seconds=30)
        wait_for(lambda: any(beat["ready"] for beat in market.heartbeats), "a ready heartbeat")
        said = datetime.fromisoformat(market.heartbeats[-1]["at"]) - datetime.now(UTC)
        assert abs(said - offset) < timedelta(seconds=10)
        assert market.refused == []  # It learned the time when it enrolled.
        agent.stop()
        agent.start()
        # Started anew, only what it had signed by its own clock was refused.
        refused = len(market.refused)
        assert 1 <= refused <= 3
        assert agent.ask(CHAT)[0] == 200
        wait_for_events(market, 2)
        assert len(market.refused) == refused
    finally:
        agent.stop()


def test_nothing_secret_is_logged(agent: AgentProcess, market: Market) -> None:
    secret_text = "the buyer's own words"
    key = agent.key()
    request = agent.request(
        {"messages": [{"role": "user", "content": secret_text}], "max_tokens": 5}, key=key
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
    wait_for_events(market, 1)
    agent.stop()
    log = agent.log.read_text()
    seed = (agent.state / "agent.key").read_text()
    for secret in (secret_text, "dk1.", seed, CODE):
        assert secret not in log
    assert all(json.loads(line)["event"] for line in log.splitlines())


def test_an_engine_that_dies_gives_502_an_event_without_counts_and_an_unready_host(
    tmp_path: Path, tiny_model: Path, market: Market
) -> None:
    with run_engine(tiny_model, n_parallel=1) as own_engine:
        agent = write_agent(tmp_path, market=market, engine_url=own_engine.url)
        agent.start()
    try:
        status, body = agent.ask(CHAT)
        assert (status, json.loads(body)["error"]["code"]) == (502, "engine_failed")
        (event,) = wait_for_events(market, 1)
        assert (event.finish, event.flags, event.buckets) == (Finish.ERROR, (Flag.UPSTREAM_FAILED,), {})
        wait_for(lambda: not market.heartbeats[-1]["ready"], "an unready heartbeat", log=agent.log)
    finally:
        agent.stop()
