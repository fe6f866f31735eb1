"""What documents are made of beside their lines: rules of tax and discounts, credit notes, payments, the history."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7


class TaxRule(models.Model):
    """One tax of one jurisdiction: what it takes of whom, and when. Only the end of its validity is ever changed.

    `percent`: `rate_ppm` of the net amount. `levy`: `levy_micros_per_mtok` of the volume that hosts outside of
    `home_regions` delivered. Rules of one jurisdiction with different codes stack; of one code there is one at a time
    (`billing_taxrule_one_at_a_time`, over `series_id`, in the migration).
    """

    class Kind(models.TextChoices):
        PERCENT = "percent"
        LEVY = "levy"

    class Buyers(models.TextChoices):
        ALL = "all"
        BUSINESS = "business"
        CONSUMER = "consumer"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # Derived from jurisdiction and code.
    series_id = models.UUIDField(editable=False)
    jurisdiction = models.CharField(max_length=6)
    code = models.CharField(max_length=32)
    title = models.CharField(max_length=100)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    rate_ppm = models.BigIntegerField(default=0)
    levy_micros_per_mtok = models.BigIntegerField(default=0)
    home_regions = ArrayField(models.CharField(max_length=64), default=list, blank=True)
    buyers = models.CharField(max_length=8, choices=Buyers.choices, default=Buyers.ALL)
    # Whether a business in another country of TAX_UNION_COUNTRIES accounts for the tax itself.
    reverse_charge = models.BooleanField(default=False)
    valid_from = models.DateTimeField()
    valid_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=(
                    Q(kind="percent") & Q(rate_ppm__gte=0, rate_ppm__lte=1_000_000, levy_micros_per_mtok=0)
                )
                | (Q(kind="levy") & Q(levy_micros_per_mtok__gt=0, rate_ppm=0)),
                name="billing_taxrule_one_figure",
            ),
            models.CheckConstraint(
                condition=Q(valid_until__isnull=True) | Q(valid_until__gte=F("valid_from")),
                name="billing_taxrule_forwards",
            ),
        ]


class Discount(models.Model):
    """What the operator takes off an organization's invoices: a share or an amount, of one kind of line or of all."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    title = models.CharField(max_length=100)
    rate_ppm = models.BigIntegerField(null=True)
    amount_micros = models.BigIntegerField(null=True)
    # Of lines of this kind; empty: of the whole invoice.
    line_kind = models.CharField(max_length=16, blank=True)
    # How many invoices it reduces; null: every one while it is valid.
    max_invoices = models.PositiveIntegerField(null=True)
    valid_from = models.DateTimeField()
    valid_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(rate_ppm__gt=0, rate_ppm__lte=1_000_000, amount_micros__isnull=True)
                | Q(rate_ppm__isnull=True, amount_micros__gt=0),
                name="billing_discount_one_figure",
            ),
            models.CheckConstraint(
                condition=Q(valid_until__isnull=True) | Q(valid_until__gte=F("valid_from")),
                name="billing_discount_forwards",
            ),
        ]
        indexes = [models.Index(fields=["organization"], name="billing_discount_by_org")]


class InvoiceDiscount(models.Model):
    """What a discount took off an invoice."""

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="discounts")
    discount = models.ForeignKey(Discount, on_delete=models.PROTECT, related_name="+")
    title = models.CharField(max_length=100)
    amount_micros = models.BigIntegerField()

    class Meta:
        ordering = ["discount_id"]
        constraints = [
            models.UniqueConstraint(fields=["invoice", "discount"], name="billing_invoicediscount_unique"),
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_invoicediscount_positive"),
        ]


class InvoiceTax(models.Model):
    """One rate of an invoice: its base, its tax, or that the buyer accounts for it. `rule` is null for a rate that the
    operator gave the organization itself."""

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="taxes")
    number = models.PositiveIntegerField()
    rule = models.ForeignKey(TaxRule, on_delete=models.PROTECT, null=True, related_name="+")
    jurisdiction = models.CharField(max_length=6, blank=True)
    title = models.CharField(max_length=100)
    rate_ppm = models.BigIntegerField(default=0)
    levy_micros_per_mtok = models.BigIntegerField(default=0)
    reverse_charge = models.BooleanField(default=False)
    # Net amount in micros for a rate, volume from abroad for a levy.
    base_micros = models.BigIntegerField(default=0)
    base_numerator = models.BigIntegerField(default=0)
    tax_micros = models.BigIntegerField()

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["invoice", "number"], name="billing_invoicetax_number_unique"),
            models.CheckConstraint(
                condition=Q(rate_ppm__gte=0, levy_micros_per_mtok__gte=0),
                name="billing_invoicetax_rate_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(reverse_charge=False) | Q(tax_micros=0),
                name="billing_invoicetax_reversed_is_zero",
            ),
        ]


