"""Anthropic-style usage (also vLLM's and llama.cpp's `/v1/messages`): the input count excludes what the
cache did.
"""

from __future__ import annotations

from pricing.adapters.base import (
    BucketCounts,
    Raw,
    expect,
    read_count,
    read_details,
    read_either,
    require_count,
    take,
)


def adapt_anthropic(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    """Input, cache reads and cache writes add up; reasoning is inside the output where it is reported."""
    uncached = require_count(raw, "input_tokens")
    whole_output = require_count(raw, "output_tokens")
    cache_read = read_count(raw, "cache_read_input_tokens")
    written = read_count(raw, "cache_creation_input_tokens")
    creation = read_details(raw, "cache_creation")
    by_lifetime = [
        read_count(creation, name, parent="cache_creation")
        for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    ]
    if any(count is not None for count in by_lifetime):
        lifetime_sum = sum(count or 0 for count in by_lifetime)
        if written is None:
            written = lifetime_sum
        expect("cache_creation_input_tokens", written, lifetime_sum, "the sum over its lifetimes")
    total = read_count(raw, "total_tokens")
    if total is not None:
        whole = uncached + (cache_read or 0) + (written or 0) + whole_output
        expect("total_tokens", total, whole, "the sum of its parts")
    if written and not cache_write_requested:
        uncached += written
        written = 0
    details = read_details(raw, "output_tokens_details")
    reasoning = read_either(
        (details, "reasoning_tokens", "output_tokens_details"),
        (details, "thinking_tokens", "output_tokens_details"),
    )
    return BucketCounts(
        uncached_input=uncached,
        cache_read=cache_read,
        cache_write=written,
        output=take("output_tokens", whole_output, {"reasoning": reasoning}),
        reasoning=reasoning,
    )
