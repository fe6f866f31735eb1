"""Charges, invoices, statements, top-ups and payouts."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.billing.auto_top_up_models import AutoTopUp as AutoTopUp
from marketplace.billing.document_models import (
    CreditNote,
    CreditNoteLine,
    CreditNoteTax,
    Discount,
    DunningStep,
    InvoiceDiscount,
    InvoiceLineTax,
    InvoicePayment,
    InvoiceStatusChange,
    InvoiceTax,
    TaxRule,
)
from marketplace.billing.operator_models import OperatorPosting as OperatorPosting
from marketplace.billing.payout_models import (
    BondDeposit,
    BondWithdrawal,
    DestinationNotice,
    PayoutDestinationChange,
)
from marketplace.billing.payout_stop_models import PayoutStop as PayoutStop
from marketplace.billing.processor_models import (
    DisputeShare,
    PaymentDispute,
    ProcessorAccount,
    ProcessorEvent,
    ProcessorGate,
    ProcessorOperation,
    ProcessorPayer,
    ProcessorReport,
)
from marketplace.billing.service_models import ServiceFigure as ServiceFigure
from marketplace.billing.service_models import ServicePeriod as ServicePeriod
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from marketplace.orders.models import Ask
from pricing.models import Grade, Rate
from providers.models import Offering

__all__ = [
    "BondDeposit",
    "BondWithdrawal",
    "Charge",
    "ChargeKind",
    "CreditNote",
    "CreditNoteLine",
    "CreditNoteTax",
    "DeliveryOutcome",
    "DestinationNotice",
    "Discount",
    "DisputeShare",
    "DocumentNumber",
    "DunningStep",
    "Earning",
    "Invoice",
    "InvoiceDiscount",
    "InvoiceLine",
    "InvoiceLineCharge",
    "InvoiceLineTax",
    "InvoicePayment",
    "InvoiceStatusChange",
    "InvoiceTax",
    "PaymentDispute",
    "Payout",
    "PayoutDestinationChange",
    "ProcessorAccount",
    "ProcessorEvent",
    "ProcessorGate",
    "ProcessorOperation",
    "ProcessorPayer",
    "ProcessorReport",
    "Settlement",
    "Statement",
    "StatementLine",
    "StatementLineEarning",
    "TaxRule",
    "TopUp",
]


class ChargeKind(models.TextChoices):
    COMMITTED_FEE = "committed_fee"
    USAGE = "usage"
    OVERAGE = "overage"
    TRUE_UP = "true_up"
    TERMINATION = "termination"
    SPOT = "spot"
    MINIMUM_TAKE = "minimum_take"
    REMEDY = "remedy"
    SERVICE_CREDIT = "service_credit"
    RELEASE = "release"
    ADJUSTMENT = "adjustment"


class TopUp(models.Model):
    """Money a buyer brings in through the payment processor."""

    class Status(models.TextChoices):
        PENDING = "pending"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    amount_micros = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    processor = models.CharField(max_length=16)
    processor_reference = models.CharField(max_length=120, blank=True)
    # Where the buyer goes on (the processor's own page, 3-D Secure) while it is pending; else empty.
    action_url = models.CharField(max_length=2000, blank=True, default="")
    # Where the market began it by itself.
    auto_top_up = models.ForeignKey(
        "billing.AutoTopUp", on_delete=models.PROTECT, null=True, related_name="top_ups"
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_topup_amount_positive"),
        ]


class Settlement(models.Model):
    """One contract squared up for one settlement period. Re-runs are new rows with deltas (`run` counts up)."""

    id = models.UUIDField(primary_key=True, editable=False)
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="settlements")
    settlement_start = models.DateTimeField()
    settlement_end = models.DateTimeField()
    run = models.PositiveIntegerField()
    # What this run saw to bill: the gateway's roll-ups less what is in dispute.
    usage_numerator = models.BigIntegerField()
    # Of all it was made of: what differs later, in sum or in who delivered, is another run's.
    usage_digest = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["contract", "settlement_start", "run"], name="billing_settlement_unique"
            ),
            models.CheckConstraint(
                condition=Q(settlement_end__gt=F("settlement_start")), name="billing_settlement_forwards"
            ),
        ]
        indexes = [models.Index(fields=["settlement_start"], name="billing_settlement_by_start")]


class Charge(models.Model):
    """A rated line of a buyer: exact numerator x rate, rounded once. Append-only.

    Of a list price by a month's volume it is what leads from `since_numerator` to that and the charge's own, both
    rounded (docs/tariffs.md); its rate is the tier's.

    `amount_micros` may be negative on adjustments, remedies, releases and service credits only. Usage covered by a
    committed fee is charged at 0 micros per Mtok (docs/rounding.md). A remedy and a service credit bill no volume: what
    failed stands in the `DeliveryOutcome`, what was too slow in the `ServicePeriod`. Nor does a release: it is what a
    committed buyer got for volume that was resold, less the fee.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="charges")
    settlement = models.ForeignKey(Settlement, on_delete=models.PROTECT, null=True, related_name="charges")
    kind = models.CharField(max_length=16, choices=ChargeKind.choices)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+")
    # Half-open, UTC: the delivery period of a spot line, the settlement period of usage, the month of a fee.
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    numerator = models.BigIntegerField()
    # The part of it that no meter has reported: an adjustment takes it off when an actual count replaces it.
    estimated_numerator = models.BigIntegerField(default=0)
    rate_micros_per_mtok = models.BigIntegerField()
    amount_micros = models.BigIntegerField()
    # Of a price by a month's volume: the month, the tier (null of a package), and what was counted before this charge.
    tariff_month = models.ForeignKey(
        "billing.TariffMonth", on_delete=models.PROTECT, null=True, related_name="charges"
    )
    tier = models.PositiveSmallIntegerField(null=True)
    since_numerator = models.BigIntegerField(null=True)
    # Tax set aside on this charge, pending in the ledger until the invoice.
    tax_held_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=(Q(amount_micros__gte=0) & Q(numerator__gte=0) & Q(estimated_numerator__gte=0))
                | Q(kind="adjustment")
                | Q(kind__in=["remedy", "release", "service_credit"], numerator=0, estimated_numerator=0),
                name="billing_charge_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(tax_held_micros__gte=0), name="billing_charge_tax_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")), name="billing_charge_forwards"
            ),
            models.CheckConstraint(
                condition=Q(tariff_month__isnull=True, tier__isnull=True, since_numerator__isnull=True)
                | Q(tariff_month__isnull=False, since_numerator__gte=0),
                name="billing_charge_of_a_month",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "period_start"], name="billing_charge_by_org"),
            models.Index(fields=["contract", "period_start"], name="billing_charge_by_contract"),
        ]


