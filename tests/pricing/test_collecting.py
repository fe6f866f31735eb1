"""Raw usage out of streams: taken from any chunk, the last one wins, and what an adapter needs is kept together."""

from __future__ import annotations

import pytest

from pricing.normalising import Unprovable, adapt, collect_usage
from tests.pricing.samples import (
    ANTHROPIC,
    GEMINI,
    LLAMACPP,
    OLLAMA,
    OPENAI_RESPONSES,
    SGLANG,
)


def test_usage_is_taken_from_any_chunk_and_the_last_one_wins() -> None:
    running = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    final = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    usage = collect_usage("vllm", None, {"choices": [{"delta": {}}], "usage": running})
    usage = collect_usage("vllm", usage, {"choices": [{"delta": {}}], "usage": None})
    assert usage == running
    assert collect_usage("vllm", usage, {"choices": [], "usage": final}) == final


@pytest.mark.parametrize("usage", [[19, 10, 29], "29", 29, True], ids=repr)
def test_usage_that_is_no_object_is_kept_to_be_refused(usage: object) -> None:
    for source in ("openai_chat", "vllm", "sglang", "llamacpp", "openai_responses", "anthropic"):
        found = collect_usage(source, None, {"choices": [], "usage": usage})
        assert found is not None
        with pytest.raises(Unprovable, match="usage: must be an object"):
            adapt(source, found)
    found = collect_usage("gemini", None, {"usageMetadata": usage})
    assert found is not None
    with pytest.raises(Unprovable, match="usage: must be an object"):
        adapt("gemini", found)


def test_an_extension_alone_measures_nothing() -> None:
    assert collect_usage("sglang", None, {"choices": [], "sglext": SGLANG["sglext"]}) is None


def test_anthropic_stream_joins_its_opening_and_its_last_event() -> None:
    usage = collect_usage(
        "anthropic", None, {"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1}}}
    )
    usage = collect_usage("anthropic", usage, {"type": "content_block_delta"})
    usage = collect_usage("anthropic", usage, {"type": "message_delta", "usage": {"output_tokens": 300}})
    assert usage is not None
    assert adapt("anthropic", usage) == adapt("anthropic", ANTHROPIC)


def test_other_streams_end_in_what_their_adapter_reads() -> None:
    timings = LLAMACPP["timings"]
    early = {"cache_n": 247, "prompt_n": 1, "predicted_n": 3}
    cut = collect_usage("llamacpp", None, {"choices": [{}], "timings": early})
    assert cut is not None
    assert adapt("llamacpp", cut).output == 3
    wire = {name: value for name, value in LLAMACPP.items() if name != "timings"}
    whole = collect_usage("llamacpp", cut, {"choices": [], "usage": wire, "timings": timings})
    assert whole == LLAMACPP
    assert collect_usage("llamacpp", cut, {"choices": [], "usage": wire}) == wire
    assert collect_usage("llamacpp", whole, {"choices": []}) == LLAMACPP

    assert collect_usage("ollama", None, {"done": False}) is None
    assert collect_usage("ollama", None, OLLAMA) == OLLAMA
    assert collect_usage("gemini", None, {"usageMetadata": GEMINI}) == GEMINI
    assert (
        collect_usage("openai_responses", None, {"response": {"usage": OPENAI_RESPONSES}}) == OPENAI_RESPONSES
    )
    extra = SGLANG["sglext"]
    plain = {name: value for name, value in SGLANG.items() if name != "sglext"}
    assert collect_usage("sglang", None, {"usage": plain, "sglext": extra}) == SGLANG
