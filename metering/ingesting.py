"""From the inbox to stored events and exact sums, exactly once.

One transaction claims batches (SKIP LOCKED), decodes, validates, drops duplicates, stores, adds to the roll-ups and
marks the batches. So a worker may be killed at any point: what it claimed is pending again, and nothing is counted.

Locks, in this order: batches (never waited for), events by id (an insert waits for another worker's same id), roll-ups
by key. Every transaction takes them once and sorted, so two can wait for each other only in one direction.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F
from msgspec.structs import astuple
from psycopg import Cursor

from metering.models import MeterKind, UsageBatch
from metering.staging import (
    COLUMN_TYPES,
    COLUMNS,
    COUNT_COLUMNS,
    HEADER,
    TRAILER,
    digest_of_row,
    microseconds,
    pack_content,
    pack_ids,
    pack_owner,
    pack_row,
    pack_terms,
)
from metering.usage import LeanEvent, UsageError, decode_event, decode_lean
from metering.validating import (
    MAX_DURATION_MS,
    MAX_EVENT_NUMERATOR,
    Facts,
    Problem,
    Supply,
    Terms,
    Window,
    find_problem,
    find_supply,
    load_facts,
    numerator_of,
    read_terms,
    weigh,
)
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
# In the order of the staged rows, which is that of their keys.
_INSERT_SQL: Final = f"""
INSERT INTO metering_usageevent ({_NAMES})
SELECT {_NAMES} FROM metering_staging ORDER BY id, source_id
ON CONFLICT (id, source_id) DO NOTHING
"""  # noqa: S608
# What was staged and is stored under another batch was there before: our own batches are stored in one transaction.
_SEEN_SQL: Final = """
DELETE FROM metering_staging s USING metering_usageevent e
 WHERE e.id = s.id AND e.source_id = s.source_id AND e.batch_id <> s.batch_id
RETURNING s.id, s.source_id, e.content_digest
"""
_SUMS: Final = ", ".join(
    f"count({name}) AS {name}_n, sum({name})::bigint AS {name}" for name in COUNT_COLUMNS
)
_BY_BUCKET: Final = ", ".join(
    f"('{bucket.value}', t.{name}_n, t.{name})" for bucket, name in zip(Bucket, COUNT_COLUMNS, strict=True)
)
# Of the staged rows that are stored. A numerator of a bucket's sum is the sum of its numerators: tokens times one
# weight, exact.
_ROLL_UP_SQL: Final = f"""
WITH summed AS (
    SELECT contract_id, rate_id, coalesce(api_key_id, '00000000-0000-0000-0000-000000000000') AS api_key_id,
           offering_id, source_id, period_start, grade_id, {_SUMS}
      FROM metering_staging GROUP BY 1, 2, 3, 4, 5, 6, 7
)
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
"""  # noqa: S608
_MARK_SQL: Final = """
UPDATE metering_usagebatch b
   SET status = 'stored', stored_at = %s, attempts = b.attempts + 1, accepted_events = m.accepted,
       duplicate_events = m.duplicates, exceptions = m.exceptions::jsonb, error = ''
  FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::text[]) AS m (id, accepted, duplicates, exceptions)
 WHERE b.id = m.id
