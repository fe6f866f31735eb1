"""Wake-ups of the market. The auctions' rows are the queue of record."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from marketplace.orders.services import indexing, rounds


@shared_task(name="marketplace.orders.tasks.advance_auctions")
def advance_auctions() -> None:
    rounds.advance_auctions(now=clock.now())


@shared_task(name="marketplace.orders.tasks.publish_index")
def publish_index() -> None:
    indexing.publish_index(now=clock.now())
