"""The agent's durable spool: usage events that the market has not yet acknowledged, in SQLite (WAL).

One thread owns the database. It takes everything that waits, writes it in one transaction with one fsync, and
then answers all of it (group commit). Batches are frozen before they are sent: whatever is lost on the way,
the same batch is sent again, byte for byte, so that the chain of digests holds.

What was acknowledged is kept for a while: a market that finds a gap (it was restored from a backup, say) asks for
it again. By time and by size the oldest goes first; what is not acknowledged is never dropped.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from metering.usage import (
    GENESIS_DIGEST,
    UsageEvent,
    digest_batch,
    encode_batch,
    encode_event,
    encode_lines,
)
from providers.agent.errors import CannotStart

MAX_BATCH_EVENTS = 1_000
KEEP_SENT_S = 7 * 24 * 3_600
KEEP_SENT_BYTES = 256 * 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (sequence INTEGER PRIMARY KEY, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sent (
    sequence_from INTEGER PRIMARY KEY,
    sequence_to INTEGER NOT NULL,
    previous_digest TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    acknowledged_at_s INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS chain (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    acknowledged_sequence INTEGER NOT NULL,
    acknowledged_digest TEXT NOT NULL,
    frozen_until INTEGER,
    sent_bytes INTEGER NOT NULL DEFAULT 0
);
"""

T = TypeVar("T")


