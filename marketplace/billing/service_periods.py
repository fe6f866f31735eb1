"""Reads of what settlement periods were measured at. Part of this room's selectors."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet

from marketplace.billing.models import ServiceFigure, ServicePeriod


def latest_service_periods() -> QuerySet[ServicePeriod]:
    """What the last run that saw each contract, offering and period made of it: earlier ones are superseded."""
    later = ServicePeriod.objects.filter(
        contract=OuterRef("contract"),
        offering=OuterRef("offering"),
        grade=OuterRef("grade"),
        period_start=OuterRef("period_start"),
        run__gt=OuterRef("run"),
    )
    return ServicePeriod.objects.filter(~Exists(later))


def service_periods_of(organization_id: UUID) -> QuerySet[ServicePeriod]:
    """What was measured of what the organization bought or delivered, newest period first, with the figures."""
    return (
        latest_service_periods()
        .filter(Q(organization_id=organization_id) | Q(provider_organization_id=organization_id))
        .select_related("offering__host", "grade__family")
        .prefetch_related("figures__level")
        .order_by("-period_start", "-id")
    )


def figures_of(period: ServicePeriod) -> list[ServiceFigure]:
    """The figures of a prefetched period, by metric and percentile."""
    return sorted(period.figures.all(), key=lambda one: (one.level.metric, one.level.percentile))


def with_figures(periods: Iterable[ServicePeriod]) -> list[tuple[ServicePeriod, list[ServiceFigure]]]:
    """Each period beside its figures."""
    return [(period, figures_of(period)) for period in periods]
