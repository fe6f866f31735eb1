"""The way of usage with servers of its own: PostgreSQL, Redis, web, workers and beat, each killed and started at will.

No gateway, agent or engine: the tests send what those would, signed with the hosts' own keys.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import requests
from django.db import connections
from pytest_django import DjangoDbBlocker

from marketplace.clock import wall_now
from marketplace.local import postgres
from marketplace.local import redis as redis_server
from marketplace.local.ports import any_free_port
from metering.models import UsageBatch
from providers.wire import sign_request
from tests.conftest import own_database
from tests.database import Services
from tests.faults.world import Sent, World, make_world
from tests.market import LOOPBACK, REDIS_PASSWORD, Market, wait_until
from tests.metering.meters import Meters

# Processes die here, not the machine: what they have written is safe with the kernel, so nothing waits for a disk.
# Commits are as in production.
_SERVER = {"fsync": "off", "shared_buffers": "64MB", "autovacuum": "off"}


@dataclass
class Database:
    """A PostgreSQL server that may be killed."""

    directory: Path
    binaries: Path
    port: int
    admin_url: str
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def copied_from(cls, services: Services, directory: Path, binaries: Path) -> Database:
        """With all databases and roles of the session's server as they are now."""
        url = services.admin_url()
        password = re.sub(r".*:(.*)@.*", r"\1", url)
        user = postgres.system_user()
        data = directory / "postgres"
        data.mkdir(mode=0o700)
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
        subprocess.run(
            [
                str(binaries / "pg_basebackup"), f"--pgdata={data}", f"--host={LOOPBACK}",
                f"--port={services.postgres_port}", f"--username={postgres.SUPERUSER}", "--checkpoint=fast",
                "--wal-method=stream", "--no-sync", "--no-manifest",
            ],
            cwd="/",
            env=dict(os.environ) | {"PGPASSWORD": password},
            check=True,
            capture_output=True,
            **postgres.run_as(user),
        )  # fmt: skip
        port = any_free_port()
        return cls(data, binaries, port, url.replace(f":{services.postgres_port}/", f":{port}/"))

    def start(self) -> None:
        command = postgres.server_command(
            self.directory, binaries=self.binaries, port=self.port, options=_SERVER
        )
        with (self.directory.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **postgres.run_as(postgres.system_user()),
            )
        postgres.wait_until_ready(self.admin_url, timeout_s=30)

    def kill(self) -> None:
        """The whole server at once, as a power switch would."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid)]
        # Stopped first, or it would restart its children while they are killed one by one.
        family[0].suspend()
        family += family[0].children(recursive=True)
        for member in family[::-1]:
            member.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)
        psutil.wait_procs(family, timeout=30)
        connections.close_all()

    def kill_backend(self, pid: int) -> None:
        """One server process: the others are ended by the server itself, which recovers."""
        os.kill(pid, signal.SIGKILL)
        connections.close_all()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None and self.is_running:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=30)

    @contextmanager
    def commits_told_to_nobody(self) -> Iterator[None]:
        """From here on a commit is durable, but whoever asked for it is not told until the server is killed."""
        with psycopg.connect(self.admin_url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            admin.execute("SELECT pg_reload_conf()")
            try:
                wait_until(lambda: self._probe_waits(admin), "commits to wait")
                # What the next start reads; the running server is not told.
                admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
                yield
            finally:
                with suppress(psycopg.OperationalError):  # As a rule it is dead.
                    admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
                    admin.execute("SELECT pg_reload_conf()")

    def wait_for_untold_commit(self, pid: int) -> None:
        def untold() -> bool:
            with psycopg.connect(self.admin_url, autocommit=True) as admin:
                return _waits_for_standby(admin, pid)

        wait_until(untold, "a commit that nobody is told of")

    def _probe_waits(self, admin: psycopg.Connection[tuple[object, ...]]) -> bool:
        """The setting reaches the server's processes when each next looks."""
        probe = psycopg.connect(self.admin_url, autocommit=True)

        def commit() -> None:
            with probe:
                try:
                    probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')")
                except psycopg.Error:
                    return  # Cut off with its server.

        thread = threading.Thread(target=commit)
        thread.start()
        thread.join(timeout=0.3)
        return thread.is_alive() and _waits_for_standby(admin, probe.info.backend_pid)


