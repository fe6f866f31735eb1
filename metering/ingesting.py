"""From the inbox to stored events and exact sums, exactly once.

One transaction claims batches (SKIP LOCKED), decodes, validates, drops duplicates, stores, adds to the roll-ups and
marks the batches. So a worker may be killed at any point: what it claimed is pending again, and nothing is counted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from django.db import DatabaseError, connection, transaction

from marketplace.ids import uuid7_time_ms
from metering.models import MeterKind, UsageBatch
from metering.usage import UsageError, UsageEvent, decode_event, decode_lines, digest_event, split_batch
from metering.validating import FLAG_BITS, Facts, check_event, load_facts
from pricing.rating import standard_numerator
from pricing.units import Bucket

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 5
# What one transaction takes at most: bounds memory, and what a killed worker does again.
MAX_CLAIM_BYTES: Final = 8 * 1024 * 1024
CLAIM_BATCHES: Final = 500

_CLAIM_SQL: Final = """
SELECT b.id, b.source_id, s.kind, s.host_id, b.body, b.attempts
  FROM metering_usagebatch b JOIN metering_metersource s ON s.id = b.source_id
 WHERE b.id = ANY (ARRAY(
           SELECT id FROM (
               SELECT id, sum(octet_length(body)) OVER (ORDER BY attempts, id) - octet_length(body) AS before
                 FROM (SELECT id, body, attempts FROM metering_usagebatch WHERE status = 'pending'
                        ORDER BY attempts, id LIMIT %s) AS oldest
           ) AS summed WHERE before < %s))
   AND b.status = 'pending'
 ORDER BY b.id
   FOR UPDATE OF b SKIP LOCKED
"""
_COLUMNS: Final = (
    "id", "source_id", "batch_id", "request_id", "contract_id", "offering_id", "grade_id", "rate_id", "api_key_id",
    "period_start", "occurred_at", "numerator", *(f"{bucket.value}_tokens" for bucket in Bucket),
    "recount_o200k_tokens", "bytes_in", "bytes_out", "first_byte_ms", "duration_ms", "attempt", "part", "flags",
    "finish", "content_digest",
)  # fmt: skip
_TYPES: Final = (
    *("uuid",) * 9, "timestamptz", "timestamptz", "int8", *("int8",) * len(Bucket),
    "int8", "int8", "int8", "int4", "int4", "int2", "int2", "int2", "varchar", "bytea",
)  # fmt: skip
_STAGING_SQL: Final = """
CREATE TEMP TABLE IF NOT EXISTS metering_staging (LIKE metering_usageevent) ON COMMIT DELETE ROWS;
TRUNCATE metering_staging
"""
_STORE_SQL: Final = f"""
WITH stored AS (
    INSERT INTO metering_usageevent ({", ".join(_COLUMNS)})
    SELECT {", ".join(_COLUMNS)} FROM metering_staging ORDER BY id, source_id
    ON CONFLICT DO NOTHING
    RETURNING contract_id, rate_id, api_key_id, offering_id, source_id, period_start, grade_id,
              {", ".join(f"{bucket.value}_tokens" for bucket in Bucket)}
), summed AS (
    SELECT e.contract_id, e.rate_id, coalesce(e.api_key_id, '00000000-0000-0000-0000-000000000000') AS api_key_id,
           e.offering_id, s.kind AS meter, e.period_start, e.grade_id,
           {
    ", ".join(
        f"count({bucket.value}_tokens) AS {bucket.value}_events, "
        f"sum({bucket.value}_tokens)::bigint AS {bucket.value}_tokens"
        for bucket in Bucket
    )
}
      FROM stored e JOIN metering_metersource s ON s.id = e.source_id
     GROUP BY 1, 2, 3, 4, 5, 6, 7
)
INSERT INTO metering_usagerollup AS r (
    contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start, grade_id, events, native_tokens,
    numerator
)
SELECT t.contract_id, t.rate_id, t.api_key_id, t.offering_id, b.bucket, t.meter, t.period_start, t.grade_id, b.events,
       b.tokens, b.tokens * g.standard_ppm
  FROM summed t
 CROSS JOIN LATERAL (VALUES {
    ", ".join(f"('{bucket.value}', t.{bucket.value}_events, t.{bucket.value}_tokens)" for bucket in Bucket)
}) AS b (bucket, events, tokens)
  JOIN pricing_gradebucket g ON g.grade_id = t.grade_id AND g.bucket = b.bucket
 WHERE b.events > 0
 ORDER BY 1, 2, 3, 4, 5, 6, 7
