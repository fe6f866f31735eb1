"""Gemini's `usageMetadata`: the cache inside the prompt, thoughts outside the candidates, tool prompts on
their own.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def adapt_gemini(raw: Raw, *, cache_write_requested: bool) -> BucketCounts:
    prompt = require_count(raw, "promptTokenCount")
    # Left out by the source when nothing was generated, which the total confirms.
    candidates = read_count(raw, "candidatesTokenCount") or 0
    thoughts = read_count(raw, "thoughtsTokenCount")
    tools = read_count(raw, "toolUsePromptTokenCount") or 0
    whole = prompt + tools + candidates + (thoughts or 0)
    expect("totalTokenCount", require_count(raw, "totalTokenCount"), whole, "the sum of its parts")
    prompt_modes = _by_modality(raw, "promptTokensDetails", prompt)
    candidate_modes = _by_modality(raw, "candidatesTokensDetails", candidates)
    inputs = split_input(
        "promptTokenCount",
        prompt + tools,
        cache_read=read_count(raw, "cachedContentTokenCount"),
        cache_write=None,
        image=prompt_modes.get("IMAGE"),
        audio=prompt_modes.get("AUDIO"),
        cache_write_requested=cache_write_requested,
    )
    spoken = candidate_modes.get("AUDIO")
    output = take("candidatesTokenCount", candidates, {"audio_output": spoken})
    return BucketCounts(**inputs, output=output, reasoning=thoughts, audio_output=spoken)


def _by_modality(raw: Raw, name: str, whole: int) -> dict[str, int]:
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
        if modality not in {"TEXT", "DOCUMENT", "IMAGE", "AUDIO"}:
            raise Unprovable(name, f"has tokens of modality {modality!r:.40}, for which there is no bucket")
        counts[modality] = counts.get(modality, 0) + (read_count(entry, "tokenCount", parent=name) or 0)
    expect(name, sum(counts.values()), whole, "the count it details")
    return counts
