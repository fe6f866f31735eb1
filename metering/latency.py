"""How fast requests were served, of one contract and time, as the gateway measured it. Part of this room's selectors.

Only paid requests that the gateway saw itself are counted: not what the sweeper captured on an agent's word, not what
an editor wrote, nothing that was voided, no second attempt, whose time is partly another host's. Time per output token
is of streams that their engine ended and whose buyer did not hold them up. An amended event is measured as the gateway
saw it: an amendment may leave the sum billed as it is, and then no settlement runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection

from metering.packing import FLAG_BITS
from metering.usage import Finish, Flag
from pricing.service_levels import Metric
from pricing.units import INPUT_BUCKETS, OUTPUT_BUCKETS, Bucket

_RECOVERED: Final = FLAG_BITS[Flag.RECOVERED]
_ENDED: Final = [Finish.STOP, Finish.LENGTH, Finish.TOOL_CALLS, Finish.CONTENT_FILTER]


def _sum_of(buckets: Sequence[Bucket]) -> str:
    return " + ".join(f"coalesce(event.{bucket.value}_tokens, 0)" for bucket in buckets)


# The value in microseconds, and which requests have one. Integer division is the floor: nothing here is negative.
_METRICS: Final = {
    Metric.FIRST_TOKEN: ("event.first_byte_ms::bigint * 1000", "true"),
    Metric.OUTPUT_TOKEN: (
        f"greatest(event.duration_ms - event.first_byte_ms, 0)::bigint * 1000 / ({_sum_of(OUTPUT_BUCKETS)} - 1)",
        f"event.duration_ms IS NOT NULL AND {_sum_of(OUTPUT_BUCKETS)} >= 2"
        f" AND event.flags & {FLAG_BITS[Flag.READER_SLOW] | FLAG_BITS[Flag.SPLIT]} = 0"
        " AND event.finish = ANY (%(ended)s)",
    ),
}
# `pricing.service_levels.rank`, in integers: percentile_disc takes its fraction as a double.
_NEAREST_RANK: Final = """
WITH measured AS MATERIALIZED (
    SELECT event.offering_id, CASE WHEN {fit} THEN {value} END AS value
      FROM metering_usageevent event JOIN metering_metersource source ON source.id = event.source_id
     WHERE event.contract_id = %(contract)s AND event.period_start >= %(since)s AND event.period_start < %(until)s
       AND event.grade_id = %(grade)s AND source.kind = 'gateway' AND NOT source.is_editor
       AND event.attempt = 0 AND event.part = 0 AND event.flags & %(recovered)s = 0
       AND event.first_byte_ms IS NOT NULL AND event.numerator > 0
       AND (%(most)s::bigint IS NULL OR {input} <= %(most)s)
       AND NOT EXISTS (SELECT FROM metering_usagecorrection correction
                        WHERE correction.target_id = event.id AND correction.target_source_id = event.source_id
                          AND correction.kind = 'void')
), ranked AS (
    SELECT offering_id, value, row_number() OVER (PARTITION BY offering_id ORDER BY value) AS place,
           count(*) OVER (PARTITION BY offering_id) AS requests
      FROM measured WHERE value IS NOT NULL
)
SELECT offering_id, requests, value FROM ranked WHERE place = (requests * %(percentile)s + 99) / 100
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """How many requests an offering served that could be measured, and the percentile of them in microseconds."""

    offering_id: UUID
    requests: int
    percentile_us: int


def latencies(
    contract_id: UUID,
    *,
    since: datetime,
    until: datetime,
    grade_id: UUID,
    metric: str,
    percentile: int,
    max_input_tokens: int | None = None,
) -> list[Latency]:
    """The percentile, by exact nearest rank, of each offering that served the contract in periods of `[since, until)`.

    Reads the contract's events of that time by their index and sorts them in the database.
    """
    value, fit = _METRICS[Metric(metric)]
    statement = _NEAREST_RANK.format(value=value, fit=fit, input=_sum_of(INPUT_BUCKETS))
    parameters: dict[str, Any] = {
        "contract": contract_id,
        "since": since,
        "until": until,
        "grade": grade_id,
        "percentile": percentile,
        "most": max_input_tokens,
        "recovered": _RECOVERED,
        "ended": [finish.value for finish in _ENDED],
    }
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [Latency(*row) for row in cursor.fetchall()]
