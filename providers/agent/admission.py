"""Who may use the engine, and with which request: delivery keys used once, bodies cut down to what was
bought.
"""

import heapq
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from providers.agent.engines import Engine
from providers.wire import DeliveryKey, DeliveryKeyExpired, DeliveryKeyInvalid, verify_delivery_key

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

_PENALTIES = frozenset({"frequency_penalty", "presence_penalty", "repetition_penalty"})
_SAMPLING = _PENALTIES | {"logit_bias", "logprobs", "min_p", "seed", "stop", "temperature", "top_k", "top_p"}
_TOOLS = frozenset({"parallel_tool_calls", "tool_choice", "tools"})
_CHAT_ONLY = _TOOLS | {
    "chat_template_kwargs",
    "messages",
    "reasoning_effort",
    "response_format",
    "top_logprobs",
}
# What reaches the engine; everything else (priority, cache salts, slots, n, best_of, echo) stays here.
ALLOWED_FIELDS: Mapping[str, frozenset[str]] = {
    CHAT: _SAMPLING | _CHAT_ONLY,
    COMPLETIONS: _SAMPLING | {"prompt", "suffix"},
    EMBEDDINGS: frozenset({"dimensions", "encoding_format", "input"}),
}


class Refused(Exception):
    """The request is not served; `status`, OpenAI-style `code` and a message that names the field."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class Gatekeeper:
    """Admits each delivery key of the market once, for offerings of this host only."""

    def __init__(self, *, market_key: Ed25519PublicKey, offering_ids: set[UUID]) -> None:
        self._market_key = market_key
        self.offering_ids = offering_ids
        self._used: set[tuple[UUID, int, int]] = set()
        self._expiries: list[tuple[datetime, tuple[UUID, int, int]]] = []

    def admit(self, authorization: str | None, *, now: datetime) -> DeliveryKey:
        """The delivery key of an Authorization header. Raises Refused."""
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Refused(401, "delivery_key_missing", "Authorization: a bearer delivery key is required")
        try:
            key = verify_delivery_key(text.strip(), public_key=self._market_key, now=now)
        except DeliveryKeyInvalid as error:
            raise Refused(401, "delivery_key_invalid", str(error)) from None
        except DeliveryKeyExpired as error:
            raise Refused(401, "delivery_key_expired", str(error)) from None
        if key.offering_id not in self.offering_ids:
            raise Refused(403, "offering_not_served", "delivery key: its offering is not served by this host")
        self._forget_expired(now)
        use = (key.hold_id, key.attempt, key.part)
        if use in self._used:
            raise Refused(409, "delivery_key_used", "delivery key: already used")
        self._used.add(use)
        heapq.heappush(self._expiries, (key.expires_at, use))
        return key

    def _forget_expired(self, now: datetime) -> None:
        # An expired key is refused for its age, so its use need not be remembered.
        while self._expiries and self._expiries[0][0] <= now:
            self._used.discard(heapq.heappop(self._expiries)[1])


class EngineRequest(NamedTuple):
    body: bytes
    stream: bool


def engine_request(path: str, body: bytes, *, key: DeliveryKey, engine: Engine) -> EngineRequest:
    """The body for the engine: allowed fields only, its own model name, output capped, usage forced.

    Top-level fields are re-framed, not re-parsed: messages pass as the bytes they came as. Raises Refused.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        stream = msgspec.json.decode(fields.get("stream", b"false"), type=bool | None) or False
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "invalid_body", "body: must be a JSON object, with a boolean `stream`") from None
    allowed = ALLOWED_FIELDS[path]
    passed: dict[str, Any] = {name: value for name, value in fields.items() if name in allowed}
    passed["model"] = engine.model
    if path == EMBEDDINGS:
        return EngineRequest(msgspec.json.encode(passed), stream=False)
    asked = _output_limit(fields)
    passed["max_tokens"] = key.max_output_tokens if asked is None else min(asked, key.max_output_tokens)
    passed["stream"] = stream
    if stream:
        passed["stream_options"] = engine.stream_options
        if engine.kind == "llamacpp":
            passed["timings_per_token"] = True
    return EngineRequest(msgspec.json.encode(passed), stream)


def _output_limit(fields: Mapping[str, msgspec.Raw]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name not in fields:
            continue
        try:
            limit = msgspec.json.decode(fields[name], type=int | None)
        except msgspec.DecodeError:
            raise Refused(400, "invalid_body", f"{name}: must be an integer", param=name) from None
        if limit is not None:
            if limit < 1:
                raise Refused(400, "invalid_body", f"{name}: must be at least 1", param=name)
            return limit
    return None
