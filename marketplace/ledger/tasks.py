"""Sealing, expiry, checks of the books: wake-ups that find what is due, so hints may come twice or not at all."""

from __future__ import annotations

import logging
from datetime import timedelta

from celery import shared_task

from marketplace import clock
from marketplace.jobs import DEFAULT_LEASE, claim_job, finish_job
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.grants import expire_grants
from marketplace.ledger.sealing import seal_transfers
from marketplace.ledger.services import expire_holds
from marketplace.periods import period_at

_DAY_S = 86_400
# The epoch was a Thursday: the week of the full check begins with it too.
_WEEK_S = 7 * _DAY_S
# Every seal is opened, so it takes as long as the books are large; nobody waits for it.
_FULL_S = 6 * 3_600
_log = logging.getLogger(__name__)


@shared_task
def expire_due() -> None:
    """Give back what holds and grants have left whose time has come."""
    now = clock.now()
    while expire_holds(now=now, limit=1000) == 1000:
        pass
    while expire_grants(now=now, limit=1000) == 1000:
        pass


@shared_task
def check_ledger_nightly() -> None:
    """Once per UTC day, add what is new since the last seal to the sums under it: as long as a day's business takes."""
    _check("check_ledger", period_s=_DAY_S, incremental=True, lease=DEFAULT_LEASE)


@shared_task(soft_time_limit=_FULL_S, time_limit=_FULL_S + 60)
def check_ledger_weekly() -> None:
    """Once per week, open every seal and re-add the ledger whole. Longer than the broker waits for an answer: who is
    handed it a second time meanwhile finds it claimed.
    """
    _check("check_ledger_full", period_s=_WEEK_S, incremental=False, lease=timedelta(seconds=_FULL_S + 120))


def _check(job: str, *, period_s: int, incremental: bool, lease: timedelta) -> None:
    now = clock.now()
    start = period_at(now, period_s).start
    if not claim_job(job=job, period_start=start, now=now, lease=lease):
        return
    differences = check_ledger(incremental=incremental)
    for difference in differences:
        _log.error("the ledger does not agree", extra={"difference": str(difference)})
    if not differences:
        # A period with a difference stays open: it is checked again until somebody has cleared it up.
        finish_job(job=job, period_start=start, now=now)


@shared_task
def seal_transfers_hourly() -> None:
    """Close what was posted under the next seals; where a transaction does not end in time the next hint goes on."""
    if not seal_transfers(now=clock.now()).complete:
        _log.warning("the ledger is not sealed up to now: a transaction is still running")