class _Job(NamedTuple, Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    done: Future[T]


class Batch(NamedTuple):
    """A frozen batch: the bytes to post and what to acknowledge afterwards."""

    sequence_from: int
    sequence_to: int
    previous_digest: str
    digest: str
    body: bytes


class NotKept(Exception):
    """The batch that is asked for was acknowledged so long ago that it is no longer here.

    `kept_from` is the first number after it that still is; None when nothing is kept.
    """

    def __init__(self, kept_from: int | None) -> None:
        super().__init__("no longer kept")
        self.kept_from = kept_from


class Spool:
    """Opened once per agent; `append` returns when the event would survive a kill, or a loss of power.

    Acknowledged batches stay for `keep_sent_s` seconds by `time_s`, at most `keep_sent_bytes` of them.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_sent_s: int = KEEP_SENT_S,
        keep_sent_bytes: int = KEEP_SENT_BYTES,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._path = path
        self._keep_sent_s = keep_sent_s
        self._keep_sent_bytes = keep_sent_bytes
        self._time_s = time_s
        self._next_sequence = 0
        # In a new batch; less after the market found one too large.
        self._batch_events = MAX_BATCH_EVENTS
        self.failed: BaseException | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="spool", daemon=True)
        self._thread.start()
        try:
            started.result()
        except sqlite3.Error as error:
            raise CannotStart(
                "spool", f"{path} cannot be used: {error}", "free the disk or repair the file"
            ) from None

    def append(self, event: UsageEvent) -> Future[int]:
        """Numbers and stores the event (its own `sequence` is ignored); the future gives the sequence, once
        durable.
        """
        return self._submit(lambda connection: self._insert(connection, event))

    async def pending(self) -> int:
        """Events not yet acknowledged."""
        return await asyncio.wrap_future(self._submit(_count))

    async def next_batch(self, source_id: UUID) -> Batch | None:
        """The batch to send next: the frozen one if there is one, else a new one. None when nothing waits."""
        events = self._batch_events
        return await asyncio.wrap_future(
            self._submit(lambda connection: _freeze(connection, source_id, events))
        )

    async def acknowledge(self, batch: Batch) -> None:
        """The market has this batch durably: its digest is the chain's end, its events are kept for a while only."""
        now_s = int(self._time_s())
        await asyncio.wrap_future(
            self._submit(
                lambda connection: _acknowledge(
                    connection,
                    batch,
                    now_s=now_s,
                    oldest_s=now_s - self._keep_sent_s,
                    most_bytes=self._keep_sent_bytes,
                )
            )
        )
        self._batch_events = min(self._batch_events * 2, MAX_BATCH_EVENTS)

    async def halve(self, batch: Batch) -> bool:
        """Freezes only the first half of a batch that was never taken; False when it is a single event."""
        events = (batch.sequence_to - batch.sequence_from + 1) // 2
        if events == 0:
            return False
        self._batch_events = events
        frozen_until = batch.sequence_from + events - 1
        await asyncio.wrap_future(
            self._submit(
                lambda connection: connection.execute("UPDATE chain SET frozen_until = ?", (frozen_until,))
            )
        )
        return True

    async def sent_batch(self, source_id: UUID, *, after: int) -> Batch | None:
        """The acknowledged batch that holds number `after` + 1, the very bytes that were sent.

        None when that number is not acknowledged yet: it comes by itself. Raises NotKept.
        """
        found = await asyncio.wrap_future(
            self._submit(lambda connection: _sent_batch(connection, source_id, after + 1))
        )
        # Not raised in the spool's thread: there it would undo what else was to be written.
        if isinstance(found, NotKept):
            raise found
        return found

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        job = _Job(work, Future[T]())
        # A request that is cancelled while it waits must not take back what is about to be stored.
        job.done.set_running_or_notify_cancel()
        self._jobs.put(job)
        return job.done

    def _insert(self, connection: sqlite3.Connection, event: UsageEvent) -> int:
        sequence = self._next_sequence
        line = encode_event(msgspec.structs.replace(event, sequence=sequence))
        connection.execute("INSERT INTO event VALUES (?, ?)", (sequence, line))
        self._next_sequence += 1
        return sequence

    def _run(self, started: Future[None]) -> None:
        try:
            connection = _open(self._path)
            self._next_sequence = _last_sequence(connection) + 1
        except sqlite3.Error as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            running = [job for job in jobs if job is not None]
            if running:
                self._commit_together(connection, running)
            if len(running) < len(jobs):
                connection.close()
                return

    def _commit_together(self, connection: sqlite3.Connection, jobs: list[_Job[Any]]) -> None:
        first_sequence = self._next_sequence
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [job.work(connection) for job in jobs]
            connection.execute("COMMIT")
        except BaseException as error:
            # All or nothing: a number that was given out but not stored would look like a lost event.
            self._next_sequence = first_sequence
            self.failed = error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for job in jobs:
                job.done.set_exception(error)
            return
        self.failed = None
        for job, result in zip(jobs, results, strict=True):
            job.done.set_result(result)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.executescript(_SCHEMA)
    connection.execute("INSERT OR IGNORE INTO chain VALUES (1, 0, ?, NULL, 0)", (GENESIS_DIGEST,))
    path.chmod(0o600)
    return connection


def _last_sequence(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute(
        "SELECT max(acknowledged_sequence, coalesce((SELECT max(sequence) FROM event), 0)) FROM chain"
    ).fetchone()
    return int(last)


def _count(connection: sqlite3.Connection) -> int:
    pending = "SELECT count(*) FROM event WHERE sequence > (SELECT acknowledged_sequence FROM chain)"
    return int(connection.execute(pending).fetchone()[0])


def _freeze(connection: sqlite3.Connection, source_id: UUID, most_events: int) -> Batch | None:
    acknowledged, previous_digest, frozen_until = connection.execute(
        "SELECT acknowledged_sequence, acknowledged_digest, frozen_until FROM chain"
    ).fetchone()
    last = frozen_until if frozen_until is not None else acknowledged + most_events
    lines = _lines(connection, acknowledged + 1, last)
    if not lines:
        return None
    last = acknowledged + len(lines)
    if frozen_until is None:
        connection.execute("UPDATE chain SET frozen_until = ?", (last,))
    assert frozen_until in (None, last), "the spool has lost an event"
    return _batch(source_id, acknowledged + 1, previous_digest, lines)


def _acknowledge(
    connection: sqlite3.Connection, batch: Batch, *, now_s: int, oldest_s: int, most_bytes: int
) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO sent VALUES (?, ?, ?, ?, ?)",
        (batch.sequence_from, batch.sequence_to, batch.previous_digest, len(batch.body), now_s),
    )
    connection.execute(
        "UPDATE chain SET acknowledged_sequence = ?, acknowledged_digest = ?, frozen_until = NULL,"
        " sent_bytes = sent_bytes + ?",
        (batch.sequence_to, batch.digest, len(batch.body)),
    )
    (sent_bytes,) = connection.execute("SELECT sent_bytes FROM chain").fetchone()
    oldest = connection.execute(
        "SELECT sequence_to, bytes, acknowledged_at_s FROM sent ORDER BY sequence_from"
    )
    dropped_until, dropped_bytes = 0, 0
    for sequence_to, size, acknowledged_at_s in oldest:
        if acknowledged_at_s >= oldest_s and sent_bytes - dropped_bytes <= most_bytes:
            break
        dropped_until, dropped_bytes = sequence_to, dropped_bytes + size
    oldest.close()
    if dropped_until:
        connection.execute("DELETE FROM sent WHERE sequence_to <= ?", (dropped_until,))
        connection.execute("DELETE FROM event WHERE sequence <= ?", (dropped_until,))
        connection.execute("UPDATE chain SET sent_bytes = sent_bytes - ?", (dropped_bytes,))


def _sent_batch(connection: sqlite3.Connection, source_id: UUID, sequence: int) -> Batch | NotKept | None:
    (acknowledged,) = connection.execute("SELECT acknowledged_sequence FROM chain").fetchone()
    if sequence > acknowledged:
        return None
    row = connection.execute(
        "SELECT sequence_from, sequence_to, previous_digest FROM sent WHERE sequence_from <= ?"
        " ORDER BY sequence_from DESC LIMIT 1",
        (sequence,),
    ).fetchone()
    if row is None or row[1] < sequence:
        (kept_from,) = connection.execute("SELECT min(sequence_from) FROM sent").fetchone()
        return NotKept(kept_from)
    lines = _lines(connection, row[0], row[1])
    assert len(lines) == row[1] - row[0] + 1, "the spool has lost an event"
    return _batch(source_id, row[0], row[2], lines)


def _lines(connection: sqlite3.Connection, first: int, last: int) -> list[bytes]:
    """The event lines of these numbers, as far as they are there."""
    rows = connection.execute(
        "SELECT sequence, line FROM event WHERE sequence BETWEEN ? AND ? ORDER BY sequence", (first, last)
    ).fetchall()
    assert [sequence for sequence, _ in rows] == list(range(first, first + len(rows))), (
        "the spool has lost an event"
    )
    return [line for _, line in rows]


def _batch(source_id: UUID, first: int, previous_digest: str, lines: list[bytes]) -> Batch:
    return Batch(
        sequence_from=first,
        sequence_to=first + len(lines) - 1,
        previous_digest=previous_digest,
        digest=digest_batch(previous_digest, encode_lines(lines)),
        body=encode_batch(
            source_id=source_id, sequence_from=first, previous_digest=previous_digest, lines=lines
        ),
    )
