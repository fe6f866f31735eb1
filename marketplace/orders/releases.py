"""Firm volume of committed contracts that its buyers let go into spot."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from pricing.models import Grade


class Release(models.Model):
    """`lots` of one delivery period of a committed contract, asked into the period's book at the buyer's floor.

    Irrevocable. `placed` until the gate, `asked` once it stands in the sealed book, `closed` with the publication:
    then `resold_lots` is known, and the rest was given back to the buyer. `reason` says why it was not asked.
    """

    class Status(models.TextChoices):
        PLACED = "placed"
        ASKED = "asked"
        CLOSED = "closed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    lots = models.BigIntegerField()
    floor_micros_per_mtok = models.BigIntegerField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PLACED)
    resold_lots = models.BigIntegerField(null=True)
    # What the resold lots were sold at; null where none was.
    rate_micros_per_mtok = models.BigIntegerField(null=True)
    reason = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(lots__gt=0)
                & Q(floor_micros_per_mtok__gte=0)
                & Q(period_end__gt=F("period_start")),
                name="orders_release_in_range",
            ),
            models.CheckConstraint(
                condition=Q(status="closed", resold_lots__isnull=False, closed_at__isnull=False)
                | (~Q(status="closed") & Q(resold_lots__isnull=True, closed_at__isnull=True)),
                name="orders_release_closed_says_what_was_resold",
            ),
            models.CheckConstraint(
                condition=Q(resold_lots__isnull=True)
                | (Q(resold_lots__gte=0) & Q(resold_lots__lte=F("lots"))),
                name="orders_release_resold_within_lots",
            ),
        ]
        indexes = [
            models.Index(
                fields=["grade", "period_start"],
                condition=~Q(status="closed"),
                name="orders_release_open",
            ),
        ]
