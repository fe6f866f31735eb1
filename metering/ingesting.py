"""From the inbox to stored events and exact sums, exactly once.

One transaction claims batches (SKIP LOCKED), decodes, validates, drops duplicates, stores, adds to the roll-ups and
marks the batches. So a worker may be killed at any point: what it claimed is pending again, and nothing is counted.

Locks, in this order: batches (never waited for), events by id (storing waits for another worker's same id), roll-ups
by key. Every transaction takes them sorted, so two can wait for each other only in one direction.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import numpy as np
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
from django.db.models import F
from psycopg import Cursor

from marketplace.errors import sqlstate_of
from metering.claims import forget_claim, noted, noted_claims
from metering.coding import unpack_lines
from metering.columns import Ints, Rows
from metering.judging import Claim, Work, judge, lay_out
from metering.models import MeterKind, UsageBatch
from metering.packing import pack_terms
from metering.rollups import Tally
from metering.storing import copy_events, find_stored
from metering.validating import Window

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 5
# What one transaction takes at most: bounds memory, and what a killed worker does again. The gateway's batches have
# one event each, an agent's up to 10,000.
CLAIM_BATCHES: Final = 1_000
CLAIM_BYTES: Final = 8 * 1024 * 1024
_MAX_ERROR_LENGTH: Final = 2_000
# Each is lost to another transaction that committed one of the same events a moment before.
_MAX_RACES: Final = 10
_UNIQUE_VIOLATION: Final = "23505"

_CLAIMED_SQL: Final = """
SELECT b.id, b.source_id, s.kind, s.host_id, b.sequence_from, b.body
  FROM metering_usagebatch b JOIN metering_metersource s ON s.id = b.source_id
 WHERE b.id = ANY (%s) ORDER BY b.id
"""
_MARK_SQL: Final = """
UPDATE metering_usagebatch b
   SET status = 'stored', stored_at = %s, attempts = b.attempts + 1, accepted_events = m.accepted,
       duplicate_events = m.repeated, duplicates = m.duplicates::jsonb, exceptions = m.exceptions::jsonb, error = ''
  FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::text[], %s::text[])
       AS m (id, accepted, repeated, duplicates, exceptions)
 WHERE b.id = m.id
