"""The auditor's re-adding: roll-ups from stored events, event by event and bucket by bucket. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db import connection

from metering.packing import COUNT_COLUMNS, FLAG_BITS
from metering.usage import Flag
from metering.validating import RETENTION
from pricing.units import Bucket

_ESTIMATED: Final = FLAG_BITS[Flag.ESTIMATED] | FLAG_BITS[Flag.RECOVERED]
_HIDDEN: Final = FLAG_BITS[Flag.HIDDEN_REASONING]
_KEY: Final = ("contract_id", "rate_id", "api_key_id", "offering_id", "bucket", "meter", "period_start")
_FIGURES: Final = (
    "events", "native_tokens", "numerator", "estimated_events", "estimated_numerator", "recounted_tokens",
    "recount_o200k_tokens",
)  # fmt: skip
_SUMS: Final = ", ".join(
    f"""count({name}) AS {name}_n, sum({name}) AS {name}_t,
        count({name}) FILTER (WHERE flags & {_ESTIMATED} <> 0) AS {name}_en,
        sum({name}) FILTER (WHERE flags & {_ESTIMATED} <> 0) AS {name}_et"""
    for name in COUNT_COLUMNS
)
_BY_BUCKET: Final = ", ".join(
    f"('{bucket.value}', k.{name}_n, k.{name}_t, k.{name}_en, k.{name}_et, "
    + ("k.recounted, k.recount)" if bucket is Bucket.OUTPUT else "0::numeric, 0::numeric)")
    for bucket, name in zip(Bucket, COUNT_COLUMNS, strict=True)
)
_NAMES: Final = ", ".join(_KEY)
# One statement, so one snapshot: it may run while usage comes in. Nothing here is shared with ingestion's own SQL.
_CHECK: Final = f"""
WITH counted AS (
    SELECT e.*, s.kind AS meter FROM metering_usageevent e JOIN metering_metersource s ON s.id = e.source_id
     WHERE e.period_start >= %(since)s
       AND NOT EXISTS (SELECT 1 FROM metering_usagecorrection c
                        WHERE c.target_id = e.id AND c.target_source_id = e.source_id)
), keyed AS (
    SELECT contract_id, rate_id, coalesce(api_key_id, '00000000-0000-0000-0000-000000000000') AS api_key_id,
           offering_id, meter, period_start, grade_id, sum(numerator) AS numerator, {_SUMS},
           sum(output_tokens + CASE WHEN flags & {_HIDDEN} <> 0 THEN 0 ELSE coalesce(reasoning_tokens, 0) END)
               FILTER (WHERE recount_o200k_tokens IS NOT NULL AND flags & {_ESTIMATED} = 0) AS recounted,
           sum(recount_o200k_tokens)
               FILTER (WHERE output_tokens IS NOT NULL AND flags & {_ESTIMATED} = 0) AS recount
      FROM counted GROUP BY 1, 2, 3, 4, 5, 6, 7
), weighed AS (
    SELECT k.contract_id, k.rate_id, k.api_key_id, k.offering_id, b.bucket, k.meter, k.period_start, k.grade_id,
           b.events, b.tokens AS native_tokens, b.tokens * coalesce(g.standard_ppm, 0) AS numerator,
           b.estimated_events, b.estimated_tokens * coalesce(g.standard_ppm, 0) AS estimated_numerator,
           b.recounted_tokens, b.recount_o200k_tokens
      FROM keyed k
     CROSS JOIN LATERAL (VALUES {_BY_BUCKET}) AS b (
               bucket, events, tokens, estimated_events, estimated_tokens, recounted_tokens, recount_o200k_tokens)
      LEFT JOIN pricing_gradebucket g ON g.grade_id = k.grade_id AND g.bucket = b.bucket
     WHERE b.events > 0
), recomputed AS (
    SELECT {_NAMES}, {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _FIGURES)}
      FROM weighed GROUP BY {_NAMES}
), recorded AS (
    SELECT {_NAMES}, {", ".join(_FIGURES)} FROM metering_usagerollup WHERE period_start >= %(since)s
), found AS (
    SELECT f.what, jsonb_build_object({", ".join(f"'{name}', {name}" for name in _KEY)}) AS key,
           coalesce(f.recorded, 0) AS recorded, coalesce(f.recomputed, 0) AS recomputed
      FROM recorded r FULL JOIN recomputed w USING ({_NAMES})
     CROSS JOIN LATERAL (VALUES {", ".join(f"('rollup_{name}', r.{name}, w.{name})" for name in _FIGURES)})
               AS f (what, recorded, recomputed)
    UNION ALL
    SELECT 'event_numerator',
           jsonb_build_object('contract_id', contract_id, 'rate_id', rate_id, 'meter', meter,
                              'period_start', period_start),
           sum(stored), sum(weighed)
      FROM (SELECT contract_id, rate_id, meter, period_start, numerator AS stored, 0 AS weighed FROM keyed
             UNION ALL
            SELECT contract_id, rate_id, meter, period_start, 0, numerator FROM weighed) AS both_sides
     GROUP BY contract_id, rate_id, meter, period_start
    UNION ALL
    SELECT 'batch_accepted_events', jsonb_build_object('batch_id', b.id), b.accepted_events, coalesce(e.events, 0)
      FROM metering_usagebatch b
      LEFT JOIN (SELECT batch_id, count(*) AS events FROM metering_usageevent GROUP BY 1) e ON e.batch_id = b.id
     WHERE b.status = 'stored' AND b.received_at >= %(since)s
    UNION ALL
    SELECT 'batch_told_events', jsonb_build_object('batch_id', b.id),
           b.accepted_events + b.duplicate_events + jsonb_array_length(b.exceptions),
           b.sequence_to - b.sequence_from + 1
      FROM metering_usagebatch b
     WHERE b.status = 'stored' AND b.received_at >= %(since)s AND b.sequence_from IS NOT NULL
)
SELECT what, key::text, recorded::text, recomputed::text FROM found WHERE recorded <> recomputed ORDER BY 1, 2
"""  # noqa: S608
_TOTALS: Final = """
SELECT (SELECT count(*) FROM metering_usageevent WHERE period_start >= %(since)s),
       (SELECT count(*) FROM metering_usagerollup WHERE period_start >= %(since)s),
       (SELECT count(*) FROM metering_usagecorrection),
       (SELECT count(*) FROM metering_usagebatch WHERE status = 'pending'),
       (SELECT count(*) FROM metering_usagebatch WHERE status = 'dead')
