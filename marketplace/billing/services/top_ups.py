"""Money a buyer brings in."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import ProcessorOperation, TopUp
from marketplace.billing.processor_models import COLLECTIONS
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.collecting import request_collection, run_collection
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound
from marketplace.ids import derived_id
from pricing.units import format_micros


def top_up(
    *, organization_id: UUID, amount_micros: int, operation_id: UUID, now: datetime, actor: Actor
) -> TopUp:
    """Collect money through the payment processor and credit it to the buyer's prepaid balance.

    The same `operation_id` with the same terms is a no-op that returns the first top-up. The processor is asked
    between two transactions; what dies in between is finished by the sweeper, or by the same call again. Raises
    NotFound, Forbidden, InvalidInput (field amount_micros), Conflict.
    """
    check_top_up_amount(amount_micros)
    pending = begin_top_up(
        top_up_id=derived_id(operation_id, "top_up"),
        organization_id=organization_id,
        amount_micros=amount_micros,
        now=now,
        actor=actor,
    )
    if pending.status != TopUp.Status.PENDING:
        return pending
    collection = ProcessorOperation.objects.get(subject_id=pending.id, kind__in=COLLECTIONS)
    run_collection(operation=collection, now=now)
    return TopUp.objects.get(pk=pending.id)


def check_top_up_amount(amount_micros: int) -> None:
    """What the payment processor charges at once: from its least to its most. Raises InvalidInput (amount_micros)."""
    currency = settings.MARKET_CURRENCY
    least, most = payment_processor().charge_bounds_micros(currency)
    if amount_micros < least:
        raise InvalidInput(f"the least is {format_micros(least, currency)} {currency}", field="amount_micros")
    if amount_micros > most:
        raise InvalidInput(
            f"the most is {format_micros(most, currency)} {currency} at a time", field="amount_micros"
        )
    check_step(amount_micros, step=payment_processor().step_micros(currency), currency=currency)


def most_top_up_micros() -> int:
    """What comes in at once at most, in the market's currency."""
    return payment_processor().charge_bounds_micros(settings.MARKET_CURRENCY)[1]


def check_step(amount_micros: int, *, step: int, currency: str) -> None:
    """Raises InvalidInput (amount_micros) for what is no positive multiple of `step`."""
    if amount_micros < step or amount_micros % step:
        raise InvalidInput(
            f"must be a multiple of {step} micros ({format_micros(step, currency)} {currency})",
            field="amount_micros",
        )


@transaction.atomic
def begin_top_up(
    *,
    top_up_id: UUID,
    organization_id: UUID,
    amount_micros: int,
    on_page: bool = True,
    auto_top_up_id: UUID | None = None,
    now: datetime,
    actor: Actor,
) -> TopUp:
    """The rows of a top-up and of its collection, not yet asked for; those there are where it was begun before.

    Without `on_page` only the saved card is charged. Raises NotFound, Forbidden, Conflict.
    """
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("no such organization")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("only a buyer has a prepaid balance")
    operator_organization()  # whose books it is to stand in
    new = TopUp(
        id=top_up_id,
        organization=organization,
        amount_micros=amount_micros,
        currency=settings.MARKET_CURRENCY,
        processor=payment_processor().name,
        auto_top_up_id=auto_top_up_id,
        created_at=now,
    )
    TopUp.objects.bulk_create([new], ignore_conflicts=True)
    kept = TopUp.objects.select_for_update().get(pk=top_up_id)
    if (kept.organization_id, kept.amount_micros, kept.currency) != (
        organization_id,
        amount_micros,
        new.currency,
    ):
        raise Conflict("this operation was begun with other terms")
    if not ProcessorOperation.objects.filter(subject_id=top_up_id).exists():
        request_collection(
            fact_id=top_up_id,
            subject_id=top_up_id,
            purpose=ProcessorOperation.Purpose.TOP_UP,
            organization_id=organization_id,
            amount_micros=amount_micros,
            currency=kept.currency,
            on_page=on_page,
            now=now,
        )
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="top_up.requested",
            object_kind="top_up",
            object_id=top_up_id,
            detail={"amount_micros": amount_micros},
            now=now,
        )
    return kept
