"""The implicit contract: every buyer has one for every grade and way to pay, made when it is first needed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.models import Contract, ContractKind, Payment
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound
from marketplace.ledger.models import AccountKind, LedgerAccount
from pricing.models import Grade


class NoCreditLine(Conflict):
    """The operator has given the organization no credit line."""

    code = "no_credit_line"


@transaction.atomic
def ensure_on_demand_contract(*, organization_id: UUID, grade_id: UUID, now: datetime) -> Contract:
    """The organization's on-demand contract for this grade version, of the payment that it has chosen; the gateway's
    hold function makes the same one.
    """
    organization = Organization.objects.filter(pk=organization_id).first()
    grade = Grade.objects.filter(pk=grade_id).first()
    if organization is None or grade is None:
        raise NotFound("There is no such organization or grade.")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer has on-demand contracts.")
    contract, _ = Contract.objects.get_or_create(
        organization_id=organization_id,
        grade_id=grade_id,
        kind=ContractKind.ON_DEMAND,
        payment=organization.on_demand_payment,
        defaults={"currency": grade.currency, "starts_at": now, "created_at": now},
    )
    return contract


@transaction.atomic
def choose_on_demand_payment(*, organization_id: UUID, payment: str, now: datetime, actor: Actor) -> str:
    """What pays for on-demand usage from the next request on: `prepaid`, the balance, or `arrears`, the credit line.

    A contract has one payment for ever, so each choice has a contract of its own per grade; what was held under the
    other is settled there. Raises InvalidInput (payment), NoCreditLine, NotFound, Forbidden.
    """
    if payment not in Payment.values:
        raise InvalidInput(f"payment must be one of {', '.join(Payment.values)}", field="payment")
    organization = Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("no such organization")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer has on-demand contracts.")
    if payment == Payment.ARREARS and not _line_micros(organization_id):
        raise NoCreditLine("there is no credit line: the operator gives one", field="payment")
    if organization.on_demand_payment != payment:
        organization.on_demand_payment = payment
        organization.save(update_fields=["on_demand_payment"])
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="organization.on_demand_payment",
            object_kind="organization",
            object_id=organization_id,
            detail={"payment": payment},
            now=now,
        )
    return payment


def _line_micros(organization_id: UUID) -> int:
    account = LedgerAccount.objects.filter(
        organization_id=organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=settings.MARKET_CURRENCY,
        reference_id=None,
    ).first()
    if account is None:
        return 0
    line = account.credit_line_micros
    return account.overdraft_limit_micros if line is None else line
