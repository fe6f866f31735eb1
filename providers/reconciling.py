"""The witnesses of every host compared: each settlement period before it is settled, and when its sums change."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.jobs import claim_job, finish_job
from marketplace.periods import delivery_period, settlement_period
from metering.reconciling import periods_to_reconcile
from metering.services import (
    check_recounts,
    close_overdue_discrepancies,
    reconcile_host,
    replace_estimates,
)
from metering.validating import RETENTION
from providers.models import Offering

logger = logging.getLogger(__name__)

LATE_USAGE_JOB: Final = "providers.reconcile_late_usage"
RECOUNT_JOB: Final = "providers.check_recounts"
_RECENT: Final = timedelta(hours=1)


@dataclass(slots=True)
class _Fleet:
    """Every host with something to sell, now or earlier."""

    host_of: dict[UUID, UUID]
    provider_of: dict[UUID, UUID]
    offerings: dict[UUID, list[UUID]]
    # The longest request that any of its grades allows.
    longest_s: dict[UUID, int]
    clock_skew_ms: dict[UUID, int | None]


def reconcile_hosts(*, now: datetime) -> int:
    """Compare gateway, agent and engine wherever usage is due and has not been compared as it is; returns how many
    periods are in dispute.

    What came late is looked for in recent periods at every call, in all of retention once an hour. Estimates of which
    the actual count has come are replaced first; discrepancies that nobody ruled on in ten days close. What fails, of
    one host or one of these, keeps nothing else from being done: it is logged, and the first error raised at the end.
    """
    hour = now.replace(minute=0, second=0, microsecond=0)
    looks_back = claim_job(job=LATE_USAGE_JOB, period_start=hour, now=now)
    recent = max(_RECENT, 4 * timedelta(seconds=settings.SETTLEMENT_PERIOD_S + settings.MAX_REQUEST_S))
    since = settlement_period(now - (RETENTION if looks_back else recent)).start
    failures: list[Exception] = []
    fleet = _fleet()
    found = 0
    with _going_on("estimates not replaced", failures):
        replace_estimates(since=since, now=now)
    with _going_on("hosts not reconciled", failures):
        found = _reconcile(fleet, failures, since=since, now=now)
        if looks_back:
            finish_job(job=LATE_USAGE_JOB, period_start=hour, now=now)
    with _going_on("overdue discrepancies not closed", failures):
        close_overdue_discrepancies(now=now)
    with _going_on("recounts not checked", failures):
        _check_recounts(fleet, now)
    if failures:
        raise failures[0]
    return found


@contextmanager
def _going_on(what: str, failures: list[Exception], **about: str) -> Iterator[None]:
    """What fails inside is logged and noted; what comes after it is done all the same."""
    try:
        yield
    except Exception as error:
        logger.exception(what, extra=about)
        failures.append(error)


def reconcile_period(*, settlement_start: datetime, now: datetime) -> int:
    """`reconcile_hosts` for the one settlement period that is about to be settled; returns its periods in dispute.

    A host that cannot be compared keeps nobody else's from being so: the error is logged, and raised at the end.
    """
    period = settlement_period(settlement_start)
    failures: list[Exception] = []
    found = 0
    with _going_on("estimates not replaced", failures):
        replace_estimates(since=period.start, until=period.end, now=now)
    with _going_on("hosts not reconciled", failures):
        found = _reconcile(_fleet(), failures, since=period.start, until=period.end, now=now)
    if failures:
        raise failures[0]
    return found


def _reconcile(
    fleet: _Fleet, failures: list[Exception], *, since: datetime, now: datetime, until: datetime | None = None
) -> int:
    disputed = 0
    stale = periods_to_reconcile(
        fleet.host_of, since=since, until=until or now, period_s=settings.SETTLEMENT_PERIOD_S, now=now
    )
    for host_id, settlement_start in stale:
        period = settlement_period(settlement_start)
        wait = timedelta(seconds=fleet.longest_s[host_id] + settings.SETTLEMENT_GRACE_S)
        if now < period.end + wait:
            continue
        # Whatever it is about this host, the others' money does not wait for it.
        with _going_on("host not reconciled", failures, host_id=str(host_id)), transaction.atomic():
            discrepancy = reconcile_host(
                host_id=host_id,
                offering_ids=fleet.offerings[host_id],
                settlement_start=period.start,
                settlement_end=period.end,
                clock_skew_ms=fleet.clock_skew_ms[host_id],
                now=now,
            )
            disputed += discrepancy is not None
    return disputed


def _check_recounts(fleet: _Fleet, now: datetime) -> None:
    """Once for each delivery period: so long a provider may go on that adds to every count."""
    period = delivery_period(now)
    if not claim_job(job=RECOUNT_JOB, period_start=period.start, now=now):
        return
    check_recounts(hosts=fleet.host_of, providers=fleet.provider_of, now=now)
    finish_job(job=RECOUNT_JOB, period_start=period.start, now=now)


def _fleet() -> _Fleet:
    fleet = _Fleet({}, {}, defaultdict(list), {}, {})
    rows: Iterable[tuple[UUID, UUID, UUID, int, int | None]] = (
        Offering.objects.order_by("pk")
        .values_list("pk", "host_id", "host__provider_id", "grade__max_request_s", "host__clock_skew_ms")
        .iterator()
    )
    for offering_id, host_id, provider_id, max_request_s, clock_skew_ms in rows:
        fleet.host_of[offering_id] = host_id
        fleet.provider_of[host_id] = provider_id
        fleet.offerings[host_id].append(offering_id)
        fleet.longest_s[host_id] = max(max_request_s, fleet.longest_s.get(host_id, 0))
        fleet.clock_skew_ms[host_id] = clock_skew_ms
    return fleet
