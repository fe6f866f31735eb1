"""Reads of metering: roll-ups by hour or day, the state of the inbox, what became of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.db import connection
from django.db.models import Count, Min, QuerySet

from marketplace.errors import NotFound
from metering.models import Discrepancy, MeterKind, MeterSource, UsageBatch, UsageEvent, UsageRollup

Slice = Literal["period", "hour", "day"]


@dataclass(frozen=True, slots=True)
class InboxState:
    pending: int
    dead: int
    oldest_received_at: datetime | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Exact sums of one slice of time, contract, key and bucket."""

    start: datetime
    contract_id: UUID
    api_key_id: UUID
    bucket: str
    native_tokens: int
    numerator: int


def pending_before(at: datetime) -> bool:
    """Whether usage that the gateway handed in up to `at` still waits in the inbox."""
    return UsageBatch.objects.filter(
        status=UsageBatch.Status.PENDING, source__kind=MeterKind.GATEWAY, received_at__lte=at
    ).exists()


def inbox_state() -> InboxState:
    counts = dict(
        UsageBatch.objects.exclude(status=UsageBatch.Status.STORED)
        .values_list("status")
        .annotate(n=Count("pk"))
        .order_by()
    )
    oldest = UsageBatch.objects.filter(status=UsageBatch.Status.PENDING).aggregate(at=Min("received_at"))[
        "at"
    ]
    return InboxState(counts.get("pending", 0), counts.get("dead", 0), oldest)


def rollups_of(
    contract_id: UUID, *, since: datetime, until: datetime, meter: str = MeterKind.GATEWAY
) -> QuerySet[UsageRollup]:
    return UsageRollup.objects.filter(
        contract_id=contract_id, period_start__gte=since, period_start__lt=until, meter=meter
    ).order_by("period_start", "rate_id", "offering_id", "bucket")


def usage_rows(
    contract_ids: Sequence[UUID],
    *,
    since: datetime,
    until: datetime,
    slice_by: Slice = "hour",
    api_key_id: UUID | None = None,
    limit: int = 1_000,
) -> list[UsageRow]:
    """The gateway's sums by time slice (UTC), contract, key and bucket; newest first."""
    if not contract_ids:
        return []
    start = {"period": "period_start"}.get(slice_by, f"date_trunc('{slice_by}', period_start, 'UTC')")
    key = "AND api_key_id = %s" if api_key_id is not None else ""
    parameters: list[Any] = [list(contract_ids), since, until]
    if api_key_id is not None:
        parameters.append(api_key_id)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {start} AS start, contract_id, api_key_id, bucket, sum(native_tokens)::bigint,
                       sum(numerator)::bigint
                  FROM metering_usagerollup
                 WHERE contract_id = ANY (%s) AND period_start >= %s AND period_start < %s AND meter = 'gateway' {key}
                 GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4 LIMIT %s""",
            [*parameters, limit],
        )
        return [UsageRow(*row) for row in cursor.fetchall()]


def event_of_request(request_id: UUID, contract_ids: Sequence[UUID]) -> UsageEvent | None:
    """The gateway's event of one request, if one of these contracts paid for it."""
    return (
        UsageEvent.objects.filter(
            request_id=request_id, contract_id__in=contract_ids, source__kind=MeterKind.GATEWAY
        )
        .order_by("id")
        .first()
    )


def find_batch(source: MeterSource, batch_id: UUID) -> UsageBatch:
    """Raises NotFound, also for another meter's batch."""
    batch = UsageBatch.objects.filter(pk=batch_id, source=source).defer("body").first()
    if batch is None:
        raise NotFound("There is no such batch of this meter.")
    return batch


def sequence_gaps(source: MeterSource) -> list[tuple[int, int]]:
    """Runs of event numbers that never came, as (first, last): a gap is recorded, not refused."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT expected, sequence_from - 1 FROM (
                   SELECT sequence_from, coalesce(max(sequence_to) OVER (
                       ORDER BY sequence_from, sequence_to ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                   ), 0) + 1 AS expected
                     FROM metering_usagebatch WHERE source_id = %s AND sequence_from IS NOT NULL
               ) AS ordered WHERE sequence_from > expected ORDER BY 1""",
            [source.pk],
        )
        return [(first, last) for first, last in cursor.fetchall()]


def open_discrepancies() -> QuerySet[Discrepancy]:
    return Discrepancy.objects.filter(status=Discrepancy.Status.OPEN).order_by("-pk")


def usage_over_time(
    contract_ids: Sequence[UUID], *, since: datetime, until: datetime, slice_by: Slice = "hour"
) -> list[tuple[datetime, int]]:
    """(slice start, numerator) of what the gateway metered on these contracts together, oldest first."""
    start = {"period": "period_start"}.get(slice_by, f"date_trunc('{slice_by}', period_start, 'UTC')")
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {start} AS start, sum(numerator)::bigint FROM metering_usagerollup
                 WHERE contract_id = ANY (%s) AND period_start >= %s AND period_start < %s AND meter = 'gateway'
                 GROUP BY 1 ORDER BY 1""",
            [list(contract_ids), since, until],
        )
        return list(cursor.fetchall())
