"""The books. Only `marketplace.ledger` touches these tables, and only through the SQL functions of its migrations."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7
from marketplace.ledger.grant_models import BurningHold, Grant, GrantPart, GrantRefund
from marketplace.ledger.sealing_models import Seal, SealedBalance

__all__ = [
    "AccountKind",
    "BurningHold",
    "Grant",
    "GrantPart",
    "GrantRefund",
    "Hold",
    "LedgerAccount",
    "Seal",
    "SealedBalance",
    "Transfer",
]


class AccountKind(models.TextChoices):
    PREPAID = "prepaid", "Prepaid balance of a buyer"
    RECEIVABLE = "receivable", "What a buyer in arrears owes (bounded by his credit line)"
    PAYABLE = "payable", "What the market owes a provider"
    DEFERRED = "deferred", "Prepaid committed volume not yet delivered (one per contract)"
    BOND = "bond", "Provider bond"
    GRANT = "grant", "Credit burned before the own balance (one per grant)"
    FEES = "fees", "Market fees earned"
    BREAKAGE = "breakage", "What was left of expired grants"
    TAX = "tax", "Tax collected"
    ROUNDING = "rounding", "Remainders of micros to minor units on documents"
    PROCESSOR = "processor", "Money at the payment processor"
    OPERATOR = "operator", "The operator's own money"


class LedgerAccount(models.Model):
    """One account in the books. Balance available = credits_posted + overdraft_limit - debits_posted - debits_pending.

    `debits_must_not_exceed_credits` bounds it (TigerBeetle's word); hot accounts (fees, processor) carry no bound.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=16, choices=AccountKind.choices)
    currency = models.CharField(max_length=3)
    reference_id = models.UUIDField(null=True)
    debits_must_not_exceed_credits = models.BooleanField()
    overdraft_limit_micros = models.BigIntegerField(default=0)
    # What the operator lends (`sql/credit_lines.sql`); null on an account without a credit line.
    credit_line_micros = models.BigIntegerField(null=True)
    debits_posted_micros = models.BigIntegerField(default=0)
    credits_posted_micros = models.BigIntegerField(default=0)
    debits_pending_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "kind", "currency", "reference_id"],
                nulls_distinct=False,
                name="ledger_account_unique",
            ),
            models.CheckConstraint(
                condition=Q(debits_posted_micros__gte=0)
                & Q(credits_posted_micros__gte=0)
                & Q(debits_pending_micros__gte=0)
                & Q(overdraft_limit_micros__gte=0),
                name="ledger_account_sums_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(debits_must_not_exceed_credits=False)
                | Q(
                    debits_posted_micros__lte=F("credits_posted_micros")
                    + F("overdraft_limit_micros")
                    - F("debits_pending_micros")
                ),
                name="ledger_account_debits_must_not_exceed_credits",
            ),
            models.CheckConstraint(
                condition=Q(credit_line_micros__isnull=True)
                | Q(credit_line_micros__gte=0, overdraft_limit_micros__gte=F("credit_line_micros")),
                name="ledger_account_overdraft_reaches_credit_line",
            ),
        ]


class Hold(models.Model):
    """Money set aside on one account. Ends posted, voided or expired, once.

    While open, `amount_micros - captured_micros` of it is pending on the account.
    """

    class Status(models.TextChoices):
        OPEN = "open"
        POSTED = "posted"
        VOIDED = "voided"
        EXPIRED = "expired"

    id = models.UUIDField(primary_key=True, editable=False)
    account = models.ForeignKey(LedgerAccount, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount_micros = models.BigIntegerField()
    # What it was opened with: a retry of the opening is known by its terms, also after the hold has grown.
    opened_micros = models.BigIntegerField()
    captured_micros = models.BigIntegerField(default=0)
    code = models.CharField(max_length=32)
    reference_id = models.UUIDField(null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    expires_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micros__gte=0)
                & Q(captured_micros__gte=0)
                & Q(captured_micros__lte=F("amount_micros")),
                name="ledger_hold_captured_within_amount",
            ),
            models.CheckConstraint(
                condition=(Q(status="open") & Q(ended_at__isnull=True))
                | (~Q(status="open") & Q(ended_at__isnull=False)),
                name="ledger_hold_ends_once",
            ),
        ]
        indexes = [
            models.Index(fields=["account"], condition=Q(status="open"), name="ledger_hold_open_by_account"),
            models.Index(
                fields=["expires_at"],
                condition=Q(status="open") & Q(expires_at__isnull=False),
                name="ledger_hold_open_by_expiry",
            ),
        ]


class Transfer(models.Model):
    """One movement of money: one debit, one credit, one positive amount; so it cannot be unbalanced. Append-only.

    `number` comes from a sequence after both accounts are locked: within an account it is the order of posting.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    number = models.BigIntegerField(editable=False)
    debit_account = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    credit_account = models.ForeignKey(
        LedgerAccount, on_delete=models.PROTECT, related_name="+", db_index=False
    )
    amount_micros = models.BigIntegerField()
    code = models.CharField(max_length=32)
    hold = models.ForeignKey(Hold, on_delete=models.PROTECT, null=True, related_name="+")
    reference_id = models.UUIDField(null=True)
    occurred_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=models.functions.Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["number"], name="ledger_transfer_number"),
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="ledger_transfer_amount_positive"),
            models.CheckConstraint(
                condition=~Q(debit_account=F("credit_account")), name="ledger_transfer_between_two_accounts"
            ),
        ]
        indexes = [
            models.Index(fields=["debit_account", "number"], name="ledger_transfer_debits"),
            models.Index(fields=["credit_account", "number"], name="ledger_transfer_credits"),
            models.Index(fields=["reference_id"], name="ledger_transfer_by_reference"),
        ]
