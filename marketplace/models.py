from typing import Final

from django.db import models

from marketplace.ids import uuid7


class ClockOffset(models.Model):
    """At most one row: how far the market's clock is moved. Read only where TEST_CLOCK=1."""

    ONLY_ID: Final = 1

    id = models.SmallIntegerField(primary_key=True, default=ONLY_ID)
    offset_ms = models.BigIntegerField(default=0)

    class Meta:
        constraints = (
            models.CheckConstraint(name="marketplace_clockoffset_one_row", condition=models.Q(id=1)),
            models.CheckConstraint(
                name="marketplace_clockoffset_forward", condition=models.Q(offset_ms__gte=0)
            ),
        )


class JobRun(models.Model):
    """One periodic job's run for one period: claimed once, resumable when its claimer died."""

    id = models.BigAutoField(primary_key=True)
    job = models.TextField()
    period_start = models.DateTimeField()
    claimed_at = models.DateTimeField()
    lease_until = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    attempts = models.IntegerField(default=1)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("job", "period_start"), name="marketplace_jobrun_one_per_period"),
            models.CheckConstraint(
                name="marketplace_jobrun_lease_after_claim",
                condition=models.Q(lease_until__gt=models.F("claimed_at")),
            ),
        )


class FailingItem(models.Model):
    """One item of a periodic job that failed at its last try; gone as soon as it succeeds."""

    id = models.UUIDField(primary_key=True, default=uuid7)
    job = models.TextField()
    item = models.TextField()
    attempts = models.IntegerField()
    first_failed_at = models.DateTimeField()
    last_failed_at = models.DateTimeField()
    next_attempt_at = models.DateTimeField()
    error = models.TextField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("job", "item"), name="marketplace_failingitem_one_per_item"),
            models.CheckConstraint(
                name="marketplace_failingitem_attempts", condition=models.Q(attempts__gte=1)
            ),
        )
