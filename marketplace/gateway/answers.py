"""What the buyer gets: the host's chunks without its extras, as a stream or put together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from marketplace.gateway.parsing import CHAT, Asked

_encode: Final = msgspec.json.Encoder().encode


class Answer:
    """One generation's answer. Ids, names and times in it are the market's, the same in every chunk."""

    def __init__(self, asked: Asked, *, generation_id: UUID, created: int) -> None:
        self._chat = asked.path == CHAT
        self._include_usage = asked.include_usage
        prefix = "chatcmpl-" if self._chat else "cmpl-"
        self._head: dict[str, Any] = {
            "id": f"{prefix}{generation_id.hex}",
            "created": created,
            "model": asked.model,
        }
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._plain_logprobs: Any = None
        self._finish: str | None = None

    def chunk(self, choice: Mapping[str, Any]) -> bytes:
        """The event that carries one choice on."""
        body = self._head | {
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": [choice],
        }
        if self._include_usage:
            body["usage"] = None
        return b"data: " + _encode(body) + b"\n\n"

    def end_chunk(self, finish_reason: str) -> bytes:
        """The event that ends the choice where the host did not end it."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self._chat:
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return self.chunk(choice)

    def usage_chunk(self, usage: Mapping[str, Any]) -> bytes:
        body = self._head | {
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": [],
            "usage": usage,
        }
        return b"data: " + _encode(body) + b"\n\n"

    def collect(self, choice: Mapping[str, Any]) -> None:
        """Adds a streamed choice to the answer that is sent as a whole."""
        self._finish = choice.get("finish_reason") or self._finish
        logprobs = choice.get("logprobs")
        if not self._chat:
            self._text.append(_text(choice.get("text")))
            self._plain_logprobs = logprobs or self._plain_logprobs
            return
        if isinstance(logprobs, Mapping):
            self._logprobs += logprobs.get("content") or []
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            return
        self._text.append(_text(delta.get("content")))
        self._reasoning.append(_text(delta.get("reasoning_content") or delta.get("reasoning")))
        for call in delta.get("tool_calls") or []:
            self._collect_call(call)

    def _collect_call(self, part: Mapping[str, Any]) -> None:
        call = self._tool_calls.setdefault(
            int(part.get("index", 0)),
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += _text(function.get("name"))
        call["function"]["arguments"] += _text(function.get("arguments"))

    def whole(self, *, finish_reason: str | None, usage: Mapping[str, Any]) -> bytes:
        """The answer of a request that did not ask for a stream."""
        reason = finish_reason or self._finish or "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "refusal": None}
            reasoning = "".join(self._reasoning)
            if reasoning:
                message["reasoning_content"] = reasoning
            if self._tool_calls:
                message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
                message["content"] = message["content"] or None
            choice["message"] = message
            choice["logprobs"] = {"content": self._logprobs, "refusal": None} if self._logprobs else None
        else:
            choice["text"] = "".join(self._text)
            choice["logprobs"] = self._plain_logprobs
        kind = "chat.completion" if self._chat else "text_completion"
        return _encode(self._head | {"object": kind, "choices": [choice], "usage": usage})


def _text(value: object) -> str:
    """Raises TypeError where a host sent something else in its place."""
    if not isinstance(value, str | None):
        raise TypeError("text was expected")
    return value or ""


def has_output(choice: Mapping[str, Any]) -> bool:
    """Whether a streamed choice carries generated text."""
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, Mapping) and any(
        delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")
    )
