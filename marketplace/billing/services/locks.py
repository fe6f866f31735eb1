"""One worker at a time for what has no row to lock yet, or whose rows the app role may not lock (append-only)."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.db import connection

_KEY_BITS: Final = (1 << 63) - 1


def lock_until_commit(object_id: UUID) -> None:
    """Wait for, then hold, the lock of this id until the caller's transaction ends."""
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [object_id.int & _KEY_BITS])
