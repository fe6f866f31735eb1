"""Outages that a provider announces: their hours are not sold, so nobody fails in them.

Part of this room's services: `providers.services` exports it. A window is of whole UTC hours, as firm capacity is sold,
and takes what is unsold out of sale under the same constraint that keeps capacity from being sold twice: hours that are
sold already, even in part, cannot be announced away. Locking rule as in `capacity`: hours before periods, by time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import IntegrityError, connection, transaction

from marketplace.accounts.services import Actor
from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound, constraint_of
from providers.capacity import hour_of, lock_hours, sellable_ppm
from providers.hosting import audit_host
from providers.models import Host, Outage
from providers.selectors import find_host

# What is auctioned or admitted already is owed: a window begins with an hour that nothing was asked into yet.
NOTICE: Final = timedelta(hours=1)
HORIZON: Final = timedelta(days=366)
LONGEST: Final = timedelta(days=14)
_HOUR: Final = timedelta(hours=1)

_SET_HOURS = """
UPDATE providers_hosthour SET sellable_ppm = %(sellable)s - least(lost_ppm, %(sellable)s),
       derated_ppm = least(lost_ppm, %(sellable)s)
 WHERE host_id = %(host)s AND hour_start >= %(start)s AND hour_start < %(end)s AND sold_ppm = 0
"""
_SET_PERIODS = """
UPDATE providers_hostperiod SET sellable_ppm = %(sellable)s - least(lost_ppm, %(sellable)s),
       derated_ppm = least(lost_ppm, %(sellable)s), carry_over_ppm = 0
 WHERE host_id = %(host)s AND period_start >= %(start)s AND period_start < %(end)s AND sold_ppm = 0
"""
_LOCK_PERIODS = """
SELECT 1 FROM providers_hostperiod
 WHERE host_id = %(host)s AND period_start >= %(start)s AND period_start < %(end)s
 ORDER BY period_start FOR NO KEY UPDATE
"""


class HoursSold(DomainError):
    """Somebody has bought of the host in these hours."""

    code = "hours_sold"
    http_status = 409
    title = "The hours are sold"


@transaction.atomic
def announce_outage(
    *,
    organization_id: UUID,
    host_id: UUID,
    starts_at: datetime,
    ends_at: datetime,
    now: datetime,
    actor: Actor,
) -> Outage:
    """Take a host out of sale in `[starts_at, ends_at)`: whole UTC hours, an hour ahead at least.

    The same window again is the same outage. Raises InvalidInput naming the field, HoursSold when anything of it is
    sold, Conflict when it overlaps another announced outage, NotFound for a host of another organization.
    """
    host = find_host(organization_id, host_id)
    _check_window(starts_at, ends_at, now)
    same = Outage.objects.filter(
        host=host, kind=Outage.Kind.PLANNED, started_at=starts_at, ended_at=ends_at
    ).first()
    if same is not None:
        return same
    try:
        with transaction.atomic():
            outage = Outage.objects.create(
                host=host, kind=Outage.Kind.PLANNED, started_at=starts_at, ended_at=ends_at, created_at=now
            )
    except IntegrityError as error:
        if constraint_of(error) != "providers_outage_apart":
            raise
        raise Conflict("Another outage is announced in this time.", field="starts_at") from error
    if not _set_sellable(host, starts_at, ends_at, sellable=0):
        raise HoursSold(
            "Something of the host is sold in this time; what is sold is to be delivered.", field="starts_at"
        )
    audit_host(
        host,
        "host.outage_announced",
        actor,
        now,
        starts_at=starts_at.isoformat(),
        ends_at=ends_at.isoformat(),
    )
    return outage


@transaction.atomic
def withdraw_outage(
    *, organization_id: UUID, host_id: UUID, outage_id: UUID, now: datetime, actor: Actor
) -> None:
    """Sell the hours again, before the first of them begins; what stays on record is an empty time. Doing it again
    changes nothing. Raises NotFound, Conflict (it has begun).
    """
    host = find_host(organization_id, host_id)
    outage = (
        Outage.objects.select_for_update().filter(pk=outage_id, host=host, kind=Outage.Kind.PLANNED).first()
    )
    if outage is None:
        raise NotFound("There is no such announced outage.")
    assert outage.ended_at is not None, "what is announced has an end"
    if outage.ended_at == outage.started_at:
        return
    if outage.started_at <= now:
        raise Conflict("The outage has begun; it stays on record.")
    restored = _set_sellable(host, outage.started_at, outage.ended_at, sellable=sellable_ppm())
    assert restored, "nothing is sold in hours that are out of sale"
    outage.ended_at = outage.started_at
    outage.save(update_fields=["ended_at"])
    audit_host(host, "host.outage_withdrawn", actor, now, starts_at=outage.started_at.isoformat())


def _check_window(starts_at: datetime, ends_at: datetime, now: datetime) -> None:
    for field, at in (("starts_at", starts_at), ("ends_at", ends_at)):
        if hour_of(at) != at:
            raise InvalidInput("It must be a whole UTC hour.", field=field)
    if starts_at - now < NOTICE:
        raise InvalidInput("An outage is announced at least an hour ahead.", field="starts_at")
    if starts_at - now > HORIZON:
        raise InvalidInput("An outage is announced at most a year ahead.", field="starts_at")
    if ends_at <= starts_at:
        raise InvalidInput("It must lie after starts_at.", field="ends_at")
    if ends_at - starts_at > LONGEST:
        raise InvalidInput("An outage has at most 14 days.", field="ends_at")


def _set_sellable(host: Host, start: datetime, end: datetime, *, sellable: int) -> bool:
    """Whether all hours and periods of the window had nothing sold, and so could be set."""
    hours = [start + index * _HOUR for index in range((end - start) // _HOUR)]
    lock_hours([host.pk], hours)
    places: dict[str, Any] = {"host": host.pk, "start": start, "end": end, "sellable": sellable}
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_PERIODS, places)
        periods = cursor.rowcount
        cursor.execute(_SET_HOURS, places)
        if cursor.rowcount != len(hours):
            return False
        cursor.execute(_SET_PERIODS, places)
        return bool(cursor.rowcount == periods)
