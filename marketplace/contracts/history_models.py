"""The history of a contract: every move of its state and every change of its term, append-only."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from marketplace.ids import uuid7


class ContractEvent(models.Model):
    """One move: what happened, from which status to which, who did it, when and why."""

    class Kind(models.TextChoices):
        CREATED = "created"
        SUSPENDED = "suspended"
        RESUMED = "resumed"
        FREED = "freed"
        WARNED = "warned"
        TERMINATED = "terminated"
        AMENDED = "amended"
        RENEWED = "renewed"
        NOT_RENEWED = "not_renewed"
        ENDED = "ended"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    contract = models.ForeignKey("contracts.Contract", on_delete=models.PROTECT, related_name="events")
    kind = models.CharField(max_length=11, choices=Kind.choices)
    # Empty where there was no contract before.
    from_status = models.CharField(max_length=10, blank=True)
    to_status = models.CharField(max_length=10)
    reason = models.CharField(max_length=200)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    # Figures of the move: instants as ISO 8601, amounts in micros.
    detail = models.JSONField(default=dict)
    occurred_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=~Q(to_status=""), name="contracts_contractevent_leads_somewhere"
            ),
        ]
        indexes = [models.Index(fields=["contract", "occurred_at"], name="contracts_event_by_contract")]
