"""REST: what a committed contract would have cost on the caller's own usage."""

from __future__ import annotations

from typing import Any

from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.serializers import (
    LotsField,
    MicrosPerMtokField,
    PpmField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
)
from marketplace.api.views import ApiView
from marketplace.billing.models import ChargeKind
from marketplace.billing.serializers import NumeratorField
from marketplace.billing.simulations import Comparison, Note, Simulation, simulate_contract
from marketplace.contracts.models import OveragePolicy, Payment
from marketplace.contracts.quoting import MAX_LOTS, MAX_MONTHS
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.simulating import Refusal


class SimulationIn(StrictSerializer):
    grade = TextField(max_length=64, help_text="slug of the grade")
    firm_lots = LotsField(max_value=MAX_LOTS, help_text="firm lots per delivery period")
    volume_lots = LotsField(max_value=MAX_LOTS * 1_000, help_text="lots per contract month")
    starts_at = TimestampField(
        required=False,
        allow_null=True,
        default=None,
        help_text="the start of a settlement period; null: as late as its months are settled",
    )
    months = StrictIntegerField(
        min_value=1,
        max_value=MAX_MONTHS,
        required=False,
        allow_null=True,
        default=None,
        help_text="whole contract months; null: three, or as many as your usage has",
    )
    rate_micros_per_mtok = MicrosPerMtokField(
        max_value=MAX_RATE_MICROS_PER_MTOK,
        required=False,
        allow_null=True,
        default=None,
        help_text="null: today's price of the firm lots",
    )
    payment = StrictChoiceField(choices=Payment.choices, default=Payment.PREPAID)
    take_share_ppm = PpmField(default=1_000_000)
    rollover_share_ppm = PpmField(default=0, help_text="of the paid unused volume; prepaid only")
    rollover_cap_lots = StrictIntegerField(min_value=0, max_value=MAX_LOTS * 1_000, default=0)
    overage_policy = StrictChoiceField(choices=OveragePolicy.choices, default=OveragePolicy.STOP)
    max_rate_micros_per_mtok = MicrosPerMtokField(
        max_value=MAX_RATE_MICROS_PER_MTOK,
        required=False,
        allow_null=True,
        default=None,
        help_text="overage above it is refused; null: no bound",
    )


class PaidOut(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=ChargeKind.choices)
    amount_micros = serializers.IntegerField()


class RefusedOut(serializers.Serializer[Any]):
    reason = serializers.ChoiceField(choices=[reason.value for reason in Refusal])
    numerator = NumeratorField()


class NoteOut(serializers.Serializer[Note]):
    code = serializers.CharField()
    detail = serializers.CharField()


class ComparisonOut(serializers.Serializer[Comparison]):
    """used = delivered + overage + refused; V = delivered - rolled_in_used + unused. Amounts before tax."""

    period_start = serializers.DateTimeField()
    period_end = serializers.DateTimeField()
    used_numerator = NumeratorField(
        source="sums.used", help_text="What you used of the grade, under whatever contract."
    )
    delivered_numerator = NumeratorField(
        source="sums.delivered", help_text="What of it would have been of the contract."
    )
    rolled_in_numerator = NumeratorField(
        source="sums.rolled_in", help_text="What the month before would have left, burned first."
    )
    rolled_in_used_numerator = NumeratorField(source="sums.rolled_in_used")
    unused_numerator = NumeratorField(source="sums.unused", help_text="What would have been left of V.")
    rolled_out_numerator = NumeratorField(
        source="sums.rolled_out", help_text="What of it the next month would have had."
    )
    true_up_numerator = NumeratorField(
        source="sums.true_up", help_text="Charged without delivery; in arrears only."
    )
    beyond_firm_numerator = NumeratorField(
        source="sums.beyond_firm", help_text="What lay above the firm lots of its delivery period."
    )
    overage_numerator = NumeratorField(
        source="sums.overage", help_text="What would have been served beyond the contract."
    )
    refused = serializers.SerializerMethodField(help_text="What would not have been served, by reason.")
    committed_fee_micros = serializers.IntegerField(
        source="sums.fee_micros", help_text="The months' price, prepaid."
    )
    usage_micros = serializers.IntegerField(source="sums.usage_micros", help_text="Usage in arrears.")
    true_up_micros = serializers.IntegerField(source="sums.true_up_micros")
    overage_micros = serializers.IntegerField(source="sums.overage_micros")
    simulated_micros = serializers.IntegerField(
        source="amount_micros", help_text="What the contract would have charged in all."
    )
    simulated_micros_per_mtok = serializers.IntegerField(
        source="per_mtok_micros", allow_null=True, help_text="Of what it would have served, all in."
    )
    paid = serializers.SerializerMethodField(help_text="What was charged for the same usage, by kind.")
    paid_micros = serializers.IntegerField()
    paid_micros_per_mtok = serializers.IntegerField(source="paid_per_mtok_micros", allow_null=True)
    saving_micros = serializers.IntegerField(help_text="paid less simulated; negative where it costs more")

    @extend_schema_field(RefusedOut(many=True))
    def get_refused(self, row: Comparison) -> Any:
        return RefusedOut(
            [{"reason": reason.value, "numerator": numerator} for reason, numerator in row.refused.items()],
            many=True,
        ).data

    @extend_schema_field(PaidOut(many=True))
    def get_paid(self, row: Comparison) -> Any:
        return [{"kind": kind, "amount_micros": amount} for kind, amount in row.paid.items()]


class SimulationOut(serializers.Serializer[Simulation]):
    grade = serializers.CharField(source="grade.family.slug")
    currency = serializers.CharField(source="grade.currency")
    rate_micros_per_mtok = serializers.IntegerField(source="terms.rate")
    is_quoted = serializers.BooleanField(help_text="The rate is today's price, not a number of yours.")
    by_month = ComparisonOut(many=True)
    total = ComparisonOut(help_text="the sums over all months")
    notes = NoteOut(many=True)


class SimulationsView(ApiView):
    scopes = {"POST": Scope.TRADE}
    role = "buyer"

    @extend_schema(operation_id="contract_simulations_ask", request=SimulationIn, responses=SimulationOut)
    def post(self, request: Request) -> Response:
        """What a committed contract would have cost on what you used, beside what you paid. Buys nothing."""
        terms = self.parse(SimulationIn)
        answer = simulate_contract(
            organization_id=self.organization_id, grade_slug=terms.pop("grade"), **terms, now=clock.now()
        )
        return Response(SimulationOut(answer).data)


urlpatterns = [path("contract-simulations", SimulationsView.as_view())]
