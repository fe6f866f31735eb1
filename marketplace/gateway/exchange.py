"""One HTTP exchange over ASGI: the body with its bound, the answer, and whether the caller is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from marketplace.gateway.config import BODY_TIMEOUT_S
from marketplace.gateway.errors import ApiError
from marketplace.gateway.parsing import MAX_BODY_BYTES

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Result = TypeVar("Result")


class ClientGone(Exception):
    """The caller hung up."""


class Exchange:
    """`started` says whether the answer's head is out, so that an error can no longer change it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.method: str = scope["method"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive = receive
        self._send = send
        self._gone: asyncio.Task[None] | None = None
        self.started = False
        self.status = 0
        self.bytes_out = 0

    async def read_body(self) -> bytes:
        """The whole body. Raises ApiError 408 for one that does not come to its end, 413, ClientGone."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read_body()
        except TimeoutError:
            message = f"The body did not arrive within {BODY_TIMEOUT_S} seconds."
            # Closed, or the connection would stay for the rest of the body.
            raise ApiError(408, "request_timeout", message, headers={"connection": "close"}) from None

    async def _read_body(self) -> bytes:
        too_large = ApiError(
            413, "request_too_large", f"The body must not be larger than {MAX_BODY_BYTES} bytes."
        )
        declared = self.headers.get("content-length", "")
        if (
            declared.isascii()
            and declared.isdigit()
            and (len(declared) > 12 or int(declared) > MAX_BODY_BYTES)
        ):
            raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise too_large
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def gone(self) -> bool:
        return self._gone is not None and self._gone.done()

    def watch(self) -> asyncio.Task[None]:
        """Done when the caller has hung up. Only after the body was read."""
        if self._gone is None:
            self._gone = asyncio.create_task(self._wait_until_gone())
        return self._gone

    async def unless_gone(self, doing: Awaitable[Result]) -> Result:
        """The result, or ClientGone as soon as the caller hangs up."""
        watch = self.watch()
        task = asyncio.ensure_future(doing)
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise ClientGone
        return task.result()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        self.status = status
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, body: bytes, *, more: bool) -> None:
        self.bytes_out += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer, JSON unless `headers` say otherwise."""
        head = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, head | dict(headers or {}))
        await self.write(body, more=False)

    def close(self) -> None:
        if self._gone is not None:
            self._gone.cancel()

    async def _wait_until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
