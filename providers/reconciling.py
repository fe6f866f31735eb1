"""The witnesses of every host compared, once for each settlement period."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from marketplace.jobs import claim_job, finish_job
from marketplace.periods import settlement_period
from metering.services import reconcile_host
from providers.models import Offering

JOB = "providers.reconcile"


def reconcile_hosts(*, now: datetime) -> int:
    """Compare gateway, agent and engine for the last settlement period whose usage is due; returns the discrepancies.

    Once per period, whoever is woken and however often.
    """
    due = now - timedelta(
        seconds=settings.SETTLEMENT_PERIOD_S + settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S
    )
    period = settlement_period(due)
    if not claim_job(job=JOB, period_start=period.start, now=now):
        return 0
    offerings: dict[UUID, list[UUID]] = defaultdict(list)
    for offering_id, host_id in Offering.objects.order_by("pk").values_list("pk", "host_id"):
        offerings[host_id].append(offering_id)
    found = [
        reconcile_host(
            host_id=host_id,
            offering_ids=offering_ids,
            settlement_start=period.start,
            settlement_end=period.end,
            now=now,
        )
        for host_id, offering_ids in offerings.items()
    ]
    finish_job(job=JOB, period_start=period.start, now=now)
    return sum(discrepancy is not None for discrepancy in found)
