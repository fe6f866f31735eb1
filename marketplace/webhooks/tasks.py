"""Wake-ups. The deliveries' rows are the queue of record."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from marketplace.webhooks.mailing import send_due_notices
from marketplace.webhooks.notices import forget_old_notices
from marketplace.webhooks.sending import send_due
from marketplace.webhooks.services import forget_old_events


@shared_task
def send_due_webhooks() -> None:
    send_due(now=clock.now())


@shared_task
def forget_old_webhooks() -> None:
    forget_old_events(now=clock.now())
    forget_old_notices(now=clock.now())


@shared_task
def send_notices() -> None:
    send_due_notices(now=clock.now())
