"""Everything that writes metering: sources, meter points, the inbox, register reads. Ingestion is in `ingesting`."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, F, OuterRef
from psycopg import Binary, Cursor

from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from metering.coding import pack_lines
from metering.correcting import amend_event, backfill_event, void_event
from metering.disputing import accept_discrepancy, close_overdue_discrepancies, resolve_discrepancy
from metering.estimating import replace_estimates
from metering.gaps import accept_gap, close_filled_gaps
from metering.ingesting import count_killed_attempts, ingest_batches, retry_failed_batches
from metering.intake import BatchRefused, check_text, read_ndjson
from metering.models import MeterKind, MeterPoint, MeterSource, RegisterRead, SignatureNonce, UsageBatch
from metering.points import NewPoint, add_meter_points
from metering.pressure import InboxFull, check_inbox
from metering.reconciling import reconcile_host
from metering.recounts import check_recounts, set_recount_baseline
from metering.usage import GENESIS_DIGEST, BatchHeader, UnreadBatch

__all__ = [
    "BatchRefused",
    "InboxFull",
    "NewPoint",
    "accept_batch",
    "accept_discrepancy",
    "accept_gap",
    "add_meter_point",
    "add_meter_points",
    "amend_event",
    "backfill_event",
    "check_recounts",
    "close_filled_gaps",
    "close_overdue_discrepancies",
    "close_source",
    "count_killed_attempts",
    "forget_batches",
    "forget_nonces",
    "gateway_source",
    "ingest_batches",
    "keep_batch",
    "make_partitions",
    "reconcile_host",
    "record_register_read",
    "register_source",
    "remember_nonce",
    "replace_estimates",
    "resolve_discrepancy",
    "retry_failed_batches",
    "revive_batch",
    "set_dependable_limit",
    "set_recount_baseline",
    "void_event",
]

# Longer than a signature is believed: from five minutes before its time to five after.
NONCE_KEPT: Final = timedelta(minutes=15)
# The batches as they came, which is what a dispute goes back to: past any settlement and its ten days of dispute.
RAW_KEPT: Final = timedelta(days=62)
_PUBLIC_KEY_BYTES: Final = 32


class SourceClosed(Conflict):
    """A meter that was closed sends no more."""

    code = "source_closed"


# Sources and points --------------------------------------------------------------------------------------------


def register_source(*, kind: str, host_id: UUID, public_key: bytes, now: datetime) -> MeterSource:
    """A new meter of a host. Raises Conflict when the host has an active one of this kind."""
    assert kind in (MeterKind.AGENT, MeterKind.ENGINE), "the gateway's source is `gateway_source`"
    if len(public_key) != _PUBLIC_KEY_BYTES:
        raise InvalidInput("It must be an Ed25519 public key of 32 bytes.", field="public_key")
    try:
        with transaction.atomic():
            return MeterSource.objects.create(
                kind=kind, host_id=host_id, public_key=public_key, created_at=now
            )
    except IntegrityError as error:
        if constraint_of(error) != "metering_source_one_active_per_host":
            raise
        raise Conflict("The host has an active meter of this kind already.", field="host_id") from error


def close_source(*, source_id: UUID) -> None:
    """The meter sends no more; what it sent stays and is still ingested. Doing it again changes nothing."""
    MeterSource.objects.filter(pk=source_id).update(status=MeterSource.Status.CLOSED)


def set_dependable_limit(*, source_id: UUID, numerator_per_s: int | None, now: datetime) -> None:
    """The most that the meter's host can dependably make, for the impossible-rate check."""
    MeterSource.objects.filter(pk=source_id).update(dependable_numerator_per_s=numerator_per_s)


def gateway_source(now: datetime) -> MeterSource:
    """The one meter that all gateways of this market are, made at its first use."""
    active = MeterSource.objects.filter(
        kind=MeterKind.GATEWAY, status=MeterSource.Status.ACTIVE, is_editor=False
    )
    found = active.first()
    if found is not None:
        return found
    try:
        with transaction.atomic():
            return MeterSource.objects.create(kind=MeterKind.GATEWAY, created_at=now)
    except IntegrityError as error:
        if constraint_of(error) != "metering_source_one_gateway":
            raise
        return active.get()  # Another process made it between the two statements.


