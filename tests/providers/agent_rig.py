"""A small real market endpoint, a recording wire to the engine, and the agent as a process of its own."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from metering.usage import UsageEvent, decode_batch
from providers.wire import DeliveryKey, SignatureRefused, encode_delivery_key, verify_signed_request
from tests.engine import free_port

MARKET_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CODE = "enrol-me"


class LoopThread:
    """An event loop in a thread, for servers that tests talk to over sockets."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@dataclass
class Market:
    """What a market does for an agent: checks every signature and nonce, keeps what it got."""

    port: int = field(default_factory=free_port)
    usage_status: int = 202
    usage_headers: dict[str, str] = field(default_factory=dict)
    most_usage_bytes: int = 2**62
    tried_at: list[float] = field(default_factory=list)
    host_id: UUID = field(default_factory=uuid4)
    source_id: UUID = field(default_factory=uuid4)
    offering_id: UUID = field(default_factory=uuid4)
    enrolments: list[dict[str, Any]] = field(default_factory=list)
    benches: list[dict[str, Any]] = field(default_factory=list)
    offerings: list[dict[str, Any]] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    nonces: set[str] = field(default_factory=set)
    public_key: Ed25519PublicKey | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[UsageEvent]:
        decoded = [event for batch in self.batches for event in decode_batch(batch)[1]]
        assert all(isinstance(event, UsageEvent) for event in decoded)
        return [event for event in decoded if isinstance(event, UsageEvent)]

    async def start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/api/v1/agent/enrol", self._enrol)
        application.router.add_post("/api/v1/agent/bench", self._keep(self.benches, {}))
        application.router.add_post(
            "/api/v1/agent/offerings", self._keep(self.offerings, {"offering_id": str(self.offering_id)})
        )
        application.router.add_post("/api/v1/agent/heartbeat", self._keep(self.heartbeats, {}))
        application.router.add_post("/api/v1/usage", self._usage)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner

    async def _enrol(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["code"] != CODE or self.enrolments:
            return web.json_response(
                {"code": "enrolment_code_invalid", "detail": "unknown or used"}, status=403
            )
        self.public_key = Ed25519PublicKey.from_public_bytes(base64.b64decode(body["public_key"]))
        self.enrolments.append(body)
        key = base64.b64encode(MARKET_KEY.public_key().public_bytes_raw()).decode()
        answer = {"host_id": str(self.host_id), "source_id": str(self.source_id), "market_public_key": key}
        return web.json_response(answer)

    def _keep(self, kept: list[dict[str, Any]], answer: dict[str, Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            if not await self._signed(request):
                return web.json_response({"detail": "signature"}, status=401)
            kept.append(await request.json())
            return web.json_response(answer)

        return handle

    async def _usage(self, request: web.Request) -> web.Response:
        if not await self._signed(request):
            return web.json_response({"detail": "signature"}, status=401)
        self.tried_at.append(time.monotonic())
        if self.usage_status != 202:
            return web.json_response(
                {"detail": "not now"}, status=self.usage_status, headers=self.usage_headers
            )
        body = await request.read()
        if len(body) > self.most_usage_bytes:
            return web.json_response({"detail": "too large"}, status=413)
        self.batches.append(body)
        return web.json_response({"batch_id": str(uuid4())}, status=202)

    async def _signed(self, request: web.Request) -> bool:
        assert self.public_key is not None
        try:
            nonce = verify_signed_request(
                method=request.method,
                url=f"{self.url}{request.path_qs}",
                headers=request.headers,
                body=await request.read(),
                public_key=self.public_key,
                now=datetime.now(UTC),
            )
        except SignatureRefused as refusal:
            self.refused.append(str(refusal))
            return False
        if nonce in self.nonces:
            self.refused.append("replayed nonce")
            return False
        self.nonces.add(nonce)
        return True


@dataclass
class Wire:
    """A TCP relay in front of the engine that keeps every byte sent towards it."""

    target_port: int
    port: int = field(default_factory=free_port)
    sent: bytearray = field(default_factory=bytearray)

    async def start(self) -> asyncio.Server:
        return await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        await asyncio.gather(
            self._pump(reader, engine_writer, self.sent), self._pump(engine_reader, writer, None)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if kept is not None:
                    kept += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@dataclass
class AgentProcess:
    """`python -m providers.agent run`, restartable on the same state."""

    config: Path
    state: Path
    port: int
    market: Market
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, ready: bool = True) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOKENYARD_")}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "providers.agent", "run", "--config", str(self.config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        if ready:
            wait_for(self._is_ready, "the agent to be ready", log=self.log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return bool(json.load(answer)["ready"])
        except (urllib.error.URLError, OSError):
            return False

    def key(self, **changes: Any) -> DeliveryKey:
        now = datetime.now(UTC)
        terms: dict[str, Any] = {
            "hold_id": uuid4(),
            "request_id": uuid4(),
            "contract_id": uuid4(),
            "offering_id": self.market.offering_id,
            "grade_id": uuid4(),
            "rate_id": uuid4(),
            "period_start": now.replace(second=0, microsecond=0),
            "occurred_at": now,
            "expires_at": now + timedelta(seconds=30),
            "max_output_tokens": 200,
        }
        return DeliveryKey(**(terms | changes))

    def request(
        self,
        body: Any,
        *,
        key: DeliveryKey | None = None,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
    ) -> urllib.request.Request:
        text = encode_delivery_key(key or self.key(), private_key=MARKET_KEY)
        all_headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {text}",
            **(headers or {}),
        }
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return urllib.request.Request(self.url + path, data, all_headers)

    def ask(self, body: Any, **options: Any) -> tuple[int, bytes]:
        """Status and whole body of a request through the agent."""
        try:
            with urllib.request.urlopen(self.request(body, **options), timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def wait_for(
    condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0, log: Path | None = None
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        tail = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{tail}"
        time.sleep(0.02)


@contextmanager
def run_market() -> Iterator[Market]:
    thread = LoopThread()
    market = Market()
    runner = thread.run(market.start())
    try:
        yield market
    finally:
        thread.run(runner.cleanup())
        thread.close()


@contextmanager
def run_wire(target_port: int) -> Iterator[Wire]:
    thread = LoopThread()
    wire = Wire(target_port)
    server: asyncio.Server = thread.run(wire.start())

    async def close() -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield wire
    finally:
        thread.run(close())
        thread.close()


def write_agent(folder: Path, *, market: Market, engine_url: str, **changes: Any) -> AgentProcess:
    """An agent that is configured but not started."""
    port = free_port()
    values = {
        "market_url": market.url,
        "base_url": f"http://127.0.0.1:{port}",
        "engine_url": engine_url,
        "state_dir": str(folder / "state"),
        "enrolment_code": CODE,
        "listen_port": port,
        "heartbeat_s": 1,
        "upload_interval_ms": 50,
        "shutdown_grace_s": 5,
        **changes,
    }
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    text += "[bench]\nrequests = 2\noutput_tokens = 8\nprompt_words = 10\n"
    text += '[[offerings]]\ngrade = "tiny-chat"\nspot_floor_micros_per_mtok = 1\n'
    text += "firm_rate_micros_per_mtok = 2\nlist_rate_micros_per_mtok = 3\n"
    config = folder / "agent.toml"
    config.write_text(text)
    return AgentProcess(config, folder / "state", port, market, folder / "agent.log")
