"""What the gateway adds to a request, beside two chained bare proxies in the same run.

Needs a migrated database (`DATABASE_URL`) that may be written to: what it buys stays there. The host is a stand-in that
answers at once, so that nothing but the way is measured; all of it is hold, delivery key, carrying, capture and event.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from statistics import median
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from tests.engine import free_port

REQUESTS: Final = 300
WARM_UP: Final = 40
_BODY: Final = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 16, "stream": True}
_TIMINGS: Final = {"cache_n": 0, "prompt_n": 12, "predicted_n": 4}
_EVENTS: Final = (
    {"choices": [{"index": 0, "delta": {"content": "four"}, "finish_reason": None}], "timings": _TIMINGS},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "timings": _TIMINGS},
)
_ANSWER: Final = (
    b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in _EVENTS) + b"data: [DONE]\n\n"
)


def run() -> Iterator[dict[str, Any]]:
    """Added p50 over asking the host directly, in milliseconds; the floor is what two bare proxies add."""
    with ExitStack() as stack:
        host = stack.enter_context(_process("host"))
        inner = stack.enter_context(_process("proxy", host))
        outer = stack.enter_context(_process("proxy", inner))
        key, model = _prepare(host)
        gateway = stack.enter_context(_gateway())
        direct, proxied, through = asyncio.run(_measure(host, outer, gateway, key, model))
    value, floor = (through - direct) * 1000, (proxied - direct) * 1000
    yield {"name": "gateway_added_p50", "value": value, "unit": "ms", "floor": floor, "ratio": value / floor}


async def _measure(host: str, proxy: str, gateway: str, key: str, model: str) -> tuple[float, float, float]:
    seconds: dict[str, list[float]] = {host: [], proxy: [], gateway: []}
    body = msgspec.json.encode(_BODY | {"model": model})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with aiohttp.ClientSession() as session:
        # Taken in turns, so that a busy machine slows all alike.
        for number in range(WARM_UP + REQUESTS):
            for url, taken in seconds.items():
                started = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
                    text = await answer.read()
                    assert answer.status == 200 and text.endswith(b"[DONE]\n\n"), text[:300]  # noqa: PT018
                if number >= WARM_UP:
                    taken.append(time.perf_counter() - started)
    return median(seconds[host]), median(seconds[proxy]), median(seconds[gateway])


def _prepare(host_url: str) -> tuple[str, str]:
    """A buyer with money, a grade, and a host that is alive for an hour: an API key, and the model's name."""
    import django

    django.setup()
    from marketplace import clock
    from marketplace.accounts.services import ensure_operator
    from marketplace.ids import uuid7
    from marketplace.ledger.services import NewTransfer, account_id, post_transfers
    from providers.models import Host, Offering
    from tests.cast import make_grade, make_party, make_plant

    now = clock.now()
    tag = f"bench{uuid7().hex[-8:]}"
    operator = ensure_operator(now=now)
    buyer = make_party(f"{tag}buyer", ["buyer"], now)
    plant = make_plant(
        make_party(f"{tag}seller", ["provider"], now),
        make_grade(now, slug=tag, model=tag),
        now,
        base_url=host_url,
    )
    Host.objects.filter(pk=plant.host.pk).update(
        last_heartbeat_at=now + timedelta(hours=1), engine={"kind": "llamacpp"}
    )
    # Capacity is not what is measured.
    Offering.objects.filter(pk=plant.offering.pk).update(dependable_numerator_per_s=10**12)
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    prepaid = account_id(organization_id=buyer.id, kind="prepaid", currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, 10**9, "top_up")], now=now)
    return buyer.secret, tag


@contextmanager
def _gateway() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "marketplace.gateway.asgi:application", "--port", str(port)]
    environment = os.environ | {"TEST_CLOCK": "0"}
    with _running([*command, "--no-access-log", "--log-level", "warning"], port, environment):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(kind: str, target: str = "") -> Iterator[str]:
    port = free_port()
    with _running(
        [sys.executable, "-m", "tests.benchmarks.gateway", kind, str(port), target], port, os.environ.copy()
    ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment)
    try:
        asyncio.run(_answers(process, port))
        yield
    finally:
        process.terminate()
        process.wait(20)


async def _answers(process: subprocess.Popen[bytes], port: int) -> None:
    async with asyncio.timeout(30):
        while process.poll() is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return
    raise RuntimeError(f"a process of the benchmark ended: {process.args!r}")


async def _serve_host(request: web.Request) -> web.StreamResponse:
    await request.read()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(_ANSWER)
    await response.write_eof()
    return response


def _proxy_to(target: str) -> web.Application:
    application = web.Application()

    async def session_of(app: web.Application) -> Any:
        async with aiohttp.ClientSession() as session:
            app["session"] = session
            yield

    async def carry(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with request.app["session"].post(target + request.path, data=body) as upstream:
            response = web.StreamResponse(status=upstream.status)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    application.cleanup_ctx.append(session_of)
    application.router.add_post("/v1/chat/completions", carry)
    return application


def _main(kind: str, port: str, target: str) -> None:
    if kind == "host":
        application = web.Application()
        application.router.add_post("/v1/chat/completions", _serve_host)
    else:
        application = _proxy_to(target)
    web.run_app(application, host="127.0.0.1", port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    _main(*sys.argv[1:4])
