"""Wake-ups: each calls one service on durable rows, so losing or doubling one changes nothing."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from marketplace.billing.services import documents_due, settling


@shared_task(name="marketplace.billing.tasks.settle_due_periods")
def settle_due_periods() -> None:
    settling.settle_due_periods(now=clock.now())


@shared_task(name="marketplace.billing.tasks.issue_due_invoices")
def issue_due_invoices() -> None:
    documents_due.issue_due_documents(now=clock.now())
