"""What was asked of the payment processor, what it told us, and what both came to."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7


class OperationKind(models.TextChoices):
    PAYER = "payer", "A buyer made known to the processor"
    SAVE_CARD = "save_card", "A card kept for later charges"
    CHECKOUT = "checkout", "A payment on the processor's own page"
    CHARGE = "charge", "A charge of the saved card"
    REFUND = "refund", "Part of a payment sent back"
    ACCOUNT = "account", "A provider's account at the processor"
    TRANSFER = "transfer", "Money moved to a provider's account"
    REVERSAL = "reversal", "A transfer taken back"
    PAYOUT = "payout", "Money sent from a provider's account to his bank"


COLLECTIONS = (OperationKind.CHECKOUT, OperationKind.CHARGE)


class ProcessorOperation(models.Model):
    """One thing asked of the processor. Written and committed before the call, so that a dead process leaves a trace.

    `fact_id` with `kind` is the business fact, `subject_id` what it is for (a top-up, an invoice, a payout, a dispute).
    `terms` is frozen with the first sending: a retry under the same key must say the same.
    """

    class Status(models.TextChoices):
        REQUESTED = "requested"
        SENT = "sent"
        UNKNOWN = "unknown"
        ACTION_REQUIRED = "action_required"
        FAILED = "failed"
        SUCCEEDED = "succeeded"

    class Purpose(models.TextChoices):
        TOP_UP = "top_up"
        INVOICE = "invoice"
        BOND = "bond"
        NONE = ""

    id = models.UUIDField(primary_key=True, editable=False)
    kind = models.CharField(max_length=10, choices=OperationKind.choices)
    fact_id = models.UUIDField()
    subject_id = models.UUIDField()
    purpose = models.CharField(max_length=8, choices=Purpose.choices, blank=True)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    parent = models.ForeignKey("self", on_delete=models.PROTECT, null=True, related_name="children")
    processor = models.CharField(max_length=16)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.REQUESTED)
    idempotency_key = models.CharField(max_length=80, unique=True)
    # Counts up where a refusal that the processor remembers under the key is to be asked again.
    key_number = models.PositiveIntegerField(default=1)
    amount_micros = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3)
    # Of a payment: what of it went back or on, reserved before the processor is asked.
    refunded_micros = models.BigIntegerField(default=0)
    transferred_micros = models.BigIntegerField(default=0)
    terms = models.JSONField(default=dict)
    object_id = models.CharField(max_length=120, blank=True)
    # The charge behind a payment, which is what transfers and disputes name.
    charge_object_id = models.CharField(max_length=120, blank=True)
    action_url = models.CharField(max_length=2000, blank=True)
    reason = models.CharField(max_length=200, blank=True)
    attempts = models.PositiveIntegerField(default=0)
    requested_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # Of the machine's clock, not the market's: they are about processes.
    called_at = models.DateTimeField(null=True)
    key_sent_at = models.DateTimeField(null=True)
    lease_until = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "fact_id"], name="billing_operation_fact_unique"),
            models.UniqueConstraint(
                fields=["subject_id"],
                condition=Q(kind__in=COLLECTIONS) & ~Q(status="failed"),
                name="billing_operation_one_live_collection",
            ),
            models.UniqueConstraint(
                fields=["processor", "kind", "object_id"],
                condition=~Q(object_id=""),
                name="billing_operation_object_unique",
            ),
            models.CheckConstraint(
                condition=Q(amount_micros__gte=0), name="billing_operation_amount_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(refunded_micros__gte=0) & Q(refunded_micros__lte=F("amount_micros")),
                name="billing_operation_refunds_within_payment",
            ),
            models.CheckConstraint(
                condition=Q(transferred_micros__gte=0) & Q(transferred_micros__lte=F("amount_micros")),
                name="billing_operation_transfers_within_payment",
            ),
            models.CheckConstraint(
                condition=Q(status="requested") | Q(sent_at__isnull=False),
                name="billing_operation_sent_has_time",
            ),
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                condition=Q(status__in=["requested", "sent", "unknown"]),
                name="billing_operation_open",
            ),
            models.Index(fields=["subject_id"], name="billing_operation_by_subject"),
            models.Index(fields=["charge_object_id"], name="billing_operation_by_charge"),
            models.Index(fields=["organization", "-id"], name="billing_operation_by_org"),
        ]


class ProcessorPayer(models.Model):
    """A buyer at the processor, and his saved card: what of it people may see."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.OneToOneField(Organization, on_delete=models.PROTECT, related_name="+")
    processor = models.CharField(max_length=16)
    payer_id = models.CharField(max_length=120)
    payment_method_id = models.CharField(max_length=120, blank=True)
    card_brand = models.CharField(max_length=32, blank=True)
    card_last4 = models.CharField(max_length=4, blank=True)
    card_expires = models.CharField(max_length=7, blank=True)
    # Whether invoices are charged to the card when they are issued and as dunning goes on.
    collect_automatically = models.BooleanField(default=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["processor", "payer_id"], name="billing_processorpayer_unique"),
        ]


