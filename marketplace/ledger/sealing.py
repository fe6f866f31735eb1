"""Closes ranges of transfers under digests that chain, away from the way money takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import connection

# A proof is 14 digests long, and what names a changed transfer (48 bytes each) fits one row of 800 kB.
MOST_TRANSFERS: Final = 16_384
_PAUSE_S: Final = 0.05


@dataclass(frozen=True)
class Sealed:
    """`complete` is false where a transaction that may hold an earlier number did not end in time."""

    seals: int
    transfers: int
    complete: bool


def seal_transfers(*, now: datetime, wait_s: float = 30, most: int = MOST_TRANSFERS) -> Sealed:
    """Seal all that was posted before this call, `most` transfers a seal. Doing it again finds nothing new.

    Numbers are not taken in the order of commits, so it waits, up to `wait_s`, for the transactions that run now; what
    begins after it does not hold it up. Not inside a transaction, whose own end it would wait for.
    """
    assert not connection.in_atomic_block, "a transaction would wait for its own end"
    deadline = time.monotonic() + wait_s
    upto, decided = _row("SELECT upto, decided::text FROM ledger_seal_horizon()", ())
    seals = transfers = 0
    while True:
        (count,) = _row("SELECT ledger_seal(%s, %s::xid8, %s, %s)", (upto, decided, most, now))
        if count == -1:
            if time.monotonic() >= deadline:
                return Sealed(seals, transfers, complete=False)
            time.sleep(_PAUSE_S)
            continue
        if count == 0:
            return Sealed(seals, transfers, complete=True)
        seals += 1
        transfers += count


def _row(statement: str, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row = cursor.fetchone()
        assert row is not None
        return tuple(row)
