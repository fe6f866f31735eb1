"""From the inbox to stored events and exact sums, exactly once.

One transaction claims batches (SKIP LOCKED), decodes, validates, drops duplicates, stores, adds to the roll-ups and
marks the batches. So a worker may be killed at any point: what it claimed is pending again, and nothing is counted.

Locks, in this order: batches (never waited for), events by id (an insert waits for another worker's same id), roll-ups
by key. Every transaction takes them once and sorted, so two can wait for each other only in one direction.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F

from metering.models import MeterKind, UsageBatch
from metering.staging import COLUMN_TYPES, COLUMNS, COUNT_COLUMNS, HEADER, TRAILER, pack_row
from metering.usage import UsageError, UsageEvent, decode_event, decode_lines, digest_event
from metering.validating import Facts, Problem, Window, find_problem, load_facts, numerator_of
from pricing.units import Bucket

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 5
# What one transaction takes at most: bounds memory, and what a killed worker does again. The gateway's batches have
# one event each, an agent's up to 10,000.
CLAIM_BATCHES: Final = 1_000
CLAIM_BYTES: Final = 8 * 1024 * 1024
_MAX_ERROR_LENGTH: Final = 2_000

_CLAIMED_SQL: Final = """
SELECT b.id, b.source_id, s.kind, s.host_id, b.sequence_from, b.body
  FROM metering_usagebatch b JOIN metering_metersource s ON s.id = b.source_id
 WHERE b.id = ANY (%s) ORDER BY b.id
"""
_NAMES: Final = ", ".join(COLUMNS)
# A table of this session, empty again at every commit.
_STAGING_SQL: Final = f"""
CREATE TEMP TABLE IF NOT EXISTS metering_staging (
    {", ".join(f"{name} {kind}" for name, kind in zip(COLUMNS, COLUMN_TYPES, strict=True))}
) ON COMMIT DELETE ROWS;
DELETE FROM metering_staging
"""  # noqa: S608
_SUMS: Final = ", ".join(
    f"count({name}) AS {name}_n, sum({name})::bigint AS {name}" for name in COUNT_COLUMNS
)
_BY_BUCKET: Final = ", ".join(
    f"('{bucket.value}', t.{name}_n, t.{name})" for bucket, name in zip(Bucket, COUNT_COLUMNS, strict=True)
)
# A numerator of a bucket's sum is the sum of its numerators: tokens times one weight, exact.
_STORE_SQL: Final = f"""
WITH fresh AS (
    INSERT INTO metering_usageevent ({_NAMES})
    SELECT {_NAMES} FROM metering_staging ORDER BY id, source_id
    ON CONFLICT (id, source_id) DO NOTHING
    RETURNING source_id, contract_id, rate_id, api_key_id, offering_id, period_start, grade_id,
              {", ".join(COUNT_COLUMNS)}
), summed AS (
    SELECT contract_id, rate_id, coalesce(api_key_id, '00000000-0000-0000-0000-000000000000') AS api_key_id,
           offering_id, source_id, period_start, grade_id, count(*) AS fresh, {_SUMS}
      FROM fresh GROUP BY 1, 2, 3, 4, 5, 6, 7
), added AS (
    INSERT INTO metering_usagerollup AS r (
        contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start, grade_id, events, native_tokens,
        numerator
    )
    SELECT t.contract_id, t.rate_id, t.api_key_id, t.offering_id, b.bucket, s.kind, t.period_start, t.grade_id,
           sum(b.events), sum(b.tokens), sum(b.tokens) * coalesce(g.standard_ppm, 0)
      FROM summed t
      JOIN metering_metersource s ON s.id = t.source_id
     CROSS JOIN LATERAL (VALUES {_BY_BUCKET}) AS b (bucket, events, tokens)
      LEFT JOIN pricing_gradebucket g ON g.grade_id = t.grade_id AND g.bucket = b.bucket
     WHERE b.events > 0
     GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, g.standard_ppm
     ORDER BY 1, 2, 3, 4, 5, 6, 7
    ON CONFLICT (contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start) DO UPDATE
       SET events = r.events + excluded.events, native_tokens = r.native_tokens + excluded.native_tokens,
           numerator = r.numerator + excluded.numerator
)
SELECT coalesce(sum(fresh), 0)::bigint FROM summed
"""  # noqa: S608
# What was staged and is stored under another batch was there before: our own batches are stored in one transaction.
_SEEN_SQL: Final = """
SELECT s.source_id, s.id, e.content_digest
  FROM metering_staging s JOIN metering_usageevent e ON e.id = s.id AND e.source_id = s.source_id
 WHERE e.batch_id <> s.batch_id
