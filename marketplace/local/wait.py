"""Is a part of the market ready? Asked before a program starts, so that no program has to survive a missing one."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import psycopg
import redis

from marketplace.local.ports import LOOPBACK, port_variable
from marketplace.local.postgres import CannotStart

DEFAULT_TIMEOUT_S = 60
_PROBE_TIMEOUT_S = 3
# What answers 200 when the part serves.
_HEALTH_PATHS = {"web": "/healthz", "gateway": "/healthz", "engine": "/health", "agent": "/healthz"}
_ADVICE = {
    "postgres": "see logs/postgres.log in the data directory, or check DATABASE_URL",
    "redis": "see logs/redis.log in the data directory, or check REDIS_URL",
}


def trouble_with(part: str) -> str | None:
    """None when the part is ready, else why not."""
    try:
        if part == "postgres":
            with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=_PROBE_TIMEOUT_S):
                return None
        if part == "redis":
            with redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=_PROBE_TIMEOUT_S) as client:
                client.ping()
                return None
        with urllib.request.urlopen(_health_url(part), timeout=_PROBE_TIMEOUT_S):  # noqa: S310 - our own http
            return None
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except (OSError, psycopg.OperationalError, redis.RedisError) as error:
        return str(error).strip().replace("\n", " ") or type(error).__name__


def wait_for(parts: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Return when all parts are ready; CannotStart names the one that is not, why, and what to do."""
    deadline = time.monotonic() + timeout_s
    for part in parts:
        while (trouble := trouble_with(part)) is not None:
            if time.monotonic() > deadline:
                advice = _ADVICE.get(part, f"see logs/{part}.log in the data directory")
                raise CannotStart(f"{part} is not ready after {timeout_s:.0f} s: {trouble}; {advice}")
            time.sleep(0.1)


def _health_url(part: str) -> str:
    port = os.environ[port_variable(part)]
    return f"http://{LOOPBACK}:{port}{_HEALTH_PATHS[part.partition('-')[0]]}"
