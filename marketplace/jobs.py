"""Periodic jobs that run once per period, however many beats and workers there are.

Beat only sends hints. The job claims its (job, period) row first; the unique row decides who works, not the broker.
A claimer that dies leaves its lease behind; after the lease another may claim the same period and go on.
"""

from datetime import datetime, timedelta

from django.db import connection, transaction

from marketplace.models import JobRun

DEFAULT_LEASE = timedelta(minutes=10)

_CLAIM = """
INSERT INTO marketplace_jobrun AS run (job, period_start, claimed_at, lease_until, attempts)
VALUES (%(job)s, %(period_start)s, %(now)s, %(lease_until)s, 1)
ON CONFLICT ON CONSTRAINT marketplace_jobrun_one_per_period DO UPDATE
    SET claimed_at = excluded.claimed_at, lease_until = excluded.lease_until, attempts = run.attempts + 1
    WHERE run.finished_at IS NULL AND run.lease_until < excluded.claimed_at
RETURNING attempts
"""


@transaction.atomic
def claim_job(*, job: str, period_start: datetime, now: datetime, lease: timedelta = DEFAULT_LEASE) -> bool:
    """True for exactly one caller per (job, period_start), until it finishes or its lease runs out."""
    assert lease > timedelta(0)
    with connection.cursor() as cursor:
        cursor.execute(
            _CLAIM, {"job": job, "period_start": period_start, "now": now, "lease_until": now + lease}
        )
        return cursor.fetchone() is not None


@transaction.atomic
def finish_job(*, job: str, period_start: datetime, now: datetime) -> bool:
    """Close the period for this job for good. False when it was closed before or never claimed."""
    changed = JobRun.objects.filter(job=job, period_start=period_start, finished_at__isnull=True).update(
        finished_at=now
    )
    return changed == 1