"""
_MARK_SQL: Final = """
UPDATE metering_usagebatch b
   SET status = 'stored', stored_at = %s, attempts = b.attempts + 1, accepted_events = m.accepted,
       duplicate_events = m.duplicates, exceptions = m.exceptions::jsonb, error = ''
  FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::text[]) AS m (id, accepted, duplicates, exceptions)
 WHERE b.id = m.id
"""

_Key = tuple[UUID, UUID]  # (source, event): what an event is known by.


@dataclass(slots=True)
class _Work:
    """A claimed batch and what became of its events."""

    id: UUID
    source_id: UUID
    kind: str
    host_id: UUID | None
    events: list[UsageEvent | UsageError]
    accepted: int = 0
    duplicates: int = 0
    exceptions: list[dict[str, Any]] = field(default_factory=list)

    def except_event(self, index: int, event_id: UUID | None, result: str, name: str, reason: str) -> None:
        self.exceptions.append({
            "index": index, "id": str(event_id) if event_id else None, "result": result, "field": name,
            "reason": reason,
        })  # fmt: skip


@dataclass(slots=True)
class _Occurrence:
    """Where in the claimed batches an event stands."""

    work: _Work
    index: int
    content_digest: bytes


@dataclass(slots=True)
class _Staged:
    """Rows to store, keyed; and per key every place where the event stands, first the one that is stored."""

    rows: list[tuple[_Key, bytes]] = field(default_factory=list)
    first: dict[_Key, _Occurrence] = field(default_factory=dict)
    repeats: list[tuple[_Key, _Occurrence]] = field(default_factory=list)


def ingest_batches(*, limit: int = CLAIM_BATCHES, now: datetime) -> int:
    """Claim up to `limit` pending batches and store them; returns how many were finished (stored or dead).

    When they cannot be stored together, each is tried alone: the one at fault notes an attempt and is left to
    `retry_failed_batches`, the others are stored. Trouble with the database itself is raised and counts for nothing.
    """
    with transaction.atomic():
        batch_ids = _claim(limit)
        if not batch_ids:
            return 0
        try:
            with transaction.atomic():
                _ingest(batch_ids, now)
            return len(batch_ids)
        except (OperationalError, InterfaceError):
            raise  # A deadlock, a lost connection: all of it is pending again.
        except Exception:
            logger.warning("usage batches cannot be stored together", exc_info=True)
        # Still under the claim's locks: nobody else tries them meanwhile.
        return sum([_ingest_alone(batch_id, now) for batch_id in batch_ids])


def retry_failed_batches(*, limit: int = 100, now: datetime) -> int:
    """Try again, one by one, batches that failed before; after the fifth time they are dead. Returns how many ended."""
    finished = 0
    failed = UsageBatch.objects.filter(status=UsageBatch.Status.PENDING, attempts__gt=0)
    for batch_id in list(failed.order_by("pk").values_list("pk", flat=True)[:limit]):
        with transaction.atomic():
            if failed.select_for_update(skip_locked=True, of=("self",)).filter(pk=batch_id).values("pk"):
                finished += _ingest_alone(batch_id, now)
    return finished


def _claim(limit: int) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_claim_batches(%s, %s)", [limit, CLAIM_BYTES])
        return [row[0] for row in cursor.fetchall()]


def _ingest_alone(batch_id: UUID, now: datetime) -> bool:
    """Whether the locked batch ended. Its failure is its own: recorded, and nothing else of it remains."""
    try:
        with transaction.atomic():
            _ingest([batch_id], now)
        return True
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        logger.exception("usage batch failed", extra={"batch_id": str(batch_id)})
        reason = f"{type(error).__name__}: {error}".replace("\0", "")[:_MAX_ERROR_LENGTH]
    batch = UsageBatch.objects.filter(pk=batch_id)
    batch.update(attempts=F("attempts") + 1, error=reason)
    return bool(batch.filter(attempts__gte=MAX_ATTEMPTS).update(status=UsageBatch.Status.DEAD))


def _ingest(batch_ids: Sequence[UUID], now: datetime) -> None:
    works = _load(batch_ids)
    facts = load_facts(event for work in works for event in work.events if isinstance(event, UsageEvent))
    staged = _stage(works, facts, Window.at(now))
    if staged.rows:
        _store(staged, now)
    with connection.cursor() as cursor:
        cursor.execute(
            _MARK_SQL,
            [
                now,
                [work.id for work in works],
                [work.accepted for work in works],
                [work.duplicates for work in works],
                [
                    json.dumps(sorted(work.exceptions, key=lambda exception: exception["index"]))
                    for work in works
                ],
            ],
        )


def _load(batch_ids: Sequence[UUID]) -> list[_Work]:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIMED_SQL, [list(batch_ids)])
        return [
            _Work(batch_id, source_id, kind, host_id, _decode(kind, sequence_from, bytes(body)))
            for batch_id, source_id, kind, host_id, sequence_from, body in cursor.fetchall()
        ]


def _decode(kind: str, sequence_from: int | None, body: bytes) -> list[UsageEvent | UsageError]:
    lines = body.removesuffix(b"\n").split(b"\n")
    if kind != MeterKind.GATEWAY:
        assert sequence_from is not None, "an agent's batch is numbered"
        return decode_lines(lines, sequence_from=sequence_from)
    # The gateway numbers nothing: its event commits together with its capture, so none can be missing.
    events: list[UsageEvent | UsageError] = []
    for line in lines:
        try:
            events.append(decode_event(line))
        except UsageError as error:
            events.append(error)
    return events


def _stage(works: Sequence[_Work], facts: Facts, window: Window) -> _Staged:
    """Pack what may be counted, sorted by key; everything else is noted on its batch."""
    staged = _Staged()
    first, rows = staged.first, staged.rows
    for work in works:
        source_bytes, batch_bytes = work.source_id.bytes, work.id.bytes
        source_id, kind, host_id = work.source_id, work.kind, work.host_id
        for index, event in enumerate(work.events):
            if isinstance(event, UsageError):
                work.except_event(index, None, "quarantined", event.field, event.reason)
                continue
            problem = find_problem(event, kind=kind, host_id=host_id, facts=facts, window=window)
            numerator = problem or numerator_of(event, facts.standard_ppm.get(event.grade_id, {}))
            if isinstance(numerator, Problem):
                work.except_event(index, event.id, "quarantined", *numerator)
                continue
            content_digest = digest_event(event)[:16]
            key = (source_id, event.id)
            occurrence = _Occurrence(work, index, content_digest)
            if key in first:
                staged.repeats.append((key, occurrence))
                continue
            first[key] = occurrence
            work.accepted += 1
            row = pack_row(
                event,
                source_id=source_bytes,
                batch_id=batch_bytes,
                numerator=numerator,
                content_digest=content_digest,
            )
            rows.append((key, row))
    rows.sort(key=lambda keyed: (keyed[0][1].int, keyed[0][0].int))
    return staged


def _store(staged: _Staged, now: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_make_partitions(%s)", [now])
        cursor.execute(_STAGING_SQL)
        with cursor.copy(f"COPY metering_staging ({_NAMES}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(HEADER)
            for start in range(0, len(staged.rows), 512):
                copy.write(b"".join([row for _, row in staged.rows[start : start + 512]]))
            copy.write(TRAILER)
        cursor.execute(_STORE_SQL)
        (fresh,) = cursor.fetchone()
        seen: list[tuple[UUID, UUID, bytes]] = []
        if fresh != len(staged.rows):
            cursor.execute(_SEEN_SQL)
            seen = cursor.fetchall()
            assert fresh + len(seen) == len(staged.rows), "every event is new or was there"
    _note_repeats(staged, seen)


def _note_repeats(staged: _Staged, seen: Sequence[tuple[UUID, UUID, bytes]]) -> None:
    """Tell duplicates from conflicts: the stored content decides, whichever batch brought it."""
    stored = {(source_id, event_id): bytes(digest) for source_id, event_id, digest in seen}
    for key in stored:
        staged.first[key].work.accepted -= 1
    again = [(key, staged.first[key]) for key in stored] + staged.repeats
    for key, occurrence in again:
        digest = stored.get(key, staged.first[key].content_digest)
        if digest == occurrence.content_digest:
            occurrence.work.duplicates += 1
        else:
            reason = "names an event that is stored with other content"
            occurrence.work.except_event(occurrence.index, key[1], "conflict", "id", reason)
