"""Failures whose replacement is another one now than the last run counted. Part of this room's selectors."""

from __future__ import annotations

from typing import Final

# A contract's period whose recorded `replaced` differs from what `failing` would count now: what the buyer
# bought of the grade from offerings that did not fail him, less what the failures of his other contracts count, at
# most F. Written as the exact condition, so that a run which counts it anew ends it.
REPLACED_OTHERWISE: Final = """
    SELECT failed.contract_id, date_bin(%(period)s, failed.period_start, 'epoch'::timestamptz) AS settlement_start
    FROM (
        SELECT last.contract_id, last.organization_id, last.grade_id, last.period_start,
               sum(last.failed_numerator) AS failed, sum(last.replaced_numerator) AS replaced,
               array_agg(last.offering_id) FILTER (WHERE last.failed_numerator > 0) AS offerings
        FROM last_outcome AS last
        GROUP BY 1, 2, 3, 4
        HAVING sum(last.failed_numerator) > 0
    ) AS failed
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(rollup.numerator), 0) AS elsewhere
        FROM contracts_contract AS own
        JOIN metering_usagerollup AS rollup ON rollup.contract_id = own.id
        JOIN pricing_rate AS rate ON rate.id = rollup.rate_id
        WHERE own.organization_id = failed.organization_id
          AND rollup.grade_id = failed.grade_id AND rollup.meter = 'gateway'
          AND rollup.period_start = failed.period_start AND rate.kind IN ('list', 'overage')
          AND rollup.offering_id <> ALL (failed.offerings)
    ) AS bought
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(other.replaced_numerator), 0) AS counted
        FROM last_outcome AS other
        WHERE other.organization_id = failed.organization_id AND other.grade_id = failed.grade_id
          AND other.period_start = failed.period_start AND other.contract_id <> failed.contract_id
    ) AS others
    WHERE failed.replaced <> least(failed.failed, greatest(0, bought.elsewhere - others.counted))
"""
LAST_OUTCOME: Final = """
    SELECT DISTINCT ON (contract_id, offering_id, period_start)
           contract_id, offering_id, period_start, organization_id, grade_id, failed_numerator, replaced_numerator
    FROM billing_deliveryoutcome
    WHERE period_start >= %(since)s AND period_start < %(until)s + %(period)s
    ORDER BY contract_id, offering_id, period_start, run DESC
"""