class InvoiceLineTax(models.Model):
    """A rate's tax on one line: what a credit note of that line gives back. May be negative, as the line may."""

    id = models.UUIDField(primary_key=True, editable=False)
    line = models.ForeignKey("billing.InvoiceLine", on_delete=models.PROTECT, related_name="taxes")
    tax = models.ForeignKey(InvoiceTax, on_delete=models.PROTECT, related_name="+")
    tax_micros = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["line", "tax"], name="billing_invoicelinetax_unique")]


class InvoiceStatusChange(models.Model):
    """One step of an invoice's status. Append-only; written by the service that moves it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="history")
    from_status = models.CharField(max_length=16)
    to_status = models.CharField(max_length=16)
    reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["id"]


class InvoicePayment(models.Model):
    """Money towards what is due on an invoice: from the prepaid balance, or collected by the payment processor."""

    class Source(models.TextChoices):
        BALANCE = "balance"
        PROCESSOR = "processor"

    class Status(models.TextChoices):
        PENDING = "pending"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="payments")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    source = models.CharField(max_length=10, choices=Source.choices)
    amount_micros = models.BigIntegerField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    processor_reference = models.CharField(max_length=120, blank=True)
    # While it waits for the buyer: the processor's page, or 3-D Secure of his bank.
    action_url = models.CharField(max_length=2000, blank=True, default="")
    failure = models.CharField(max_length=300, blank=True)
    # What the buyer's bank has taken back of it: due again.
    reversed_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_invoicepayment_positive"),
            models.CheckConstraint(
                condition=Q(reversed_micros__gte=0, reversed_micros__lte=F("amount_micros")),
                name="billing_invoicepayment_reversed_within_amount",
            ),
            # A buyer who clicks twice pays once: a second payment waits for the first one's end.
            models.UniqueConstraint(
                fields=["invoice"], condition=Q(status="pending"), name="billing_invoicepayment_one_pending"
            ),
        ]


class CreditNote(models.Model):
    """The correction of a finalised invoice, in whole or in part. Append-only.

    `total = net + tax - rounding`, of which `due_micros` reduces what is due and the rest goes to the balance.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="credit_notes")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    number = models.CharField(max_length=40, unique=True)
    currency = models.CharField(max_length=3)
    parties = models.JSONField()
    reason = models.CharField(max_length=300)
    net_micros = models.BigIntegerField()
    tax_micros = models.BigIntegerField()
    rounding_micros = models.BigIntegerField()
    total_micros = models.BigIntegerField()
    due_micros = models.BigIntegerField()
    content_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(total_micros=F("net_micros") + F("tax_micros") - F("rounding_micros"))
                & Q(total_micros__gte=0),
                name="billing_creditnote_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(due_micros__gte=0, due_micros__lte=F("total_micros")),
                name="billing_creditnote_due_within_total",
            ),
        ]
        indexes = [models.Index(fields=["organization"], name="billing_creditnote_by_org")]


class CreditNoteLine(models.Model):
    """What a note credits of one line: net amount, and the tax that belongs to it."""

    id = models.UUIDField(primary_key=True, editable=False)
    note = models.ForeignKey(CreditNote, on_delete=models.PROTECT, related_name="lines")
    line = models.ForeignKey("billing.InvoiceLine", on_delete=models.PROTECT, related_name="credited")
    net_micros = models.BigIntegerField()
    tax_micros = models.BigIntegerField()

    class Meta:
        ordering = ["line__number"]
        constraints = [models.UniqueConstraint(fields=["note", "line"], name="billing_creditnoteline_unique")]


class CreditNoteTax(models.Model):
    """What a note credits of one rate on one of its lines."""

    id = models.UUIDField(primary_key=True, editable=False)
    line = models.ForeignKey(CreditNoteLine, on_delete=models.PROTECT, related_name="taxes")
    tax = models.ForeignKey(InvoiceTax, on_delete=models.PROTECT, related_name="+")
    tax_micros = models.BigIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["line", "tax"], name="billing_creditnotetax_unique")]


class DunningStep(models.Model):
    """One thing done about an overdue invoice, once: a reminder (by its day), a suspension."""

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey("billing.Invoice", on_delete=models.PROTECT, related_name="dunning")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    step = models.CharField(max_length=32)
    amount_micros = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["created_at"]
        constraints = [
            models.UniqueConstraint(fields=["invoice", "step"], name="billing_dunningstep_once"),
            models.CheckConstraint(
                condition=Q(amount_micros__gt=0), name="billing_dunningstep_amount_positive"
            ),
        ]
