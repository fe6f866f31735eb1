"""Real PostgreSQL 18 and Redis for the tests, started when the first test asks, shared by all pytest workers.

A guardian process owns the servers. It ends them and removes their folder when pytest says so or is gone, however it
went; so a killed test run leaves nothing behind.

    python -m tests.database FOLDER PID      the guardian of pytest's process PID
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from marketplace.local import postgres, redis
from marketplace.local.ports import any_free_port

TEMPLATE = "tokenyard_template"
_READY = "ready.json"
_FAILED = "failed.txt"
_PASSWORD = "for-tests-on-loopback"
_START_TIMEOUT_S = 300
_CHECKOUT = Path(__file__).resolve().parent.parent
_QUICK = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "2GB",
}


@dataclass(frozen=True)
class Services:
    """Where the session's servers are, and whose they are."""

    guardian_pid: int
    postgres_port: int
    redis_url: str

    def database_url(self, database: str) -> str:
        """As the app role, like every process of the market."""
        return postgres.database_url(postgres.APP_ROLE, _PASSWORD, port=self.postgres_port, database=database)

    def owner_url(self, database: str) -> str:
        return postgres.database_url(
            postgres.OWNER_ROLE, _PASSWORD, port=self.postgres_port, database=database
        )

    def admin_url(self, database: str = "postgres") -> str:
        return postgres.database_url(
            postgres.SUPERUSER, _PASSWORD, port=self.postgres_port, database=database
        )

    def clone(self, database: str, *, template: str = TEMPLATE) -> None:
        """A fresh, migrated database of this name, or a copy of another that nobody is connected to."""
        self.drop(database)
        self._execute("CREATE DATABASE {} TEMPLATE {} OWNER {}", database, template, postgres.OWNER_ROLE)

    def drop(self, database: str) -> None:
        """Drop it with whoever is still connected."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.admin_url(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def services_of(folder: Path, *, pytest_pid: int) -> Services:
    """The session's servers, started on the first call of any worker."""
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if (folder / _FAILED).exists():
            raise RuntimeError((folder / _FAILED).read_text())  # Once is enough; each test would wait again.
        if not (folder / _READY).exists():
            _start_guardian(folder, pytest_pid)
    return Services(**json.loads((folder / _READY).read_text()))


def stop_services(folder: Path) -> None:
    """End the servers, if any were started, and remove the folder."""
    ready = folder / _READY
    if ready.exists():
        guardian = psutil.Process(Services(**json.loads(ready.read_text())).guardian_pid)
        guardian.terminate()
        deadline = time.monotonic() + 30
        while folder.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


def _start_guardian(folder: Path, pytest_pid: int) -> None:
    with (folder / "guardian.log").open("a") as log:
        guardian = subprocess.Popen(
            [sys.executable, "-m", "tests.database", str(folder), str(pytest_pid)],
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # A Ctrl-C at the terminal is pytest's; the guardian goes when pytest has gone.
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not (folder / _READY).exists():
        failed = folder / _FAILED
        # One that ends with 0 found another already at it, whose first caller was killed: wait for that one.
        if guardian.poll() not in (None, 0) or failed.exists() or time.monotonic() > deadline:
            # The next worker must neither wait again nor start others beside servers that are still on their way.
            guardian.terminate()
            guardian.wait()
            if not failed.exists():
                log_text = (folder / "guardian.log").read_text()
                failed.write_text(f"not ready after {_START_TIMEOUT_S} s\n{log_text}")
            raise RuntimeError(f"the tests' PostgreSQL and Redis did not start:\n{failed.read_text()}")
        time.sleep(0.02)
    guardian.returncode = (
        0  # It outlives this process on purpose: no ResourceWarning for a child left running.
    )


class _Stopped(Exception):
    """Told to end while the servers were still starting."""


def _guard(folder: Path, pytest_pid: int) -> None:
    watched = psutil.Process(pytest_pid)
    stopping = False
    started = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if not started:
            raise _Stopped("the tests' servers were told to end before they were ready")

    signal.signal(signal.SIGTERM, stop)
    children: list[subprocess.Popen[bytes]] = []
    # Whoever guards this folder keeps the lock as long as a server may write to it: two clusters in one folder would
    # destroy each other's files.
    with (folder / "guardian.lock").open("w") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return
        try:
            _start_servers(folder, children)
            started = True
            # A reused process id is no longer our pytest: psutil compares the start time too.
            while not stopping and watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
        except Exception as error:
            (folder / _FAILED).write_text(f"{error}\n")
            raise
        finally:
            for child in children:
                # Not SIGTERM: PostgreSQL would wait for its clients, which may be killed tests' children.
                child.send_signal(signal.SIGINT)
            for child in children:
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()
            if (folder / _READY).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _start_servers(folder: Path, children: list[subprocess.Popen[bytes]]) -> None:
    binaries = postgres.binaries(folder)
    data = folder / "postgres"
    postgres.make_cluster(data, binaries=binaries, password=_PASSWORD, durable=False)
    port = any_free_port()
    with (folder / "postgres.log").open("wb") as log:
        command = postgres.server_command(data, binaries=binaries, port=port, options=_QUICK)
        children.append(
            subprocess.Popen(
                command, cwd="/", stdout=log, stderr=log, **postgres.run_as(postgres.system_user())
            )
        )
    redis_port = any_free_port()
    with (folder / "redis.log").open("wb") as log:
        command = redis.server_command(folder / "redis", port=redis_port, password=_PASSWORD)
        children.append(subprocess.Popen(command, stdout=log, stderr=log))
    services = Services(os.getpid(), port, redis.redis_url(_PASSWORD, port=redis_port))
    postgres.wait_until_ready(services.admin_url(), timeout_s=_START_TIMEOUT_S)
    passwords = {postgres.OWNER_ROLE: _PASSWORD, postgres.APP_ROLE: _PASSWORD}
    postgres.make_roles(services.admin_url(), passwords=passwords, database=TEMPLATE)
    _migrate(services)
    redis.wait_until_ready(services.redis_url, timeout_s=_START_TIMEOUT_S)
    (folder / "ready.new").write_text(json.dumps(asdict(services)))
    (folder / "ready.new").rename(folder / _READY)


def _migrate(services: Services) -> None:
    """Once, as the owner, like in production; every test database is a copy of this one."""
    environment = os.environ | {
        "DATABASE_URL": services.database_url(TEMPLATE),
        "DATABASE_OWNER_URL": services.owner_url(TEMPLATE),
    }
    # The checks are the linters' business; here they would only cost each run a second.
    options = ["--database", "owner", "--verbosity", "0", "--skip-checks"]
    command = [sys.executable, "manage.py", "migrate", *options]
    done = subprocess.run(command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"migrate failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), int(sys.argv[2]))
