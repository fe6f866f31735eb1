"""Whole answers and streams as each source sends them (`wire/<source>/`), into exact buckets or a refusal by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from pricing.normalising import SOURCES, BucketCounts, Unprovable, adapt, collect_usage
from providers.wire import DONE, SseParser

WIRE: Final = Path(__file__).with_name("wire")

# Buckets that are not named are not reported.
PROVED: Final[dict[str, dict[str, int]]] = {
    "openai_chat/whole.json": {
        "uncached_input": 86,
        "cache_read": 1920,
        "audio_input": 0,
        "output": 54,
        "reasoning": 256,
        "audio_output": 0,
    },
    "openai_chat/whole_cache_write.json": {
        "uncached_input": 476,
        "cache_read": 1024,
        "cache_write": 0,
        "image_input": 0,
        "audio_input": 0,
        "output": 40,
        "reasoning": 0,
        "audio_output": 0,
    },
    # Rejected predictions are output like any other.
    "openai_chat/stream.sse": {
        "uncached_input": 19,
        "cache_read": 0,
        "audio_input": 0,
        "output": 10,
        "reasoning": 0,
        "audio_output": 0,
    },
    "openai_chat/stream_usage_beside_choices.sse": {"uncached_input": 48, "cache_read": 1152, "output": 2},
    "openai_chat/stream_without_details.sse": {"uncached_input": 77, "output": 3},
    "openai_chat/whole_null_details.json": {"uncached_input": 77, "output": 3},
    "openai_chat/stream_reasoning_outside.sse": {
        "uncached_input": 26,
        "cache_read": 6,
        "image_input": 0,
        "audio_input": 0,
        "output": 9,
        "reasoning": 94,
        "audio_output": 0,
    },
    "openai_chat/whole_cached_outside.json": {"uncached_input": 21, "cache_read": 8044, "output": 50},
    "openai_chat/whole_hits_and_misses.json": {
        "uncached_input": 76,
        "cache_read": 1024,
        "output": 26,
        "reasoning": 64,
    },
    "openai_chat/whole_translated.json": {
        "uncached_input": 500,
        "cache_read": 1500,
        "cache_write": 0,
        "output": 10,
    },
    "openai_chat/whole_speech.json": {
        "uncached_input": 14,
        "cache_read": 0,
        "image_input": 0,
        "audio_input": 120,
        "output": 20,
        "reasoning": 0,
        "audio_output": 70,
    },
    "openai_chat/embeddings.json": {"uncached_input": 8, "output": 0},
    "openai_responses/whole.json": {
        "uncached_input": 328,
        "cache_read": 0,
        "cache_write": 0,
        "output": 12,
        "reasoning": 40,
    },
    "openai_responses/stream.sse": {"uncached_input": 13, "cache_read": 1024, "output": 87, "reasoning": 0},
    "openai_responses/stream_incomplete.sse": {"uncached_input": 60, "output": 0, "reasoning": 16},
    "anthropic/whole.json": {"uncached_input": 209, "cache_read": 18086, "cache_write": 0, "output": 393},
    "anthropic/stream.sse": {"uncached_input": 472, "cache_read": 2000, "cache_write": 0, "output": 89},
    "anthropic/stream_cumulative.sse": {"uncached_input": 10, "output": 15, "reasoning": 60},
    # Its opening counts what was cached as input, its end does not: the end wins.
    "anthropic/stream_of_vllm.sse": {"uncached_input": 8, "cache_read": 240, "cache_write": 0, "output": 32},
    "anthropic/whole_of_vllm_null_details.json": {"uncached_input": 248, "output": 32},
    "vllm/whole_null_details.json": {"uncached_input": 248, "output": 32},
    "vllm/stream_continuous.sse": {
        "uncached_input": 8,
        "cache_read": 240,
        "cache_write": 0,
        "output": 1,
        "reasoning": 3,
    },
    "vllm/stream_continuous_cut.sse": {"uncached_input": 248, "output": 11},
    "vllm/whole_pictures.json": {
        "uncached_input": 44,
        "cache_read": 0,
        "image_input": 576,
        "audio_input": 0,
        "output": 5,
    },
    "vllm/embeddings.json": {"uncached_input": 8, "output": 0},
    "sglang/whole_null_details.json": {"uncached_input": 248, "output": 32, "reasoning": 0},
    "sglang/stream_extended.sse": {"uncached_input": 8, "cache_read": 240, "output": 20, "reasoning": 12},
    "sglang/whole_pictures_and_sound.json": {
        "uncached_input": 74,
        "cache_read": 0,
        "image_input": 576,
        "audio_input": 50,
        "output": 5,
        "reasoning": 0,
    },
    # Both of a real llama.cpp: the same prompt, then again.
    "llamacpp/whole.json": {"uncached_input": 43, "cache_read": 0, "output": 3},
    "llamacpp/stream_timings_per_token.sse": {"uncached_input": 1, "cache_read": 42, "output": 3},
    # Drafted tokens are not output; accepted ones are among the predicted.
    "llamacpp/stream_cut.sse": {"uncached_input": 1, "cache_read": 247, "output": 11},
    "llamacpp/stream_without_include_usage.sse": {"uncached_input": 248, "cache_read": 0, "output": 32},
    "ollama/stream.ndjson": {"uncached_input": 5, "cache_read": 16, "output": 971},
    "ollama/whole_nothing_cached.json": {"uncached_input": 21, "cache_read": 0, "output": 1008},
    # Sixteen cached tokens are missing from the count of such a build: not reported, and never zero.
    "ollama/whole_old_build.json": {"uncached_input": 5, "output": 1008},
    "gemini/whole.json": {"uncached_input": 650, "cache_read": 400, "output": 100, "reasoning": 200},
    "gemini/stream.sse": {"uncached_input": 30, "output": 5, "reasoning": 40},
    "gemini/whole_cached_pictures.json": {
        "uncached_input": 58,
        "cache_read": 500,
        "image_input": 258,
        "output": 5,
    },
    "tgi/stream.sse": {"uncached_input": 40, "output": 7},
    "dynamo/stream_continuous.sse": {"uncached_input": 8, "cache_read": 32, "output": 7},
    "transformers/stream.sse": {"uncached_input": 40, "output": 7},
}
# Tokens that move from uncached input to cache_write when the buyer asked for a cache write.
WRITTEN: Final[dict[str, int]] = {
    "openai_chat/whole_cache_write.json": 400,
    "openai_chat/whole_translated.json": 300,
    "openai_responses/whole.json": 256,
    "anthropic/whole.json": 188,
    "vllm/stream_continuous.sse": 8,
}
REFUSED: Final[dict[str, str]] = {
    "openai_chat/refused_cached_exceeds_prompt.json": "prompt_tokens",
    "openai_chat/refused_total.sse": "total_tokens",
    "openai_chat/refused_usage_is_a_list.sse": "usage",
    "openai_chat/refused_cache_names_disagree.json": "cache_read_input_tokens",
    "openai_responses/refused_reasoning_exceeds_output.json": "output_tokens",
    "openai_responses/refused_cached_exceeds_input.json": "input_tokens",
    "anthropic/refused_lifetimes.json": "cache_creation_input_tokens",
    "anthropic/refused_thinking_exceeds_output.json": "output_tokens",
    "vllm/refused_reasoning_outside.json": "total_tokens",
    "vllm/refused_cached_pictures.json": "prompt_tokens",
    "vllm/refused_video.json": "prompt_tokens_details.multimodal_tokens.video",
    "sglang/refused_levels.json": "prompt_tokens_details.cached_tokens",
    "sglang/refused_reasoning_twice.json": "completion_tokens_details.reasoning_tokens",
    "sglang/refused_video.json": "video_tokens",
    "llamacpp/refused_timings_disagree.sse": "prompt_tokens",
    "llamacpp/refused_timings_without_cache.json": "timings.cache_n",
    "ollama/refused_old_build_all_cached.json": "prompt_eval_count",
    "ollama/refused_cached_exceeds_prompt.json": "prompt_eval_count",
    "gemini/refused_cached_pictures.json": "promptTokenCount",
    "gemini/refused_more_cached_than_asked.json": "cacheTokensDetails",
    "gemini/refused_picture_made.json": "candidatesTokensDetails",
    "gemini/refused_thoughts_left_out_of_total.json": "totalTokenCount",
}


def chunks_of(name: str) -> Iterator[dict[str, Any]]:
    """What the sample carries, decoded as the meters decode it: event by event, line by line, or whole."""
    body = (WIRE / name).read_bytes()
    if name.endswith(".sse"):
        payloads = [payload for payload in SseParser().feed(body) if payload != DONE]
    else:
        payloads = body.splitlines()
    for payload in payloads:
        yield msgspec.json.decode(payload)


def raw_usage_of(name: str) -> Mapping[str, object]:
    """What is known at the end of the sample, fed chunk by chunk."""
    usage: Mapping[str, object] | None = None
    for chunk in chunks_of(name):
        usage = collect_usage(name.partition("/")[0], usage, chunk)
    assert usage is not None, "the sample reports usage"
    return usage


def adapt_sample(name: str, *, cache_write_requested: bool = False) -> BucketCounts:
    source = name.partition("/")[0]
    return adapt(source, raw_usage_of(name), cache_write_requested=cache_write_requested)


def test_every_sample_is_claimed_and_every_source_has_one() -> None:
    recorded = {str(path.relative_to(WIRE)) for path in WIRE.rglob("*") if path.is_file()}
    assert recorded == PROVED.keys() | REFUSED.keys()
    assert {name.partition("/")[0] for name in PROVED} == SOURCES


@pytest.mark.parametrize("name", sorted(PROVED))
def test_sample_becomes_exactly_these_buckets(name: str) -> None:
    assert adapt_sample(name) == BucketCounts(**PROVED[name])


@pytest.mark.parametrize("name", sorted(PROVED))
def test_cache_write_is_counted_apart_only_where_the_buyer_asked(name: str) -> None:
    expected = dict(PROVED[name])
    written = WRITTEN.get(name, 0)
    if written:
        expected["cache_write"] += written
        expected["uncached_input"] -= written
    assert adapt_sample(name, cache_write_requested=True) == BucketCounts(**expected)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_sample_that_proves_nothing_is_refused_by_field(name: str) -> None:
    with pytest.raises(Unprovable) as refusal:
        adapt_sample(name)
    assert refusal.value.field == REFUSED[name]


@pytest.mark.parametrize("name", sorted(name for name in PROVED if name.endswith(".sse")))
def test_stream_reads_the_same_however_it_is_cut_into_packets(name: str) -> None:
    source = name.partition("/")[0]
    body = (WIRE / name).read_bytes()
    for size in (1, 7, 64):
        parser, usage = SseParser(), None
        for start in range(0, len(body), size):
            for payload in parser.feed(body[start : start + size]):
                if payload != DONE:
                    usage = collect_usage(source, usage, msgspec.json.decode(payload))
        assert usage is not None
        assert adapt(source, usage) == BucketCounts(**PROVED[name])


def _places(raw: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where counts stand in raw usage; figures that no bucket is made of are left out."""
    if isinstance(raw, dict):
        for name, child in raw.items():
            yield from _places(child, (*path, name))
    elif isinstance(raw, list):
        for index, child in enumerate(raw):
            yield from _places(child, (*path, index))
    elif isinstance(raw, int) and not isinstance(raw, bool) and path[-1] not in UNREAD:
        yield path


# Durations, calls, drafts and ids: on the wire beside usage, and never counted.
UNREAD: Final = {
    "web_search_requests", "num_sources_used", "accepted", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "draft_n", "draft_n_accepted",
}  # fmt: skip
NO_COUNTS: Final = (-1, 2**53 + 1, 2**63, 1.0, 1e400, float("nan"), "1e3", "5", True, [5], {"n": 5})


@pytest.mark.parametrize("name", sorted(PROVED))
def test_a_count_that_is_no_count_is_refused_wherever_it_stands(name: str) -> None:
    source, usage = name.partition("/")[0], msgspec.json.encode(raw_usage_of(name))
    places = [
        path
        for path in _places(msgspec.json.decode(usage))
        if not {"context", "output_ids"} & set(map(str, path))
    ]
    assert places
    for path in places:
        for wrong in NO_COUNTS:
            raw = msgspec.json.decode(usage)
            holder = raw
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = wrong
            with pytest.raises(Unprovable) as refusal:
                adapt(source, raw)
            assert refusal.value.field.rpartition(".")[2] == str(path[-1]), path
