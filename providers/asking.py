"""The market's questions to hosts' agents: signed by the market's key, answered with the host's signature.

Many hosts at once, each with its own short deadline, so that one that hangs holds up nobody. No redirect is followed,
and no private address is connected to where hosts must be public.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.conf import settings

from marketplace import clock
from marketplace.egress import PublicResolver
from providers.models import Host
from providers.wire import MARKET_KEY_ID, SignatureRefused, sign_request, verify_signed_request

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_CONNECT_S: Final = 3.0
_AT_ONCE: Final = 50
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Question:
    """What one host is asked: `target` is the path below its address, with the query."""

    host_id: UUID
    base_url: str
    public_key: bytes
    target: str

    @classmethod
    def to(cls, host: Host, target: str) -> Question:
        assert host.public_key is not None, "an enrolled host has a key"
        return cls(host.pk, host.base_url, bytes(host.public_key), target)


@dataclass(frozen=True, slots=True)
class Answer:
    """Signed by the host when `status` is 200, else nobody's word."""

    status: int
    body: bytes


def ask_hosts(questions: Sequence[Question], *, timeout_s: float = 10.0) -> list[Answer | None]:
    """Each host's answer, in the order of the questions; None where none came in time that can be believed."""
    return asyncio.run(_ask_all(questions, timeout_s)) if questions else []


@contextmanager
def passed_over(log: logging.Logger, message: str, *, host_id: UUID | None) -> Iterator[None]:
    """Whatever goes wrong inside is logged, so that one host's answer never stops what is done for the others."""
    try:
        yield
    except Exception:
        log.exception(message, extra={"host_id": str(host_id)})


async def _ask_all(questions: Sequence[Question], timeout_s: float) -> list[Answer | None]:
    resolver: AbstractResolver = ThreadedResolver()
    if not settings.ALLOW_PRIVATE_HOSTS:
        resolver = PublicResolver(resolver)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_AT_ONCE, resolver=resolver, force_close=True),
        timeout=aiohttp.ClientTimeout(total=timeout_s, connect=_CONNECT_S),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT,),
    ) as client:
        turns = asyncio.Semaphore(_AT_ONCE)
        return await asyncio.gather(*(_ask(client, turns, question) for question in questions))


async def _ask(client: aiohttp.ClientSession, turns: asyncio.Semaphore, question: Question) -> Answer | None:
    url = question.base_url.rstrip("/") + question.target
    nonce = secrets.token_urlsafe(18)
    try:
        async with turns:
            # Signed when its turn has come; signatures go by the machine's clock.
            headers = sign_request(
                method="GET",
                url=url,
                body=b"",
                private_key=Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY),
                key_id=MARKET_KEY_ID,
                nonce=nonce,
                now=clock.wall_now(),
            )
            headers["Accept-Encoding"] = "identity"
            async with client.get(url, headers=headers, allow_redirects=False) as response:
                body = await _read(response)
                if response.status == _OK:
                    _verify(question, url, nonce, response, body)
                return Answer(response.status, body)
    except (aiohttp.ClientError, TimeoutError, OSError, SignatureRefused, ValueError) as error:
        logger.warning(
            "a host did not answer", extra={"host_id": str(question.host_id), "reason": _reason(error)}
        )
        return None
    # The others' answers are not lost by whatever else one host finds to say.
    except Exception:
        logger.exception("a host's answer failed", extra={"host_id": str(question.host_id)})
        return None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _verify(question: Question, url: str, nonce: str, response: aiohttp.ClientResponse, body: bytes) -> None:
    answered = verify_signed_request(
        method="GET",
        url=url,
        headers=response.headers,
        body=body,
        public_key=Ed25519PublicKey.from_public_bytes(question.public_key),
        now=clock.wall_now(),
    )
    if answered != nonce:
        raise SignatureRefused("signature: answers another question")


def _reason(error: BaseException) -> str:
    """Never an address: aiohttp's errors carry them."""
    return str(error) if isinstance(error, (SignatureRefused, ValueError)) else type(error).__name__
