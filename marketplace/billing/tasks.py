"""Wake-ups: each calls one service on durable rows, so losing or doubling one changes nothing."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from marketplace.billing.services import (
    auto_top_ups,
    clock_walks,
    documents_due,
    operations,
    processor_events,
    processor_reconciling,
    settling,
)


@shared_task(name="marketplace.billing.tasks.settle_due_periods")
def settle_due_periods() -> None:
    settling.settle_due_periods(now=clock.now())


@shared_task(name="marketplace.billing.tasks.issue_due_invoices")
def issue_due_invoices() -> None:
    documents_due.issue_due_documents(now=clock.now())


@shared_task(name="marketplace.billing.tasks.resume_processor_operations")
def resume_processor_operations() -> None:
    operations.resume_operations(now=clock.now())


@shared_task(name="marketplace.billing.tasks.apply_processor_events")
def apply_processor_events() -> None:
    processor_events.apply_events(now=clock.now())


@shared_task(name="marketplace.billing.tasks.reconcile_processor")
def reconcile_processor() -> None:
    processor_reconciling.reconcile_processor(now=clock.now())


@shared_task(name="marketplace.billing.tasks.top_up_low_balances")
def top_up_low_balances() -> None:
    auto_top_ups.top_up_low_balances(now=clock.now())


@shared_task(name="marketplace.billing.tasks.walk_test_clocks")
def walk_test_clocks() -> None:
    clock_walks.walk_clocks(now=clock.now())


@shared_task(name="marketplace.billing.tasks.keep_test_clocks")
def keep_test_clocks() -> None:
    clock_walks.keep_clocks(now=clock.now())
