"""Money a buyer brings in."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import TopUp
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.processors.registry import payment_processor
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from pricing.units import format_micros, micros_per_minor_unit

MAX_TOP_UP_MICROS: Final = 10**12


def top_up(
    *, organization_id: UUID, amount_micros: int, operation_id: UUID, now: datetime, actor: Actor
) -> TopUp:
    """Collect money through the payment processor and credit it to the buyer's prepaid balance.

    The same `operation_id` with the same terms is a no-op that returns the first top-up. The processor is asked
    between two transactions; what dies in between is finished by the same call again. Raises NotFound, Forbidden,
    InvalidInput (field amount_micros), Conflict.
    """
    _check_amount(amount_micros)
    pending = _begin(
        top_up_id=derived_id(operation_id, "top_up"),
        organization_id=organization_id,
        amount_micros=amount_micros,
        now=now,
        actor=actor,
    )
    if pending.status != TopUp.Status.PENDING:
        return pending
    outcome = payment_processor().collect(
        movement_id=pending.id,
        organization_id=organization_id,
        amount_micros=amount_micros,
        currency=pending.currency,
    )
    return _finish(top_up_id=pending.id, outcome=outcome, now=now)


def _check_amount(amount_micros: int) -> None:
    currency = settings.MARKET_CURRENCY
    minor = micros_per_minor_unit(currency)
    if amount_micros < minor:
        raise InvalidInput(f"the least is {format_micros(minor, currency)} {currency}", field="amount_micros")
    if amount_micros > MAX_TOP_UP_MICROS:
        raise InvalidInput(
            f"the most is {format_micros(MAX_TOP_UP_MICROS, currency)} {currency} at a time",
            field="amount_micros",
        )
    if amount_micros % minor:
        raise InvalidInput(
            f"must be a multiple of {minor} micros, the minor unit of {currency}", field="amount_micros"
        )


@transaction.atomic
def _begin(
    *, top_up_id: UUID, organization_id: UUID, amount_micros: int, now: datetime, actor: Actor
) -> TopUp:
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("no such organization")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("only a buyer has a prepaid balance")
    new = TopUp(
        id=top_up_id,
        organization=organization,
        amount_micros=amount_micros,
        currency=settings.MARKET_CURRENCY,
        processor=payment_processor().name,
        created_at=now,
    )
    TopUp.objects.bulk_create([new], ignore_conflicts=True)
    kept = TopUp.objects.get(pk=top_up_id)
    if (kept.organization_id, kept.amount_micros, kept.currency) != (
        organization_id,
        amount_micros,
        new.currency,
    ):
        raise Conflict("this operation was begun with other terms")
    if kept.created_at == now:
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


@transaction.atomic
def _finish(*, top_up_id: UUID, outcome: Outcome, now: datetime) -> TopUp:
    top_up = TopUp.objects.select_for_update().get(pk=top_up_id)
    if top_up.status != TopUp.Status.PENDING or outcome.status == OutcomeStatus.PENDING:
        return top_up
    top_up.processor_reference = outcome.reference
    if outcome.status == OutcomeStatus.FAILED:
        top_up.status = TopUp.Status.FAILED
    else:
        top_up.status = TopUp.Status.SUCCEEDED
        post_transfers(
            [
                NewTransfer(
                    id=derived_id(top_up_id, "transfer"),
                    debit_id=account_id(
                        organization_id=operator_organization().id,
                        kind=AccountKind.PROCESSOR,
                        currency=top_up.currency,
                        now=now,
                    ),
                    credit_id=account_id(
                        organization_id=top_up.organization_id,
                        kind=AccountKind.PREPAID,
                        currency=top_up.currency,
                        now=now,
                    ),
                    amount_micros=top_up.amount_micros,
                    code="top_up",
                    reference_id=top_up_id,
                )
            ],
            now=now,
        )
    top_up.save(update_fields=["status", "processor_reference"])
    return top_up
