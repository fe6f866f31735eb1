"""Hosts that supply less than was measured. Part of this room's services: `providers.services` exports it.

What is unsold leaves the sale at once: `sellable` falls by `derated`, never below what is sold, so the constraint that
keeps capacity from being sold twice holds at every moment. What is sold beyond what is left is curtailed by contracts,
which knows whose it is (`marketplace.contracts.curtailing`), and then derated too (`record_curtailed`). Locking rule as
in `capacity`: hours before periods, by host and time; the host's row before both: two deratings come one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet

from marketplace.accounts.services import Actor
from marketplace.errors import InvalidInput, NotFound
from pricing.units import PPM
from providers.capacity import make_periods, sellable_ppm
from providers.claims import check_integer
from providers.hosting import audit_host
from providers.models import Derating, Host, HostPeriod
from providers.selectors import find_host

_LOCK_HOURS: Final = """
SELECT 1 FROM providers_hosthour WHERE host_id = %(host)s AND hour_start > %(now)s - interval '1 hour'
ORDER BY hour_start FOR NO KEY UPDATE
"""
_LOCK_PERIODS: Final = """
SELECT 1 FROM providers_hostperiod WHERE host_id = %(host)s AND period_end > %(now)s
ORDER BY period_start FOR NO KEY UPDATE
"""
# What is lost in a row is the largest derating that still touches it. That, and what is sold takes more than it did,
# is taken off as far as it is unsold.
_LOSE: Final = """
UPDATE {table} AS part SET
    lost_ppm = now_lost.ppm,
    derated_ppm = now_lost.taken_ppm,
    sellable_ppm = part.sellable_ppm + part.derated_ppm - now_lost.taken_ppm
FROM (
    SELECT id, ppm, least(ppm + div(sold_ppm::numeric * (need_ppm - 1000000) + 999999, 1000000)::bigint,
                          whole_ppm - sold_ppm) AS taken_ppm
    FROM (
        SELECT own.id, own.need_ppm, own.sold_ppm, own.sellable_ppm + own.derated_ppm AS whole_ppm,
               coalesce(max(1000000 - derating.available_ppm), 0) AS ppm
        FROM {table} AS own LEFT JOIN providers_derating AS derating
          ON derating.host_id = own.host_id AND derating.cause <> 'bench' AND derating.started_at < own.{end}
         AND (derating.ended_at IS NULL OR derating.ended_at > greatest(own.{start}, %(now)s))
        WHERE own.host_id = %(host)s AND own.{end} > %(now)s
        GROUP BY own.id
    ) AS row_of
) AS now_lost
WHERE part.id = now_lost.id AND (part.lost_ppm <> now_lost.ppm OR part.derated_ppm <> now_lost.taken_ppm)
"""
# What is sold was counted by the bench before; one that rises again takes back what the last one took.
_REBENCH: Final = """
UPDATE {table} SET need_ppm = CASE WHEN sold_ppm = 0 THEN 1000000 ELSE
        greatest(1000000, least(1000000000000, div(need_ppm::numeric * %(before)s + %(after)s - 1, %(after)s)::bigint))
    END
WHERE host_id = %(host)s AND {end} > %(now)s AND (sold_ppm > 0 OR need_ppm <> 1000000)
"""
_HOUR_NAMES: Final = {
    "table": "providers_hosthour",
    "start": "hour_start",
    "end": "hour_start + interval '1 hour'",
}
_PERIOD_NAMES: Final = {"table": "providers_hostperiod", "start": "period_start", "end": "period_end"}
_LOSE_ALL: Final = tuple(_LOSE.format(**names) for names in (_HOUR_NAMES, _PERIOD_NAMES))
_REBENCH_ALL: Final = tuple(_REBENCH.format(**names) for names in (_HOUR_NAMES, _PERIOD_NAMES))
_CURTAILED: Final = """
UPDATE providers_hostperiod AS period SET
    sold_ppm = left_over.sold_ppm, derated_ppm = left_over.taken_ppm,
    sellable_ppm = period.sellable_ppm + period.derated_ppm - left_over.taken_ppm
FROM (
    SELECT id, own.sold_ppm - %(freed)s AS sold_ppm,
           least(lost_ppm + div((own.sold_ppm - %(freed)s)::numeric * (need_ppm - 1000000) + 999999, 1000000)::bigint,
                 sellable_ppm + derated_ppm - own.sold_ppm + %(freed)s) AS taken_ppm
    FROM providers_hostperiod AS own WHERE id = %(period)s
) AS left_over
WHERE period.id = left_over.id
"""
_CARRY: Final = """
UPDATE providers_hostperiod AS period SET
    sellable_ppm = period.sellable_ppm + period.carry_over_ppm - carry.ppm, carry_over_ppm = carry.ppm
