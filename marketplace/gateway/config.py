"""What the gateway needs of the settings, read once at its start."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from psycopg.conninfo import make_conninfo

# Below the five seconds within which a revocation must hold.
CACHE_S: Final = 4.0
CONNECT_TIMEOUT_S: Final = 3.0
# Four megabytes over a slow line; who needs longer only keeps a connection.
BODY_TIMEOUT_S: Final = 60
MAX_ATTEMPTS: Final = 3
# An answer larger than this is nothing an engine makes of max_output_tokens.
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
FIRST_OUTPUT_TOKENS: Final = 1_024
EXTEND_OUTPUT_TOKENS: Final = 1_024
# Ask for more while this many tokens are still held, so that a chunk of several tokens does not overshoot.
LOOKAHEAD_TOKENS: Final = 64
# Held up by its buyer for longer than this, and than this share of the time after the first output, a stream's pace is
# not the host's: its event is flagged `reader_slow` and no service level is measured of it.
READER_SLOW_S: Final = 0.05
READER_SLOW_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Config:
    database: str
    pool_size: int
    signing_key: Ed25519PrivateKey
    allow_private_hosts: bool
    test_clock: bool
    holder: str


def read_config() -> Config:
    database = settings.DATABASES["default"]
    conninfo = make_conninfo(
        dbname=str(database["NAME"]),
        user=str(database["USER"]),
        password=str(database["PASSWORD"]),
        host=str(database["HOST"] or ""),
        port=str(database["PORT"] or ""),
        application_name="tokenyard-gateway",
        connect_timeout=5,
    )
    return Config(
        database=conninfo,
        pool_size=int(os.environ.get("GATEWAY_POOL_SIZE", "16")),
        signing_key=Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY),
        allow_private_hosts=settings.ALLOW_PRIVATE_HOSTS,
        test_clock=settings.TEST_CLOCK,
        holder=f"{socket.gethostname()[:40]}:{os.getpid()}",
    )
