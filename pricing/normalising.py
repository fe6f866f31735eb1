"""Raw usage of any source into disjoint buckets, proved against the source's own totals (DESIGN 4).

Each bucket is reported, zero or not reported; what cannot be proved raises `Unprovable` and belongs in
quarantine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from pricing.adapters.anthropic import adapt_anthropic
from pricing.adapters.base import BucketCounts, Raw, Unprovable
from pricing.adapters.engines import adapt_llamacpp, adapt_ollama, adapt_sglang, adapt_vllm
from pricing.adapters.gemini import adapt_gemini
from pricing.adapters.openai import adapt_chat, adapt_responses

__all__ = ["SOURCES", "BucketCounts", "UnknownSource", "Unprovable", "adapt", "collect_usage"]


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
    return adapter(raw, cache_write_requested=cache_write_requested)


def collect_usage(
    source: str, previous: Mapping[str, object] | None, chunk: Mapping[str, object]
) -> Mapping[str, object] | None:
    """The raw usage known after one more chunk of a stream (or after a whole response), in the shape
    `adapt` takes.

    Usage is taken from any chunk, with choices or without, and the last one wins. Returns `previous` when
    the chunk carries none.
    """
    if source == "ollama":
        return chunk if chunk.get("done") is True else previous
    if source == "gemini":
        found = chunk.get("usageMetadata")
        return found if isinstance(found, Mapping) else previous
    if source == "anthropic":
        message = chunk.get("message")
        carrier = message if isinstance(message, Mapping) else chunk
        found = carrier.get("usage")
        if not isinstance(found, Mapping):
            return previous
        # message_start tells the input, message_delta the running output and only sometimes the input again.
        return {**(previous or {}), **{name: value for name, value in found.items() if value is not None}}
    if source == "openai_responses":
        response = chunk.get("response")
        carrier = response if isinstance(response, Mapping) else chunk
        found = carrier.get("usage")
        return found if isinstance(found, Mapping) else previous
    found = chunk.get("usage")
    usage = found if isinstance(found, Mapping) else None
    if source == "llamacpp":
        timings = chunk.get("timings")
        if isinstance(timings, Mapping):
            # Running timings outdate a usage object seen earlier.
            return {**(usage or {}), "timings": timings}
        return usage if usage is not None else previous
    if source == "sglang" and usage is not None and isinstance(chunk.get("sglext"), Mapping):
        return {**usage, "sglext": chunk["sglext"]}
    return usage if usage is not None else previous