FROM (
    SELECT own.id, least(coalesce(wanted.ppm, 0), own.sellable_ppm + own.carry_over_ppm - own.sold_ppm) AS ppm
    FROM providers_hostperiod AS own
    LEFT JOIN unnest(%(hosts)s::uuid[], %(shares)s::bigint[]) AS wanted (host_id, ppm) USING (host_id)
    WHERE own.period_start = %(start)s
) AS carry
WHERE period.id = carry.id AND period.carry_over_ppm <> carry.ppm
"""


@dataclass(frozen=True, slots=True)
class Overcommitted:
    """A period in which more is sold of a host than it can supply, by `excess_ppm` of the host. Its row is locked."""

    id: UUID
    period_start: datetime
    period_end: datetime
    sold_ppm: int
    # What a million of it takes since a lower bench.
    need_ppm: int
    excess_ppm: int


def deratings_of(organization_id: UUID, host_id: UUID) -> QuerySet[Derating]:
    """Of one host, newest first. Raises NotFound, also for a host of another organization."""
    host = find_host(organization_id, host_id)
    return Derating.objects.filter(host=host).order_by("-pk")


@transaction.atomic
def record_derating(
    *, organization_id: UUID, host_id: UUID, available_ppm: int, now: datetime, actor: Actor
) -> Derating:
    """From `now` on the host supplies only so much of its dependable capacity, until it says otherwise.

    What is unsold of the rest is not sold any more, in no hour that is open. The same again is the same derating,
    another share ends the one before. Raises InvalidInput, NotFound for a host of another organization.
    """
    check_integer("available_ppm", available_ppm, 0, PPM - 1)
    host = find_host(organization_id, host_id)
    derating = _begin(host.pk, Derating.Cause.PROVIDER, available_ppm, now)
    if derating.started_at == now:
        audit_host(host, "host.derated", actor, now, available_ppm=available_ppm)
    return derating


@transaction.atomic
def lift_derating(
    *, organization_id: UUID, host_id: UUID, derating_id: UUID, now: datetime, actor: Actor
) -> None:
    """The host supplies all of it again from `now` on; what was curtailed stays so. Doing it again changes nothing.

    Raises NotFound, also for what an engine said: its next heartbeat says otherwise.
    """
    host = find_host(organization_id, host_id)
    found = Derating.objects.filter(pk=derating_id, host=host, cause=Derating.Cause.PROVIDER)
    if not found.exists():
        raise NotFound("There is no such derating.")
    if _end(host.pk, Derating.Cause.PROVIDER, now, derating_id=derating_id):
        lose_share(host_id=host.pk, now=now)
        audit_host(host, "host.derating_lifted", actor, now)


@transaction.atomic
def note_engine_share(*, host_id: UUID, available_ppm: int, now: datetime) -> None:
    """What the host's own engine says it can supply, in ppm of its dependable capacity; all of it ends a derating."""
    check_integer("available_ppm", available_ppm, 0, PPM)
    running = Derating.objects.filter(
        host_id=host_id, cause=Derating.Cause.ENGINE, ended_at__isnull=True
    ).first()
    if (PPM if running is None else running.available_ppm) == available_ppm:
        return  # As every heartbeat says again.
    if available_ppm < PPM:
        _begin(host_id, Derating.Cause.ENGINE, available_ppm, now)
    elif _end(host_id, Derating.Cause.ENGINE, now):
        lose_share(host_id=host_id, now=now)


@transaction.atomic
def rebench_sold(*, host_id: UUID, before: int, after: int, now: datetime) -> None:
    """The dependable capacity of an offering went from `before` to `after`: what is sold takes another share now.

    Where the host serves several grades all that is sold of it is taken to be of this one: the host is the same, and
    a slower one is slower in each.
    """
    assert before > 0
    assert after > 0
    if before == after:
        return
    if after < before:
        Derating.objects.create(
            host_id=host_id,
            cause=Derating.Cause.BENCH,
            available_ppm=PPM * after // before,
            started_at=now,
            ended_at=now,
            created_at=now,
        )
    _lock_rows(host_id, now)
    places: dict[str, Any] = {"host": host_id, "now": now, "before": before, "after": after}
    with connection.cursor() as cursor:
        for statement in _REBENCH_ALL:
            cursor.execute(statement, places)
    lose_share(host_id=host_id, now=now)


