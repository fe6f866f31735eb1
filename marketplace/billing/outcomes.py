"""Reads of what awards came to. Part of this room's selectors."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet

from marketplace.billing.models import DeliveryOutcome


def latest_outcomes() -> QuerySet[DeliveryOutcome]:
    """What the last run that saw each part of an award made of it: earlier ones are superseded."""
    later = DeliveryOutcome.objects.filter(
        contract=OuterRef("contract"),
        offering=OuterRef("offering"),
        period_start=OuterRef("period_start"),
        run__gt=OuterRef("run"),
    )
    return DeliveryOutcome.objects.filter(~Exists(later))


def outcomes_of(organization_id: UUID) -> QuerySet[DeliveryOutcome]:
    """What awards came to that the organization bought or owed, newest period first."""
    return (
        latest_outcomes()
        .filter(Q(organization_id=organization_id) | Q(provider_organization_id=organization_id))
        .select_related("offering__host", "offering__grade__family")
        .order_by("-period_start", "-id")
    )
