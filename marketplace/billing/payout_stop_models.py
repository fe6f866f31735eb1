"""The operator's hand on a provider's payouts while he looks into something."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization


class PayoutStop(models.Model):
    """From `created_at` until `ended_at` nothing is paid out to the provider; null: still. Rows are kept."""

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    # For the operator alone: the provider is told that payouts are stopped, not why.
    reason = models.CharField(max_length=200)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(ended_at__isnull=True),
                name="billing_payoutstop_one_at_a_time",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True) | Q(ended_at__gte=F("created_at")),
                name="billing_payoutstop_forwards",
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="billing_payoutstop_says_why"),
        ]
