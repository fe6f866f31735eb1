"""The way to the hosts: one keep-alive client that follows no redirect and connects to no private address."""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

from marketplace.egress import PublicResolver
from marketplace.gateway.config import CONNECT_TIMEOUT_S, Config


def open_client(config: Config) -> aiohttp.ClientSession:
    """The session of all attempts. Each attempt brings its own deadline."""
    resolver: AbstractResolver = ThreadedResolver()
    if not config.allow_private_hosts:
        resolver = PublicResolver(resolver)
    connector = aiohttp.TCPConnector(
        limit=0, resolver=resolver, ttl_dns_cache=30, keepalive_timeout=60, enable_cleanup_closed=False
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT_ENCODING),
    )


async def post(
    client: aiohttp.ClientSession, *, base_url: str, path: str, body: bytes, delivery_key: str, stream: bool
) -> aiohttp.ClientResponse:
    """The host's answer as soon as its head is here. Nothing of the buyer's headers goes along."""
    return await client.post(
        base_url.rstrip("/") + path,
        data=body,
        headers={
            "authorization": f"Bearer {delivery_key}",
            "content-type": "application/json",
            "accept": "text/event-stream" if stream else "application/json",
            "accept-encoding": "identity",
        },
        allow_redirects=False,
    )


async def read_error(response: aiohttp.ClientResponse) -> tuple[str, str | None]:
    """Message and parameter of a host's refusal, short and printable; what is no such body has neither."""
    try:
        async with asyncio.timeout(2):
            raw = await response.content.read(16_384)
        error = json.loads(raw)["error"]
        message, param = error["message"], error.get("param")
    except (ValueError, KeyError, TypeError, OSError, TimeoutError, aiohttp.ClientError):
        return "The host refused the request.", None
    text = "".join(character for character in str(message)[:300] if character.isprintable())
    return text, param if isinstance(param, str) and len(param) <= 80 else None
