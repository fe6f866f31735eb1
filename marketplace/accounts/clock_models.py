"""An organization's test clock: how far ahead of real time its billing and contract dates are."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.ids import uuid7


class OrganizationClock(models.Model):
    """A test clock. The organization's billing time is `now_at`, or real time where that has come further.

    `now_at` only grows, by whoever holds the walk (`worker_id`, until `worker_until` of the wall clock).
    """

    class Status(models.TextChoices):
        READY = "ready"
        ADVANCING = "advancing"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.OneToOneField(
        "accounts.Organization", on_delete=models.PROTECT, related_name="test_clock"
    )
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.READY)
    now_at = models.DateTimeField()
    # The last advance: from where, to where, and why it stopped on the way. Null before the first.
    from_at = models.DateTimeField(null=True)
    target_at = models.DateTimeField(null=True)
    # The stop that is being done: who takes over after a crash does all of it again before he goes on.
    stop_at = models.DateTimeField(null=True)
    failure = models.CharField(max_length=300, blank=True)
    advances = models.PositiveIntegerField(default=0)
    worker_id = models.UUIDField(null=True)
    worker_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(now_at__gte=F("created_at")), name="accounts_organizationclock_forwards"
            ),
            models.CheckConstraint(
                condition=Q(from_at__isnull=True, target_at__isnull=True, advances=0)
                | Q(
                    from_at__isnull=False,
                    target_at__isnull=False,
                    from_at__lte=F("now_at"),
                    now_at__lte=F("target_at"),
                    advances__gt=0,
                ),
                name="accounts_organizationclock_within_its_advance",
            ),
            models.CheckConstraint(
                condition=Q(stop_at__isnull=True)
                | (~Q(status="ready") & Q(stop_at__gt=F("now_at"), stop_at__lte=F("target_at"))),
                name="accounts_organizationclock_stop_on_its_way",
            ),
            models.CheckConstraint(
                condition=~Q(status="ready") | Q(target_at__isnull=True) | Q(now_at=F("target_at")),
                name="accounts_organizationclock_ready_has_arrived",
            ),
            models.CheckConstraint(
                condition=(Q(status="failed") & ~Q(failure="")) | (~Q(status="failed") & Q(failure="")),
                name="accounts_organizationclock_failed_says_why",
            ),
            models.CheckConstraint(
                condition=Q(worker_id__isnull=True, worker_until__isnull=True)
                | Q(worker_id__isnull=False, worker_until__isnull=False),
                name="accounts_organizationclock_one_worker",
            ),
        ]
