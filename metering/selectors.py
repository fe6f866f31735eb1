"""Reads of metering: roll-ups by hour or day, the state of the inbox, what became of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from django.db import connection
from django.db.models import Count, Max, Min, Q, QuerySet, Sum

from marketplace.errors import NotFound
from metering.models import Discrepancy, MeterKind, MeterSource, UsageBatch, UsageEvent, UsageRollup

Slice = Literal["period", "hour", "day"]
_SLICES: Final[Mapping[Slice, str]] = {
    "period": "period_start",
    "hour": "date_trunc('hour', period_start, 'UTC')",
    "day": "date_trunc('day', period_start, 'UTC')",
}


@dataclass(frozen=True, slots=True)
class InboxState:
    pending: int
    dead: int
    oldest_received_at: datetime | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Exact sums of one slice of time, contract, key and bucket; `api_key_id` is null where the meter knows none."""

    start: datetime
    contract_id: UUID
    api_key_id: UUID | None
    bucket: str
    events: int
    native_tokens: int
    numerator: int


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """What a contract used: `requests` is the most events that any one bucket of the same roll-up has."""

    requests: int
    native_tokens: Mapping[str, int]
    numerator: int


def pending_before(at: datetime) -> bool:
    """Whether usage that the gateway handed in up to `at` still waits in the inbox. A dead batch waits for nobody."""
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
    meter: str = MeterKind.GATEWAY,
) -> list[UsageRow]:
    """Sums of these contracts by slice of time (UTC), contract, key and token bucket in `[since, until)`, newest first.

    Days and hours are derived from the delivery periods, never stored.
    """
    if not contract_ids:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {_SLICES[slice_by]}, contract_id,
                       nullif(api_key_id, '00000000-0000-0000-0000-000000000000'), bucket,
                       sum(events)::bigint, sum(native_tokens)::bigint,
                       sum(numerator)::bigint
                  FROM metering_usagerollup
                 WHERE contract_id = ANY (%(contracts)s) AND meter = %(meter)s
                   AND period_start >= %(since)s AND period_start < %(until)s
                   AND (%(key)s::uuid IS NULL OR api_key_id = %(key)s)
                 GROUP BY 1, 2, 3, 4 ORDER BY 1 DESC, 2, 3, 4 LIMIT %(limit)s""",  # noqa: S608
            {
                "contracts": list(contract_ids),
                "meter": meter,
                "since": since,
                "until": until,
                "key": api_key_id,
                "limit": limit,
            },
        )
        return [UsageRow(*row) for row in cursor.fetchall()]


def usage_summary(
    contract_ids: Sequence[UUID], *, since: datetime, until: datetime, meter: str = MeterKind.GATEWAY
) -> UsageSummary:
    """All usage of these contracts in `[since, until)` in one figure per token bucket."""
    rows = UsageRollup.objects.filter(
        contract_id__in=list(contract_ids), period_start__gte=since, period_start__lt=until, meter=meter
    )
    by_bucket = (
        rows.values_list("bucket").annotate(tokens=Sum("native_tokens"), n=Sum("numerator")).order_by()
    )
    tokens: dict[str, int] = {}
    numerator = 0
    for name, native, standard in by_bucket:
        tokens[name] = int(native)
        numerator += int(standard)
    per_key = rows.values("contract_id", "rate_id", "api_key_id", "offering_id", "period_start").annotate(
        most=Max("events")
    )
    return UsageSummary(sum(row["most"] for row in per_key), tokens, numerator)


def event_of_request(request_id: UUID, contract_ids: Sequence[UUID]) -> UsageEvent | None:
    """The gateway's event of one request, if one of these contracts paid for it."""
    return (
        UsageEvent.objects.filter(
            request_id=request_id, contract_id__in=contract_ids, source__kind=MeterKind.GATEWAY
        )
        .order_by("id")
        .first()
    )


def find_batch(batch_id: UUID, *, host_id: UUID | None = None) -> UsageBatch:
    """Raises NotFound, also for a batch of another host than `host_id` (None: of any)."""
    batches = UsageBatch.objects.filter(pk=batch_id).defer("body")
    if host_id is not None:
        batches = batches.filter(source__host_id=host_id)
    batch = batches.first()
    if batch is None:
        raise NotFound("There is no such batch.")
    return batch


def find_signing_source(key_id: UUID) -> MeterSource | None:
    """The active meter of a host that signs as its source's or its host's id."""
    return MeterSource.objects.filter(
        Q(pk=key_id) | Q(host_id=key_id), kind=MeterKind.AGENT, status=MeterSource.Status.ACTIVE
    ).first()


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
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {_SLICES[slice_by]} AS start, sum(numerator)::bigint FROM metering_usagerollup
                 WHERE contract_id = ANY (%s) AND period_start >= %s AND period_start < %s AND meter = 'gateway'
                 GROUP BY 1 ORDER BY 1""",  # noqa: S608
            [list(contract_ids), since, until],
        )
        return list(cursor.fetchall())
