"""The implicit contract: every buyer has one for every grade, made when it is first needed."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.contracts.models import Contract, ContractKind
from marketplace.errors import Forbidden, NotFound
from pricing.models import Grade


@transaction.atomic
def ensure_on_demand_contract(*, organization_id: UUID, grade_id: UUID, now: datetime) -> Contract:
    """The organization's on-demand contract for this grade version; the gateway's hold function makes the same one."""
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
        defaults={"currency": grade.currency, "starts_at": now, "created_at": now},
    )
    return contract
