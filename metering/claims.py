"""Which batches a worker is at, noted outside the database: so that a batch which kills every worker counts attempts.

What a killed worker did is rolled back, with it any note in the database. The note here survives the worker; that it
does not survive Redis does no harm, for then the batch is just tried once more.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID, uuid4

import redis
from django.conf import settings
from django.db import connection

logger = logging.getLogger(__name__)


@contextmanager
def noted(batch_ids: Sequence[UUID]) -> Iterator[None]:
    """Inside, these batches, which are locked already, are known to be worked on. A killed worker leaves the note."""
    claim = str(uuid4())
    _try("HSET", _place(), claim, json.dumps([str(batch_id) for batch_id in batch_ids]))
    try:
        yield
    finally:
        forget_claim(claim)


def noted_claims() -> dict[str, list[UUID]]:
    """Every note by its name: of workers that are at it, and of workers that were killed."""
    found = _try("HGETALL", _place()) or {}
    return {
        claim.decode(): [UUID(text) for text in json.loads(batch_ids)] for claim, batch_ids in found.items()
    }


def forget_claim(claim: str) -> None:
    _try("HDEL", _place(), claim)


def _place() -> str:
    # A Redis may serve more than one market.
    return f"metering:claims:{connection.settings_dict['NAME']}"


@functools.cache
def _client() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1)


def _try(command: str, *arguments: str) -> dict[bytes, bytes] | None:
    """Notes are worth nothing that storing usage should wait or fail for."""
    try:
        answer = _client().execute_command(command, *arguments)  # type: ignore[no-untyped-call]
    except redis.RedisError as error:
        logger.warning("claims cannot be noted: %s", error)
        return None
    return answer if isinstance(answer, dict) else None
