"""When hosts and offerings were down, and who says so. Part of this room's services: `providers.services` exports it.

A host is down from 15 s without a heartbeat to the next one, and while it is paused or says itself that it is not
ready. An offering is down from the first attempt in a delivery period that it refused or broke off to the next one
that it served, or to the period's end: what nobody asked for afterwards is no evidence about later periods.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import Q

from marketplace.ids import derived_id
from metering.failing import attempts_broken_off, attempts_served
from pricing.failures import Interval, attempt_outages, down_ms
from providers.models import FailedAttempt, Host, Offering, Outage

# One statement, for the gateway's own pool: the id is the hold's, so a repetition writes nothing.
RECORD_FAILED_ATTEMPT_SQL: Final = """
INSERT INTO providers_failedattempt (id, offering_id, cause, occurred_at) VALUES (%s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class PeriodDown:
    """How long an offering was down in one delivery period, and the part of it that failed attempts show."""

    offering_id: UUID
    period_start: datetime
    down_ms: int
    attempts: tuple[tuple[datetime, datetime, str], ...]
    # As `down_ms`, for what was curtailed: for each moment given, were it down from then on.
    curtailed_ms: tuple[int, ...] = ()


def open_outage(*, host_id: UUID, kind: Outage.Kind, started_at: datetime, now: datetime) -> None:
    """The host does not serve from `started_at` on; nothing where an outage of the kind is open already."""
    Outage.objects.bulk_create(
        [Outage(host_id=host_id, kind=kind, started_at=started_at, created_at=now)], ignore_conflicts=True
    )


def end_outage(*, host_id: UUID, kind: Outage.Kind, now: datetime) -> None:
    """It serves again; nothing where no outage of the kind is open."""
    Outage.objects.filter(host_id=host_id, kind=kind, ended_at__isnull=True, started_at__lte=now).update(
        ended_at=now
    )


def record_silence(host: Host, *, started_at: datetime, now: datetime) -> None:
    """The host was silent from `started_at` until it spoke at `now`, and no check of heartbeats came in between."""
    known = Outage.objects.filter(
        Q(ended_at__isnull=True) | Q(ended_at__gt=started_at), host=host, kind=Outage.Kind.HEARTBEAT
    )
    if not known.exists():
        Outage.objects.create(
            host=host, kind=Outage.Kind.HEARTBEAT, started_at=started_at, ended_at=now, created_at=now
        )


def down_in_periods(
    contract_id: UUID,
    places: Iterable[tuple[UUID, datetime, datetime]],
    *,
    curtailed: Mapping[tuple[UUID, datetime], Sequence[datetime]] | None = None,
) -> list[PeriodDown]:
    """How long each (offering, period start, period end) of a contract was down, by all the evidence there is.

    `curtailed` names moments from which on a part of an (offering, period start) was not delivered any more.
    """
    wanted = sorted(places)
    if not wanted:
        return []
    since, until = min(start for _, start, _ in wanted), max(end for _, _, end in wanted)
    hosts = dict(
        Offering.objects.filter(pk__in={offering for offering, _, _ in wanted}).values_list("pk", "host_id")
    )
    outages, planned = _of_hosts(set(hosts.values()), since, until)
    failures = _failures(contract_id, set(hosts), since, until)
    found = []
    for offering, start, end in wanted:
        attempts = _attempt_intervals(offering, start, end, failures[offering])
        host = hosts[offering]
        intervals: list[Interval] = [*outages[host], *((began, ended) for began, ended, _ in attempts)]
        found.append(
            PeriodDown(
                offering_id=offering,
                period_start=start,
                down_ms=down_ms(intervals, start=start, end=end, excused=planned[host]),
                attempts=tuple(attempts),
                curtailed_ms=tuple(
                    down_ms([*intervals, (since_when, None)], start=start, end=end, excused=planned[host])
                    for since_when in (curtailed or {}).get((offering, start), ())
                ),
            )
        )
    return found


def record_attempt_outages(periods: Sequence[PeriodDown], *, now: datetime) -> None:
    """Keep what failed attempts showed as outages, for those who look; again writes nothing.

    A success that was metered late ends an outage earlier. Settlement counts the evidence, not these rows.
    """
    shown = [period for period in periods if period.attempts]
    hosts = dict(
        Offering.objects.filter(pk__in={period.offering_id for period in shown}).values_list("pk", "host_id")
    )
    rows = [
        Outage(
            id=derived_id(period.offering_id, f"outage:{kind}:{started_at.isoformat()}"),
            host_id=hosts[period.offering_id],
            offering_id=period.offering_id,
            kind=kind,
            started_at=started_at,
            ended_at=ended_at,
            created_at=now,
        )
        for period in shown
        for started_at, ended_at, kind in period.attempts
    ]
    for row in rows:
        Outage.objects.filter(pk=row.pk, ended_at__gt=row.ended_at).update(ended_at=row.ended_at)
    Outage.objects.bulk_create(rows, ignore_conflicts=True)


def _of_hosts(
    host_ids: set[UUID], since: datetime, until: datetime
) -> tuple[dict[UUID, list[Interval]], dict[UUID, list[Interval]]]:
    """Outages of whole hosts that touch `[since, until)`: those that count, and the planned ones."""
    rows = Outage.objects.filter(
        Q(ended_at__isnull=True) | Q(ended_at__gt=since),
        host_id__in=host_ids,
        offering__isnull=True,
        started_at__lt=until,
    )
    counted: dict[UUID, list[Interval]] = defaultdict(list)
    planned: dict[UUID, list[Interval]] = defaultdict(list)
    for host, kind, started_at, ended_at in rows.values_list("host_id", "kind", "started_at", "ended_at"):
        (planned if kind == Outage.Kind.PLANNED else counted)[host].append((started_at, ended_at))
    return counted, planned


def _failures(
    contract_id: UUID, offerings: set[UUID], since: datetime, until: datetime
) -> dict[UUID, list[tuple[datetime, str]]]:
    """What the gateway could not deliver at all, and the contract's own answers that broke off."""
    found: dict[UUID, list[tuple[datetime, str]]] = defaultdict(list)
    rows = FailedAttempt.objects.filter(
        offering_id__in=offerings, occurred_at__gte=since, occurred_at__lt=until
    )
    for offering, occurred_at, cause in rows.values_list("offering_id", "occurred_at", "cause"):
        found[offering].append((occurred_at, cause))
    for offering, _, broke_off_at in attempts_broken_off(contract_id, since=since, until=until):
        found[offering].append((broke_off_at, Outage.Kind.FAILED_ATTEMPT.value))
    return found


def _attempt_intervals(
    offering: UUID, start: datetime, end: datetime, failures: list[tuple[datetime, str]]
) -> list[tuple[datetime, datetime, str]]:
    causes = {at: cause for at, cause in sorted(failures, reverse=True) if start <= at < end}
    if not causes:
        return []
    served = attempts_served(offering, since=start, until=end)
    return [(began, ended, causes[began]) for began, ended in attempt_outages(causes, served, end=end)]
