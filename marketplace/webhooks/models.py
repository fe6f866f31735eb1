"""Where customers' programs are told what happened, what they were told, and how each try to tell them went."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7
from marketplace.webhooks.notice_models import Notice, NoticeSettings

__all__ = [
    "Notice",
    "NoticeSettings",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
]


class WebhookEndpoint(models.Model):
    """An address of an organization. Its signing secret is derived from its id and `secret_version`, never stored.

    `event_types` empty means all of them. `failing_since` is the first failure after the last success.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        DISABLED = "disabled"

    class Reason(models.TextChoices):
        ASKED = "asked"
        GONE = "gone"
        FAILING = "failing"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    url = models.CharField(max_length=300)
    description = models.CharField(max_length=100, blank=True)
    event_types = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    disabled_reason = models.CharField(max_length=8, choices=Reason.choices, blank=True, default="")
    secret_version = models.IntegerField(default=1)
    # Until then deliveries carry the former secret's signature as well.
    rotated_until = models.DateTimeField(null=True)
    failing_since = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["organization", "-id"], name="webhooks_endpoint_by_org")]
        constraints = [
            models.CheckConstraint(
                condition=Q(status="active", disabled_reason="")
                | (Q(status="disabled") & ~Q(disabled_reason="")),
                name="webhooks_endpoint_reason_when_disabled",
            ),
            models.CheckConstraint(
                condition=Q(secret_version__gte=1), name="webhooks_endpoint_secret_version_positive"
            ),
        ]


class WebhookEvent(models.Model):
    """A fact, written in the transaction that made it true; `body` is what is sent, to the byte, at every try.

    Its id is derived from the fact, so that the same fact is told once.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    type = models.CharField(max_length=64)
    body = models.BinaryField()
    occurred_at = models.DateTimeField()
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        indexes = [models.Index(fields=["organization", "-id"], name="webhooks_event_by_org")]


class WebhookDelivery(models.Model):
    """One event on its way to one endpoint; `next_attempt_at` is also the lease of whoever is trying now."""

    class Status(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    event = models.ForeignKey(WebhookEvent, on_delete=models.CASCADE, related_name="deliveries")
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.CASCADE, related_name="deliveries")
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.PENDING)
    attempts = models.IntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    give_up_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["endpoint", "next_attempt_at"],
                name="webhooks_delivery_due",
                condition=Q(status="pending"),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["event", "endpoint"], name="webhooks_delivery_one_per_endpoint"),
            models.CheckConstraint(
                condition=Q(status="pending", next_attempt_at__isnull=False, ended_at__isnull=True)
                | (
                    Q(status__in=["delivered", "failed"])
                    & Q(next_attempt_at__isnull=True, ended_at__isnull=False)
                ),
                name="webhooks_delivery_pending_or_ended",
            ),
            models.CheckConstraint(
                condition=Q(attempts__gte=0), name="webhooks_delivery_attempts_not_negative"
            ),
        ]


class WebhookAttempt(models.Model):
    """How one try went: `response_status` null when nobody answered, `problem` empty when all was well."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    delivery = models.ForeignKey(WebhookDelivery, on_delete=models.CASCADE, related_name="tries")
    number = models.IntegerField()
    attempted_at = models.DateTimeField()
    duration_ms = models.IntegerField()
    response_status = models.IntegerField(null=True)
    problem = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["delivery", "number"], name="webhooks_attempt_numbered_once"),
            models.CheckConstraint(
                condition=Q(number__gte=1) & Q(duration_ms__gte=0),
                name="webhooks_attempt_counts",
            ),
        ]
