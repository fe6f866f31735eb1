"""Wake-ups of this room. The rows say what is due."""

from __future__ import annotations

from celery import shared_task

from marketplace import clock
from providers import reconciling, services


@shared_task(name="providers.tasks.open_capacity")
def open_capacity() -> None:
    services.open_capacity(now=clock.now())


@shared_task(name="providers.tasks.check_heartbeats")
def check_heartbeats() -> None:
    services.check_heartbeats(now=clock.now())


@shared_task(name="providers.tasks.read_registers")
def read_registers() -> None:
    services.read_registers(now=clock.now())


@shared_task(name="providers.tasks.pull_missing_usage")
def pull_missing_usage() -> None:
    services.pull_missing_usage(now=clock.now())


@shared_task(name="providers.tasks.reconcile_hosts")
def reconcile_hosts() -> None:
    reconciling.reconcile_hosts(now=clock.now())
