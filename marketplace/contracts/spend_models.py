"""Caps on what is spent, and the counters they are held against."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import ApiKey, Organization
from marketplace.ids import uuid7


class SpendCap(models.Model):
    """The most that may be held and spent, tax included, in a UTC day or calendar month.

    By a whole organization, the keys of one of its projects, or one key. Without a `limit_micros` it does not bind;
    the row stays, and so does what it has counted.
    """

    class Scope(models.TextChoices):
        ORGANIZATION = "organization"
        PROJECT = "project"
        API_KEY = "api_key"

    class Period(models.TextChoices):
        DAY = "day"
        MONTH = "month"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+", db_index=False)
    scope = models.CharField(max_length=12, choices=Scope.choices)
    api_key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, null=True, related_name="+")
    project = models.CharField(max_length=100, blank=True)
    period = models.CharField(max_length=5, choices=Period.choices)
    limit_micros = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [
            # Its index is also the way from a request to its caps.
            models.UniqueConstraint(
                fields=["organization", "scope", "api_key", "project", "period"],
                nulls_distinct=False,
                name="contracts_spendcap_unique",
            ),
            models.CheckConstraint(
                condition=Q(limit_micros__isnull=True) | Q(limit_micros__gte=0),
                name="contracts_spendcap_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(scope="organization", api_key__isnull=True, project="")
                | (Q(scope="project", api_key__isnull=True) & ~Q(project=""))
                | Q(scope="api_key", api_key__isnull=False, project=""),
                name="contracts_spendcap_names_its_subject",
            ),
            models.CheckConstraint(
                condition=Q(period__in=["day", "month"]), name="contracts_spendcap_period_known"
            ),
        ]


class SpendCounter(models.Model):
    """What is held and was captured under a cap of holds admitted in the window that begins at `window_start`.

    Written by the hold functions alone, by one conditional statement (`sql/spend_caps.sql`).
    """

    id = models.UUIDField(primary_key=True, db_default=models.Func(function="uuidv7"), editable=False)
    cap = models.ForeignKey(SpendCap, on_delete=models.PROTECT, related_name="counters", db_index=False)
    window_start = models.DateTimeField()
    spent_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["cap", "window_start"], name="contracts_spendcounter_unique"),
            models.CheckConstraint(
                condition=Q(spent_micros__gte=0), name="contracts_spendcounter_not_negative"
            ),
        ]


class PurchaseSpend(models.Model):
    """What a purchase counts under its caps: a bid's worst case and what tops it up, the price of a committed month.

    `returned_micros` went back to the counters when its hold was voided, in the window of the purchase.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # Counted before the money is held, as everywhere: the hold is not there yet.
    ledger_hold_id = models.UUIDField(db_index=True)
    counter_ids = ArrayField(models.UUIDField())
    amount_micros = models.BigIntegerField()
    returned_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0)
                & Q(returned_micros__gte=0)
                & Q(returned_micros__lte=F("amount_micros")),
                name="contracts_purchasespend_returned_within",
            ),
        ]
