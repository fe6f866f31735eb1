"""The provider's side of the money: bonds that he deposits, and where his payouts go."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7


class BondDeposit(models.Model):
    """Money that a provider puts into his bond, through the payment processor or out of what he has earned."""

    class Status(models.TextChoices):
        PENDING = "pending"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    class Source(models.TextChoices):
        PROCESSOR = "processor"
        EARNINGS = "earnings"
        # Kept by the market, because the bond does not cover what is sold.
        RETAINED = "retained"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    source = models.CharField(max_length=9, choices=Source.choices)
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.PENDING)
    processor_reference = models.CharField(max_length=120, blank=True)
    # Where the provider goes on (the processor's own page, 3-D Secure) while it is pending; else empty.
    action_url = models.CharField(max_length=2000, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_bonddeposit_positive"),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="billing_bonddeposit_by_org")]


class BondWithdrawal(models.Model):
    """What a provider took back of his bond into what is paid out to him. Append-only."""

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_bondwithdrawal_positive"),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="billing_bondwithdrawal_by_org")]


class PayoutDestinationChange(models.Model):
    """Another place for a provider's payouts: asked for, waited for, then applied or cancelled, once."""

    class Status(models.TextChoices):
        PENDING = "pending"
        APPLIED = "applied"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    former = models.CharField(max_length=200, blank=True)
    destination = models.CharField(max_length=200)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.PENDING)
    effective_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=Q(status="pending"),
                name="billing_destinationchange_one_pending",
            ),
            models.CheckConstraint(
                condition=Q(effective_at__gt=F("created_at")), name="billing_destinationchange_waits"
            ),
            models.CheckConstraint(
                condition=(Q(status="pending") & Q(ended_at__isnull=True))
                | (Q(status="applied") & Q(ended_at__gte=F("effective_at")))
                | (Q(status="cancelled") & Q(ended_at__isnull=False)),
                name="billing_destinationchange_ends_once",
            ),
        ]
        indexes = [models.Index(fields=["organization", "-id"], name="billing_destchange_by_org")]


class DestinationNotice(models.Model):
    """What an owner was told about a change of destination, and when. Append-only."""

    class Kind(models.TextChoices):
        REQUESTED = "requested"
        APPLIED = "applied"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    change = models.ForeignKey(PayoutDestinationChange, on_delete=models.PROTECT, related_name="notices")
    # No key: people may leave, and who was told stays written down.
    user_id = models.UUIDField()
    email = models.EmailField(max_length=254)
    kind = models.CharField(max_length=9, choices=Kind.choices)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["change", "kind", "user_id"], name="billing_destinationnotice_once"
            ),
        ]