class Earning(models.Model):
    """The seller's side of a charge: gross by numerator, less the market fee.

    With an `ask` it is a committed buyer's part, for released lots of the offering that were resold: his money is on
    his prepaid balance already, and stands on his invoice as a `release` credit, not on a statement.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    charge = models.ForeignKey(Charge, on_delete=models.PROTECT, related_name="earnings")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    ask = models.ForeignKey(Ask, on_delete=models.PROTECT, null=True, related_name="+")
    numerator = models.BigIntegerField()
    gross_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField()
    period_start = models.DateTimeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["charge", "offering", "ask"], nulls_distinct=False, name="billing_earning_unique"
            )
        ]
        indexes = [models.Index(fields=["organization", "period_start"], name="billing_earning_by_org")]


class DeliveryOutcome(models.Model):
    """What one offering's part of an award came to: A = R + U + F + N, and the remedy for F (DESIGN 8). Append-only.

    As one settlement run saw it; a later run that sees something else writes a row of its own, and the last one holds.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    settlement = models.ForeignKey(Settlement, on_delete=models.PROTECT, related_name="outcomes")
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="+")
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    provider_organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    run = models.PositiveIntegerField()
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    entitled_numerator = models.BigIntegerField()
    released_numerator = models.BigIntegerField()
    delivered_numerator = models.BigIntegerField()
    failed_numerator = models.BigIntegerField()
    unused_numerator = models.BigIntegerField()
    down_ms = models.BigIntegerField()
    # What of it the host could not supply any more from some moment on, and what of N is excused by the buyer's mix.
    curtailed_numerator = models.BigIntegerField(default=0, db_default=0)
    excused_numerator = models.BigIntegerField(default=0, db_default=0)
    rate_micros_per_mtok = models.BigIntegerField()
    replaced_numerator = models.BigIntegerField(default=0)
    replacement_micros_per_mtok = models.BigIntegerField(default=0)
    remedy_micros = models.BigIntegerField(default=0)
    # What the remedy could be at most when it was first owed; null while nothing is. Later runs keep it.
    remedy_cap_micros = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["contract", "offering", "period_start", "run"], name="billing_deliveryoutcome_unique"
            ),
            models.CheckConstraint(
                condition=Q(
                    entitled_numerator=F("released_numerator")
                    + F("delivered_numerator")
                    + F("failed_numerator")
                    + F("unused_numerator")
                )
                & Q(released_numerator__gte=0)
                & Q(delivered_numerator__gte=0)
                & Q(failed_numerator__gte=0)
                & Q(unused_numerator__gte=0),
                name="billing_deliveryoutcome_adds_up",
            ),
            models.CheckConstraint(
                condition=Q(replaced_numerator__gte=0) & Q(replaced_numerator__lte=F("failed_numerator")),
                name="billing_deliveryoutcome_replaced_within_failed",
            ),
            models.CheckConstraint(
                condition=Q(remedy_micros=0)
                | (Q(remedy_micros__gt=0) & Q(remedy_micros__lte=F("remedy_cap_micros"))),
                name="billing_deliveryoutcome_remedy_within_cap",
            ),
            models.CheckConstraint(
                condition=Q(curtailed_numerator__gte=0)
                & Q(curtailed_numerator__lte=F("entitled_numerator") - F("released_numerator"))
                & Q(excused_numerator__gte=0)
                & Q(excused_numerator__lte=F("unused_numerator")),
                name="billing_deliveryoutcome_excused_within_unused",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")) & Q(down_ms__gte=0),
                name="billing_deliveryoutcome_forwards",
            ),
        ]
        indexes = [
            models.Index(fields=["organization", "period_start"], name="billing_outcome_by_buyer"),
            models.Index(
                fields=["provider_organization", "period_start"], name="billing_outcome_by_provider"
            ),
        ]


