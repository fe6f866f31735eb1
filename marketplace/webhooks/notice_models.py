"""What people are told by e-mail, to which addresses, and how each mail went."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from marketplace.accounts.models import Organization


class NoticeSettings(models.Model):
    """Where an organization's mail goes (`addresses` empty: to its owners), and which notices it does without."""

    organization = models.OneToOneField(
        Organization, on_delete=models.PROTECT, primary_key=True, related_name="+"
    )
    addresses = ArrayField(models.CharField(max_length=254), default=list, blank=True)
    muted = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    changed_at = models.DateTimeField()


class Notice(models.Model):
    """One mail to one address about one fact: written in the transaction that made the fact true, sent after it.

    Its id is derived from fact and address, so that the same is told once, and is in the mail's Message-ID.
    `next_attempt_at` is also the lease of whoever is sending it now.
    """

    class Status(models.TextChoices):
        PENDING = "pending"
        SENT = "sent"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    type = models.CharField(max_length=64)
    address = models.CharField(max_length=254)
    subject = models.CharField(max_length=200)
    body = models.TextField()
    status = models.CharField(max_length=7, choices=Status.choices, default=Status.PENDING)
    attempts = models.IntegerField(default=0)
    next_attempt_at = models.DateTimeField(null=True)
    give_up_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    problem = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(fields=["organization", "-created_at", "-id"], name="webhooks_notice_by_org"),
            models.Index(
                fields=["next_attempt_at"], name="webhooks_notice_due", condition=Q(status="pending")
            ),
            models.Index(
                fields=["ended_at"], name="webhooks_notice_old", condition=Q(ended_at__isnull=False)
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(status="pending", next_attempt_at__isnull=False, ended_at__isnull=True)
                | (Q(status__in=["sent", "failed"], next_attempt_at__isnull=True, ended_at__isnull=False)),
                name="webhooks_notice_pending_or_ended",
            ),
            models.CheckConstraint(
                condition=Q(attempts__gte=0), name="webhooks_notice_attempts_not_negative"
            ),
        ]
