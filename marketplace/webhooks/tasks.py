"""Wake-ups. The deliveries' rows are the queue of record."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from marketplace.webhooks.sending import send_due
from marketplace.webhooks.services import forget_old_events


@shared_task
def send_due_webhooks() -> None:
    send_due(now=clock.now())


@shared_task
def forget_old_webhooks() -> None:
    forget_old_events(now=clock.now())