"""

# What the events of one contract, period and key share, as their lines have it.
_Texts = tuple[str, str, str, str, str, str | None]


@dataclass(slots=True)
class _Work:
    """A claimed batch and what became of its events."""

    id: UUID
    source_id: UUID
    kind: str
    host_id: UUID | None
    sequence_from: int | None
    lines: list[bytes]
    events: list[LeanEvent | UsageError]
    # Of each event; None where the line could not be read.
    texts: list[_Texts | None]
    accepted: int = 0
    duplicates: int = 0
    exceptions: list[dict[str, Any]] = field(default_factory=list)

    def except_event(self, index: int, event_id: UUID | None, result: str, name: str, reason: str) -> None:
        self.exceptions.append({
            "index": index, "id": str(event_id) if event_id else None, "result": result, "field": name,
            "reason": reason,
        })  # fmt: skip


class _Occurrence(NamedTuple):
    """Where in the claimed batches an event stands, and its packed row."""

    work: _Work
    place: int
    row: bytes


class _Lane(NamedTuple):
    """What an event of known terms is checked against and packed with."""

    packed_terms: bytes
    supply: Supply | None


@dataclass(slots=True)
class _Staged:
    """Per key (the id's bytes, then the source's) the place whose event is stored, and the places of the same again."""

    first: dict[bytes, _Occurrence] = field(default_factory=dict)
    repeats: list[tuple[bytes, _Occurrence]] = field(default_factory=list)


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
    terms = {texts: read_terms(texts) for work in works for texts in set(work.texts) if texts is not None}
    facts = load_facts(read for read in terms.values() if read is not None)
    staged = _Staged()
    window = Window.at(now)
    for work in works:
        _stage(work, staged, terms, facts, window)
    if staged.first:
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
    # Not Django's cursor: it has a megabyte of body come as two of text.
    with Cursor(connection.connection) as cursor:
        cursor.execute(_CLAIMED_SQL, [list(batch_ids)], binary=True)
        return [_read_work(*row) for row in cursor]


def _read_work(
    batch_id: UUID, source_id: UUID, kind: str, host_id: UUID | None, sequence_from: int | None, body: bytes
) -> _Work:
    # The gateway numbers nothing: its event commits together with its capture, so none can be missing.
    assert kind == MeterKind.GATEWAY or sequence_from is not None, "an agent's batch is numbered"
    lines = body.removesuffix(b"\n").split(b"\n")
    events = decode_lean(lines)
    texts = [
        (e.contract_id, e.offering_id, e.grade_id, e.rate_id, e.period_start, e.api_key_id)
        if isinstance(e, LeanEvent)
        else None
        for e in events
    ]
    return _Work(batch_id, source_id, kind, host_id, sequence_from, lines, events, texts)


def _stage(
    work: _Work, staged: _Staged, terms: Mapping[_Texts, Terms | None], facts: Facts, window: Window
) -> None:
    """Pack what may be counted, keyed; everything else is noted on its batch.

    Whatever an event shares with others was checked once for all of them (`_lanes`), so few comparisons are left for
    each. One that fails any is judged again by itself, by the rules as they are written (`_examine`).
    """
    owner, source = pack_owner(source_id=work.source_id, batch_id=work.id), work.source_id.bytes
    lanes = _lanes(work, terms, facts, window)
    event_ids = pack_ids([e.id if isinstance(e, LeanEvent) else "" for e in work.events])
    request_ids = pack_ids([e.request_id if isinstance(e, LeanEvent) else "" for e in work.events])
    first_id, until_id, expected = window.first_id, window.until_id, work.sequence_from
    for index, event in enumerate(work.events):
        if isinstance(event, UsageError):
            work.except_event(index, None, "quarantined", event.field, event.reason)
            continue
        lane, event_id, request_id = lanes[work.texts[index]], event_ids[index], request_ids[index]
        occurred_us = microseconds(event.occurred_at)
        counts = astuple(event.buckets)
        if (
            lane is None
            or (supply := lane.supply) is None
            or event_id is None
            or request_id is None
            or not first_id <= event_id < until_id
            or event_id[6] & 0xF0 != 0x70  # Version 7.
            or event_id[8] & 0xC0 != 0x80  # Of RFC 9562.
            or not supply.first_us <= occurred_us < supply.until_us
            or event.duration_ms > MAX_DURATION_MS
            or (event.first_byte_ms or 0) > MAX_DURATION_MS
            or (expected is not None and event.sequence != expected + index)
            or (numerator := weigh(counts, supply.standard_ppm)) > MAX_EVENT_NUMERATOR
        ):
            examined = _examine(work, index, facts, window)
            if examined is None:
                continue
            assert lane is not None, "an event that can be read has terms"
            event_id, request_id, numerator = examined
        content = pack_content(
            event,
            terms=lane.packed_terms,
            event_id=event_id,
            request_id=request_id,
            occurred_us=occurred_us,
            counts=counts,
        )
        key = event_id + source
        occurrence = _Occurrence(work, index, pack_row(owner, numerator, content))
        if staged.first.setdefault(key, occurrence) is occurrence:
            work.accepted += 1
        else:
            staged.repeats.append((key, occurrence))


def _lanes(
    work: _Work, terms: Mapping[_Texts, Terms | None], facts: Facts, window: Window
) -> dict[_Texts | None, _Lane | None]:
    lanes: dict[_Texts | None, _Lane | None] = {}
    for texts in set(work.texts):
        known = terms[texts] if texts is not None else None
        if known is None:
            lanes[texts] = None
            continue
        supply = find_supply(known, kind=work.kind, host_id=work.host_id, facts=facts, window=window)
        lanes[texts] = _Lane(pack_terms(**known._asdict()), supply)
    return lanes


def _examine(work: _Work, index: int, facts: Facts, window: Window) -> tuple[bytes, bytes, int] | None:
    """The ids and the numerator of an event that may be counted after all, or None with its fault noted."""
    try:
        event = decode_event(work.lines[index])
    except UsageError as error:
        work.except_event(index, None, "quarantined", error.field, error.reason)
        return None
    if work.sequence_from is not None and event.sequence != (place := work.sequence_from + index):
        reason = f"{event.sequence} stands in the place of {place}"
        work.except_event(index, None, "quarantined", "sequence", reason)
        return None
    found = find_problem(event, kind=work.kind, host_id=work.host_id, facts=facts, window=window)
    numerator = found or numerator_of(event, facts.standard_ppm.get(event.grade_id, {}))
    if isinstance(numerator, Problem):
        work.except_event(index, event.id, "quarantined", *numerator)
        return None
    return event.id.bytes, event.request_id.bytes, numerator


def _store(staged: _Staged, now: datetime) -> None:
    first = staged.first
    rows = [first[key].row for key in sorted(first)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_make_partitions(%s)", [now])
        cursor.execute(_STAGING_SQL)
        with cursor.copy(f"COPY metering_staging ({_NAMES}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(HEADER)
            for start in range(0, len(rows), 512):
                copy.write(b"".join(rows[start : start + 512]))
            copy.write(TRAILER)
        cursor.execute(_INSERT_SQL)
        seen: dict[bytes, bytes] = {}
        if (fresh := cursor.rowcount) != len(rows):
            cursor.execute(_SEEN_SQL)
            seen = {
                event_id.bytes + source_id.bytes: bytes(content_digest)
                for event_id, source_id, content_digest in cursor.fetchall()
            }
            assert fresh + len(seen) == len(rows), "every event is new or was there"
        if fresh:
            cursor.execute(_ROLL_UP_SQL)
    _note_repeats(staged, seen)


def _note_repeats(staged: _Staged, seen: Mapping[bytes, bytes]) -> None:
    """Tell duplicates from conflicts: the stored content decides, whichever batch brought it."""
    for key in seen:
        staged.first[key].work.accepted -= 1
    again = [(key, staged.first[key]) for key in seen] + staged.repeats
    for key, occurrence in again:
        stored = seen.get(key) or digest_of_row(staged.first[key].row)
        if digest_of_row(occurrence.row) == stored:
            occurrence.work.duplicates += 1
        else:
            reason = "names an event that is stored with other content"
            occurrence.work.except_event(occurrence.place, UUID(bytes=key[:16]), "conflict", "id", reason)
