"""Months: what a committed one came to, as it was squared up after its end, and what counts towards tiers."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q


class MonthOutcome(models.Model):
    """V = R + U + F + N of a committed month, its true-up or refund, and what rolled over. Append-only, in numerators.

    As one run saw it; a later run that sees something else writes a row of its own, and the last one holds. U is the
    month's own usage: what was burned of the month before is not in it.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    contract = models.ForeignKey("contracts.Contract", on_delete=models.PROTECT, related_name="+")
    entitlement = models.ForeignKey(
        "contracts.Entitlement", on_delete=models.PROTECT, related_name="outcomes"
    )
    run = models.PositiveIntegerField()
    volume_numerator = models.BigIntegerField()
    released_numerator = models.BigIntegerField()
    delivered_numerator = models.BigIntegerField()
    failed_numerator = models.BigIntegerField()
    unused_numerator = models.BigIntegerField()
    # The sum of F over the month's delivery periods: what of it was delivered later has not failed the month.
    failed_in_periods_numerator = models.BigIntegerField()
    take_numerator = models.BigIntegerField()
    true_up_numerator = models.BigIntegerField()
    rolled_over_numerator = models.BigIntegerField(default=0)
    rate_micros_per_mtok = models.BigIntegerField()
    # Charged for R and T (in arrears), given back for F (prepaid).
    charged_micros = models.BigIntegerField()
    refunded_micros = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["entitlement", "run"], name="billing_monthoutcome_unique"),
            models.CheckConstraint(
                condition=Q(
                    volume_numerator=F("released_numerator")
                    + F("delivered_numerator")
                    + F("failed_numerator")
                    + F("unused_numerator")
                )
                & Q(released_numerator__gte=0)
                & Q(delivered_numerator__gte=0)
                & Q(failed_numerator__gte=0)
                & Q(unused_numerator__gte=0),
                name="billing_monthoutcome_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(true_up_numerator__gte=0)
                & Q(true_up_numerator__lte=F("unused_numerator"))
                & Q(rolled_over_numerator__gte=0)
                & Q(rolled_over_numerator__lte=F("unused_numerator"))
                & Q(charged_micros__gte=0)
                & Q(refunded_micros__gte=0),
                name="billing_monthoutcome_in_range",
            ),
        ]


class TariffMonth(models.Model):
    """A buyer's volume at one rate of tiers, volume or packages in a UTC calendar month, as far as it is settled.

    The sum of its charges' numerators. Its row is locked by whoever settles usage that counts in it.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey("accounts.Organization", on_delete=models.PROTECT, related_name="+")
    rate = models.ForeignKey("pricing.Rate", on_delete=models.PROTECT, related_name="+")
    month_start = models.DateTimeField()
    counted_numerator = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "rate", "month_start"], name="billing_tariffmonth_unique"
            ),
            models.CheckConstraint(
                condition=Q(counted_numerator__gte=0), name="billing_tariffmonth_not_negative"
            ),
        ]