@transaction.atomic
def lose_share(*, host_id: UUID, now: datetime) -> None:
    """Bring what may be sold of a host to what it can supply, as far as it is unsold. Again changes nothing."""
    _lock_rows(host_id, now)
    with connection.cursor() as cursor:
        for statement in _LOSE_ALL:
            cursor.execute(statement, {"host": host_id, "now": now})


def derated_hosts(*, now: datetime) -> list[UUID]:
    """Hosts of which a period that is not over lacks something, in id order."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT DISTINCT host_id FROM providers_hostperiod
                WHERE period_end > %(now)s AND (lost_ppm > 0 OR need_ppm > 1000000)
                UNION SELECT host_id FROM providers_derating WHERE ended_at IS NULL ORDER BY 1""",
            {"now": now},
        )
        return [row[0] for row in cursor.fetchall()]


def lock_overcommitted(*, host_id: UUID, now: datetime) -> list[Overcommitted]:
    """The host's running and next periods in which more is sold than it can supply, by time, locked until the commit.

    Later ones wait: by then the host may supply all of it again.
    """
    found = []
    until = now + timedelta(seconds=settings.DELIVERY_PERIOD_S)
    for row in (
        HostPeriod.objects.select_for_update(no_key=True)
        .filter(host_id=host_id, period_end__gt=now, period_start__lte=until)
        .order_by("period_start")
    ):
        whole = row.sellable_ppm + row.derated_ppm
        # What was benched lower may take the operating margin too before anybody is curtailed: benches differ a little.
        needed = max(row.sold_ppm, row.sold_ppm * row.need_ppm // PPM * sellable_ppm() // PPM)
        room = max(0, whole - row.lost_ppm)
        if needed > room:
            excess = row.sold_ppm - room * row.sold_ppm // needed
            found.append(
                Overcommitted(row.pk, row.period_start, row.period_end, row.sold_ppm, row.need_ppm, excess)
            )
    return found


def record_curtailed(*, period_id: UUID, freed_ppm: int) -> None:
    """So much of what was sold is not delivered any more: unsold, and derated as far as it is lost, in one step."""
    assert freed_ppm >= 0
    with connection.cursor() as cursor:
        cursor.execute(_CURTAILED, {"period": period_id, "freed": freed_ppm})
        assert cursor.rowcount == 1


@transaction.atomic
def set_carry_over(shares: Mapping[UUID, int], *, period_start: datetime) -> int:
    """What requests still running take of each host (ppm) in a period; of all other hosts nothing. How many changed.

    Only what is unsold can be kept back. The rows of the hosts named are made where they are missing.
    """
    hosts = sorted(shares)
    if hosts:
        make_periods(hosts, [period_start])
    places: dict[str, Any] = {
        "hosts": hosts,
        "shares": [shares[host] for host in hosts],
        "start": period_start,
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT 1 FROM providers_hostperiod WHERE period_start = %(start)s
                  AND (carry_over_ppm > 0 OR host_id = ANY(%(hosts)s::uuid[])) ORDER BY host_id FOR NO KEY UPDATE""",
            places,
        )
        cursor.execute(_CARRY, places)
        return int(cursor.rowcount)


def _begin(host_id: UUID, cause: str, available_ppm: int, now: datetime) -> Derating:
    _lock_rows(host_id, now)
    running = Derating.objects.filter(host_id=host_id, cause=cause, ended_at__isnull=True).first()
    if running is not None and running.available_ppm == available_ppm:
        return running
    if running is not None:
        if running.started_at > now:
            raise InvalidInput("A later derating has begun.", field="available_ppm")
        _end(host_id, cause, now)
    derating = Derating.objects.create(
        host_id=host_id, cause=cause, available_ppm=available_ppm, started_at=now, created_at=now
    )
    lose_share(host_id=host_id, now=now)
    return derating


def _end(host_id: UUID, cause: str, now: datetime, *, derating_id: UUID | None = None) -> bool:
    _lock_rows(host_id, now)
    running = Derating.objects.filter(
        host_id=host_id, cause=cause, ended_at__isnull=True, started_at__lte=now
    )
    if derating_id is not None:
        running = running.filter(pk=derating_id)
    return running.update(ended_at=now) > 0


def _lock_rows(host_id: UUID, now: datetime) -> None:
    Host.objects.select_for_update(no_key=True).only("pk").get(pk=host_id)
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_HOURS, {"host": host_id, "now": now})
        cursor.execute(_LOCK_PERIODS, {"host": host_id, "now": now})
