"""Usage of the inference engines, each by what its source code does (no reading is tried out on the total)."""

from __future__ import annotations

from pricing.adapters.base import (
    BucketCounts,
    Raw,
    Unprovable,
    expect,
    read_count,
    read_details,
    read_either,
    refuse_tokens,
    require_count,
)
from pricing.adapters.openai import split_chat

_PROMPT_DETAILS = "prompt_tokens_details"
_COMPLETION_DETAILS = "completion_tokens_details"


def _prompt_and_completion(raw: Raw) -> tuple[int, int]:
    """Both counts, proved against the total; a completion that is missing (embeddings) must be nothing."""
    prompt = require_count(raw, "prompt_tokens")
    completion = read_count(raw, "completion_tokens") or 0
    expect("total_tokens", require_count(raw, "total_tokens"), prompt + completion, "prompt + completion")
    return prompt, completion


def adapt_vllm(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """vLLM: cached inside the prompt; details are null unless `--enable-prompt-tokens-details` is set."""
    prompt, completion = _prompt_and_completion(raw)
    details = read_details(raw, _PROMPT_DETAILS)
    parent = f"{_PROMPT_DETAILS}.multimodal_tokens"
    modes = read_details(details, "multimodal_tokens", parent=_PROMPT_DETAILS)
    for name in modes:
        if name not in {"image", "audio"} and read_count(modes, name, parent=parent):
            raise Unprovable(f"{parent}.{name!s:.40}", "there is no bucket for this modality")
    completion_details = read_details(raw, _COMPLETION_DETAILS)
    return split_chat(
        prompt,
        completion,
        cached=read_count(details, "cached_tokens", parent=_PROMPT_DETAILS),
        written=read_count(details, "created_cache_tokens", parent=_PROMPT_DETAILS),
        image=read_count(modes, "image", parent=parent),
        audio=read_count(modes, "audio", parent=parent),
        reasoning=read_count(completion_details, "reasoning_tokens", parent=_COMPLETION_DETAILS),
        audio_output=None,
        cache_write_requested=cache_write_requested,
    )


def adapt_sglang(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """SGLang: reasoning also at the top level; cached is null without `--enable-cache-report`; `sglext` may
    break it down.
    """
    prompt, completion = _prompt_and_completion(raw)
    details = read_details(raw, _PROMPT_DETAILS)
    completion_details = read_details(raw, _COMPLETION_DETAILS)
    cached = read_count(details, "cached_tokens", parent=_PROMPT_DETAILS)
    extension = read_details(raw, "sglext")
    levels = read_details(extension, "cached_tokens_details", parent="sglext")
    by_level = [
        read_count(levels, name, parent="sglext.cached_tokens_details")
        for name in ("device", "host", "storage")
    ]
    if any(count is not None for count in by_level):
        level_sum = sum(count or 0 for count in by_level)
        if cached is None:
            cached = level_sum
        expect(f"{_PROMPT_DETAILS}.cached_tokens", cached, level_sum, "the sum over cache levels")
    refuse_tokens(raw, "video_tokens", parent="", kind="video")
    refuse_tokens(details, "video_tokens", parent=_PROMPT_DETAILS, kind="video")
    return split_chat(
        prompt,
        completion,
        cached=cached,
        written=None,
        image=read_either((raw, "image_tokens", ""), (details, "image_tokens", _PROMPT_DETAILS)),
        audio=read_either((raw, "audio_tokens", ""), (details, "audio_tokens", _PROMPT_DETAILS)),
        reasoning=read_either(
            (raw, "reasoning_tokens", ""), (completion_details, "reasoning_tokens", _COMPLETION_DETAILS)
        ),
        audio_output=None,
        cache_write_requested=cache_write_requested,
    )


def adapt_llamacpp(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """llama.cpp: usage, its `timings`, or both, which must agree; `prompt_tokens = cache_n + prompt_n`.

    Timings alone are what a stream that was cut leaves behind (`timings_per_token`), and they suffice. Drafted
    tokens (`draft_n`) are the engine's own business: only accepted ones are predicted ones.
    """
    details = read_details(raw, _PROMPT_DETAILS)
    cached = read_count(details, "cached_tokens", parent=_PROMPT_DETAILS)
    timings = read_details(raw, "timings")
    if timings:
        reused = require_count(timings, "cache_n", parent="timings")
        prompt = reused + require_count(timings, "prompt_n", parent="timings")
        completion = require_count(timings, "predicted_n", parent="timings")
        if any(raw.get(name) is not None for name in ("prompt_tokens", "completion_tokens", "total_tokens")):
            usage_prompt, usage_completion = _prompt_and_completion(raw)
            expect("prompt_tokens", usage_prompt, prompt, "timings cache_n + prompt_n")
            expect("completion_tokens", usage_completion, completion, "timings predicted_n")
        if cached is not None:
            expect(f"{_PROMPT_DETAILS}.cached_tokens", cached, reused, "timings cache_n")
        cached = reused
    else:
        prompt, completion = _prompt_and_completion(raw)
    return split_chat(
        prompt,
        completion,
        cached=cached,
        written=None,
        image=None,
        audio=None,
        reasoning=None,
        audio_output=None,
        cache_write_requested=cache_write_requested,
    )


def adapt_ollama(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """Ollama's native line with `done: true`; it has no total.

    A cached count is proof of a build whose prompt count includes what was cached. Builds that give none may leave
    cached tokens out of the prompt count (ollama/ollama#16428), or the count itself; the line does not tell which
    build it is. A count that is missing is refused. One that is short errs in the buyer's favour, and an offering
    that reports no cache reads may be listed only where they weigh as much as uncached input.
    """
    if "done" in raw and raw["done"] is not True:
        raise Unprovable("done", "is not true: this is not the final line")
    return split_chat(
        require_count(raw, "prompt_eval_count"),
        require_count(raw, "eval_count"),
        cached=read_count(raw, "prompt_eval_cached_count"),
        written=None,
        image=None,
        audio=None,
        reasoning=None,
        audio_output=None,
        cache_write_requested=cache_write_requested,
        fields=("prompt_eval_count", "eval_count"),
    )