"""


def ingest_batches(*, limit: int = CLAIM_BATCHES, now: datetime) -> int:
    """Claim up to `limit` pending batches and store them; returns how many were finished (stored or dead).

    When they cannot be stored together, each is tried alone: the one at fault notes an attempt and is left to
    `retry_failed_batches`, the others are stored. Trouble with the database itself is raised and counts for nothing.
    """
    with transaction.atomic():
        batch_ids = _claim(limit)
        if not batch_ids:
            return 0
        with noted(batch_ids):
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


@transaction.atomic
def count_killed_attempts() -> int:
    """Count an attempt for every batch whose worker was killed at it. Returns how many there were.

    Such batches are tried alone from then on, so that the one at fault is found and the others are stored.
    """
    counted = 0
    for claim, batch_ids in noted_claims().items():
        batches = UsageBatch.objects.filter(pk__in=batch_ids, status=UsageBatch.Status.PENDING)
        # A worker that lives holds the locks of what it noted.
        killed = list(
            batches.select_for_update(skip_locked=True, of=("self",))
            .order_by("pk")
            .values_list("pk", flat=True)
        )
        for batch_id in killed:
            _note_attempt(batch_id, "the worker was killed while it stored this batch")
        counted += len(killed)
        if killed or not batches.exists():
            forget_claim(claim)
    return counted


def _claim(limit: int) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_claim_batches(%s, %s)", [limit, CLAIM_BYTES])
        return [row[0] for row in cursor.fetchall()]


def _ingest_alone(batch_id: UUID, now: datetime) -> bool:
    """Whether the locked batch ended. Its failure is its own: recorded, and nothing else of it remains."""
    try:
        with noted([batch_id]), transaction.atomic():
            _ingest([batch_id], now)
        return True
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        logger.exception("usage batch failed", extra={"batch_id": str(batch_id)})
        reason = f"{type(error).__name__}: {error}".replace("\0", "")[:_MAX_ERROR_LENGTH]
    return _note_attempt(batch_id, reason)


def _note_attempt(batch_id: UUID, reason: str) -> bool:
    """Whether it was the last."""
    batch = UsageBatch.objects.filter(pk=batch_id)
    batch.update(attempts=F("attempts") + 1, error=reason)
    return bool(batch.filter(attempts__gte=MAX_ATTEMPTS).update(status=UsageBatch.Status.DEAD))


def _ingest(batch_ids: Sequence[UUID], now: datetime) -> None:
    works = _load(batch_ids)
    window = Window.at(now)
    claim = lay_out(works, window)
    if claim is not None and len(kept := judge(claim, window)):
        with connection.cursor() as cursor:
            cursor.execute("SELECT metering_make_partitions(%s)", [now])
        _store(claim, kept)
    with connection.cursor() as cursor:
        cursor.execute(
            _MARK_SQL,
            [
                now,
                [work.id for work in works],
                [work.accepted for work in works],
                [len(work.duplicates) for work in works],
                [json.dumps(_runs(work.duplicates)) for work in works],
                [
                    json.dumps(sorted(work.exceptions, key=lambda exception: exception["index"]))
                    for work in works
                ],
            ],
        )


def _load(batch_ids: Sequence[UUID]) -> list[Work]:
    # Not Django's cursor: it has a megabyte of body come as two of text.
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        cursor.execute(_CLAIMED_SQL, [list(batch_ids)], binary=True)
        return [_read_work(*row) for row in cursor]


def _read_work(
    batch_id: UUID, source_id: UUID, kind: str, host_id: UUID | None, sequence_from: int | None, body: bytes
) -> Work:
    # The gateway numbers nothing: its event commits together with its capture, so none can be missing.
    assert kind == MeterKind.GATEWAY or sequence_from is not None, "an agent's batch is numbered"
    return Work(batch_id, source_id, kind, host_id, sequence_from, unpack_lines(body))


def _store(claim: Claim, kept: Ints) -> None:
    """Store what is new, add it to the roll-ups, and note what every kept event turned out to be.

    COPY is half the work of an INSERT with ON CONFLICT, but it knows no conflicts: so what is stored is asked for
    first, and when another transaction stores one of the same keys in between, all of it is asked and copied again.
    """
    sources = [work.source_id.bytes for work in claim.works]
    ids = claim.columns.ids.tobytes()
    keys = [ids[16 * event : 16 * event + 16] + sources[claim.work_of[event]] for event in kept.tolist()]
    first: dict[bytes, int] = {}
    repeats = [
        (key, event)
        for key, event in zip(keys, kept.tolist(), strict=True)
        if first.setdefault(key, event) != event
    ]
    rows = Rows(
        claim.columns,
        kept,
        owners=[(work.source_id.bytes, work.id.bytes) for work in claim.works],
        owner_of=claim.work_of,
        terms=[pack_terms(**lane.terms._asdict()) if lane.terms else b"" for lane in claim.lanes],
        terms_of=claim.lane_of,
        numerators=claim.numerators,
    )
    seen, fresh = _copy_fresh(first, rows)
    for work, stored in zip(
        claim.works, np.bincount(claim.work_of[fresh], minlength=len(claim.works)), strict=True
    ):
        work.accepted = int(stored)
    _roll_up(claim, fresh)
    _note_repeats(claim, rows, first, [*[(key, first[key]) for key in seen], *repeats], seen)


def _copy_fresh(first: Mapping[bytes, int], rows: Rows) -> tuple[dict[bytes, bytes], Ints]:
    """The contents of what was stored before, by key, and the events that are stored now."""
    for _ in range(_MAX_RACES):
        seen = find_stored(first.keys())
        new = sorted(first.keys() - seen.keys() if seen else first)
        fresh = np.array([first[key] for key in new], np.int64)
        if len(fresh) == 0:
            return seen, fresh
        try:
            with transaction.atomic():
                copy_events(rows.rows(fresh))
        except IntegrityError as error:
            if sqlstate_of(error) != _UNIQUE_VIOLATION:
                raise
            continue
        return seen, fresh
    raise OperationalError("other workers keep storing the same events")


def _roll_up(claim: Claim, stored: Ints) -> None:
    if len(stored) == 0:
        return
    tally = Tally()
    by_lane = stored[np.argsort(claim.lane_of[stored], kind="stable")]
    lanes, starts = np.unique(claim.lane_of[by_lane], return_index=True)
    for lane_number, sums in zip(lanes.tolist(), claim.columns.sums(by_lane, starts), strict=True):
        lane = claim.lanes[lane_number]
        assert lane.terms is not None, "what is stored has terms"
        tally.add(lane.terms, lane.kind, claim.facts.standard_ppm.get(lane.terms.grade_id, {}), sums)
    with connection.cursor() as cursor:
        tally.write(cursor)


def _note_repeats(
    claim: Claim,
    rows: Rows,
    first: Mapping[bytes, int],
    again: Iterable[tuple[bytes, int]],
    seen: Mapping[bytes, bytes],
) -> None:
    """Tell duplicates from conflicts: the stored content decides, whichever batch brought it."""
    repeats = list(again)
    contents = rows.contents(np.array([event for _, event in repeats], np.int64))
    # Of a key that comes twice in one claim, the first event is the one that is stored.
    twice = [key for key, _ in repeats if key not in seen]
    known = dict(zip(twice, rows.contents(np.array([first[key] for key in twice], np.int64)), strict=True))
    for (key, event), content in zip(repeats, contents, strict=True):
        work, place = claim.noted_at(event)
        if content == (seen.get(key) or known[key]):
            work.duplicates.append(place)
        else:
            reason = "names an event that is stored with other content"
            work.except_event(place, UUID(bytes=key[:16]), "conflict", "id", reason)


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Places as sorted runs of [first, last]."""
    runs: list[list[int]] = []
    for place in sorted(places):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return runs