class DocumentNumber(models.Model):
    """The gapless counter of a document series of an issuer, moved under its row lock in the issuing transaction."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    issuer = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    series = models.CharField(max_length=32)
    last_number = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["issuer", "series"], name="billing_documentnumber_unique")
        ]


class Invoice(models.Model):
    """A buyer's document for one UTC calendar month. Once finalised only its status moves (trigger).

    `draft` lives inside one transaction; in `grace` late usage still enters and there is no number; after that it is
    `finalised`, and paid, overdue or void as time and money have it. Moves are in InvoiceStatusChange.
    """

    class Status(models.TextChoices):
        DRAFT = "draft"
        GRACE = "grace"
        FINALISED = "finalised"
        ACTION_REQUIRED = "action_required"
        OVERDUE = "overdue"
        UNCOLLECTIBLE = "uncollectible"
        PAID = "paid"
        VOID = "void"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    issuer = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    number = models.CharField(max_length=40, null=True, unique=True)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.DRAFT)
    currency = models.CharField(max_length=3)
    # The void invoice that this one stands for.
    replaces = models.OneToOneField("self", on_delete=models.PROTECT, null=True, related_name="replaced_by")
    # Frozen at finalisation: legal names, addresses, tax ids of both sides.
    parties = models.JSONField(default=dict)
    subtotal_micros = models.BigIntegerField(default=0)
    discount_micros = models.BigIntegerField(default=0)
    tax_micros = models.BigIntegerField(default=0)
    total_micros = models.BigIntegerField(default=0)
    prepaid_micros = models.BigIntegerField(default=0)
    amount_due_micros = models.BigIntegerField(default=0)
    # What lies below whole minor units, given to the buyer: total = subtotal - discount + tax - rounding.
    rounding_micros = models.BigIntegerField(default=0)
    # Tax for which there was no cover at finalisation: in the amount due, and posted when that is paid.
    tax_unposted_micros = models.BigIntegerField(default=0)
    # SHA-256 of what the document says (`printing.content_of`); the same content prints the same bytes.
    content_sha256 = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()
    grace_until = models.DateTimeField(null=True)
    finalised_at = models.DateTimeField(null=True)
    due_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "period_start"],
                condition=~Q(status="void"),
                name="billing_invoice_one_per_month",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["draft", "grace"])
                | (Q(number__isnull=False) & Q(finalised_at__isnull=False)),
                name="billing_invoice_finalised_has_number",
            ),
            models.CheckConstraint(
                condition=Q(
                    total_micros=F("subtotal_micros")
                    - F("discount_micros")
                    + F("tax_micros")
                    - F("rounding_micros")
                )
                & Q(amount_due_micros=F("total_micros") - F("prepaid_micros")),
                name="billing_invoice_adds_up",
            ),
        ]


class InvoiceLine(models.Model):
    """One printed line; `charges` are the rated lines it sums (one line per spot contract and day)."""

    id = models.UUIDField(primary_key=True, editable=False)
    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="lines")
    number = models.PositiveIntegerField()
    kind = models.CharField(max_length=16, choices=ChargeKind.choices)
    description = models.CharField(max_length=300)
    contract = models.ForeignKey(Contract, on_delete=models.PROTECT, related_name="+")
    charges = models.ManyToManyField(Charge, through="InvoiceLineCharge", related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    numerator = models.BigIntegerField()
    # What of it was still estimated when the invoice was drawn up.
    estimated_numerator = models.BigIntegerField(default=0)
    amount_micros = models.BigIntegerField()
    # Its parts of the invoice's discounts and taxes; they sum to the invoice's.
    discount_micros = models.BigIntegerField(default=0)
    tax_micros = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(fields=["invoice", "number"], name="billing_invoiceline_number_unique"),
        ]


class InvoiceLineCharge(models.Model):
    """A charge is invoiced once."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    line = models.ForeignKey(InvoiceLine, on_delete=models.PROTECT, related_name="+")
    charge = models.OneToOneField(Charge, on_delete=models.PROTECT, related_name="invoiced_as")


