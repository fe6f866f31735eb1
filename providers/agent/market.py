"""The agent's calls to the market: each signed with the host's key."""

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from providers.agent.clock import AgentClock, retry_after_s
from providers.agent.errors import MarketBusy, MarketRefused, MarketUnreachable
from providers.wire import sign_request

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
API = "/api/v1"
_UNAUTHORIZED = 401
_BUSY = (429, 503)


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes
    # The clock that the request was signed by turned out wrong.
    corrected_clock: bool


class Market:
    """`host_id` is the signature's key id; before enrolment it is empty and the code alone says who asks."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        *,
        url: str,
        private_key: Ed25519PrivateKey,
        host_id: str,
        clock: AgentClock,
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._private_key = private_key
        self._host_id = host_id
        self._clock = clock

    async def post(self, path: str, value: Any) -> dict[str, Any]:
        """Posts JSON, returns the JSON object answered. Raises as `post_bytes` does."""
        answer = await self.post_bytes(path, msgspec.json.encode(value), content_type="application/json")
        try:
            decoded = msgspec.json.decode(answer) if answer else {}
        except msgspec.DecodeError:
            raise MarketUnreachable(f"{self._url}{API}{path} did not answer in JSON") from None
        return decoded if isinstance(decoded, dict) else {}

    async def post_bytes(self, path: str, body: bytes, *, content_type: str) -> bytes:
        """What the market answered. Raises MarketRefused (4xx), MarketBusy (429, 503) or MarketUnreachable."""
        url = f"{self._url}{API}{path}"
        answer = await self._send(url, body, content_type)
        if answer.status == _UNAUTHORIZED and answer.corrected_clock:
            # Refused for the age of its signature: now the time is known.
            answer = await self._send(url, body, content_type)
        if 200 <= answer.status < 300:
            return answer.content
        if answer.status in _BUSY:
            wait_s = retry_after_s(answer.headers, now=self._clock.now())
            raise MarketBusy(f"{url} answered {answer.status}", wait_s)
        if 400 <= answer.status < 500 and answer.status != 408:
            raise _refusal(answer.status, answer.content)
        raise MarketUnreachable(f"{url} answered {answer.status}")

    async def _send(self, url: str, body: bytes, content_type: str) -> _Answer:
        headers = sign_request(
            method="POST",
            url=url,
            body=body,
            private_key=self._private_key,
            key_id=self._host_id or "enrolment",
            nonce=secrets.token_urlsafe(18),
            now=self._clock.now(),
        )
        headers["Content-Type"] = content_type
        asked_at_s = self._clock.monotonic()
        try:
            async with self._http.post(
                url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as answer:
                corrected = self._clock.learn(answer.headers, asked_at_s=asked_at_s)
                return _Answer(answer.status, answer.headers, await answer.read(), corrected)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MarketUnreachable(f"{self._url} does not answer ({type(error).__name__})") from None


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