@transaction.atomic
def add_meter_point(
    *,
    contract_id: UUID,
    offering_id: UUID,
    host_id: UUID,
    grade_id: UUID,
    valid_from: datetime,
    valid_until: datetime | None = None,
) -> MeterPoint:
    """From `valid_from` on this offering may supply this contract. Adding it again only ever widens the time.

    Raises Conflict when the point exists with another host or grade version: usage already stands on it.
    """
    point, created = MeterPoint.objects.select_for_update(no_key=True).get_or_create(
        contract_id=contract_id,
        offering_id=offering_id,
        defaults={
            "host_id": host_id,
            "grade_id": grade_id,
            "valid_from": valid_from,
            "valid_until": valid_until,
        },
    )
    if created:
        return point
    if (point.host_id, point.grade_id) != (host_id, grade_id):
        raise Conflict("The offering supplies this contract in another grade version or from another host.")
    earlier = min(point.valid_from, valid_from)
    later = None if point.valid_until is None or valid_until is None else max(point.valid_until, valid_until)
    if (earlier, later) != (point.valid_from, point.valid_until):
        point.valid_from, point.valid_until = earlier, later
        point.save(update_fields=["valid_from", "valid_until"])
    return point


# The inbox -----------------------------------------------------------------------------------------------------


def accept_batch(*, source: MeterSource, body: bytes, now: datetime) -> UsageBatch:
    """As `keep_batch`, from text. A host's begins with its header and is checked against it; the gateway's is event
    lines alone. Raises BatchRefused naming the field, InboxFull, SourceClosed.
    """
    if source.kind == MeterKind.GATEWAY:
        check_text(body)
        return UsageBatch.objects.create(source=source, body=body, body_bytes=len(body), received_at=now)
    return keep_batch(source=source, batch=read_ndjson(body), now=now)


_ACCEPT_SQL: Final = """
INSERT INTO metering_usagebatch (
    id, source_id, sequence_from, sequence_to, previous_digest, digest, chain, body, body_bytes, status, attempts,
    accepted_events, duplicate_events, exceptions, error, received_at
) VALUES (
    uuidv7(), %s, %s, %s, %s, %s, %s, %b, %s, 'pending', 0, 0, 0, '[]', '', %s
)
RETURNING id
"""


@transaction.atomic
def keep_batch(*, source: MeterSource, batch: UnreadBatch, now: datetime) -> UsageBatch:
    """One durable insert; once it returns, nothing of the batch is ever lost. The same batch again is the same row.

    A batch that does not continue the source's chain is taken in and marked. Raises BatchRefused for one of another
    source, InboxFull when too much waits already, SourceClosed.
    """
    header = batch.header
    if header.source_id != source.pk:
        field = "header.source_id"
        raise BatchRefused(f"{field}: is not the meter that signed the request", field=field)
    packed = pack_lines(batch.lines)  # Before the lock.
    # One batch of a source at a time, or two could both take themselves for the next one.
    locked = MeterSource.objects.select_for_update(no_key=True).get(pk=source.pk)
    known = (
        UsageBatch.objects.defer("body")
        .filter(source=locked, sequence_from=header.sequence_from, digest=header.digest)
        .first()
    )
    if known is not None:
        return known
    if locked.status != MeterSource.Status.ACTIVE:
        raise SourceClosed("The host was enrolled again since; this meter sends no more.")
    check_inbox()
    link = _link(locked, header)
    # Not Django's cursor: it would send a megabyte of body as two of text, for the server to read again.
    with Cursor(connection.connection) as cursor:
        cursor.execute(
            _ACCEPT_SQL,
            [
                locked.pk,
                header.sequence_from,
                header.sequence_to,
                header.previous_digest,
                header.digest,
                link,
                Binary(packed),
                len(batch.lines),
                now,
            ],
        )
        row = cursor.fetchone()
    assert row is not None, "an INSERT ... RETURNING returns its row"
    kept = UsageBatch.objects.defer("body").get(pk=row[0])
    if header.sequence_to >= locked.next_sequence:
        changed = ["next_sequence", "last_digest"]
        if link is UsageBatch.Chain.GAP and locked.gap_since is None:
            locked.gap_since, locked.complete_until = now, locked.next_sequence - 1
            changed += ["gap_since", "complete_until"]
        locked.next_sequence = header.sequence_to + 1
        locked.last_digest = header.digest
        locked.save(update_fields=changed)
    return kept


