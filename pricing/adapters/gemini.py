"""Gemini's `usageMetadata`: the cache inside the prompt, thoughts outside the candidates, tool prompts on
their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pricing.adapters.base import (
    BucketCounts,
    Raw,
    Unprovable,
    expect,
    read_count,
    require_count,
    split_input,
    take,
)

_INPUT_MODES: Final = frozenset({"TEXT", "DOCUMENT", "IMAGE", "AUDIO"})
_OUTPUT_MODES: Final = frozenset({"TEXT", "AUDIO"})


def adapt_gemini(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    prompt = require_count(raw, "promptTokenCount")
    # Left out by the source when nothing was generated, which the total confirms.
    candidates = read_count(raw, "candidatesTokenCount") or 0
    thoughts = read_count(raw, "thoughtsTokenCount")
    tools = read_count(raw, "toolUsePromptTokenCount") or 0
    cached = read_count(raw, "cachedContentTokenCount")
    whole = prompt + tools + candidates + (thoughts or 0)
    expect("totalTokenCount", require_count(raw, "totalTokenCount"), whole, "the sum of its parts")
    prompt_modes = _by_modality(raw, "promptTokensDetails", prompt, _INPUT_MODES)
    tool_modes = _by_modality(raw, "toolUsePromptTokensDetails", tools, _INPUT_MODES)
    cached_modes = _by_modality(raw, "cacheTokensDetails", cached or 0, _INPUT_MODES)
    candidate_modes = _by_modality(raw, "candidatesTokensDetails", candidates, _OUTPUT_MODES)
    inputs = split_input(
        "promptTokenCount",
        prompt + tools,
        cache_read=cached,
        cache_write=None,
        image=_uncached("IMAGE", (prompt_modes, tool_modes), cached_modes),
        audio=_uncached("AUDIO", (prompt_modes, tool_modes), cached_modes),
        cache_write_requested=cache_write_requested,
        apart=bool(cached_modes),
    )
    spoken = candidate_modes.get("AUDIO")
    output = take("candidatesTokenCount", candidates, {"audio_output": spoken})
    return BucketCounts(**inputs, output=output, reasoning=thoughts, audio_output=spoken)


def _uncached(
    mode: str, wholes: tuple[Mapping[str, int], ...], cached_modes: Mapping[str, int]
) -> int | None:
    """Tokens of one modality without those that were cached: a cached picture is a cache read."""
    counts = [modes[mode] for modes in wholes if mode in modes]
    cached = cached_modes.get(mode)
    if not counts and not cached:
        return None
    return take("cacheTokensDetails", sum(counts), {mode: cached})


def _by_modality(raw: Raw, name: str, whole: int, modes: frozenset[str]) -> dict[str, int]:
    """Tokens by modality, proved against the count they detail; empty where the source gives none."""
    entries = raw.get(name)
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise Unprovable(name, "must be a list")
    counts: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("modality"), str):
            raise Unprovable(name, "must be a list of objects with a modality")
        modality = entry["modality"]
        if modality not in modes:
            raise Unprovable(name, f"has tokens of modality {modality!r:.40}, for which there is no bucket")
        counts[modality] = counts.get(modality, 0) + (read_count(entry, "tokenCount", parent=name) or 0)
    expect(name, sum(counts.values()), whole, "the count it details")
    return counts
