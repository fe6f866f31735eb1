"""Taking and giving back shares of hosts. Part of this room's services: `providers.services` exports all of it.

No capacity is sold twice because every taking is one conditional UPDATE under a CHECK constraint. Locking rule: a
host's hours before its periods, each in order of time; several hosts in order of their ids. Firm shares count in their
hour and in every period of it that exists already; a period made later copies its hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from marketplace.errors import DomainError
from marketplace.periods import delivery_period
from pricing.units import PPM

HORIZON_PERIODS: Final = 4
_HOUR: Final = timedelta(hours=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# An hour that is made while the host is derated is made without what it cannot supply.
_MAKE_HOURS = """
INSERT INTO providers_hosthour (id, host_id, hour_start, sellable_ppm, sold_ppm, lost_ppm, derated_ppm)
SELECT uuidv7(), host_id, hour_start, %(sellable)s - least(lost.ppm, %(sellable)s), 0, lost.ppm,
       least(lost.ppm, %(sellable)s)
FROM unnest(%(hosts)s::uuid[]) AS host_id
CROSS JOIN unnest(%(hours)s::timestamptz[]) AS hour_start
CROSS JOIN LATERAL (
    SELECT coalesce(max(1000000 - derating.available_ppm), 0) AS ppm FROM providers_derating AS derating
    WHERE derating.host_id = host_id.host_id AND derating.cause <> 'bench'
      AND derating.started_at < hour_start + interval '1 hour'
      AND (derating.ended_at IS NULL OR derating.ended_at > hour_start)
) AS lost
ORDER BY host_id, hour_start
ON CONFLICT (host_id, hour_start) DO NOTHING
"""
# Firm sales take these locks first, so a period made here never misses a share sold at the same moment.
_LOCK_HOURS = """
SELECT 1 FROM providers_hosthour WHERE host_id = ANY(%(hosts)s::uuid[]) AND hour_start = ANY(%(hours)s::timestamptz[])
ORDER BY host_id, hour_start FOR NO KEY UPDATE
"""
_MAKE_PERIODS = """
INSERT INTO providers_hostperiod (
    id, host_id, period_start, period_end, sellable_ppm, sold_ppm, lost_ppm, need_ppm, derated_ppm
)
SELECT uuidv7(), hour.host_id, period_start, period_start + make_interval(secs => %(seconds)s),
       hour.sellable_ppm, hour.sold_ppm, hour.lost_ppm, hour.need_ppm, hour.derated_ppm
FROM unnest(%(starts)s::timestamptz[]) AS period_start
JOIN providers_hosthour AS hour
  ON hour.hour_start = date_trunc('hour', period_start, 'UTC') AND hour.host_id = ANY(%(hosts)s::uuid[])
ORDER BY hour.host_id, period_start
ON CONFLICT (host_id, period_start) DO NOTHING
"""
_HOSTS_WITHOUT = """
SELECT host.id FROM providers_host AS host
WHERE host.status IN ('enrolled', 'paused') AND EXISTS (
    SELECT 1 FROM unnest(%(starts)s::timestamptz[]) AS period_start
    WHERE NOT EXISTS (
        SELECT 1 FROM providers_hostperiod AS period
        WHERE period.host_id = host.id AND period.period_start = period_start.period_start))
ORDER BY host.id
"""
_CHANGE_HOURS = """
UPDATE providers_hosthour SET sold_ppm = sold_ppm + %(delta)s
WHERE host_id = %(host)s AND hour_start = ANY(%(hours)s::timestamptz[])
  AND sold_ppm + %(delta)s BETWEEN 0 AND sellable_ppm
"""
_PERIODS_OF_HOURS = """
SELECT id FROM providers_hostperiod
WHERE host_id = %(host)s AND period_start >= %(first)s AND period_start < %(last)s AND period_end > %(now)s
  AND date_trunc('hour', period_start, 'UTC') = ANY(%(hours)s::timestamptz[])