ON CONFLICT (contract_id, rate_id, api_key_id, offering_id, bucket, meter, period_start) DO UPDATE
   SET events = r.events + excluded.events, native_tokens = r.native_tokens + excluded.native_tokens,
       numerator = r.numerator + excluded.numerator
"""
# A row of ours that is stored under another batch was there before.
_SEEN_SQL: Final = """
SELECT s.batch_id, s.id, e.content_digest = s.content_digest
  FROM metering_staging s JOIN metering_usageevent e USING (id, source_id)
 WHERE e.batch_id <> s.batch_id
"""
_MARK_SQL: Final = """
UPDATE metering_usagebatch b
   SET status = 'stored', stored_at = %s, attempts = b.attempts + 1, accepted_events = m.accepted,
       duplicate_events = m.duplicates, exceptions = m.exceptions::jsonb, error = ''
  FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::text[]) AS m (id, accepted, duplicates, exceptions)
 WHERE b.id = m.id
"""


@dataclass(slots=True)
class _Claimed:
    """A batch in work: what it says, and what became of its events."""

    id: UUID
    source_id: UUID
    kind: str
    host_id: UUID | None
    body: bytes
    attempts: int
    events: list[UsageEvent | UsageError] = field(default_factory=list)
    index_of: dict[UUID, int] = field(default_factory=dict)
    accepted: int = 0
    duplicates: int = 0
    exceptions: list[dict[str, Any]] = field(default_factory=list)

    def except_event(self, index: int, event_id: UUID | None, result: str, name: str, reason: str) -> None:
        self.exceptions.append(
            {
                "index": index,
                "id": str(event_id) if event_id else None,
                "result": result,
                "field": name,
                "reason": reason,
            }
        )


def ingest_batches(*, limit: int = CLAIM_BATCHES, now: datetime) -> int:
    """Claim up to `limit` pending batches and store them; returns how many were finished (stored or dead).

    A batch that cannot be processed fails alone: it is tried `MAX_ATTEMPTS` times, then dead with its reason.
    """
    with transaction.atomic():
        claimed = _claim(limit)
        if not claimed:
            return 0
        try:
            with transaction.atomic():
                _process(claimed, now)
            return len(claimed)
        except (DatabaseError, ValueError, ArithmeticError):
            if len(claimed) > 1:
                logger.warning("a batch among many fails; each is tried alone", exc_info=True)
        return sum(_process_alone(batch, now) for batch in claimed)


def _claim(limit: int) -> list[_Claimed]:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM_SQL, [limit, MAX_CLAIM_BYTES])
        return [
            _Claimed(batch_id, source_id, kind, host_id, bytes(body), attempts)
            for batch_id, source_id, kind, host_id, body, attempts in cursor.fetchall()
        ]


def _process_alone(batch: _Claimed, now: datetime) -> bool:
    alone = _Claimed(batch.id, batch.source_id, batch.kind, batch.host_id, batch.body, batch.attempts)
    try:
        with transaction.atomic():
            _process([alone], now)
        return True
    except (DatabaseError, ValueError, ArithmeticError) as error:
        attempts = batch.attempts + 1
        dead = attempts >= MAX_ATTEMPTS
        logger.exception("usage batch failed", extra={"batch_id": str(batch.id), "attempts": attempts})
        UsageBatch.objects.filter(pk=batch.id).update(
            attempts=attempts,
            status=UsageBatch.Status.DEAD if dead else UsageBatch.Status.PENDING,
            error=f"{type(error).__name__}: {error}"[:2000],
        )
        return dead


def _process(batches: Sequence[_Claimed], now: datetime) -> None:
    for batch in batches:
        batch.events = _decode(batch)
    facts = load_facts(
        [event for batch in batches for event in batch.events if isinstance(event, UsageEvent)]
    )
    rows, days = _rows(batches, facts, now)
    with connection.cursor() as cursor:
        if rows:
            for day in sorted(days):
                cursor.execute("SELECT metering_make_partition(%s)", [day])
            cursor.execute(_STAGING_SQL)
            columns = ", ".join(_COLUMNS)
            with cursor.copy(f"COPY metering_staging ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(_TYPES)
                for row in rows:
                    copy.write_row(row)
            cursor.execute(_STORE_SQL)
            cursor.execute(_SEEN_SQL)
            _note_seen(batches, cursor.fetchall())
        cursor.execute(
            _MARK_SQL,
            [
                now,
                [batch.id for batch in batches],
                [batch.accepted for batch in batches],
                [batch.duplicates for batch in batches],
                [json.dumps(sorted(batch.exceptions, key=lambda row: row["index"])) for batch in batches],
            ],
        )


def _decode(batch: _Claimed) -> list[UsageEvent | UsageError]:
    if batch.kind == MeterKind.AGENT:
        header, lines = split_batch(batch.body)
        return decode_lines(lines, sequence_from=header.sequence_from)
    events: list[UsageEvent | UsageError] = []
    for line in batch.body.rstrip(b"\n").split(b"\n"):
        try:
            events.append(decode_event(line))
        except UsageError as error:
            events.append(error)
    return events


def _rows(batches: Sequence[_Claimed], facts: Facts, now: datetime) -> tuple[list[tuple[Any, ...]], set[Any]]:
    """What is to be stored, and the UTC days of its ids; everything else is noted on its batch."""
    rows: list[tuple[Any, ...]] = []
    days = set()
    first_seen: dict[tuple[UUID, UUID], bytes] = {}
    for batch in batches:
        for index, event in enumerate(batch.events):
            if isinstance(event, UsageError):
                batch.except_event(index, None, "quarantined", event.field, event.reason)
                continue
            problem = check_event(event, kind=batch.kind, host_id=batch.host_id, facts=facts, now=now)
            if problem is not None:
                batch.except_event(index, event.id, "quarantined", problem.field, problem.reason)
                continue
            digest = digest_event(event)[:16]
            earlier = first_seen.get((batch.source_id, event.id))
            if earlier is not None:
                _note_repeat(batch, index, event.id, same=earlier == digest)
                continue
            first_seen[batch.source_id, event.id] = digest
            batch.index_of[event.id] = index
            batch.accepted += 1
            rows.append(_row(batch, event, digest, facts))
            days.add(datetime.fromtimestamp(uuid7_time_ms(event.id) // 1000, UTC).date())
    return rows, days


def _row(batch: _Claimed, event: UsageEvent, digest: bytes, facts: Facts) -> tuple[Any, ...]:
    reported = {bucket: tokens for bucket, tokens in event.buckets.items() if tokens is not None}
    flags = 0
    for flag in event.flags:
        flags |= FLAG_BITS[flag]
    return (
        event.id,
        batch.source_id,
        batch.id,
        event.request_id,
        event.contract_id,
        event.offering_id,
        event.grade_id,
        event.rate_id,
        event.api_key_id,
        event.period_start,
        event.occurred_at,
        standard_numerator(reported, facts.standard_ppm[event.grade_id]),
        *(event.buckets.get(bucket) for bucket in Bucket),
        event.recount_o200k,
        event.bytes_in,
        event.bytes_out,
        event.first_byte_ms,
        min(event.duration_ms, 2**31 - 1),
        event.attempt,
        event.part,
        flags,
        event.finish.value,
        digest,
    )


def _note_seen(batches: Sequence[_Claimed], seen: Sequence[tuple[UUID, UUID, bool]]) -> None:
    by_id = {batch.id: batch for batch in batches}
    for batch_id, event_id, same in seen:
        batch = by_id[batch_id]
        batch.accepted -= 1
        _note_repeat(batch, batch.index_of[event_id], event_id, same=same)


def _note_repeat(batch: _Claimed, index: int, event_id: UUID, *, same: bool) -> None:
    if same:
        batch.duplicates += 1
    else:
        batch.except_event(
            index, event_id, "conflict", "id", "an event of this id and other content was stored before"
        )
