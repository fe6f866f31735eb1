"""Raw usage of any source into disjoint buckets, proved against the source's own totals (DESIGN 4).

Each bucket is reported, zero or not reported; what cannot be proved raises `Unprovable` and belongs in
quarantine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from pricing.adapters.anthropic import adapt_anthropic
from pricing.adapters.base import MAX_COUNT, BucketCounts, Raw, Unprovable
from pricing.adapters.engines import adapt_llamacpp, adapt_ollama, adapt_sglang, adapt_vllm
from pricing.adapters.evidence import MAX_EVIDENCE_BYTES, evidence_of
from pricing.adapters.gemini import adapt_gemini
from pricing.adapters.openai import adapt_chat, adapt_responses

__all__ = [
    "MAX_EVIDENCE_BYTES",
    "SOURCES",
    "BucketCounts",
    "UnknownSource",
    "Unprovable",
    "adapt",
    "collect_usage",
    "evidence_of",
]


class UnknownSource(ValueError):
    """No adapter has this name."""


class Adapter(Protocol):
    def __call__(self, raw: Raw, *, cache_write_requested: bool) -> BucketCounts: ...


_ADAPTERS: Final[dict[str, Adapter]] = {
    "openai_chat": adapt_chat,
    "openai_responses": adapt_responses,
    "anthropic": adapt_anthropic,
    "gemini": adapt_gemini,
    "vllm": adapt_vllm,
    "sglang": adapt_sglang,
    "llamacpp": adapt_llamacpp,
    "ollama": adapt_ollama,
    # These send OpenAI's object unchanged.
    "tgi": adapt_chat,
    "dynamo": adapt_chat,
    "transformers": adapt_chat,
}
SOURCES: Final = frozenset(_ADAPTERS)


def adapt(source: str, raw: Mapping[str, object], *, cache_write_requested: bool = False) -> BucketCounts:
    """Disjoint buckets of one request's raw usage.

    `cache_write_requested` says whether the buyer asked for a cache write (`cache_control`); otherwise
    written tokens are ordinary uncached input. Raises UnknownSource, and Unprovable with the field and
    the reason.
    """
    adapter = _ADAPTERS.get(source)
    if adapter is None:
        raise UnknownSource(f"source: {source!r:.60} is not one of {', '.join(sorted(SOURCES))}")
    if not isinstance(raw, Mapping):
        raise Unprovable("usage", f"must be an object, not {type(raw).__name__}")
    shapeless = raw.get("usage")
    if shapeless is not None:
        raise Unprovable("usage", f"must be an object, not {type(shapeless).__name__}")
    counts = adapter(raw, cache_write_requested=cache_write_requested)
    if counts.total_tokens > MAX_COUNT:  # Parts that lie outside each other may each be within bounds.
        raise Unprovable("usage", "adds up to more than 2**53")
    return counts


def collect_usage(
    source: str, previous: Mapping[str, object] | None, chunk: Mapping[str, object]
) -> Mapping[str, object] | None:
    """The raw usage known after one more chunk of a stream (or after a whole response), in the shape
    `adapt` takes.

    Usage is taken from any chunk, with choices or without, and the last one wins. Returns `previous` when
    the chunk carries none. Usage that is no object is kept for `adapt` to refuse.
    """
    if source == "ollama":
        return chunk if chunk.get("done") is True else previous
    if source == "gemini":
        found = _usage_in(chunk, "usageMetadata")
        return previous if found is None else found
    if source == "anthropic":
        message = chunk.get("message")
        found = _usage_in(message if isinstance(message, Mapping) else chunk)
        if found is None:
            return previous
        # message_start tells the input, message_delta the running output and only sometimes the input again.
        return {**(previous or {}), **{name: value for name, value in found.items() if value is not None}}
    if source == "openai_responses":
        response = chunk.get("response")
        found = _usage_in(response if isinstance(response, Mapping) else chunk)
        return previous if found is None else found
    found = _usage_in(chunk)
    if source == "llamacpp":
        timings = chunk.get("timings")
        if timings is not None:
            # Running timings outdate a usage object seen earlier.
            return {**(found or {}), "timings": timings}
    if source == "sglang":
        extension = chunk.get("sglext")
        usage = previous if found is None else found
        # Only beside usage: alone it measures nothing.
        if isinstance(extension, Mapping) and usage is not None:
            return {**usage, "sglext": extension}
    return previous if found is None else found


def _usage_in(carrier: Mapping[str, object], name: str = "usage") -> Mapping[str, object] | None:
    found = carrier.get(name)
    if found is None or isinstance(found, Mapping):
        return found
    return {"usage": found}
