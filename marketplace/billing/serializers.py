"""How billing's rows read in JSON. Amounts are integers of micros; numerators are strings (they pass 2^53)."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace.api.serializers import MicrosField, StrictSerializer
from marketplace.billing.models import (
    Charge,
    Earning,
    Invoice,
    InvoiceDiscount,
    InvoiceLine,
    InvoiceStatusChange,
    InvoiceTax,
    Payout,
    Statement,
    StatementLine,
    TopUp,
)
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.lifecycle import outstanding
from metering.models import UsageEvent, UsageRollup
from pricing.units import Bucket, format_micros


@extend_schema_field({"type": "string", "pattern": "^-?[0-9]+$"})
class NumeratorField(serializers.IntegerField):
    """Millionths of a standard token, as a string of digits."""

    def to_representation(self, value: Any) -> Any:
        return str(value)


class TopUpRequest(StrictSerializer):
    amount_micros = MicrosField(help_text="Whole minor units of the market's currency.")


class TopUpSerializer(serializers.ModelSerializer[TopUp]):
    class Meta:
        model = TopUp
        fields = (
            "id",
            "amount_micros",
            "currency",
            "status",
            "processor",
            "processor_reference",
            "action_url",
            "created_at",
        )


class AccountBalanceSerializer(serializers.Serializer[Any]):
    kind = serializers.CharField()
    posted_micros = serializers.IntegerField(help_text="What has been moved for good.")
    pending_micros = serializers.IntegerField(help_text="Set aside by holds.")
    available_micros = serializers.IntegerField(help_text="What can still be spent or paid out.")
    available = serializers.CharField(help_text="Exact decimal of currency units.")


class BalanceSerializer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    accounts = AccountBalanceSerializer(many=True)


class EarningSerializer(serializers.ModelSerializer[Earning]):
    numerator = NumeratorField()
    net_micros = serializers.SerializerMethodField()
    charge_kind = serializers.CharField(source="charge.kind")

    class Meta:
        model = Earning
        fields = (
            "id",
            "offering_id",
            "charge_kind",
            "numerator",
            "gross_micros",
            "fee_micros",
            "net_micros",
            "period_start",
            "created_at",
        )

    def get_net_micros(self, earning: Earning) -> int:
        return earning.gross_micros - earning.fee_micros


class ChargeSerializer(serializers.ModelSerializer[Charge]):
    """`amount_micros` is the rounded product of numerator and rate; see docs/rounding.md for the kinds.

    Of a list price by a month's volume (`since_numerator` is not null) it is what the month comes to after the charge
    less what it came to before, and the rate is the tier's: docs/tariffs.md.
    """

    since_numerator = NumeratorField(
        allow_null=True, help_text="What of the month was counted before; null of a price per unit."
    )
    tier = serializers.IntegerField(
        allow_null=True, help_text="From 0; null of packages and of a price per unit."
    )
    numerator = NumeratorField()
    estimated_numerator = NumeratorField(
        help_text="The part of numerator that no meter had reported; negative where an actual count replaced it."
    )
    is_estimated = serializers.SerializerMethodField(
        help_text="Whether some of that is still an estimate: no adjustment of the period has replaced it."
    )

    class Meta:
        model = Charge
        fields = (
            "id",
            "contract_id",
            "settlement_id",
            "kind",
            "grade_id",
            "rate_id",
            "period_start",
            "period_end",
            "numerator",
            "estimated_numerator",
            "is_estimated",
            "rate_micros_per_mtok",
            "tier",
            "since_numerator",
            "amount_micros",
            "tax_held_micros",
            "created_at",
        )

    def get_is_estimated(self, charge: Charge) -> bool:
        left: int = charge.estimated_left  # type: ignore[attr-defined]
        return charge.estimated_numerator > 0 and left > 0


class RollupSerializer(serializers.ModelSerializer[UsageRollup]):
    numerator = NumeratorField()
    estimated_numerator = NumeratorField()

    class Meta:
        model = UsageRollup
        fields = (
            "contract_id",
            "rate_id",
            "api_key_id",
            "offering_id",
            "grade_id",
            "bucket",
            "period_start",
            "events",
            "native_tokens",
            "numerator",
            "estimated_numerator",
        )


class ChargeDetailSerializer(ChargeSerializer):
    """A charge with the roll-up rows it was computed from."""

    rollups = RollupSerializer(many=True)
    withheld_numerator = NumeratorField(
        help_text="What of the roll-ups is not billed, now or for good: see the discrepancies."
    )

    class Meta(ChargeSerializer.Meta):
        fields = (*ChargeSerializer.Meta.fields, "withheld_numerator", "rollups")  # type: ignore[assignment]


class ChargeEventSerializer(serializers.ModelSerializer[UsageEvent]):
    """One request's metered facts. A bucket that was not reported is null, which is not zero."""

    numerator = NumeratorField()

    class Meta:
        model = UsageEvent
        fields = (
            "id",
            "request_id",
            "attempt",
            "part",
            "contract_id",
            "offering_id",
            "grade_id",
            "rate_id",
            "api_key_id",
            "period_start",
            "occurred_at",
            *(f"{bucket.value}_tokens" for bucket in Bucket),
            "numerator",
            "finish",
        )