ORDER BY period_start FOR NO KEY UPDATE
"""
_CHANGE_PERIODS = """
UPDATE providers_hostperiod SET sold_ppm = sold_ppm + %(delta)s
WHERE id = ANY(%(periods)s::uuid[]) AND sold_ppm + %(delta)s BETWEEN 0 AND sellable_ppm
"""
_CHANGE_PERIOD = """
UPDATE providers_hostperiod SET sold_ppm = sold_ppm + %(delta)s
WHERE host_id = %(host)s AND period_start = %(start)s AND sold_ppm + %(delta)s BETWEEN 0 AND sellable_ppm
RETURNING sold_ppm
"""


class CapacityGone(DomainError):
    """The share asked for is not unsold any more."""

    code = "capacity_gone"
    http_status = 409
    title = "The capacity is sold"


def sellable_ppm() -> int:
    """The share of a host that may be sold: all of it but the operating margin."""
    return int(PPM - settings.OPERATING_MARGIN_PPM)


def hour_of(at: datetime) -> datetime:
    """The start of the UTC hour that `at` lies in."""
    return _EPOCH + (at - _EPOCH) // _HOUR * _HOUR


def open_capacity(*, now: datetime) -> int:
    """Make the rows of the running delivery period and the next ones, for every enrolled host. Returns how many.

    Doing it again, or from two workers at once, changes nothing.
    """
    first = delivery_period(now).start
    step = timedelta(seconds=settings.DELIVERY_PERIOD_S)
    starts = [first + index * step for index in range(HORIZON_PERIODS + 1)]
    with connection.cursor() as cursor:
        cursor.execute(_HOSTS_WITHOUT, {"starts": starts})
        hosts = [row[0] for row in cursor.fetchall()]
    return make_periods(hosts, starts) if hosts else 0


@transaction.atomic
def take_firm_share(
    *,
    host_id: UUID,
    hours: Sequence[datetime],
    share_ppm: int,
    now: datetime,
    starts_at: datetime | None = None,
) -> None:
    """Sell a share of a host firm, in every one of these UTC hours or in none: raises CapacityGone.

    `starts_at` is the first delivery period of the sale where that lies inside the first hour: earlier periods of
    the hour, which may be auctioned already, are left alone.
    """
    assert share_ppm > 0
    wanted = _whole_hours(hours)
    if share_ppm > sellable_ppm():
        raise CapacityGone("More than a host's sellable share was asked for.")
    lock_hours([host_id], wanted)
    with connection.cursor() as cursor:
        cursor.execute(_CHANGE_HOURS, {"host": host_id, "hours": wanted, "delta": share_ppm})
        if cursor.rowcount != len(wanted):
            raise CapacityGone("The host is sold out in at least one hour of the term.")
        if not _change_periods_of_hours(host_id, wanted, share_ppm, now, starts_at):
            raise CapacityGone("The host is sold out in at least one period that is open already.")


@transaction.atomic
def give_back_firm_share(
    *,
    host_id: UUID,
    hours: Sequence[datetime],
    share_ppm: int,
    now: datetime,
    starts_at: datetime | None = None,
) -> None:
    """Undo a firm sale in these hours, and in their periods that are not over."""
    assert share_ppm > 0
    wanted = _whole_hours(hours)
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_HOURS, {"hosts": [host_id], "hours": wanted})
        cursor.execute(_CHANGE_HOURS, {"host": host_id, "hours": wanted, "delta": -share_ppm})
        assert cursor.rowcount == len(wanted), "more is given back than was taken"
        changed = _change_periods_of_hours(host_id, wanted, -share_ppm, now, starts_at)
        assert changed, "more is given back than was taken"


@transaction.atomic
def take_period_share(*, host_id: UUID, period_start: datetime, share_ppm: int) -> int:
    """Sell a share of a host in one delivery period; returns what is sold of it now. Raises CapacityGone.

    The period's row is made where it is missing.
    """
    assert share_ppm > 0
    assert delivery_period(period_start).start == period_start, "a delivery period begins on its grid"
    before = transaction.savepoint()
    sold = _change_period(host_id, period_start, share_ppm)
    if sold is None:
        # An UPDATE that waited and then did not match keeps the row locked; hours are locked before periods.
        transaction.savepoint_rollback(before)
        # Whether we made the row or somebody else did at the same moment: now it is there to be taken from.
        make_periods([host_id], [period_start])
        sold = _change_period(host_id, period_start, share_ppm)
    if sold is None:
        raise CapacityGone("The host has not that much unsold in this period.")
    return sold


@transaction.atomic
def give_back_period_share(*, host_id: UUID, period_start: datetime, share_ppm: int) -> int:
    """Undo a taking, or the part of it that was not awarded; returns what is sold of the period now."""
    assert share_ppm > 0
    sold = _change_period(host_id, period_start, -share_ppm)
    assert sold is not None, "more is given back than was taken"
    return sold


def lock_hours(hosts: Sequence[UUID], hours: Sequence[datetime]) -> None:
    """Make these hours of these hosts where they are missing, and lock them until the transaction ends."""
    places: dict[str, Any] = {"hosts": list(hosts), "hours": list(hours), "sellable": sellable_ppm()}
    with connection.cursor() as cursor:
        cursor.execute(_MAKE_HOURS, places)
        cursor.execute(_LOCK_HOURS, places)


def make_periods(hosts: list[UUID], starts: list[datetime]) -> int:
    """Make these periods of these hosts where they are missing, under the locks of their hours; how many it made."""
    places: dict[str, Any] = {
        "hosts": hosts,
        "hours": sorted({hour_of(start) for start in starts}),
        "starts": starts,
        "sellable": sellable_ppm(),
        "seconds": settings.DELIVERY_PERIOD_S,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_MAKE_HOURS, places)
        cursor.execute(_LOCK_HOURS, places)
        cursor.execute(_MAKE_PERIODS, places)
        return int(cursor.rowcount)


def _change_period(host_id: UUID, period_start: datetime, delta_ppm: int) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute(_CHANGE_PERIOD, {"host": host_id, "start": period_start, "delta": delta_ppm})
        row = cursor.fetchone()
    return None if row is None else int(row[0])


def _change_periods_of_hours(
    host_id: UUID, hours: list[datetime], delta_ppm: int, now: datetime, starts_at: datetime | None
) -> bool:
    first = hours[0] if starts_at is None else starts_at
    with connection.cursor() as cursor:
        cursor.execute(
            _PERIODS_OF_HOURS,
            {"host": host_id, "first": first, "last": hours[-1] + _HOUR, "now": now, "hours": hours},
        )
        periods = [row[0] for row in cursor.fetchall()]
        if not periods:
            return True
        cursor.execute(_CHANGE_PERIODS, {"periods": periods, "delta": delta_ppm})
        return bool(cursor.rowcount == len(periods))


def _whole_hours(hours: Sequence[datetime]) -> list[datetime]:
    assert hours, "a firm sale has at least one hour"
    wanted = sorted(set(hours))
    assert all(hour_of(hour) == hour for hour in wanted), "firm capacity is sold by the UTC hour"
    return wanted
