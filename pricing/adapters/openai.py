"""OpenAI's two usage objects, Chat Completions and Responses, and the servers that copy the first."""

from __future__ import annotations

from pricing.adapters.base import (
    BucketCounts,
    Raw,
    Unprovable,
    expect,
    read_count,
    read_details,
    read_either,
    require_count,
    split_input,
    take,
)


def adapt_chat(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """Chat Completions as OpenAI and the many that imitate it send it.

    Whether cached counts are inside the prompt and reasoning inside the completion differs between them,
    so the total decides: exactly one reading must add up to it.
    """
    prompt = require_count(raw, "prompt_tokens")
    total = require_count(raw, "total_tokens")
    completion = read_count(raw, "completion_tokens")
    if completion is None:
        # Embeddings: no completion at all, which the total must confirm.
        expect("completion_tokens", total - prompt, 0, "a completion that is not reported")
        completion = 0
    prompt_details = read_details(raw, "prompt_tokens_details")
    completion_details = read_details(raw, "completion_tokens_details")
    cached = read_count(prompt_details, "cached_tokens", parent="prompt_tokens_details")
    written = read_count(prompt_details, "cache_write_tokens", parent="prompt_tokens_details")
    reasoning = read_count(completion_details, "reasoning_tokens", parent="completion_tokens_details")
    for name in ("accepted_prediction_tokens", "rejected_prediction_tokens"):
        # Part of the completion, and billed as output: read only to refuse nonsense.
        predicted = read_count(completion_details, name, parent="completion_tokens_details")
        take("completion_tokens", completion, {name: predicted})

    cached_outside = (cached or 0) + (written or 0)
    readings = {
        (whole_prompt, whole_completion)
        for whole_prompt in {prompt, prompt + cached_outside}
        for whole_completion in {completion, completion + (reasoning or 0)}
        if whole_prompt + whole_completion == total
    }
    if not readings:
        raise Unprovable("total_tokens", f"is {total}, which no reading of the parts adds up to")
    if len(readings) > 1:
        raise Unprovable("total_tokens", f"is {total}, which more than one reading of the parts adds up to")
    whole_prompt, whole_completion = readings.pop()
    return split_chat(
        whole_prompt,
        whole_completion,
        cached=cached,
        written=written,
        image=read_count(prompt_details, "image_tokens", parent="prompt_tokens_details"),
        audio=read_count(prompt_details, "audio_tokens", parent="prompt_tokens_details"),
        reasoning=reasoning,
        audio_output=read_count(completion_details, "audio_tokens", parent="completion_tokens_details"),
        cache_write_requested=cache_write_requested,
    )


def split_chat(
    prompt: int,
    completion: int,
    *,
    cached: int | None,
    written: int | None,
    image: int | None,
    audio: int | None,
    reasoning: int | None,
    audio_output: int | None,
    cache_write_requested: bool,
) -> BucketCounts:
    """Disjoint buckets of a prompt and a completion that contain all their parts."""
    inputs = split_input(
        "prompt_tokens",
        prompt,
        cache_read=cached,
        cache_write=written,
        image=image,
        audio=audio,
        cache_write_requested=cache_write_requested,
    )
    output = take("completion_tokens", completion, {"reasoning": reasoning, "audio_output": audio_output})
    return BucketCounts(**inputs, output=output, reasoning=reasoning, audio_output=audio_output)


def adapt_responses(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """The Responses API: cached and written tokens inside the input, reasoning inside the output."""
    whole_input = require_count(raw, "input_tokens")
    whole_output = require_count(raw, "output_tokens")
    expect("total_tokens", require_count(raw, "total_tokens"), whole_input + whole_output, "input + output")
    input_details = read_details(raw, "input_tokens_details")
    output_details = read_details(raw, "output_tokens_details")
    written = read_count(input_details, "cache_write_tokens", parent="input_tokens_details")
    lifetimes = read_details(input_details, "cache_write_tokens_details", parent="input_tokens_details")
    by_lifetime = [read_count(lifetimes, name) for name in ("ttl_30m_tokens", "ttl_12h_tokens")]
    if any(count is not None for count in by_lifetime):
        lifetime_sum = sum(count or 0 for count in by_lifetime)
        if written is None:
            written = lifetime_sum
        expect("input_tokens_details.cache_write_tokens", written, lifetime_sum, "the sum over its lifetimes")
    return split_chat(
        whole_input,
        whole_output,
        cached=read_count(input_details, "cached_tokens", parent="input_tokens_details"),
        written=written,
        image=read_count(input_details, "image_tokens", parent="input_tokens_details"),
        audio=read_count(input_details, "audio_tokens", parent="input_tokens_details"),
        reasoning=read_either((output_details, "reasoning_tokens", "output_tokens_details")),
        audio_output=read_count(output_details, "audio_tokens", parent="output_tokens_details"),
        cache_write_requested=cache_write_requested,
    )
