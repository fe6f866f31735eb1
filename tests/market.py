"""A whole running market for tests: every process real, every address on loopback, killed and started at will.

market.start("gateway"); market.kill("worker"); market.acme.gateway.chat(...); market.advance(days=31)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest
import requests
from openai import OpenAI

from marketplace.local import redis as redis_server
from marketplace.local.ports import any_free_port
from tests.database import Services

CHECKOUT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
MODEL = "tiny-chat"
REDIS_PASSWORD = "for-tests-on-loopback"
START_TIMEOUT_S = 90
# As the demonstration, but faster still: what matters is that several periods pass.
PROFILE = {
    "DELIVERY_PERIOD_S": "10",
    "SETTLEMENT_PERIOD_S": "10",
    "SETTLEMENT_GRACE_S": "1",
    "MAX_REQUEST_S": "5",
    "LOG_LEVEL": "INFO",
}


@dataclass
class Client:
    """An organization as a stranger's program sees it: an API key and two addresses."""

    api_key: str
    portal_url: str
    gateway_url: str
    organization_id: str

    def get(self, path: str, *, status: int = 200, **parameters: Any) -> Any:
        answer = requests.get(
            f"{self.portal_url}/api/v1{path}", headers=self._headers(), params=parameters, timeout=30
        )
        assert answer.status_code == status, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, body: Mapping[str, Any], *, status: int = 201, key: str | None = None) -> Any:
        answer = requests.post(
            f"{self.portal_url}/api/v1{path}",
            headers=self._headers() | {"Idempotency-Key": key or str(uuid4())},
            json=body,
            timeout=30,
        )
        assert answer.status_code == status, f"POST {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def every(self, path: str, **parameters: Any) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        cursor = None
        while True:
            page = self.get(path, **parameters, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items

    @property
    def prepaid(self) -> dict[str, Any]:
        """The prepaid balance."""
        return next(account for account in self.get("/balance")["accounts"] if account["kind"] == "prepaid")

    @cached_property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.gateway_url}/v1", api_key=self.api_key, max_retries=0, timeout=30)

    def close(self) -> None:
        if "openai" in self.__dict__:
            self.openai.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}


