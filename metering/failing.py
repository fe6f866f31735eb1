"""What usage events say of attempts that broke off, and of the next one that was served."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection

from metering.packing import FLAG_BITS
from metering.usage import Flag
from pricing.units import OUTPUT_BUCKETS

_BROKEN: Final = FLAG_BITS[Flag.UPSTREAM_FAILED]
# An event's moment is its admission; it broke off when its attempt was over.
_BROKEN_OFF = """
SELECT offering_id, period_start, occurred_at + coalesce(duration_ms, 0) * interval '1 millisecond'
  FROM metering_usageevent
 WHERE contract_id = %(contract)s AND period_start >= %(since)s AND period_start < %(until)s
   AND flags & %(broken)s <> 0
 ORDER BY 1, 2, 3
"""
# Roll-ups name the contracts that an offering supplied, and those lead to the events by their index.
_SERVED = """
SELECT event.occurred_at
  FROM metering_usageevent event JOIN metering_metersource source ON source.id = event.source_id
 WHERE event.contract_id IN (SELECT rollup.contract_id FROM metering_usagerollup rollup
                              WHERE rollup.offering_id = %(offering)s AND rollup.period_start >= %(since)s
                                AND rollup.period_start < %(until)s)
   AND event.period_start >= %(since)s AND event.period_start < %(until)s
   AND event.offering_id = %(offering)s AND source.kind = 'gateway' AND event.flags & %(broken)s = 0
 ORDER BY 1
"""


def attempts_broken_off(
    contract_id: UUID, *, since: datetime, until: datetime
) -> list[tuple[UUID, datetime, datetime]]:
    """(offering, delivery period, when) of the contract's attempts that a meter saw fail after they had begun."""
    with connection.cursor() as cursor:
        cursor.execute(
            _BROKEN_OFF, {"contract": contract_id, "since": since, "until": until, "broken": _BROKEN}
        )
        return list(cursor.fetchall())


def attempts_served(offering_id: UUID, *, since: datetime, until: datetime) -> Sequence[datetime]:
    """When requests were admitted that the offering served, for whomever, in delivery periods in `[since, until)`."""
    parameters: dict[str, Any] = {
        "offering": offering_id,
        "since": since,
        "until": until,
        "broken": _BROKEN,
    }
    with connection.cursor() as cursor:
        cursor.execute(_SERVED, parameters)
        return [at for (at,) in cursor.fetchall()]


def delivered_by_side(
    contract_id: UUID, *, since: datetime, until: datetime
) -> dict[tuple[UUID, datetime, UUID], tuple[int, int]]:
    """By (rate, delivery period, offering) the numerators of input and of output that the gateway carried."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT rate_id, period_start, offering_id,
                      coalesce(sum(numerator) FILTER (WHERE NOT bucket = ANY (%(output)s)), 0)::bigint,
                      coalesce(sum(numerator) FILTER (WHERE bucket = ANY (%(output)s)), 0)::bigint
                 FROM metering_usagerollup
                WHERE contract_id = %(contract)s AND meter = 'gateway' AND period_start >= %(since)s
                  AND period_start < %(until)s
                GROUP BY 1, 2, 3""",
            {
                "contract": contract_id,
                "since": since,
                "until": until,
                "output": [bucket.value for bucket in OUTPUT_BUCKETS],
            },
        )
        return {
            (rate, start, offering): (made_in, made_out)
            for rate, start, offering, made_in, made_out in cursor.fetchall()
        }
