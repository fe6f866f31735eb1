"""Seals over closed ranges of transfers. Written by `sql/seals.sql` alone; append-only."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q


class Seal(models.Model):
    """The transfers with numbers from `first_number` to `last_number`, closed for ever.

    `digest` covers the range, both tree roots and the digest before it. `members` is id (16 bytes) and leaf digest
    (32) of each transfer in order: what names the transfer that was changed, and what inclusion proofs are made from.
    """

    number = models.BigIntegerField(primary_key=True)
    first_number = models.BigIntegerField()
    last_number = models.BigIntegerField()
    transfer_count = models.IntegerField()
    root = models.BinaryField()
    accounts_root = models.BinaryField()
    previous_digest = models.BinaryField()
    digest = models.BinaryField()
    occurred_from = models.DateTimeField()
    occurred_to = models.DateTimeField()
    sealed_at = models.DateTimeField()
    members = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["previous_digest"], name="ledger_seal_chain_does_not_fork"),
            models.CheckConstraint(
                condition=Q(number__gte=1)
                & Q(first_number__lte=F("last_number"))
                & Q(transfer_count__gte=1)
                & Q(transfer_count__lte=F("last_number") - F("first_number") + 1)
                & Q(occurred_from__lte=F("occurred_to")),
                name="ledger_seal_range",
            ),
        ]


class SealedBalance(models.Model):
    """What one account's transfers summed up to when a seal that has some of them was closed, since the beginning.

    `place` is its leaf in the seal's tree of accounts. Balances of the past are read from here.
    """

    pk = models.CompositePrimaryKey("account", "seal")
    seal = models.ForeignKey(Seal, on_delete=models.PROTECT, related_name="+", db_index=False)
    account = models.ForeignKey(
        "ledger.LedgerAccount", on_delete=models.PROTECT, related_name="+", db_index=False
    )
    place = models.IntegerField()
    entries = models.BigIntegerField()
    debits_micros = models.BigIntegerField()
    credits_micros = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["seal", "place"], name="ledger_sealedbalance_place"),
            models.CheckConstraint(
                condition=Q(entries__gte=1) & Q(debits_micros__gte=0) & Q(credits_micros__gte=0),
                name="ledger_sealedbalance_sums_not_negative",
            ),
        ]
