"""What of a committed contract's firm volume its buyer gave up in one delivery period, and what of that was resold."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from marketplace.ids import uuid7
from pricing.units import NUMERATOR_PER_LOT


class Nomination(models.Model):
    """A delivery period of which less than `firm_lots` is nominated. No row: the nomination is the whole of it.

    `firm_lots - released_lots` is the buyer's until publication, `firm_lots - resold_lots` from then on (`resold_lots`
    is null before); the rest is kept for whoever buys it. `taken_numerator` is what requests admitted in the period
    hold and used.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    contract = models.ForeignKey(
        "contracts.Contract", on_delete=models.PROTECT, related_name="nominations", db_index=False
    )
    entitlement = models.ForeignKey("contracts.Entitlement", on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    firm_lots = models.BigIntegerField()
    released_lots = models.BigIntegerField()
    resold_lots = models.BigIntegerField(null=True)
    taken_numerator = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["contract", "period_start"], name="contracts_nomination_unique"),
            models.CheckConstraint(
                condition=Q(released_lots__gt=0) & Q(released_lots__lte=F("firm_lots")),
                name="contracts_nomination_released_within_firm",
            ),
            models.CheckConstraint(
                condition=Q(resold_lots__isnull=True)
                | (Q(resold_lots__gte=0) & Q(resold_lots__lte=F("released_lots"))),
                name="contracts_nomination_resold_within_released",
            ),
            models.CheckConstraint(
                condition=Q(taken_numerator__gte=0)
                & Q(
                    taken_numerator__lte=(F("firm_lots") - Coalesce(F("resold_lots"), F("released_lots")))
                    * NUMERATOR_PER_LOT
                ),
                name="contracts_nomination_never_overdrawn",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")), name="contracts_nomination_forwards"
            ),
        ]


class NominationShare(models.Model):
    """What of a period's resold lots each offering of the contract supplies: so much less is the buyer's there."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    nomination = models.ForeignKey(
        Nomination, on_delete=models.PROTECT, related_name="shares", db_index=False
    )
    offering = models.ForeignKey("providers.Offering", on_delete=models.PROTECT, related_name="+")
    resold_lots = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["nomination", "offering"], name="contracts_nominationshare_unique"
            ),
            models.CheckConstraint(condition=Q(resold_lots__gt=0), name="contracts_nominationshare_positive"),
        ]
