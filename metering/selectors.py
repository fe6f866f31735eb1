"""Reads of metering: roll-ups by hour or day, the state of the inbox, what became of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet, Sum

from marketplace.errors import NotFound
from metering.models import (
    Discrepancy,
    MeterKind,
    MeterPoint,
    MeterSource,
    RegisterRead,
    UsageBatch,
    UsageCorrection,
    UsageEvent,
    UsageRollup,
)
from pricing.units import Bucket

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


def agents_pending_before(contract_ids: Sequence[UUID], at: datetime) -> set[UUID]:
    """Of these contracts, those that hosts may supply whose usage, handed in up to `at`, still waits in the inbox."""
    waiting = UsageBatch.objects.filter(
        status=UsageBatch.Status.PENDING, source__kind=MeterKind.AGENT, received_at__lte=at
    )
    points = MeterPoint.objects.filter(
        contract_id__in=contract_ids, host_id__in=waiting.values("source__host_id")
    )
    return set(points.order_by().values_list("contract_id", flat=True).distinct())


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


def find_batch(batch_id: UUID, *, host_id: UUID | None = None, with_body: bool = False) -> UsageBatch:
    """Raises NotFound, also for a batch of another host than `host_id` (None: of any)."""
    batches = UsageBatch.objects.filter(pk=batch_id)
    if not with_body:
        batches = batches.defer("body")
    if host_id is not None:
        batches = batches.filter(source__host_id=host_id)
    batch = batches.first()
    if batch is None:
        raise NotFound("There is no such batch.")
    return batch


def batches_with_status(status: str) -> QuerySet[UsageBatch]:
    return UsageBatch.objects.filter(status=status).defer("body")


def find_signing_source(key_id: UUID) -> MeterSource | None:
    """The active meter of a host that signs as its source's or its host's id."""
    return MeterSource.objects.filter(
        Q(pk=key_id) | Q(host_id=key_id), kind=MeterKind.AGENT, status=MeterSource.Status.ACTIVE
    ).first()


def sequence_gaps(source: MeterSource) -> list[tuple[int, int]]:
    """Runs of event numbers that never came, as (first, last): a gap is recorded, not refused.

    Nothing is read of a source without a gap, and of others only the batches since its first one.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT expected, sequence_from - 1 FROM (
                   SELECT b.sequence_from, coalesce(max(b.sequence_to) OVER (
                       ORDER BY b.sequence_from, b.sequence_to ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                   ), s.complete_until) + 1 AS expected
                     FROM metering_metersource s JOIN metering_usagebatch b ON b.source_id = s.id
                    WHERE s.id = %s AND s.gap_since IS NOT NULL AND b.sequence_to > s.complete_until
               ) AS ordered WHERE sequence_from > expected ORDER BY 1""",
            [source.pk],
        )
        return [(first, last) for first, last in cursor.fetchall()]


def sources_with_gaps() -> QuerySet[MeterSource]:
    """Meters of which event numbers are missing, the longest waiting first."""
    return MeterSource.objects.filter(gap_since__isnull=False).order_by("gap_since", "pk")


def overdue_gaps(now: datetime) -> QuerySet[MeterSource]:
    """Those of `sources_with_gaps` whose usage should have come long ago: the alarm."""
    return sources_with_gaps().filter(gap_since__lte=now - timedelta(seconds=settings.METERING_GAP_ALARM_S))


def register_reads(host_id: UUID, *, since: datetime, until: datetime) -> list[RegisterRead]:
    """The host's reads from the last one at or before `since` to the first one at or after `until`, in order of time.

    Where the host was not read before or after, they begin or end with what there is.
    """
    reads = RegisterRead.objects.filter(host_id=host_id)
    before = reads.filter(read_at__lte=since).order_by("-read_at", "-pk").first()
    after = reads.filter(read_at__gte=until).order_by("read_at", "pk").first()
    reads = reads.filter(read_at__gt=since) if before is None else reads.filter(read_at__gte=before.read_at)
    reads = reads.filter(read_at__lte=after.read_at) if after is not None else reads.filter(read_at__lt=until)
    return list(reads.order_by("read_at", "pk"))


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


@dataclass(frozen=True, slots=True)
class RecountSums:
    """Native output, reasoning included, of events that carry a recount, and what it came to in o200k tokens."""

    grade_id: UUID
    recounted_tokens: int
    recount_o200k_tokens: int


def recounts_of(contract_ids: Sequence[UUID], *, since: datetime, until: datetime) -> list[RecountSums]:
    """By grade version, of these contracts' delivery periods that begin in `[since, until)`, as the gateway metered."""
    rows = (
        UsageRollup.objects.filter(
            contract_id__in=list(contract_ids),
            bucket=Bucket.OUTPUT.value,
            meter=MeterKind.GATEWAY,
            period_start__gte=since,
            period_start__lt=until,
            recounted_tokens__gt=0,
        )
        .values_list("grade_id")
        .annotate(native=Sum("recounted_tokens"), o200k=Sum("recount_o200k_tokens"))
        .order_by("grade_id")
    )
    return [RecountSums(grade_id, int(native), int(o200k)) for grade_id, native, o200k in rows]


def is_corrected(contract_id: UUID, since: datetime, until: datetime) -> bool:
    """Whether the operator put right or filled in usage of this contract in delivery periods of `[since, until)`."""
    edited = UsageCorrection.objects.filter(
        replacement_id=OuterRef("id"), replacement_source_id=OuterRef("source_id")
    )
    events = UsageEvent.objects.filter(
        contract_id=contract_id, period_start__gte=since, period_start__lt=until
    )
    found: bool = events.filter(Exists(edited)).exists()
    return found
