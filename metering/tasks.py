"""Wake-ups of ingestion. The inbox is the queue of record."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from metering import services

# One wake-up does not hold a worker for longer than this many rounds; the next hint goes on.
MAX_ROUNDS = 50


@shared_task(name="metering.tasks.ingest_pending")
def ingest_pending() -> None:
    for _ in range(MAX_ROUNDS):
        if not services.ingest_batches(now=clock.now()):
            return


@shared_task(name="metering.tasks.sweep_batches")
def sweep_batches() -> None:
    services.forget_nonces(now=clock.now())
    ingest_pending()


@shared_task(name="metering.tasks.make_partitions")
def make_partitions() -> None:
    services.make_partitions(now=clock.now())
