"""Adapters on wire samples: disjoint buckets, three states, proof against totals, and refusal of the rest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.normalising import SOURCES, BucketCounts, UnknownSource, Unprovable, adapt
from pricing.units import Bucket
from tests.pricing.samples import (
    ANTHROPIC,
    GEMINI,
    LLAMACPP,
    OLLAMA,
    OPENAI_CHAT,
    OPENAI_RESPONSES,
    SGLANG,
    VLLM,
    VLLM_WITHOUT_DETAILS,
)


@pytest.mark.parametrize(
    ("source", "raw", "expected"),
    [
        (
            "openai_chat",
            OPENAI_CHAT,
            {
                "uncached_input": 600,
                "cache_read": 400,
                "cache_write": 0,
                "audio_input": 0,
                "output": 100,
                "reasoning": 200,
                "audio_output": 0,
            },
        ),
        (
            "openai_responses",
            OPENAI_RESPONSES,
            {"uncached_input": 600, "cache_read": 400, "cache_write": 0, "output": 100, "reasoning": 200},
        ),
        ("anthropic", ANTHROPIC, {"uncached_input": 600, "cache_read": 400, "cache_write": 0, "output": 300}),
        ("gemini", GEMINI, {"uncached_input": 650, "cache_read": 400, "output": 100, "reasoning": 200}),
        (
            "vllm",
            VLLM,
            {"uncached_input": 8, "cache_read": 240, "cache_write": 0, "output": 20, "reasoning": 12},
        ),
        ("vllm", VLLM_WITHOUT_DETAILS, {"uncached_input": 248, "output": 32}),
        ("sglang", SGLANG, {"uncached_input": 8, "cache_read": 240, "output": 20, "reasoning": 12}),
        ("llamacpp", LLAMACPP, {"uncached_input": 1, "cache_read": 247, "output": 32}),
        ("ollama", OLLAMA, {"uncached_input": 1, "cache_read": 247, "output": 32}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wire_sample_becomes_disjoint_buckets(source: str, raw: Any, expected: dict[str, int]) -> None:
    assert adapt(source, raw) == BucketCounts(**expected)


@pytest.mark.parametrize(
    ("source", "raw", "written"),
    [
        ("openai_chat", OPENAI_CHAT, 100),
        ("openai_responses", OPENAI_RESPONSES, 100),
        ("anthropic", ANTHROPIC, 100),
    ],
)
def test_cache_write_counts_only_where_the_buyer_asked(source: str, raw: Any, written: int) -> None:
    asked = adapt(source, raw, cache_write_requested=True)
    not_asked = adapt(source, raw)
    assert (asked.cache_write, not_asked.cache_write) == (written, 0)
    assert asked.uncached_input is not None
    assert not_asked.uncached_input == asked.uncached_input + written
    assert asked.total_tokens == not_asked.total_tokens == 1300


def test_null_is_not_zero() -> None:
    silent = adapt("vllm", VLLM_WITHOUT_DETAILS)
    zero = adapt("vllm", {**VLLM_WITHOUT_DETAILS, "prompt_tokens_details": {"cached_tokens": 0}})
    null = adapt("vllm", {**VLLM_WITHOUT_DETAILS, "prompt_tokens_details": {"cached_tokens": None}})
    assert silent == null != zero
    assert [counts.state(Bucket.CACHE_READ) for counts in (silent, zero)] == ["not_reported", "zero"]
    assert adapt("vllm", VLLM).state(Bucket.CACHE_READ) == "reported"
    assert Bucket.CACHE_READ not in silent.reported()
    assert zero.reported()[Bucket.CACHE_READ] == 0


def test_reasoning_outside_the_completion_is_added_where_the_total_proves_it() -> None:
    inside = {
        "prompt_tokens": 10,
        "completion_tokens": 50,
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    assert adapt("openai_chat", {**inside, "total_tokens": 60}).output == 10
    outside = adapt("openai_chat", {**inside, "total_tokens": 100})
    assert (outside.output, outside.reasoning) == (50, 40)
    with pytest.raises(Unprovable, match="total_tokens"):
        adapt("openai_chat", {**inside, "total_tokens": 61})
    with pytest.raises(Unprovable, match="total_tokens"):
        adapt("vllm", {**inside, "total_tokens": 100})  # vLLM counts inside, whatever would add up


def test_additive_cached_count_is_told_from_a_subset_by_the_total() -> None:
    raw = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 70}}
    assert adapt("openai_chat", {**raw, "total_tokens": 105}).uncached_input == 30
    assert adapt("openai_chat", {**raw, "total_tokens": 175}).uncached_input == 100


def test_what_is_only_broken_down_is_added_up() -> None:
    anthropic = {**ANTHROPIC, "cache_creation_input_tokens": None}
    assert adapt("anthropic", anthropic, cache_write_requested=True).cache_write == 100
    details = {**OPENAI_RESPONSES["input_tokens_details"], "cache_write_tokens": None}
    responses = {**OPENAI_RESPONSES, "input_tokens_details": details}
    assert adapt("openai_responses", responses, cache_write_requested=True).cache_write == 100
    assert adapt("sglang", {**SGLANG, "prompt_tokens_details": None}).cache_read == 240


def test_a_total_that_fits_two_readings_proves_nothing() -> None:
    raw = {
        "prompt_tokens": 100,
        "completion_tokens": 60,
        "total_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    with pytest.raises(Unprovable, match="more than one"):
        adapt("openai_chat", raw)


def test_embeddings_have_no_completion() -> None:
    assert adapt("openai_chat", {"prompt_tokens": 8, "total_tokens": 8}) == BucketCounts(
        uncached_input=8, output=0
    )
    with pytest.raises(Unprovable, match="completion_tokens"):
        adapt("openai_chat", {"prompt_tokens": 8, "total_tokens": 9})


def test_images_and_audio_have_buckets_of_their_own() -> None:
    vllm = {
        **VLLM_WITHOUT_DETAILS,
        "prompt_tokens_details": {"multimodal_tokens": {"image": 100, "audio": 20}},
    }
    counts = adapt("vllm", vllm)
    assert (counts.uncached_input, counts.image_input, counts.audio_input) == (128, 100, 20)
    sglang = adapt("sglang", {**VLLM_WITHOUT_DETAILS, "image_tokens": 48})
    assert (sglang.uncached_input, sglang.image_input) == (200, 48)
    gemini = adapt(
        "gemini",
        {
            "promptTokenCount": 300,
            "candidatesTokenCount": 9,
            "totalTokenCount": 309,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 42},
                {"modality": "IMAGE", "tokenCount": 258},
            ],
            "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}],
        },
    )
    assert (gemini.image_input, gemini.audio_output, gemini.output) == (258, 9, 0)


def test_cached_tokens_beside_image_tokens_cannot_be_told_apart() -> None:
    details = {"cached_tokens": 50, "image_tokens": 60}
    raw = {
        "prompt_tokens": 200,
        "completion_tokens": 1,
        "total_tokens": 201,
        "prompt_tokens_details": details,
    }
    with pytest.raises(Unprovable, match="overlap"):
        adapt("openai_chat", raw)


def test_llamacpp_timings_alone_measure_a_stream_that_was_cut() -> None:
    counts = adapt("llamacpp", {"timings": LLAMACPP["timings"]})
    assert counts == adapt("llamacpp", LLAMACPP)
    without_timings = {name: value for name, value in LLAMACPP.items() if name != "timings"}
    assert adapt("llamacpp", without_timings) == counts


def test_ollama_without_a_cached_count_reports_none() -> None:
    assert adapt("ollama", {"prompt_eval_count": 5, "eval_count": 2}) == BucketCounts(
        uncached_input=5, output=2
    )


@pytest.mark.parametrize(
    ("source", "raw", "field"),
    [
        ("openai_chat", {**OPENAI_CHAT, "total_tokens": None}, "total_tokens"),
        ("openai_chat", {**OPENAI_CHAT, "prompt_tokens_details": []}, "prompt_tokens_details"),
        (
            "openai_chat",
            {
                "prompt_tokens": 5,
                "completion_tokens": 1,
                "total_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 6},
            },
            "prompt_tokens",
        ),
        (
            "openai_chat",
            {**OPENAI_CHAT, "completion_tokens_details": {"rejected_prediction_tokens": 301}},
            "completion_tokens",
        ),
        ("openai_responses", {**OPENAI_RESPONSES, "total_tokens": 1299}, "total_tokens"),
        (
            "openai_responses",
            {
                **OPENAI_RESPONSES,
                "input_tokens_details": {**OPENAI_RESPONSES["input_tokens_details"], "cache_write_tokens": 7},
            },
            "input_tokens_details.cache_write_tokens",
        ),
        ("anthropic", {**ANTHROPIC, "cache_creation_input_tokens": 99}, "cache_creation_input_tokens"),
        ("anthropic", {**ANTHROPIC, "total_tokens": 800}, "total_tokens"),
        ("anthropic", {**ANTHROPIC, "output_tokens": None}, "output_tokens"),
        ("gemini", {**GEMINI, "totalTokenCount": 1300}, "totalTokenCount"),
        (
            "gemini",
            {**GEMINI, "promptTokensDetails": [{"modality": "VIDEO", "tokenCount": 1}]},
            "promptTokensDetails",
        ),
        (
            "gemini",
            {**GEMINI, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1}]},
            "promptTokensDetails",
        ),
        ("gemini", {**GEMINI, "promptTokensDetails": {}}, "promptTokensDetails"),
        ("gemini", {**GEMINI, "promptTokensDetails": [7]}, "promptTokensDetails"),
        ("vllm", {**VLLM, "total_tokens": 281}, "total_tokens"),
        (
            "vllm",
            {**VLLM, "prompt_tokens_details": {"multimodal_tokens": {"video": 3}}},
            "prompt_tokens_details.multimodal_tokens.video",
        ),
        (
            "vllm",
            {**VLLM, "prompt_tokens_details": {"multimodal_tokens": {"smell": 3}}},
            "prompt_tokens_details.multimodal_tokens.smell",
        ),
        ("sglang", {**SGLANG, "video_tokens": 3}, "video_tokens"),
        (
            "sglang",
            {**SGLANG, "prompt_tokens_details": {"cached_tokens": 239}},
            "prompt_tokens_details.cached_tokens",
        ),
        (
            "sglang",
            {**SGLANG, "completion_tokens_details": {"reasoning_tokens": 13}},
            "completion_tokens_details.reasoning_tokens",
        ),
        ("llamacpp", {**LLAMACPP, "prompt_tokens": 247, "total_tokens": 279}, "prompt_tokens"),
        ("llamacpp", {**LLAMACPP, "completion_tokens": 33, "total_tokens": 281}, "completion_tokens"),
        (
            "llamacpp",
            {**LLAMACPP, "prompt_tokens_details": {"cached_tokens": 1}},
            "prompt_tokens_details.cached_tokens",
        ),
        ("llamacpp", {"timings": {"cache_n": 1}}, "timings.prompt_n"),
        ("ollama", {**OLLAMA, "done": False}, "done"),
        ("ollama", {**OLLAMA, "prompt_eval_cached_count": 249}, "prompt_eval_count"),
        (
            "openai_chat",
            {**OPENAI_CHAT, "prompt_cache_hit_tokens": 400, "prompt_cache_miss_tokens": 599},
            "prompt_tokens",
        ),
        (
            "openai_chat",
            {**VLLM_WITHOUT_DETAILS, "prompt_tokens_details": {"text_tokens": 240}},
            "prompt_tokens_details.text_tokens",
        ),
        (
            "openai_chat",
            {**VLLM_WITHOUT_DETAILS, "completion_tokens_details": {"text_tokens": 30, "audio_tokens": 3}},
            "completion_tokens_details.text_tokens",
        ),
        (
            "openai_chat",
            {**VLLM_WITHOUT_DETAILS, "completion_tokens_details": {"image_tokens": 30}},
            "completion_tokens_details.image_tokens",
        ),
        (
            "openai_responses",
            {**OPENAI_RESPONSES, "input_tokens_details": {"video_tokens": 1}},
            "input_tokens_details.video_tokens",
        ),
        ("anthropic", {"input_tokens": 2**53, "output_tokens": 1}, "usage"),
        ("llamacpp", {"timings": {"cache_n": 2**53, "prompt_n": 1, "predicted_n": 0}}, "usage"),
        ("llamacpp", {**LLAMACPP, "timings": [247, 1, 32]}, "timings"),
        ("tgi", {}, "prompt_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_proved_is_refused_by_field(source: str, raw: Any, field: str) -> None:
    with pytest.raises(Unprovable) as refusal:
        adapt(source, raw)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "count", [-1, 2**53 + 1, 2**63, 1.0, 1e400, float("nan"), "1e3", "5", True, [5], {}], ids=repr
)
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "total_tokens"])
def test_a_count_that_is_no_count_is_refused_by_field(field: str, count: object) -> None:
    for source in ("openai_chat", "vllm", "sglang", "llamacpp"):
        with pytest.raises(Unprovable, match=f"^{field}: "):
            adapt(source, {**VLLM_WITHOUT_DETAILS, field: count})


def test_unknown_source_and_shapeless_usage_are_refused() -> None:
    with pytest.raises(UnknownSource, match="source"):
        adapt("bedrock", {})
    with pytest.raises(Unprovable, match="usage"):
        adapt("vllm", [1, 2])  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(SOURCES)),
    st.dictionaries(
        st.sampled_from([*OPENAI_CHAT, *ANTHROPIC, *GEMINI, *SGLANG, *LLAMACPP, *OLLAMA]),
        st.none()
        | st.integers(-1, 30)
        | st.booleans()
        | st.text(max_size=2)
        | st.dictionaries(st.text(), st.none()),
    ),
)
def test_any_usage_is_either_proved_or_refused(source: str, raw: dict[str, Any]) -> None:
    try:
        counts = adapt(source, raw)
    except Unprovable:
        return
    assert all(count >= 0 for count in counts.reported().values())
    if (
        isinstance(raw.get("total_tokens"), int)
        and source not in {"ollama", "gemini"}
        and "timings" not in raw
    ):
        assert counts.total_tokens == raw["total_tokens"]


@settings(max_examples=100, deadline=None)
@given(*[st.integers(0, 10**6)] * 4)
def test_every_source_tells_the_same_truth(uncached: int, cached: int, output: int, thought: int) -> None:
    prompt, completion = uncached + cached, output + thought
    openai = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    truth = BucketCounts(uncached_input=uncached, cache_read=cached, output=output, reasoning=thought)
    assert adapt("vllm", openai) == adapt("sglang", openai) == truth
    gemini = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": cached,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thought,
        "totalTokenCount": prompt + completion,
    }
    assert adapt("gemini", gemini) == truth
    anthropic = {
        "input_tokens": uncached,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
    }
    assert adapt("anthropic", anthropic) == truth


def test_counts_travel_as_json() -> None:
    counts = adapt("llamacpp", LLAMACPP)
    assert msgspec.json.decode(msgspec.json.encode(counts), type=BucketCounts) == counts
    assert b"reasoning" not in msgspec.json.encode(counts)
