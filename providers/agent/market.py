"""The agent's calls to the market: each signed with the host's key."""

import secrets
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from providers.agent.errors import MarketRefused, MarketUnreachable
from providers.wire import sign_request

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
API = "/api/v1"


class Market:
    """`host_id` is the signature's key id; before enrolment it is empty and the code alone says who asks."""

    def __init__(
        self, http: aiohttp.ClientSession, *, url: str, private_key: Ed25519PrivateKey, host_id: str
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._private_key = private_key
        self._host_id = host_id

    async def post(self, path: str, value: Any) -> dict[str, Any]:
        """Posts JSON, returns the JSON object answered. Raises MarketRefused (4xx) or MarketUnreachable."""
        answer = await self.post_bytes(path, msgspec.json.encode(value), content_type="application/json")
        try:
            decoded = msgspec.json.decode(answer) if answer else {}
        except msgspec.DecodeError:
            raise MarketUnreachable(f"{self._url}{API}{path} did not answer in JSON") from None
        return decoded if isinstance(decoded, dict) else {}

    async def post_bytes(self, path: str, body: bytes, *, content_type: str) -> bytes:
        url = f"{self._url}{API}{path}"
        headers = sign_request(
            method="POST",
            url=url,
            body=body,
            private_key=self._private_key,
            key_id=self._host_id or "enrolment",
            nonce=secrets.token_urlsafe(18),
            now=datetime.now(UTC),
        )
        headers["Content-Type"] = content_type
        try:
            async with self._http.post(
                url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as answer:
                content = await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MarketUnreachable(f"{self._url} does not answer ({type(error).__name__})") from None
        if 200 <= status < 300:
            return content
        if 400 <= status < 500 and status not in (408, 429):
            raise _refusal(status, content)
        raise MarketUnreachable(f"{url} answered {status}")


def _refusal(status: int, content: bytes) -> MarketRefused:
    try:
        problem = msgspec.json.decode(content)
    except msgspec.DecodeError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or "no reason given"
    field = problem.get("field")
    return MarketRefused(status, str(problem.get("code", "")), f"{field}: {detail}" if field else str(detail))
