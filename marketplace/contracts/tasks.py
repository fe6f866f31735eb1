"""Wake-ups: each calls one service on durable rows, so losing or doubling one changes nothing."""

from celery import shared_task

from marketplace import clock
from marketplace.contracts import services


@shared_task  # type: ignore[untyped-decorator]
def sweep_holds() -> None:
    services.sweep_holds(now=clock.now())


@shared_task  # type: ignore[untyped-decorator]
def advance_contracts() -> None:
    services.advance_contracts(now=clock.now())