class Statement(models.Model):
    """A provider's self-billed document for one UTC calendar month; mirrors invoices."""

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    issuer = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    number = models.CharField(max_length=40, unique=True)
    currency = models.CharField(max_length=3)
    parties = models.JSONField(default=dict)
    # When the provider consented to be billed by the market; null where he had not when it was issued.
    consented_at = models.DateTimeField(null=True)
    content_sha256 = models.CharField(max_length=64, blank=True)
    gross_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField()
    net_micros = models.BigIntegerField()
    # From when the net may be paid out, less what is retained of it until later; null: from its issue.
    payable_at = models.DateTimeField(null=True)
    retained_micros = models.BigIntegerField(default=0)
    retained_until = models.DateTimeField(null=True)
    released_micros = models.BigIntegerField(default=0)
    # The payable account since the last statement, as it grew and shrank; null while there was no such account.
    last_transfer_number = models.BigIntegerField(null=True)
    brought_forward_micros = models.BigIntegerField(default=0)
    posted_earned_micros = models.BigIntegerField(default=0)
    posted_fee_micros = models.BigIntegerField(default=0)
    posted_given_back_micros = models.BigIntegerField(default=0)
    posted_bond_micros = models.BigIntegerField(default=0)
    posted_dispute_micros = models.BigIntegerField(default=0)
    posted_payout_micros = models.BigIntegerField(default=0)
    carried_forward_micros = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "period_start"], name="billing_statement_one_per_month"
            ),
            models.CheckConstraint(
                condition=Q(net_micros=F("gross_micros") - F("fee_micros")), name="billing_statement_adds_up"
            ),
            models.CheckConstraint(
                condition=Q(retained_micros=0)
                | (
                    Q(retained_micros__gt=0)
                    & Q(retained_micros__lte=F("net_micros"))
                    & Q(retained_until__gt=F("payable_at"))
                ),
                name="billing_statement_retained_within_net",
            ),
            models.CheckConstraint(
                condition=Q(
                    carried_forward_micros=F("brought_forward_micros")
                    + F("posted_earned_micros")
                    + F("posted_fee_micros")
                    + F("posted_given_back_micros")
                    + F("posted_bond_micros")
                    + F("posted_dispute_micros")
                    + F("posted_payout_micros")
                ),
                name="billing_statement_account_closes",
            ),
        ]


class StatementLine(models.Model):
    id = models.UUIDField(primary_key=True, editable=False)
    statement = models.ForeignKey(Statement, on_delete=models.PROTECT, related_name="lines")
    number = models.PositiveIntegerField()
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+")
    description = models.CharField(max_length=300)
    numerator = models.BigIntegerField()
    gross_micros = models.BigIntegerField()
    fee_micros = models.BigIntegerField()

    class Meta:
        ordering = ["number"]
        constraints = [
            models.UniqueConstraint(
                fields=["statement", "number"], name="billing_statementline_number_unique"
            ),
        ]


class StatementLineEarning(models.Model):
    """An earning is stated once."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    line = models.ForeignKey(StatementLine, on_delete=models.PROTECT, related_name="earnings")
    earning = models.OneToOneField(Earning, on_delete=models.PROTECT, related_name="stated_as")


class Payout(models.Model):
    """Money sent to a provider. Without a statement it is what was released of a retention, or left of a minimum."""

    class Status(models.TextChoices):
        PENDING = "pending"
        PAID = "paid"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+")
    statement = models.OneToOneField(Statement, on_delete=models.PROTECT, null=True, related_name="payout")
    # Where it went: frozen when it was begun.
    destination = models.CharField(max_length=200, blank=True, default="", db_default="")
    amount_micros = models.BigIntegerField()
    # What of the provider's balance was kept back when it was begun.
    retained_micros = models.BigIntegerField(default=0)
    currency = models.CharField(max_length=3)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.PENDING)
    processor = models.CharField(max_length=16)
    processor_reference = models.CharField(max_length=120, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(amount_micros__gt=0), name="billing_payout_amount_positive"),
        ]


# Below what they refer to.
from marketplace.billing.month_models import MonthOutcome as MonthOutcome  # noqa: E402
from marketplace.billing.month_models import TariffMonth as TariffMonth  # noqa: E402
