"""Wake-ups of ingestion. The inbox is the queue of record; a wake-up lost or doubled changes nothing."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from metering import services

# One wake-up does not hold a worker for longer than this many rounds; the next hint goes on.
MAX_ROUNDS = 100


@shared_task(name="metering.tasks.ingest_pending")
def ingest_pending() -> None:
    for _ in range(MAX_ROUNDS):
        if not services.ingest_batches(now=clock.now()):
            return


@shared_task(name="metering.tasks.sweep_batches")
def sweep_batches() -> None:
    """What a dead worker claimed is pending again by itself (its locks died with it); what failed is tried again."""
    now = clock.now()
    services.count_killed_attempts()
    services.retry_failed_batches(now=now)
    services.forget_nonces(now=clock.wall_now())
    services.forget_batches(now=now)
    ingest_pending()


@shared_task(name="metering.tasks.make_partitions")
def make_partitions() -> None:
    services.make_partitions(now=clock.now())
