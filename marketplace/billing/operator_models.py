"""What the operator moved himself between his own accounts and the payment processor, as he wrote it down."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from marketplace.accounts.models import Organization


class OperatorPosting(models.Model):
    """Money that came to or left the processor's balance for the operator's own account. Append-only.

    `account_kind` is which of his accounts in the books it is of, `reference` the processor's own name of the movement.
    """

    class Kind(models.TextChoices):
        CAPITAL = "capital", "The operator's money put into the processor's balance"
        WITHDRAWAL = "withdrawal", "Earnings, or tax for its office, taken out of it"
        PROCESSOR_FEE = "processor_fee", "What the processor bills beside its movements"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=13, choices=Kind.choices)
    account_kind = models.CharField(max_length=16)
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    reference = models.CharField(max_length=120, blank=True)
    reason = models.CharField(max_length=200)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_operatorposting_positive"),
            models.CheckConstraint(
                condition=Q(kind="withdrawal", account_kind__in=["breakage", "fees", "operator", "tax"])
                | Q(kind__in=["capital", "processor_fee"], account_kind="operator"),
                name="billing_operatorposting_account",
            ),
            models.UniqueConstraint(
                fields=["reference"],
                condition=~Q(reference=""),
                name="billing_operatorposting_reference_once",
            ),
        ]
