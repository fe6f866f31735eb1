"""A short measurement of the engine at the reference mix; the market computes standard tokens from the
counts.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from pricing.normalising import Unprovable, adapt, collect_usage
from providers.agent.config import Config
from providers.agent.engines import Engine
from providers.agent.errors import EngineUnreachable
from providers.wire import DONE, SseParser, carries_output

# Plain words, different for each request so that no prefix cache helps.
_WORDS = (
    "the",
    "yard",
    "holds",
    "what",
    "meter",
    "reads",
    "and",
    "a",
    "period",
    "ends",
    "when",
    "its",
    "hour",
)

# It is no field of OpenAI's: a server that is strict about those answers 422 to it.
_KNOW_IGNORE_EOS = frozenset({"llamacpp", "vllm", "sglang"})


class BenchFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted, as sent to the market."""

    duration_ms: int
    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    first_byte_p50_ms: int
    first_byte_p95_ms: int


async def bench_engine(
    http: aiohttp.ClientSession, config: Config, engine: Engine, *, note: Callable[[int, int], None]
) -> BenchFigures:
    """Runs `config.bench` and counts. Raises EngineUnreachable when the engine fails or does not report
    usage.

    `note` is told the input (cached included) and output tokens of each request, also of one that broke off: the
    engine's registers hold them too, and there they are nobody's usage.
    """
    plan = config.bench
    waiting = iter(range(plan.requests))
    results: list[tuple[int, int, float]] = []

    async def work() -> None:
        for _ in waiting:
            counted = await _one_request(http, config, engine, note)
            results.append(counted)

    started = time.monotonic()
    try:
        async with asyncio.timeout(plan.timeout_s), asyncio.TaskGroup() as group:
            for _ in range(min(plan.concurrency, plan.requests)):
                group.create_task(work())
    except TimeoutError:
        raise EngineUnreachable(f"the bench did not end within {plan.timeout_s} s") from None
    except BaseExceptionGroup as failures:
        raise EngineUnreachable(f"the bench failed: {failures.exceptions[0]}") from None
    duration_ms = max(1, round((time.monotonic() - started) * 1000))
    first_bytes = sorted(first_byte for _, _, first_byte in results)
    return BenchFigures(
        duration_ms=duration_ms,
        requests=len(results),
        concurrency=min(plan.concurrency, plan.requests),
        input_tokens=sum(prompt for prompt, _, _ in results),
        output_tokens=sum(output for _, output, _ in results),
        first_byte_p50_ms=_percentile_ms(first_bytes, 50),
        first_byte_p95_ms=_percentile_ms(first_bytes, 95),
    )


async def _one_request(
    http: aiohttp.ClientSession, config: Config, engine: Engine, note: Callable[[int, int], None]
) -> tuple[int, int, float]:
    """Prompt tokens, output tokens, seconds to the first byte of output."""
    plan = config.bench
    prompt = " ".join(random.choice(_WORDS) for _ in range(plan.prompt_words))
    body: dict[str, Any] = {
        "model": engine.model,
        "messages": [{"role": "user", "content": f"{random.getrandbits(64):x} {prompt}"}],
        "max_tokens": plan.output_tokens,
        "stream": True,
        "stream_options": engine.stream_options,
    }
    if engine.kind in _KNOW_IGNORE_EOS:
        body["ignore_eos"] = True  # The output is then as long as planned.
    if engine.kind == "llamacpp":
        body["timings_per_token"] = True  # Running counts, should the request break off.
    headers = {"Authorization": f"Bearer {config.engine_api_key}"} if config.engine_api_key else {}
    started = time.monotonic()
    first_byte: float | None = None
    usage: Any = None
    parser = SseParser()
    try:
        async with http.post(
            config.engine_url.rstrip("/") + "/v1/chat/completions", json=body, headers=headers
        ) as answer:
            if answer.status != 200:
                raise EngineUnreachable(f"the engine answered {answer.status} to a bench request")
            async for chunk in answer.content.iter_any():
                for payload in parser.feed(chunk):
                    if payload == DONE:
                        continue
                    decoded = msgspec.json.decode(payload)
                    if first_byte is None and carries_output(decoded):
                        first_byte = time.monotonic() - started
                    usage = collect_usage(engine.usage_source, usage, decoded)
    finally:
        input_tokens, output_tokens = _counts(engine, usage)
        note(input_tokens, output_tokens)
    if usage is None:
        raise EngineUnreachable("the engine reports no usage on streams; see the flags in the agent's README")
    try:
        adapt(engine.usage_source, usage)
    except Unprovable as error:
        raise EngineUnreachable(f"the engine's usage contradicts itself: {error}") from None
    # No chunk with output: the end is when it came.
    return input_tokens, output_tokens, first_byte or time.monotonic() - started


def _counts(engine: Engine, usage: Any) -> tuple[int, int]:
    """Input and output tokens as reported last; nought where nothing, or nothing provable, was."""
    try:
        counts = adapt(engine.usage_source, usage) if usage is not None else None
    except Unprovable:
        return 0, 0
    return (0, 0) if counts is None else (counts.input_tokens, counts.output_tokens)


def _percentile_ms(ordered: list[float], percent: int) -> int:
    """Nearest rank; at least 1 ms, because 0 would read as not measured."""
    rank = max(0, -(-len(ordered) * percent // 100) - 1)
    return max(1, round(ordered[rank] * 1000))
