"""The gateway's own count of input, for hosts that report none: o200k_base, the market's reference tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pricing.tokenizers import count_o200k

_TEXT_FIELDS: Final = ("content", "text", "name", "arguments", "prompt", "input", "tool_calls", "function")
# What templates write out as JSON.
_WRITTEN_OUT: Final = ("tools", "response_format")


def count_input_tokens(body: Mapping[str, Any]) -> int:
    """o200k tokens of the request's texts. An estimate of the native count, flagged as such wherever it is used."""
    texts = _texts([body.get(name) for name in ("messages", "prompt", "input")])
    written = [json.dumps(body[name], ensure_ascii=False) for name in _WRITTEN_OUT if name in body]
    return sum(count_o200k(text) for text in (*texts, *written))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for name in _TEXT_FIELDS:
            yield from _texts(value.get(name))