def _link(source: MeterSource, header: BatchHeader) -> UsageBatch.Chain:
    if header.sequence_from > source.next_sequence:
        return UsageBatch.Chain.GAP
    if header.sequence_from == source.next_sequence:
        linked = header.previous_digest == (source.last_digest or GENESIS_DIGEST)
    else:
        linked = _fills_gap(source, header)
    return UsageBatch.Chain.LINKED if linked else UsageBatch.Chain.BROKEN


def _fills_gap(source: MeterSource, header: BatchHeader) -> bool:
    """Late, but in its place: nothing stands there yet, and it continues the batch before the gap."""
    if source.gap_since is None or header.sequence_from <= source.complete_until:
        return False
    batches = UsageBatch.objects.filter(source=source)
    if batches.filter(sequence_from=header.sequence_from).exists():
        return False
    if header.sequence_from == 1:
        return header.previous_digest == GENESIS_DIGEST
    return batches.filter(sequence_to=header.sequence_from - 1, digest=header.previous_digest).exists()


def revive_batch(*, batch_id: UUID, now: datetime) -> None:
    """A dead batch is tried anew, once somebody has removed what killed it. Raises NotFound, Conflict."""
    dead = UsageBatch.objects.filter(pk=batch_id, status=UsageBatch.Status.DEAD)
    if dead.update(status=UsageBatch.Status.PENDING, attempts=0, error=""):
        return
    if UsageBatch.objects.filter(pk=batch_id).exists():
        raise Conflict("Only a dead batch can be revived.")
    raise NotFound("There is no such batch.")


def forget_batches(*, limit: int = 10_000, now: datetime) -> int:
    """Drop stored batches that came more than 62 days ago; their events stay. Never a pending or a dead one."""
    old = (
        UsageBatch.objects.filter(status=UsageBatch.Status.STORED, received_at__lt=now - RAW_KEPT)
        # The last of each source stays, for its host to find the end of its chain.
        .exclude(~Exists(UsageBatch.objects.filter(source=OuterRef("source"), pk__gt=OuterRef("pk"))))
        # What came after an open gap shows where it ends.
        .exclude(source__gap_since__isnull=False, sequence_to__gt=F("source__complete_until"))
        .order_by("pk")
        .values_list("pk", flat=True)[:limit]
    )
    deleted, _ = UsageBatch.objects.filter(pk__in=list(old)).delete()
    return deleted


# Registers, nonces, partitions ---------------------------------------------------------------------------------


def record_register_read(
    *,
    host_id: UUID,
    boot_id: str,
    read_at: datetime,
    input_tokens: int | None,
    cache_read_tokens: int | None,
    output_tokens: int | None,
    energy_millijoules: int | None,
    bench_input_tokens: int = 0,
    bench_output_tokens: int = 0,
) -> None:
    """Keep an engine's running counters at a moment; `input_tokens` includes what came from the cache.

    `bench_..._tokens` are what the host's own benches have used so far. The same read again changes nothing.
    """
    read = RegisterRead(
        host_id=host_id,
        boot_id=boot_id,
        read_at=read_at,
        input_tokens=input_tokens,
        cache_read_tokens=cache_read_tokens,
        output_tokens=output_tokens,
        energy_millijoules=energy_millijoules,
        bench_input_tokens=bench_input_tokens,
        bench_output_tokens=bench_output_tokens,
    )
    RegisterRead.objects.bulk_create([read], ignore_conflicts=True)


def remember_nonce(*, key_id: UUID, nonce: str, now: datetime) -> bool:
    """False when this key has used the nonce in the last 15 minutes: the request is a replay."""
    digest = blake2b(nonce.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO metering_signaturenonce AS n (id, key_id, nonce_digest, used_at)
               VALUES (uuidv7(), %s, %s, %s)
               ON CONFLICT (key_id, nonce_digest) DO UPDATE SET used_at = excluded.used_at WHERE n.used_at < %s
               RETURNING id""",
            [key_id, digest, now, now - NONCE_KEPT],
        )
        return cursor.fetchone() is not None


def forget_nonces(*, now: datetime) -> int:
    """Drop what no signature can be replayed with any more."""
    deleted, _ = SignatureNonce.objects.filter(used_at__lt=now - NONCE_KEPT).delete()
    return deleted


def make_partitions(*, now: datetime) -> int:
    """Partitions for every id that may come, and the end of those past keeping. Returns how many were made."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_make_partitions(%s)", [now])
        made: int = cursor.fetchone()[0]
        cursor.execute("SELECT metering_drop_partitions(%s)", [now])
    return made
