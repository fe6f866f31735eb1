"""What settlement periods were measured at, against the service levels of their grade, and the credit for it."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from pricing.models import Grade, ServiceLevel
from providers.models import Offering


class ServicePeriod(models.Model):
    """One contract and offering in one settlement period of a grade with service levels. Append-only.

    As one settlement run saw it; a later run that sees something else writes a row of its own, and the last one holds.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    settlement = models.ForeignKey(
        "billing.Settlement", on_delete=models.PROTECT, related_name="service_periods"
    )
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="+")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    provider_organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    run = models.PositiveIntegerField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    # What the offering delivered, at the buyer's rates.
    gross_micros = models.BigIntegerField()
    # Remedies for F of the same period: the credit is only what is above them.
    remedy_micros = models.BigIntegerField()
    credit_micros = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["contract", "period_start", "offering", "grade", "run"],
                name="billing_serviceperiod_unique",
            ),
            models.CheckConstraint(
                condition=Q(remedy_micros__gte=0)
                & Q(credit_micros__gte=0)
                & Q(credit_micros__lte=F("gross_micros")),
                name="billing_serviceperiod_credit_within_gross",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")), name="billing_serviceperiod_forwards"
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "period_start"], name="billing_service_by_buyer"),
            models.Index(
                fields=["provider_organization", "period_start"], name="billing_service_by_provider"
            ),
        ]


class ServiceFigure(models.Model):
    """One level of the period: how many requests could be measured, and their percentile. Append-only."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    period = models.ForeignKey(ServicePeriod, on_delete=models.PROTECT, related_name="figures")
    level = models.ForeignKey(ServiceLevel, on_delete=models.PROTECT, related_name="+")
    requests = models.BigIntegerField()
    # Null where there was nothing to measure.
    measured_us = models.BigIntegerField(null=True)
    is_broken = models.BooleanField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["period", "level"], name="billing_servicefigure_unique"),
            models.CheckConstraint(
                condition=(Q(requests=0) & Q(measured_us__isnull=True) & Q(is_broken=False))
                | (Q(requests__gt=0) & Q(measured_us__gte=0)),
                name="billing_servicefigure_measured_or_not",
            ),
        ]