"""


@dataclass(frozen=True, slots=True)
class UsageDifference:
    """A sum that stored events do not bear out. `key` names the roll-up, or the batch; a missing row counts as zero."""

    what: str
    key: Mapping[str, str]
    recorded: int
    recomputed: int


def audited_since(now: datetime) -> datetime:
    """How far back every event is kept, so that sums can be made again: an id may be a day older than what it tells."""
    return now - RETENTION + timedelta(days=1)


def check_usage(*, since: datetime) -> list[UsageDifference]:
    """Re-adds the roll-ups of delivery periods that begin at `since` or later; empty when all agree to the token.

    Three more promises are proved on the way: an event's own numerator is its buckets' by the grade's weights, a
    stored batch has exactly the events that it says were accepted, and it tells what became of each one sent.
    """
    with connection.cursor() as cursor:
        cursor.execute(_CHECK, {"since": since})
        return [
            UsageDifference(what, json.loads(key), int(recorded), int(recomputed))
            for what, key, recorded, recomputed in cursor.fetchall()
        ]


def usage_totals(*, since: datetime) -> dict[str, int]:
    """How much there is to check, and what still waits to be counted."""
    with connection.cursor() as cursor:
        cursor.execute(_TOTALS, {"since": since})
        names = ("events", "rollups", "corrections", "pending_batches", "dead_batches")
        return dict(zip(names, cursor.fetchone(), strict=True))