class ProcessorAccount(models.Model):
    """A provider's own account at the processor. What is still due there keeps his money in payable here."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.OneToOneField(Organization, on_delete=models.PROTECT, related_name="+")
    processor = models.CharField(max_length=16)
    account_id = models.CharField(max_length=120)
    payouts_enabled = models.BooleanField(default=False)
    transfers_enabled = models.BooleanField(default=False)
    requirements_due = models.JSONField(default=list)
    # Where payouts go, as it was last seen: the processor's name of it and its last digits.
    bank_account = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()
    checked_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["processor", "account_id"], name="billing_processoraccount_unique"
            ),
        ]


class ProcessorEvent(models.Model):
    """The inbox of what the processor told us. Only what is needed to look the object up: no copy of the message."""

    class Status(models.TextChoices):
        RECEIVED = "received"
        APPLIED = "applied"
        IGNORED = "ignored"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    processor = models.CharField(max_length=16)
    event_id = models.CharField(max_length=120)
    event_type = models.CharField(max_length=80)
    object_id = models.CharField(max_length=120)
    account_id = models.CharField(max_length=120, blank=True)
    # Our own id, as it was written into the object when we made it.
    operation_id = models.UUIDField(null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.RECEIVED)
    attempts = models.PositiveIntegerField(default=0)
    error = models.CharField(max_length=200, blank=True)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()
    next_attempt_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["processor", "event_id"], name="billing_processorevent_unique"),
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"], condition=Q(status="received"), name="billing_processorevent_open"
            ),
        ]


class PaymentDispute(models.Model):
    """A payment that the buyer's bank took back. `from_balance_micros` came from what he had not spent yet,
    `reopened_micros` is due again on the invoice that the payment had paid."""

    class Status(models.TextChoices):
        OPEN = "open"
        WON = "won"
        LOST = "lost"

    id = models.UUIDField(primary_key=True, editable=False)
    payment = models.ForeignKey(ProcessorOperation, on_delete=models.PROTECT, related_name="disputes")
    object_id = models.CharField(max_length=120, unique=True)
    amount_micros = models.BigIntegerField()
    from_balance_micros = models.BigIntegerField()
    reopened_micros = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(from_balance_micros__gte=0)
                & Q(reopened_micros__gte=0)
                & Q(amount_micros__gte=F("from_balance_micros") + F("reopened_micros")),
                name="billing_paymentdispute_parts_within_amount",
            ),
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0), name="billing_paymentdispute_amount_positive"
            ),
        ]


class DisputeShare(models.Model):
    """What a provider had been sent of a disputed payment: taken back, or owed by him; returned when it is won."""

    class Status(models.TextChoices):
        REQUESTED = "requested"
        REVERSED = "reversed"
        OWED = "owed"
        SETTLED = "settled"

    id = models.UUIDField(primary_key=True, editable=False)
    dispute = models.ForeignKey(PaymentDispute, on_delete=models.PROTECT, related_name="shares")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    transfer = models.ForeignKey(ProcessorOperation, on_delete=models.PROTECT, related_name="+")
    amount_micros = models.BigIntegerField()
    recovered_micros = models.BigIntegerField(default=0)
    status = models.CharField(max_length=9, choices=Status.choices, default=Status.REQUESTED)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["dispute", "transfer"], name="billing_disputeshare_unique"),
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0)
                & Q(recovered_micros__gte=0)
                & Q(recovered_micros__lte=F("amount_micros")),
                name="billing_disputeshare_recovered_within_amount",
            ),
        ]


class ProcessorGate(models.Model):
    """How many calls may go out now (in thousandths of a call), and whether any may: one row for each processor."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    processor = models.CharField(max_length=16, unique=True)
    allowance_millis = models.BigIntegerField()
    refilled_at = models.DateTimeField()
    failures = models.PositiveIntegerField(default=0)
    open_until = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(allowance_millis__gte=0), name="billing_processorgate_allowance_not_negative"
            ),
        ]


class ProcessorReport(models.Model):
    """One comparison of the processor's balance with the books. Append-only.

    `difference_micros` = processor - ledger; what may explain it is in `details`.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    processor = models.CharField(max_length=16)
    # Movements from here on were looked at; the next report goes on at `until`.
    since = models.DateTimeField()
    until = models.DateTimeField()
    currency = models.CharField(max_length=3)
    ledger_micros = models.BigIntegerField()
    processor_micros = models.BigIntegerField()
    difference_micros = models.BigIntegerField()
    details = models.JSONField(default=dict)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(difference_micros=F("processor_micros") - F("ledger_micros")),
                name="billing_processorreport_adds_up",
            ),
        ]
        indexes = [models.Index(fields=["processor", "-until"], name="billing_processorreport_last")]
