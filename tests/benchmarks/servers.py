"""PostgreSQL 18 and Redis of one benchmark run, as durable as in production: a commit that was answered is on disk."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from typing import Final

from marketplace.local import postgres, redis
from marketplace.local.ports import any_free_port
from tests.database import TEMPLATE, Services

_PASSWORD: Final = "for-tests-on-loopback"  # The one that `Services` puts into its addresses.
_CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent
_START_TIMEOUT_S: Final = 60
_STOP_TIMEOUT_S: Final = 30


@contextmanager
def durable_services() -> Iterator[Services]:
    """Both servers on free ports with a migrated template; gone, with their files, at the end."""
    with tempfile.TemporaryDirectory(prefix="tokenyard-benchmarks-") as name:
        folder = Path(name)
        # PostgreSQL's own user must come through; the data folder inside is closed to others.
        folder.chmod(0o711)
        children: list[subprocess.Popen[bytes]] = []
        try:
            yield _start(folder, children)
        finally:
            for child in children:
                # SIGTERM would let PostgreSQL wait for its clients.
                child.send_signal(SIGINT)
            for child in children:
                try:
                    child.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def _start(folder: Path, children: list[subprocess.Popen[bytes]]) -> Services:
    binaries = postgres.binaries(folder)
    data = folder / "postgres"
    postgres.make_cluster(data, binaries=binaries, password=_PASSWORD)
    postgres_port = any_free_port()
    with (folder / "postgres.log").open("wb") as log:
        command = postgres.server_command(data, binaries=binaries, port=postgres_port)
        run_as = postgres.run_as(postgres.system_user())
        # A group of its own: a Ctrl-C at the terminal is ours, and we end the servers when the clients have gone.
        children.append(subprocess.Popen(command, cwd="/", stdout=log, stderr=log, process_group=0, **run_as))
    redis_port = any_free_port()
    with (folder / "redis.log").open("wb") as log:
        command = redis.server_command(folder / "redis", port=redis_port, password=_PASSWORD)
        children.append(subprocess.Popen(command, stdout=log, stderr=log, process_group=0))
    services = Services(os.getpid(), postgres_port, redis.redis_url(_PASSWORD, port=redis_port))
    postgres.wait_until_ready(services.admin_url(), timeout_s=_START_TIMEOUT_S)
    passwords = {postgres.OWNER_ROLE: _PASSWORD, postgres.APP_ROLE: _PASSWORD}
    postgres.make_roles(services.admin_url(), passwords=passwords, database=TEMPLATE)
    redis.wait_until_ready(services.redis_url, timeout_s=_START_TIMEOUT_S)
    _migrate(services)
    return services


def _migrate(services: Services) -> None:
    command = [
        sys.executable,
        "manage.py",
        "migrate",
        "--database",
        "owner",
        "--verbosity",
        "0",
        "--skip-checks",
    ]
    done = subprocess.run(
        command, cwd=_CHECKOUT, env=environment(services, TEMPLATE), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"migrate failed:\n{done.stdout}{done.stderr}")


def environment(services: Services, database: str) -> dict[str, str]:
    """What a program of the market needs to run on this database."""
    return os.environ | {
        "DATABASE_URL": services.database_url(database),
        "DATABASE_OWNER_URL": services.owner_url(database),
        "REDIS_URL": services.redis_url,
        # As in production: no statement per look at the clock.
        "TEST_CLOCK": "0",
    }


@contextmanager
def web_server(**settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The real application under gunicorn, one worker with two threads, once it answers; its port and its process."""
    port = any_free_port()
    command = [
        sys.executable, "-m", "gunicorn", "marketplace.wsgi:application", "--bind", f"127.0.0.1:{port}",
        "--worker-class", "gthread", "--workers", "1", "--threads", "2", "--no-control-socket", "--timeout", "600",
        "--log-level", "error",
    ]  # fmt: skip
    web = subprocess.Popen(command, env=os.environ | settings)
    try:
        _wait_until_up(port)
        yield port, web
    finally:
        web.terminate()
        web.wait(_STOP_TIMEOUT_S)


def _wait_until_up(port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            connection.close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the web server does not answer"
            time.sleep(0.05)
