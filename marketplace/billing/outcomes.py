"""Reads of what awards came to. Part of this room's selectors."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet

from marketplace.billing.models import DeliveryOutcome, MonthOutcome


def latest_outcomes() -> QuerySet[DeliveryOutcome]:
    """What the last run that saw each part of an award made of it: earlier ones are superseded."""
    later = DeliveryOutcome.objects.filter(
        contract=OuterRef("contract"),
        offering=OuterRef("offering"),
        period_start=OuterRef("period_start"),
        run__gt=OuterRef("run"),
    )
    return DeliveryOutcome.objects.filter(~Exists(later))


def month_outcomes_of(contract_id: UUID) -> QuerySet[MonthOutcome]:
    """What the last run made of each month of a committed contract, newest first."""
    later = MonthOutcome.objects.filter(entitlement=OuterRef("entitlement"), run__gt=OuterRef("run"))
    return (
        MonthOutcome.objects.filter(~Exists(later), contract_id=contract_id)
        .select_related("entitlement")
        .order_by("-entitlement__period_start", "-id")
    )


def outcomes_of(organization_id: UUID) -> QuerySet[DeliveryOutcome]:
    """What awards and firm periods came to that the organization bought or owed, newest period first."""
    return (
        latest_outcomes()
        .filter(Q(organization_id=organization_id) | Q(provider_organization_id=organization_id))
        .select_related("offering__host", "offering__grade__family")
        .order_by("-period_start", "-id")
    )
