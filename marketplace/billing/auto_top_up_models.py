"""When a buyer's balance is low, and what the market does about it by itself."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7


class AutoTopUp(models.Model):
    """One per buyer. Below `threshold_micros` of free prepaid balance he is told; while `active`, his card is charged.

    `running` is the one top-up under way: while it is set no other begins. `stopped` after `failures` in a row reach
    the most, or without a card; only a person makes it active again.
    """

    class Status(models.TextChoices):
        OFF = "off"
        ACTIVE = "active"
        STOPPED = "stopped"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.OneToOneField(Organization, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OFF)
    currency = models.CharField(max_length=3)
    threshold_micros = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    monthly_limit_micros = models.BigIntegerField()
    # How many were begun: the ids of top-ups derive from it.
    begun = models.PositiveIntegerField(default=0)
    running = models.OneToOneField("billing.TopUp", on_delete=models.PROTECT, null=True, related_name="+")
    failures = models.PositiveSmallIntegerField(default=0)
    stopped_reason = models.CharField(max_length=200, blank=True)
    next_attempt_at = models.DateTimeField()
    low_since = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(threshold_micros__gt=0)
                & Q(amount_micros__gt=0)
                & Q(monthly_limit_micros__gte=F("amount_micros")),
                name="billing_autotopup_amounts",
            ),
        ]
