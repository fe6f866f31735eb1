"""Requests that every host of a grade must serve: to refuse one as the buyer's fault is the host's failure. Pure.

An honest host answers 400, 404, 413 or 422 to what the request itself caused: a parameter that its engine has not,
turns that the model's template does not take, more than its context holds. So a refusal is believed, unless the request
leaves nothing to refuse: text alone, in turns that begin and end with the user, with no parameter but the most common
ones, and short enough by its bytes to fit the context with its whole output. No buyer makes an honest host refuse that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from marketplace.gateway.parsing import Asked

_CARRIERS: Final = ("messages", "prompt", "input")
_ALLOWED: Final = frozenset({"model", "stream", "stream_options", "user", "temperature", "top_p", *_CARRIERS})


def is_plain(asked: Asked, *, input_bound_tokens: int, limit_tokens: int, context_tokens: int) -> bool:
    """Whether no honest host of the grade can refuse this request. `limit_tokens` is its output as it is dispatched."""
    body = asked.body
    if not _ALLOWED.issuperset(body) or input_bound_tokens + limit_tokens > context_tokens:
        return False
    if not (_within(body, "temperature", least=0.0) and _within(body, "top_p", least=0.01)):
        return False
    [carrier] = [name for name in _CARRIERS if name in body]
    if carrier != "messages":
        return _is_text(body[carrier])
    turns = body["messages"]
    return len(turns) % 2 == 1 and all(
        set(turn) == {"role", "content"}
        and turn["role"] == ("assistant" if index % 2 else "user")
        and _is_text(turn["content"])
        for index, turn in enumerate(turns)
    )


def _within(body: Mapping[str, Any], name: str, *, least: float) -> bool:
    value = body.get(name)
    return value is None or (type(value) in (int, float) and least <= value <= 1)


def _is_text(value: object) -> bool:
    """Words that any engine takes: no control characters, and something besides spaces."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and all(character.isprintable() or character in "\n\t" for character in value)
    )
