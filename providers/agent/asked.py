"""What the market may ask of a meter: the engine's registers now, and usage that it lost. Both answers are signed."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from providers.agent.clock import AgentClock
from providers.agent.errors import EngineUnreachable
from providers.agent.spool import NotKept, Spool
from providers.wire import (
    MARKET_KEY_ID,
    METER_REGISTERS,
    METER_USAGE,
    SignatureRefused,
    sign_request,
    signing_key_id,
    verify_signed_request,
)

_NONCE_KEPT = timedelta(minutes=15)  # Longer than a signature is believed.
_LARGEST_SEQUENCE = 2**53


class Asked:
    """Handlers of the market's questions. A question is signed by the market's key and believed once; its answer is
    signed by the host's key over the same method, address and nonce, so that it answers this question and no other.

    `registers` reads the engine's counters as a heartbeat carries them; `base_url` is where the market reaches us.
    """

    def __init__(
        self,
        *,
        base_url: str,
        host_id: UUID,
        source_id: UUID,
        private_key: Ed25519PrivateKey,
        market_key: Ed25519PublicKey,
        clock: AgentClock,
        spool: Spool,
        registers: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._host_id = host_id
        self._source_id = source_id
        self._private_key = private_key
        self._market_key = market_key
        self._clock = clock
        self._spool = spool
        self._registers = registers
        # By nonce, in order of time.
        self._seen: dict[str, datetime] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get(METER_REGISTERS, self.read_registers, allow_head=False)
        router.add_get(METER_USAGE, self.read_usage, allow_head=False)

    async def read_registers(self, request: web.Request) -> web.Response:
        nonce = self._nonce(request)
        if nonce is None:
            return _refusal(401, "signature_refused", "signature: not the market's, stale, or seen before")
        try:
            registers = await self._registers()
        except EngineUnreachable as error:
            return _refusal(503, "engine_unreachable", str(error))
        return self._signed(request, nonce, msgspec.json.encode(registers), "application/json")

    async def read_usage(self, request: web.Request) -> web.Response:
        """The batch that holds the event after number `after`, as it was sent; 204 when it is yet to be sent."""
        nonce = self._nonce(request)
        if nonce is None:
            return _refusal(401, "signature_refused", "signature: not the market's, stale, or seen before")
        text = request.query.get("after", "")
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _LARGEST_SEQUENCE):
            return _refusal(400, "invalid_request", "after: must be the number of an event, or 0")
        try:
            batch = await self._spool.sent_batch(self._source_id, after=int(text))
        except NotKept as gone:
            message = f"after: what follows number {text} is no longer kept"
            return _refusal(410, "not_kept", message, kept_from=gone.kept_from)
        if batch is None:
            return web.Response(status=204)
        return self._signed(request, nonce, batch.body, "application/x-ndjson")

    def _nonce(self, request: web.Request) -> str | None:
        """The question's nonce, if the market asked it and for the first time."""
        now = self._clock.now()
        try:
            if signing_key_id(request.headers) != MARKET_KEY_ID:
                return None
            nonce = verify_signed_request(
                method=request.method,
                # Behind a proxy we are called otherwise than we see.
                url=self._base_url + request.path_qs,
                headers=request.headers,
                body=b"",
                public_key=self._market_key,
                now=now,
            )
        except SignatureRefused:
            return None
        for old, seen_at in list(self._seen.items()):
            if now - seen_at <= _NONCE_KEPT:
                break
            del self._seen[old]
        if nonce in self._seen:
            return None
        self._seen[nonce] = now
        return nonce

    def _signed(self, request: web.Request, nonce: str, body: bytes, content_type: str) -> web.Response:
        headers = sign_request(
            method=request.method,
            url=self._base_url + request.path_qs,
            body=body,
            private_key=self._private_key,
            key_id=str(self._host_id),
            nonce=nonce,
            now=self._clock.now(),
        )
        return web.Response(body=body, content_type=content_type, headers=headers)


def _refusal(status: int, code: str, message: str, **more: int | None) -> web.Response:
    body = msgspec.json.encode({"error": {"code": code, "message": message}, **more})
    return web.Response(status=status, body=body, content_type="application/json")
