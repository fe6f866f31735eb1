"""Sealing and the nightly check: wake-ups that find what is due, so that hints may come twice or not at all."""

from __future__ import annotations

import logging

from celery import shared_task

from marketplace import clock
from marketplace.jobs import claim_job, finish_job
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.grants import expire_grants
from marketplace.ledger.sealing import seal_transfers
from marketplace.ledger.services import expire_holds
from marketplace.periods import period_at

_DAY_S = 86_400
_log = logging.getLogger(__name__)


@shared_task
def check_ledger_nightly() -> None:
    """End what has expired; once per UTC day, re-add the ledger and say loudly if it does not agree."""
    now = clock.now()
    while expire_holds(now=now, limit=1000) == 1000:
        pass
    while expire_grants(now=now, limit=1000) == 1000:
        pass
    day = period_at(now, _DAY_S).start
    if not claim_job(job="check_ledger", period_start=day, now=now):
        return
    differences = check_ledger()
    for difference in differences:
        _log.error("the ledger does not agree", extra={"difference": str(difference)})
    if not differences:
        # A day with a difference stays open: the next hint checks again until somebody has cleared it up.
        finish_job(job="check_ledger", period_start=day, now=now)


@shared_task
def seal_transfers_hourly() -> None:
    """Close what was posted under the next seals; where a transaction does not end in time the next hint goes on."""
    if not seal_transfers(now=clock.now()).complete:
        _log.warning("the ledger is not sealed up to now: a transaction is still running")
