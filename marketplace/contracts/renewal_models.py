"""Whether a committed contract renews itself at its end, and what came of it."""

from __future__ import annotations

from django.db import models
from django.db.models import Q


class Renewal(models.Model):
    """What a buyer has set on a committed contract; without a row it does not renew.

    The contract that follows names it (`Contract.renews`), one at most. `problem` is why the last try failed: the code
    of the error. Who set it buys what follows, so it counts under the spend caps of his key.
    """

    class Status(models.TextChoices):
        OFF = "off"
        ON = "on"
        RENEWED = "renewed"
        NOT_RENEWED = "not_renewed"

    contract = models.OneToOneField(
        "contracts.Contract", on_delete=models.PROTECT, primary_key=True, related_name="renewal"
    )
    status = models.CharField(max_length=11, choices=Status.choices)
    # The buyer's highest rate for the term that follows.
    max_rate_micros_per_mtok = models.BigIntegerField(null=True)
    next_attempt_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    problem = models.CharField(max_length=40, blank=True)
    problem_detail = models.CharField(max_length=300, blank=True)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(status="off")
                | Q(max_rate_micros_per_mtok__isnull=False, max_rate_micros_per_mtok__gt=0),
                name="contracts_renewal_has_a_highest_rate",
            ),
            models.CheckConstraint(
                condition=Q(status="on", next_attempt_at__isnull=False)
                | (~Q(status="on") & Q(next_attempt_at__isnull=True)),
                name="contracts_renewal_tried_while_on",
            ),
        ]
        indexes = [
            models.Index(fields=["next_attempt_at"], condition=Q(status="on"), name="contracts_renewal_due"),
        ]
