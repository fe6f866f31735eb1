"""Everything that writes metering: sources, meter points, the inbox, register reads. Ingestion is in `ingesting`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from metering.ingesting import ingest_batches
from metering.models import MeterKind, MeterPoint, MeterSource, RegisterRead, SignatureNonce, UsageBatch
from metering.reconciling import reconcile_host
from metering.usage import UsageError, split_batch

__all__ = [
    "BatchRefused",
    "accept_batch",
    "add_meter_point",
    "close_source",
    "forget_nonces",
    "gateway_source",
    "ingest_batches",
    "make_partitions",
    "reconcile_host",
    "record_register_read",
    "register_source",
    "remember_nonce",
    "set_dependable_limit",
]

RETENTION: Final = timedelta(days=400)
PARTITIONS_AHEAD_DAYS: Final = 3
# Twice the window in which a signature is believed.
NONCE_KEPT: Final = timedelta(minutes=15)


class BatchRefused(InvalidInput):
    """The batch as a whole cannot be believed; nothing of it was kept."""

    code = "batch_refused"
    http_status = 400


@transaction.atomic
def register_source(
    *, kind: str, host_id: UUID | None, public_key: bytes | None, now: datetime
) -> MeterSource:
    """A new meter. Raises Conflict when the host has an active meter of the kind already."""
    try:
        with transaction.atomic():
            return MeterSource.objects.create(
                kind=kind, host_id=host_id, public_key=public_key, created_at=now
            )
    except IntegrityError as error:
        if "metering_source_one_active_per_host" not in str(error):
            raise
        raise Conflict("The host has an active meter of this kind already.", field="host_id") from error


def close_source(*, source_id: UUID) -> None:
    """The meter sends no more. Doing it again changes nothing."""
    MeterSource.objects.filter(pk=source_id).update(status=MeterSource.Status.CLOSED)


def set_dependable_limit(*, source_id: UUID, numerator_per_s: int, now: datetime) -> None:
    """The most that the meter's host can dependably make, for the impossible-rate check."""
    MeterSource.objects.filter(pk=source_id).update(dependable_numerator_per_s=numerator_per_s)


def gateway_source(now: datetime) -> MeterSource:
    """The one meter of the gateway, made at its first use."""
    found = MeterSource.objects.filter(kind=MeterKind.GATEWAY, status=MeterSource.Status.ACTIVE).first()
    if found is not None:
        return found
    try:
        with transaction.atomic():
            return MeterSource.objects.create(kind=MeterKind.GATEWAY, created_at=now)
    except IntegrityError:
        # Another process made it between the two statements.
        return MeterSource.objects.get(kind=MeterKind.GATEWAY, status=MeterSource.Status.ACTIVE)


def add_meter_point(
    *,
    contract_id: UUID,
    offering_id: UUID,
    host_id: UUID,
    grade_id: UUID,
    valid_from: datetime,
    valid_until: datetime | None = None,
) -> MeterPoint:
    """From now on this offering may supply this contract. Adding it again gives the point there is."""
    point, _ = MeterPoint.objects.get_or_create(
        contract_id=contract_id,
        offering_id=offering_id,
        defaults={
            "host_id": host_id,
            "grade_id": grade_id,
            "valid_from": valid_from,
            "valid_until": valid_until,
        },
    )
    return point


def accept_batch(*, source: MeterSource, body: bytes, now: datetime) -> UsageBatch:
    """One durable insert; once it returns, nothing of the batch is ever lost. The same batch again is the same row.

    Raises BatchRefused (naming the field) when header, numbering or digest do not fit the events.
    """
    try:
        header, _ = split_batch(body)
    except UsageError as error:
        raise BatchRefused(error.reason, field=error.field) from error
    if header.source_id != source.id:
        raise BatchRefused("is not the source that signed the request", field="header.source_id")
    batch, _ = UsageBatch.objects.get_or_create(
        source=source,
        sequence_from=header.sequence_from,
        digest=header.digest,
        defaults={
            "sequence_to": header.sequence_to,
            "previous_digest": header.previous_digest,
            "body": body,
            "received_at": now,
        },
    )
    return batch


def record_register_read(
    *,
    host_id: UUID,
    boot_id: str,
    read_at: datetime,
    input_tokens: int | None,
    cache_read_tokens: int | None,
    output_tokens: int | None,
    energy_millijoules: int | None,
) -> None:
    """Keep an engine's running counters. The same read again changes nothing."""
    RegisterRead.objects.bulk_create(
        [
            RegisterRead(
                host_id=host_id,
                boot_id=boot_id,
                read_at=read_at,
                input_tokens=input_tokens,
                cache_read_tokens=cache_read_tokens,
                output_tokens=output_tokens,
                energy_millijoules=energy_millijoules,
            )
        ],
        ignore_conflicts=True,
    )


def remember_nonce(*, key_id: UUID, nonce: str, now: datetime) -> bool:
    """False when this key has used the nonce before: the request is a replay."""
    made = SignatureNonce.objects.bulk_create(
        [SignatureNonce(id=uuid7(), key_id=key_id, nonce=nonce, used_at=now)], ignore_conflicts=True
    )
    return SignatureNonce.objects.filter(pk=made[0].pk).exists()


def forget_nonces(*, now: datetime) -> int:
    """Drop what no signature can be replayed with any more."""
    deleted, _ = SignatureNonce.objects.filter(used_at__lt=now - NONCE_KEPT).delete()
    return deleted


def make_partitions(*, now: datetime) -> int:
    """The coming days' partitions, and the end of those past retention. Returns how many were made."""
    today = now.date()
    with connection.cursor() as cursor:
        made = 0
        for days in range(-1, PARTITIONS_AHEAD_DAYS + 1):
            cursor.execute("SELECT metering_make_partition(%s)", [today + timedelta(days=days)])
            made += bool(cursor.fetchone()[0])
        cursor.execute("SELECT metering_drop_partitions(%s)", [(now - RETENTION).date()])
    return made
