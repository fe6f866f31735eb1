"""Grants: credit that is burned before an organization's own balance. Written by `sql/grants.sql` alone."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization


class Grant(models.Model):
    """Credit of one organization, on an account of its own, burned in the order priority (low first), expiry (soonest
    first, never last), kind (granted before purchased), creation.

    `free_micros` is what its account has available. `cost_basis_ppm` of a purchased one was paid for.
    """

    class Kind(models.TextChoices):
        GRANTED = "granted"
        PURCHASED = "purchased"

    class Status(models.TextChoices):
        OPEN = "open"
        EXPIRED = "expired"
        REVOKED = "revoked"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    account = models.OneToOneField("ledger.LedgerAccount", on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=9, choices=Kind.choices)
    currency = models.CharField(max_length=3)
    amount_micros = models.BigIntegerField()
    free_micros = models.BigIntegerField()
    cost_basis_ppm = models.BigIntegerField()
    priority = models.SmallIntegerField()
    # What it may be spent on; null: on everything. The ledger knows no grades, so it is no foreign key.
    grade_id = models.UUIDField(null=True)
    expires_at = models.DateTimeField(null=True)
    status = models.CharField(max_length=7, choices=Status.choices, default=Status.OPEN)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0)
                & Q(free_micros__gte=0)
                & Q(free_micros__lte=F("amount_micros")),
                name="ledger_grant_free_within_amount",
            ),
            models.CheckConstraint(
                condition=Q(kind="granted", cost_basis_ppm=0)
                | Q(kind="purchased", cost_basis_ppm__gte=0, cost_basis_ppm__lte=1_000_000),
                name="ledger_grant_cost_basis",
            ),
            models.CheckConstraint(
                condition=Q(status="open", ended_at__isnull=True)
                | (~Q(status="open") & Q(ended_at__isnull=False)),
                name="ledger_grant_ends_once",
            ),
        ]
        indexes = [
            models.Index(
                fields=["organization", "priority", "expires_at", "kind", "created_at", "id"],
                condition=Q(status="open") & Q(free_micros__gt=0),
                name="ledger_grant_in_order",
            ),
            models.Index(
                fields=["expires_at"],
                condition=Q(free_micros__gt=0) & Q(expires_at__isnull=False),
                name="ledger_grant_to_expire",
            ),
            models.Index(fields=["organization", "id"], name="ledger_grant_by_organization"),
        ]


class GrantPart(models.Model):
    """What a hold takes from one grant: `part` is the hold on the grant's account."""

    pk = models.CompositePrimaryKey("hold", "grant")
    hold = models.ForeignKey("ledger.Hold", on_delete=models.PROTECT, related_name="+", db_index=False)
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="+")
    part = models.OneToOneField("ledger.Hold", on_delete=models.PROTECT, related_name="+")


class GrantRefund(models.Model):
    """Part of a grant given back: of `amount_micros` of credit `paid_micros` had been paid for and went to the prepaid
    balance, the rest to the operator. `asked_micros` null: all that was free. Append-only.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    grant = models.ForeignKey(Grant, on_delete=models.PROTECT, related_name="refunds")
    asked_micros = models.BigIntegerField(null=True)
    amount_micros = models.BigIntegerField()
    paid_micros = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0)
                & Q(paid_micros__gte=0)
                & Q(paid_micros__lte=F("amount_micros")),
                name="ledger_grantrefund_paid_within_amount",
            ),
            models.CheckConstraint(
                condition=Q(asked_micros__isnull=True) | Q(asked_micros=F("amount_micros")),
                name="ledger_grantrefund_as_asked",
            ),
        ]


class BurningHold(models.Model):
    """A hold that burns grants for deliveries of this grade."""

    hold = models.OneToOneField("ledger.Hold", on_delete=models.PROTECT, primary_key=True, related_name="+")
    grade_id = models.UUIDField()
