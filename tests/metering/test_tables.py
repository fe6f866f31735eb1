"""What the tables promise whoever writes to them: append-only events, partitions by time, one gateway."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, connection, connections, transaction

from marketplace.ids import uuid7
from metering.ingesting import ingest_batches
from metering.models import MeterKind, MeterSource, UsageBatch, UsageEvent
from metering.services import forget_batches, gateway_source, make_partitions
from tests.conftest import TestDatabase
from tests.metering.meters import Meters, make_meters


def partitions(using: str = "default") -> list[str]:
    with connections[using].cursor() as cursor:
        cursor.execute(
            """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'metering_usageevent'::regclass ORDER BY 1"""
        )
        return [row[0].removeprefix("metering_usageevent_") for row in cursor.fetchall()]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metering_usageevent SET numerator = 0",
        "DELETE FROM metering_usageevent",
        "TRUNCATE metering_usageevent",
        "UPDATE {partition} SET numerator = 0",
        "DELETE FROM {partition}",
        "SELECT * FROM {partition}",
        "DROP TABLE {partition}",
    ],
)
@pytest.mark.parametrize("role", ["default", "owner"])
def test_stored_events_cannot_be_changed(
    committed_db: TestDatabase, now: datetime, statement: str, role: str
) -> None:
    if role == "owner" and statement.startswith(("SELECT", "DROP")):
        return  # The owner reads and drops: that is retention.
    meters = make_meters(now)
    meters.report([meters.event()])
    ingest_batches(now=now)
    words = statement.format(partition=f"metering_usageevent_{now:%Y%m}")
    with connections[role].cursor() as cursor, pytest.raises(DatabaseError):
        cursor.execute(words)
    assert UsageEvent.objects.count() == 1


def test_partitions_cover_every_id_that_may_be_stored(db: None) -> None:
    at = datetime(2031, 3, 1, 0, 30, tzinfo=UTC)
    assert make_partitions(now=at) > 0
    assert make_partitions(now=at) == 0
    made = set(partitions())
    assert {"203012", "203101", "203102", "203103", "203104"} <= made
    assert "203105" not in made


def test_ingestion_makes_the_partition_it_lacks_and_ids_find_theirs(db: None) -> None:
    at = datetime(2033, 7, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    meters = make_meters(at.replace(minute=0, second=0, microsecond=0))
    last = meters.event(id=uuid7(at), occurred_at=at)
    first = meters.event(id=uuid7(at + timedelta(milliseconds=1)), occurred_at=at)
    meters.report([first, last])
    ingest_batches(now=at)
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text, id FROM metering_usageevent ORDER BY id")
        assert cursor.fetchall() == [
            ("metering_usageevent_203307", last.id),
            ("metering_usageevent_203308", first.id),
        ]


def test_old_partitions_go_and_young_ones_cannot_be_dropped(db: None) -> None:
    make_partitions(now=datetime(2020, 6, 15, tzinfo=UTC))
    assert "202006" in partitions()
    young = f"{datetime.now(UTC) - timedelta(days=30):%Y%m}"
    make_partitions(now=datetime.now(UTC))
    # However far the caller's clock is moved ahead.
    make_partitions(now=datetime.now(UTC) + timedelta(days=5_000))
    left = partitions()
    assert "202006" not in left
    assert young in left


def test_an_id_is_unique_per_source_over_all_partitions(meters: Meters, now: datetime) -> None:
    meters.report([meters.event()])
    ingest_batches(now=now)
    columns = "(SELECT * FROM metering_usageevent LIMIT 1)"
    with (
        connection.cursor() as cursor,
        pytest.raises(DatabaseError, match="metering_usageevent_"),
        transaction.atomic(),
    ):
        cursor.execute(f"INSERT INTO metering_usageevent {columns}")


def test_counts_below_zero_are_refused_by_the_table(meters: Meters, now: datetime) -> None:
    meters.report([meters.event()])
    ingest_batches(now=now)
    stored = UsageEvent.objects.get()
    stored.id = uuid7(now)
    stored.output_tokens = -1
    with pytest.raises(DatabaseError, match="metering_event_not_negative"), transaction.atomic():
        stored.save(force_insert=True)


def test_there_is_one_gateway_meter(db: None, now: datetime) -> None:
    assert gateway_source(now) == gateway_source(now)
    with pytest.raises(DatabaseError, match="metering_source_one_gateway"), transaction.atomic():
        MeterSource.objects.create(kind=MeterKind.GATEWAY, created_at=now)


def test_the_gateways_door_takes_lines_in_its_own_transaction(meters: Meters, now: datetime) -> None:
    body = meters.lines([meters.event()])
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_accept_event(%s, %s, %s)", [meters.gateway.id, body, now])
        (batch_id,) = cursor.fetchone()
    batch = UsageBatch.objects.get(pk=batch_id)
    assert (bytes(batch.body), batch.body_bytes, batch.status, batch.received_at) == (
        body,
        len(body),
        "pending",
        now,
    )
    assert ingest_batches(now=now) == 1
    assert UsageEvent.objects.count() == 1


def test_stored_batches_are_forgotten_after_retention_pending_ones_never(
    meters: Meters, now: datetime
) -> None:
    old = [meters.report([meters.event()]) for _ in range(2)]
    ingest_batches(now=now)
    waiting = meters.report([meters.event()])
    assert forget_batches(now=now + timedelta(days=61)) == 0
    assert forget_batches(now=now + timedelta(days=63)) == 2
    assert list(UsageBatch.objects.all()) == [waiting]
    assert UsageEvent.objects.count() == len(old)
