"""The llama.cpp adapter against a real llama.cpp: its answers, its streams, and what its own counters moved by."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import msgspec
import pytest

from pricing.normalising import BucketCounts, adapt, collect_usage
from providers.wire import DONE, SseParser
from tests.engine import RunningEngine

OUTPUT_TOKENS: Final = 24


@dataclass(frozen=True)
class Registers:
    """The engine's running counters: its prompt counter leaves out what the cache gave."""

    computed: int
    cached: int
    generated: int

    def __sub__(self, before: Registers) -> Registers:
        return Registers(
            self.computed - before.computed, self.cached - before.cached, self.generated - before.generated
        )


def read_registers(engine: RunningEngine) -> Registers:
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = {
        name: round(float(value)) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.MULTILINE)
    }
    return Registers(
        values["prompt_tokens_total"], values["prompt_tokens_cached_total"], values["tokens_predicted_total"]
    )


def moved_registers(engine: RunningEngine, before: Registers, output_tokens: int) -> Registers:
    """What the counters moved by, once they show the whole answer: they are written as the slot is let go."""
    deadline = time.monotonic() + 10
    while (
        moved := read_registers(engine) - before
    ).generated < output_tokens and time.monotonic() < deadline:
        time.sleep(0.05)
    return moved


def ask(engine: RunningEngine, body: Mapping[str, Any], path: str = "/v1/chat/completions") -> bytes:
    request = urllib.request.Request(
        engine.url + path, msgspec.json.encode(body), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        whole: bytes = answer.read()
    return whole


def prompt() -> dict[str, Any]:
    """One that no slot has seen, for as many tokens as letters."""
    text = f"{uuid4()} " + "How many tokens is this? " * 8
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": OUTPUT_TOKENS,
        "cache_prompt": True,
        "id_slot": 0,
        "logit_bias": [[2, False]],  # The end token never comes: the length is known.
    }


def whole(engine: RunningEngine, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(ask(engine, body))]


def streamed(engine: RunningEngine, body: dict[str, Any]) -> list[dict[str, Any]]:
    stream = {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}
    return [
        msgspec.json.decode(payload)
        for payload in SseParser().feed(ask(engine, body | stream))
        if payload != DONE
    ]


def streamed_unasked(engine: RunningEngine, body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(payload)
        for payload in SseParser().feed(ask(engine, body | {"stream": True}))
        if payload != DONE
    ]


def measure(chunks: list[dict[str, Any]]) -> BucketCounts:
    usage: Mapping[str, object] | None = None
    for chunk in chunks:
        usage = collect_usage("llamacpp", usage, chunk)
    assert usage is not None
    return adapt("llamacpp", usage)


@pytest.mark.parametrize("asked", [whole, streamed, streamed_unasked])
def test_same_prompt_twice_is_counted_as_the_engine_counts_it(
    engine: RunningEngine, asked: Callable[[RunningEngine, dict[str, Any]], list[dict[str, Any]]]
) -> None:
    body, told = prompt(), []
    for _ in range(2):
        before = read_registers(engine)
        chunks = asked(engine, body)
        counts = measure(chunks)
        moved = moved_registers(engine, before, OUTPUT_TOKENS)
        assert counts == BucketCounts(
            uncached_input=moved.computed, cache_read=moved.cached, output=OUTPUT_TOKENS
        )
        assert moved.generated == OUTPUT_TOKENS
        timings = chunks[-1]["timings"]
        assert counts.input_tokens == timings["cache_n"] + timings["prompt_n"]
        if asked is streamed_unasked:
            assert "usage" not in chunks[-1]
        else:
            usage = chunks[-1]["usage"]
            assert usage["prompt_tokens"] == counts.input_tokens
            assert usage["total_tokens"] == counts.total_tokens
            assert usage["prompt_tokens_details"]["cached_tokens"] == counts.cache_read
        told.append(counts)
    first, second = told
    assert first.uncached_input is not None
    assert first.uncached_input > 200
    # The last token of a prompt is always computed anew: its logits are not kept.
    assert (second.uncached_input, second.cache_read) == (1, first.input_tokens - 1)


def test_a_stream_is_measured_wherever_it_is_cut(engine: RunningEngine) -> None:
    chunks = streamed(engine, prompt())
    end = measure(chunks)
    generated = 0
    assert "timings" not in chunks[0]  # It only opens the answer.
    for length in range(2, len(chunks) + 1):
        counts = measure(chunks[:length])
        assert counts.input_tokens == end.input_tokens
        assert counts.output is not None
        assert generated <= counts.output <= OUTPUT_TOKENS
        generated = counts.output
    assert generated == OUTPUT_TOKENS
    assert chunks[-1]["choices"] == []


def test_its_other_interfaces_tell_the_same(engine: RunningEngine) -> None:
    body = prompt()
    completion = measure(
        [msgspec.json.decode(ask(engine, body | {"prompt": "One two three"}, "/v1/completions"))]
    )
    assert completion.output == OUTPUT_TOKENS
    before = read_registers(engine)
    messages = msgspec.json.decode(ask(engine, body, "/v1/messages"))
    anthropic = collect_usage("anthropic", None, messages)
    assert anthropic is not None
    counts = adapt("anthropic", anthropic)
    # This interface takes no bias: the end token may come.
    assert 0 < counts.output_tokens <= OUTPUT_TOKENS
    moved = moved_registers(engine, before, counts.output_tokens)
    assert (counts.input_tokens, counts.output_tokens) == (moved.computed + moved.cached, moved.generated)