def _waits_for_standby(admin: psycopg.Connection[tuple[object, ...]], pid: int) -> bool:
    row = admin.execute("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    return row == ("SyncRep",)


@dataclass
class Intake:
    """The running servers, the world behind them, and what has been sent to it."""

    database: Database
    market: Market
    world: World
    sent: Sent
    answers: list[int | str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.market.portal_url}/api/v1/usage"

    def signed(self, meters: Meters, body: bytes, *, skew: timedelta = timedelta(0)) -> dict[str, str]:
        """The headers of a request of this host's agent, whose clock is off by `skew`."""
        headers = sign_request(
            method="POST",
            url=self.url,
            body=body,
            private_key=meters.private_key,
            key_id=str(meters.agent.id),
            nonce=secrets.token_urlsafe(18),
            now=wall_now() + skew,
        )
        return headers | {"Content-Type": "application/x-ndjson"}

    def post(self, meters: Meters, body: bytes, *, skew: timedelta = timedelta(0)) -> requests.Response:
        return requests.post(self.url, data=body, headers=self.signed(meters, body, skew=skew), timeout=30)

    def post_somehow(self, meters: Meters, body: bytes) -> threading.Thread:
        """In the background; `answers` gets the status, or the name of what went wrong."""

        def send() -> None:
            try:
                self.answers.append(self.post(meters, body).status_code)
            except requests.RequestException as error:
                self.answers.append(type(error).__name__)

        self.answers.clear()
        thread = threading.Thread(target=send)
        thread.start()
        return thread

    def post_until_accepted(self, meters: Meters, body: bytes) -> str:
        """As an agent does, with a new signature each time; returns the batch's id."""

        def accepted() -> str | None:
            try:
                answer = self.post(meters, body)
            except requests.RequestException:
                return None
            assert answer.status_code == 202 or answer.status_code >= 500, answer.text
            return str(answer.json()["batch_id"]) if answer.status_code == 202 else None

        batch_id: str = wait_until(accepted, "the batch to be accepted")
        return batch_id

    def metered(self, events: bytes) -> None:
        """What the gateway writes inside its capture."""
        self.market.sql("SELECT metering_accept_event(%s, %s, %s)", self.world.gateway.id, events, wall_now())

    @contextmanager
    def suspended(self, name: str) -> Iterator[None]:
        """A process of the market and its children stand still, and then go on."""
        family = [psutil.Process(self.market.processes[name].pid)]
        family += family[0].children(recursive=True)
        for member in family:
            member.suspend()
        try:
            yield
        finally:
            for member in family:
                member.resume()

    def await_stored(self) -> None:
        pending = UsageBatch.objects.filter(status=UsageBatch.Status.PENDING)
        wait_until(lambda: not pending.exists(), "the worker to empty the inbox", seconds=60)


@contextmanager
def running_intake(
    services: Services, blocker: DjangoDbBlocker, worker_name: str, session_folder: Path, now: datetime
) -> Iterator[Intake]:
    directory = Path(tempfile.mkdtemp(prefix="tokenyard-intake-"))
    # PostgreSQL's own user must come through.
    directory.chmod(0o711)
    database = Database.copied_from(services, directory, postgres.binaries(session_folder))
    ports = {part: any_free_port() for part in ("web", "gateway", "redis")}
    redis_url = redis_server.redis_url(REDIS_PASSWORD, port=ports["redis"])
    own_services = Services(os.getpid(), database.port, redis_url)
    try:
        database.start()
        with own_database(own_services, blocker, worker_name, "intake", home=services) as own:
            world = make_world(now)
            market = Market(
                directory,
                own.environment | {"PORTAL_URL": f"http://{LOOPBACK}:{ports['web']}", "LOG_LEVEL": "INFO"},
                own.database_url,
                own.owner_url,
                ports,
            )
            try:
                market.start("redis")
                market.start("worker", "beat", "web")
                yield Intake(database, market, world, Sent(world))
            finally:
                market.stop()
    finally:
        database.stop()
        shutil.rmtree(directory, ignore_errors=True)
