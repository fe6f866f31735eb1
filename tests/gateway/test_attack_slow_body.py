"""A body that never comes to its end does not keep its connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.gateway import exchange
from marketplace.gateway.errors import ApiError


def test_a_body_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_TIMEOUT_S", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        raise AssertionError("nothing is sent yet")

    scope = {"path": "/v1/chat/completions", "method": "POST", "headers": []}
    with pytest.raises(ApiError) as refused:
        asyncio.run(exchange.Exchange(scope, receive, send).read_body())
    assert (refused.value.status, refused.value.headers["connection"]) == (408, "close")
