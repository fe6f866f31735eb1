"""Requests that run across a period's start take part of the next period's capacity. Part of this room's services."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.db import connection, transaction

from marketplace.periods import delivery_period
from providers.services import set_carry_over

# Of an open hold that may last beyond the start: its volume, as if it were made evenly over all the time that it may
# take, in the part of that time that is still to come and lies in the period or after it.
_CARRIED: Final = """
SELECT offering.host_id, ceil(sum(
    1000000 * hold.amount_numerator
        * extract(epoch FROM hold.expires_at - greatest(%(start)s, %(now)s))
        / extract(epoch FROM hold.expires_at - hold.opened_at)
        / (offering.dependable_numerator_per_s * %(seconds)s::numeric)
))::bigint
  FROM contracts_hold AS hold JOIN providers_offering AS offering ON offering.id = hold.offering_id
 WHERE hold.status = 'open' AND hold.opened_at < %(start)s AND hold.expires_at > greatest(%(start)s, %(now)s)
   AND hold.expires_at > hold.opened_at
 GROUP BY 1
"""


@transaction.atomic
def keep_carry_over(*, period_start: datetime, now: datetime) -> int:
    """Keep back, in the period that begins then, what requests still running take of each host; how many rows changed.

    At the gate these are the requests that run now and may run beyond the start; once the period runs, those that were
    admitted before it and still do. What they no longer take is unsold again. Doing it again changes nothing.
    """
    places: dict[str, Any] = {"start": period_start, "now": now, "seconds": settings.DELIVERY_PERIOD_S}
    with connection.cursor() as cursor:
        cursor.execute(_CARRIED, places)
        shares = {host_id: min(1_000_000, ppm) for host_id, ppm in cursor.fetchall()}
    return set_carry_over(shares, period_start=period_start)


def return_carry_over(*, now: datetime) -> int:
    """Bring the running period's carry-over to what still runs; see `keep_carry_over`."""
    return keep_carry_over(period_start=delivery_period(now).start, now=now)
