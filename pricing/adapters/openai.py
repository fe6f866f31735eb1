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
    refuse_tokens,
    require_count,
    split_input,
    take,
)

_PROMPT_DETAILS = "prompt_tokens_details"
_COMPLETION_DETAILS = "completion_tokens_details"


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
    prompt_details = read_details(raw, _PROMPT_DETAILS)
    completion_details = read_details(raw, _COMPLETION_DETAILS)
    cached = _cached(raw, prompt_details)
    # Gateways that translate from Anthropic's form keep its names beside OpenAI's.
    written = read_either(
        (prompt_details, "cache_write_tokens", _PROMPT_DETAILS), (raw, "cache_creation_input_tokens", "")
    )
    reasoning = read_count(completion_details, "reasoning_tokens", parent=_COMPLETION_DETAILS)
    for name in ("accepted_prediction_tokens", "rejected_prediction_tokens"):
        # Part of the completion, and billed as output: read only to refuse nonsense.
        predicted = read_count(completion_details, name, parent=_COMPLETION_DETAILS)
        take("completion_tokens", completion, {name: predicted})
    refuse_tokens(prompt_details, "video_tokens", parent=_PROMPT_DETAILS, kind="video")
    refuse_tokens(completion_details, "image_tokens", parent=_COMPLETION_DETAILS, kind="images as output")
    image = read_count(prompt_details, "image_tokens", parent=_PROMPT_DETAILS)
    audio = read_count(prompt_details, "audio_tokens", parent=_PROMPT_DETAILS)
    spoken = read_count(completion_details, "audio_tokens", parent=_COMPLETION_DETAILS)

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
    _prove_text(prompt_details, _PROMPT_DETAILS, (image or 0) + (audio or 0), {prompt, whole_prompt})
    _prove_text(
        completion_details,
        _COMPLETION_DETAILS,
        spoken or 0,
        {completion, whole_completion, whole_completion - (reasoning or 0)},
    )
    return split_chat(
        whole_prompt,
        whole_completion,
        cached=cached,
        written=written,
        image=image,
        audio=audio,
        reasoning=reasoning,
        audio_output=spoken,
        cache_write_requested=cache_write_requested,
    )


def _cached(raw: Raw, prompt_details: Raw) -> int | None:
    """Cache reads under any of their names, which must agree."""
    hit, missed = read_count(raw, "prompt_cache_hit_tokens"), read_count(raw, "prompt_cache_miss_tokens")
    if hit is not None and missed is not None:
        expect("prompt_tokens", require_count(raw, "prompt_tokens"), hit + missed, "cache hits + misses")
    return read_either(
        (prompt_details, "cached_tokens", _PROMPT_DETAILS),
        (raw, "cache_read_input_tokens", ""),
        (raw, "prompt_cache_hit_tokens", ""),
    )


def _prove_text(details: Raw, parent: str, other_modes: int, wholes: set[int]) -> None:
    """Text and the other modalities are the whole. A zero proves nothing: many send one that they never fill in."""
    text = read_count(details, "text_tokens", parent=parent)
    if text and text + other_modes not in wholes:
        raise Unprovable(f"{parent}.text_tokens", f"is {text}, which does not make the whole up")


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
    fields: tuple[str, str] = ("prompt_tokens", "completion_tokens"),
) -> BucketCounts:
    """Disjoint buckets of a prompt and a completion that contain all their parts. `fields` are the names of both."""
    prompt_field, completion_field = fields
    inputs = split_input(
        prompt_field,
        prompt,
        cache_read=cached,
        cache_write=written,
        image=image,
        audio=audio,
        cache_write_requested=cache_write_requested,
    )
    output = take(completion_field, completion, {"reasoning": reasoning, "audio_output": audio_output})
    return BucketCounts(**inputs, output=output, reasoning=reasoning, audio_output=audio_output)


def adapt_responses(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """The Responses API: cached and written tokens inside the input, reasoning inside the output."""
    whole_input = require_count(raw, "input_tokens")
    whole_output = require_count(raw, "output_tokens")
    expect("total_tokens", require_count(raw, "total_tokens"), whole_input + whole_output, "input + output")
    inside, outside = "input_tokens_details", "output_tokens_details"
    input_details = read_details(raw, inside)
    output_details = read_details(raw, outside)
    written = read_count(input_details, "cache_write_tokens", parent=inside)
    lifetimes_field = f"{inside}.cache_write_tokens_details"
    lifetimes = read_details(input_details, "cache_write_tokens_details", parent=inside)
    by_lifetime = [
        read_count(lifetimes, name, parent=lifetimes_field) for name in ("ttl_30m_tokens", "ttl_12h_tokens")
    ]
    if any(count is not None for count in by_lifetime):
        lifetime_sum = sum(count or 0 for count in by_lifetime)
        if written is None:
            written = lifetime_sum
        expect(f"{inside}.cache_write_tokens", written, lifetime_sum, "the sum over its lifetimes")
    refuse_tokens(input_details, "video_tokens", parent=inside, kind="video")
    refuse_tokens(output_details, "image_tokens", parent=outside, kind="images as output")
    image = read_count(input_details, "image_tokens", parent=inside)
    audio = read_count(input_details, "audio_tokens", parent=inside)
    reasoning = read_count(output_details, "reasoning_tokens", parent=outside)
    spoken = read_count(output_details, "audio_tokens", parent=outside)
    _prove_text(input_details, inside, (image or 0) + (audio or 0), {whole_input})
    _prove_text(output_details, outside, spoken or 0, {whole_output, whole_output - (reasoning or 0)})
    return split_chat(
        whole_input,
        whole_output,
        cached=read_count(input_details, "cached_tokens", parent=inside),
        written=written,
        image=image,
        audio=audio,
        reasoning=reasoning,
        audio_output=spoken,
        cache_write_requested=cache_write_requested,
        fields=("input_tokens", "output_tokens"),
    )