@dataclass
class Market:
    """The running market; `acme`, `hyperion`, `mallory` and `operator` are its organizations."""

    directory: Path
    environment: dict[str, str]
    database_url: str
    owner_url: str
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)

    @property
    def portal_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['web']}"

    @property
    def gateway_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['gateway']}"

    def __getattr__(self, name: str) -> Client:
        try:
            return self.__dict__["clients"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    # Processes ----------------------------------------------------------------------------------------------------

    def command(self, name: str) -> list[str]:
        python = [sys.executable]
        celery = [*python, "-m", "celery", "-A", "marketplace.celery"]
        number = name.partition("-")[2]
        return {
            "web": [
                *python, "-m", "gunicorn", "marketplace.wsgi:application", "--bind", f"{LOOPBACK}:{self.ports['web']}",
                "--worker-class", "gthread", "--workers", "1", "--threads", "8", "--no-control-socket",
            ],
            "gateway": [
                *python, "-m", "uvicorn", "marketplace.gateway.asgi:application", "--host", LOOPBACK,
                "--port", str(self.ports["gateway"]), "--no-access-log", "--log-level", "warning",
            ],
            "worker": [
                *celery, "worker", "-Q", "ingest,market,billing,default", "--concurrency", "2", "-P", "prefork",
                "--without-gossip", "--without-mingle", "--loglevel", "INFO",
            ],
            "beat": [
                *celery, "beat", "--schedule", str(self.directory / "beat-schedule"), "--pidfile=",
                "--loglevel", "WARNING",
            ],
            "redis": redis_server.server_command(
                self.directory / "redis", port=self.ports["redis"], password=REDIS_PASSWORD
            ),
            "engine": [
                *python, "-m", "marketplace.local.engine", "--port", str(self.ports.get(name, 0)),
                "--model", str(self.directory / f"tiny-{number}.gguf"), "--n-ctx", "16384", "--n-parallel", "4",
            ],
            "agent": [*python, "-m", "providers.agent", "run", "--config", str(self.directory / f"{name}.toml")],
        }[name.partition("-")[0]]  # fmt: skip

    def start(self, *names: str) -> None:
        for name in names:
            with (self.directory / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    self.command(name),
                    cwd=CHECKOUT,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        for name in names:
            self._await_ready(name)

    def kill(self, name: str, *, number: int = signal.SIGKILL) -> None:
        """End a process and its children at once, as an out-of-memory killer or a power switch would."""
        process = self.processes.pop(name)
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            try:
                member.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        process.wait(timeout=30)
        psutil.wait_procs(family, timeout=30)

    def stop(self) -> None:
        for client in self.clients.values():
            client.close()
        for name in list(self.processes):
            self.kill(name)

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def _await_ready(self, name: str) -> None:
        kind = name.partition("-")[0]
        if kind == "redis":
            redis_server.wait_until_ready(self.environment["REDIS_URL"], timeout_s=START_TIMEOUT_S)
            return
        path = {"web": "/readyz", "gateway": "/readyz", "agent": "/healthz", "engine": "/health"}.get(kind)
        if path is None:
            return

        def answers() -> bool:
            process = self.processes[name]
            assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
            try:
                return (
                    requests.get(f"http://{LOOPBACK}:{self.ports[name]}{path}", timeout=2).status_code == 200
                )
            except requests.RequestException:
                return False

        try:
            wait_until(answers, f"{name} to be ready", seconds=START_TIMEOUT_S)
        except pytest.fail.Exception:
            pytest.fail(f"{name} is not ready:\n{self.log(name)[-3000:]}")

    # Time and truth -----------------------------------------------------------------------------------------------

    def advance(self, by: timedelta) -> None:
        """Move every process's clock."""
        self.manage("shell", "-v", "0", "-c", _ADVANCE.format(seconds=by.total_seconds()))

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def assert_books_balance(self) -> None:
        """Roll-ups are the sums of events, charges those of roll-ups, and every account that of its transfers."""
        self.manage("shell", "-v", "0", "-c", _CHECK)


# Each ends the process with 1 when it finds a difference.
_CHECK = """
from django.core.management import call_command
for command in ("checkusage", "checkcharges", "checkledger"):
    call_command(command)
"""
_ADVANCE = "from datetime import timedelta; from marketplace import clock; clock.advance(timedelta(seconds={seconds}))"


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
    """The condition's first true value; fails, naming `what`, when it stays false."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def market(services: Services, worker_name: str) -> Iterator[Market]:
    """The whole market, running, with two hosts of hyperion's that serve and a cast that has no money yet."""
    name = f"market_{worker_name}"
    services.clone(name)
    directory = Path(tempfile.mkdtemp(prefix="tokenyard-market-"))
    parts = ("web", "gateway", "engine-1", "engine-2", "agent-1", "agent-2", "redis")
    ports = {part: any_free_port() for part in parts}
    environment = dict(os.environ) | PROFILE
    environment |= {
        "DATABASE_URL": services.database_url(name),
        "DATABASE_OWNER_URL": services.owner_url(name),
        # A Redis of its own: it may be killed, and its hints are nobody else's.
        "REDIS_URL": redis_server.redis_url(REDIS_PASSWORD, port=ports["redis"]),
        "PORTAL_URL": f"http://{LOOPBACK}:{ports['web']}",
        "GATEWAY_URL": f"http://{LOOPBACK}:{ports['gateway']}",
    }
    market = Market(
        directory, environment, environment["DATABASE_URL"], environment["DATABASE_OWNER_URL"], ports
    )
    try:
        _raise_cast(market)
        market.start("redis", "web", "engine-1", "engine-2")
        market.start("gateway", "worker", "beat", "agent-1", "agent-2")
        wait_until(lambda: len(market.hyperion.every("/offerings")) == 2, "two offerings to be listed")
        yield market
    finally:
        market.stop()
        services.drop(name)
        shutil.rmtree(directory, ignore_errors=True)


def _raise_cast(market: Market) -> None:
    """Organizations by the command, the grade over REST, hosts by the command: as an operator would on day one."""
    import json

    for cast, roles in (
        ("operator", "operator"),
        ("acme", "buyer"),
        ("hyperion", "provider"),
        ("mallory", "buyer,provider"),
    ):
        made = json.loads(market.manage("createorganization", cast.capitalize(), "--roles", roles).stdout)
        market.clients[cast] = Client(
            made["api_key"], market.portal_url, market.gateway_url, made["organization_id"]
        )
    for number, (floor, firm, listed) in enumerate(
        ((180_000, 420_000, 500_000), (260_000, 380_000, 560_000)), start=1
    ):
        made = json.loads(
            market.manage(
                "createhost",
                market.hyperion.organization_id,
                f"h{number}",
                "--region",
                "eu",
            ).stdout
        )
        (market.directory / f"agent-{number}.toml").write_text(
            f"""
market_url = "{market.portal_url}"
base_url = "http://{LOOPBACK}:{market.ports[f"agent-{number}"]}"
engine_url = "http://{LOOPBACK}:{market.ports[f"engine-{number}"]}"
state_dir = "{market.directory / f"agent-{number}"}"
enrolment_code = "{made["enrolment_code"]}"
listen_host = "{LOOPBACK}"
listen_port = {market.ports[f"agent-{number}"]}
heartbeat_s = 2
upload_interval_ms = 300
max_request_s = 5

[bench]
requests = 4
output_tokens = 32

[[offerings]]
grade = "{MODEL}"
spot_floor_micros_per_mtok = {floor}
firm_rate_micros_per_mtok = {firm}
list_rate_micros_per_mtok = {listed}
"""
        )
    market.manage("shell", "-v", "0", "-c", _GRADE)


_GRADE = """
from marketplace import clock
from tests.cast import make_grade
make_grade(clock.now())
"""