class InvoiceSerializer(serializers.ModelSerializer[Invoice]):
    total = serializers.SerializerMethodField(help_text="Exact decimal of currency units.")
    amount_due = serializers.SerializerMethodField(help_text="Exact decimal of currency units.")

    class Meta:
        model = Invoice
        fields = (
            "id",
            "number",
            "status",
            "currency",
            "period_start",
            "period_end",
            "subtotal_micros",
            "discount_micros",
            "tax_micros",
            "rounding_micros",
            "total_micros",
            "prepaid_micros",
            "amount_due_micros",
            "total",
            "amount_due",
            "finalised_at",
            "due_at",
            "replaces_id",
            "content_sha256",
        )

    def get_total(self, invoice: Invoice) -> str:
        return format_micros(invoice.total_micros, invoice.currency)

    def get_amount_due(self, invoice: Invoice) -> str:
        return format_micros(invoice.amount_due_micros, invoice.currency)


class InvoiceLineSerializer(serializers.ModelSerializer[InvoiceLine]):
    """`charges_count` rated lines behind this printed one: GET /charges?invoice_line_id=<id>."""

    numerator = NumeratorField()
    estimated_numerator = NumeratorField(
        help_text="The part of numerator that was an estimate when the invoice was drawn up."
    )
    is_estimated = serializers.SerializerMethodField(help_text="Whether some of that still is.")
    charges_count = serializers.IntegerField()

    class Meta:
        model = InvoiceLine
        fields = (
            "id",
            "number",
            "kind",
            "description",
            "contract_id",
            "period_start",
            "period_end",
            "numerator",
            "estimated_numerator",
            "is_estimated",
            "amount_micros",
            "discount_micros",
            "tax_micros",
            "charges_count",
        )

    def get_is_estimated(self, line: InvoiceLine) -> bool:
        left: int = line.estimated_left  # type: ignore[attr-defined]
        return left > 0


class InvoiceTaxSerializer(serializers.ModelSerializer[InvoiceTax]):
    """One rate: its base is a net amount, or for a levy the volume from abroad."""

    base_numerator = NumeratorField()

    class Meta:
        model = InvoiceTax
        fields = (
            "number",
            "rule_id",
            "jurisdiction",
            "title",
            "rate_ppm",
            "levy_micros_per_mtok",
            "reverse_charge",
            "base_micros",
            "base_numerator",
            "tax_micros",
        )


class InvoiceDiscountSerializer(serializers.ModelSerializer[InvoiceDiscount]):
    class Meta:
        model = InvoiceDiscount
        fields = ("discount_id", "title", "amount_micros")


class InvoiceStatusChangeSerializer(serializers.ModelSerializer[InvoiceStatusChange]):
    # Plain words: the list of states is the invoice's own.
    from_status = serializers.CharField()
    to_status = serializers.CharField()

    class Meta:
        model = InvoiceStatusChange
        fields = ("from_status", "to_status", "reason", "created_at")


class InvoiceDetailSerializer(InvoiceSerializer):
    parties = serializers.JSONField()
    lines = InvoiceLineSerializer(many=True)
    taxes = InvoiceTaxSerializer(many=True)
    discounts = InvoiceDiscountSerializer(many=True)
    history = InvoiceStatusChangeSerializer(many=True)
    outstanding_micros = serializers.SerializerMethodField(help_text="What of the amount due is still due.")

    class Meta(InvoiceSerializer.Meta):
        fields = (  # type: ignore[assignment]
            *InvoiceSerializer.Meta.fields,
            "outstanding_micros",
            "parties",
            "lines",
            "discounts",
            "taxes",
            "history",
        )

    def get_outstanding_micros(self, invoice: Invoice) -> int:
        return outstanding(invoice)


class PayoutSerializer(serializers.ModelSerializer[Payout]):
    class Meta:
        model = Payout
        fields = (
            "id",
            "statement_id",
            "destination",
            "amount_micros",
            "retained_micros",
            "currency",
            "status",
            "processor",
            "processor_reference",
            "created_at",
        )


class StatementSerializer(serializers.ModelSerializer[Statement]):
    class Meta:
        model = Statement
        fields = (
            "id",
            "number",
            "currency",
            "period_start",
            "period_end",
            "gross_micros",
            "fee_micros",
            "net_micros",
            "payable_at",
            "retained_micros",
            "retained_until",
            "released_micros",
            "brought_forward_micros",
            "posted_earned_micros",
            "posted_fee_micros",
            "posted_given_back_micros",
            "posted_bond_micros",
            "posted_dispute_micros",
            "posted_payout_micros",
            "carried_forward_micros",
            "consented_at",
            "content_sha256",
            "created_at",
        )


class StatementLineSerializer(serializers.ModelSerializer[StatementLine]):
    numerator = NumeratorField()

    class Meta:
        model = StatementLine
        fields = ("id", "number", "offering_id", "description", "numerator", "gross_micros", "fee_micros")


class StatementDetailSerializer(StatementSerializer):
    parties = serializers.JSONField()
    lines = StatementLineSerializer(many=True)
    payout = serializers.SerializerMethodField()
    payout_blocked_reason = serializers.SerializerMethodField(help_text="Why nothing was paid out, or empty.")

    class Meta(StatementSerializer.Meta):
        fields = (  # type: ignore[assignment]
            *StatementSerializer.Meta.fields,
            "parties",
            "lines",
            "payout",
            "payout_blocked_reason",
        )

    def get_payout(self, statement: Statement) -> dict[str, Any] | None:
        payout = Payout.objects.filter(statement=statement).first()
        return dict(PayoutSerializer(payout).data) if payout else None

    def get_payout_blocked_reason(self, statement: Statement) -> str:
        return payout_blocked_reason(statement.organization_id) or ""
