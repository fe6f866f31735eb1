"""Wake-ups: each calls one service on durable rows, so losing or doubling one changes nothing."""

from celery import shared_task

from marketplace import clock
from marketplace.contracts import services
from marketplace.contracts.cap_notices import tell_of_near_caps
from marketplace.contracts.renewing import renew_due


@shared_task
def sweep_holds() -> None:
    services.sweep_holds(now=clock.now())


@shared_task
def advance_contracts() -> None:
    services.advance_contracts(now=clock.now())


@shared_task
def curtail_derated() -> None:
    services.curtail_derated(now=clock.now())


@shared_task
def tell_of_spend_caps() -> None:
    tell_of_near_caps(now=clock.now())


@shared_task
def return_carry_over() -> None:
    services.return_carry_over(now=clock.now())


@shared_task
def renew_contracts() -> None:
    renew_due(now=clock.now())
