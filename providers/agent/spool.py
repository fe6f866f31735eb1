"""The agent's durable spool: usage events that the market has not yet acknowledged, in SQLite (WAL).

One thread owns the database. It takes everything that waits, writes it in one transaction with one fsync, and
then answers all of it (group commit). Batches are frozen before they are sent: whatever is lost on the way,
the same batch is sent again, byte for byte, so that the chain of digests holds.
"""

import asyncio
import sqlite3
import threading
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

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (sequence INTEGER PRIMARY KEY, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS chain (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    acknowledged_sequence INTEGER NOT NULL,
    acknowledged_digest TEXT NOT NULL,
    frozen_until INTEGER
);
"""

T = TypeVar("T")


class _Job(NamedTuple, Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    done: Future[T]


class Batch(NamedTuple):
    """A frozen batch: the bytes to post and what to acknowledge afterwards."""

    sequence_to: int
    digest: str
    body: bytes


class Spool:
    """Opened once per agent; `append` returns when the event would survive a kill, or a loss of power."""

    def __init__(self, path: Path) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._path = path
        self._next_sequence = 0
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
        return await asyncio.wrap_future(self._submit(lambda connection: _freeze(connection, source_id)))

    async def acknowledge(self, batch: Batch) -> None:
        """The market has this batch durably: drops its events, keeps its digest as the chain's end."""
        await asyncio.wrap_future(self._submit(lambda connection: _acknowledge(connection, batch)))

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
    connection.execute("INSERT OR IGNORE INTO chain VALUES (1, 0, ?, NULL)", (GENESIS_DIGEST,))
    path.chmod(0o600)
    return connection


def _last_sequence(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute(
        "SELECT max(acknowledged_sequence, coalesce((SELECT max(sequence) FROM event), 0)) FROM chain"
    ).fetchone()
    return int(last)


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM event").fetchone()[0])


def _freeze(connection: sqlite3.Connection, source_id: UUID) -> Batch | None:
    acknowledged, previous_digest, frozen_until = connection.execute(
        "SELECT acknowledged_sequence, acknowledged_digest, frozen_until FROM chain"
    ).fetchone()
    rows = connection.execute(
        "SELECT sequence, line FROM event WHERE sequence <= ? ORDER BY sequence LIMIT ?",
        (frozen_until if frozen_until is not None else 2**62, MAX_BATCH_EVENTS),
    ).fetchall()
    if not rows:
        return None
    if frozen_until is None:
        connection.execute("UPDATE chain SET frozen_until = ?", (rows[-1][0],))
    lines = [line for _, line in rows]
    assert rows[0][0] == acknowledged + 1, "the spool has lost an event"
    return Batch(
        sequence_to=rows[-1][0],
        digest=digest_batch(previous_digest, encode_lines(lines)),
        body=encode_batch(
            source_id=source_id, sequence_from=rows[0][0], previous_digest=previous_digest, lines=lines
        ),
    )


def _acknowledge(connection: sqlite3.Connection, batch: Batch) -> None:
    connection.execute("DELETE FROM event WHERE sequence <= ?", (batch.sequence_to,))
    connection.execute(
        "UPDATE chain SET acknowledged_sequence = ?, acknowledged_digest = ?, frozen_until = NULL",
        (batch.sequence_to, batch.digest),
    )
