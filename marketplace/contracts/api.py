"""REST of contracts: quotes and their acceptance, contracts with burn-down, usage and generations of a buyer."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
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
from marketplace.contracts import renewal_api, selectors, services, supply_api
from marketplace.contracts.kappa_api import OwnKappaView
from marketplace.contracts.models import Contract, Entitlement, Hold, OveragePolicy, Payment, Quote
from marketplace.contracts.quoting import MAX_LOTS, MAX_MONTHS
from marketplace.contracts.unpaid import in_utc, unpaid_end_of
from marketplace.contracts.usage_api import UsageView
from marketplace.contracts.usage_events_api import UsageEventsView, UsageEventView
from pricing.rating import exact_cost, exact_price
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.units import NUMERATOR_PER_LOT, decimal_string

_RATE_DECIMALS: Final = 6
_MOST_PERIODS: Final = 100
_MOST_USAGE_ROWS: Final = 1_000


class QuoteIn(StrictSerializer):
    grade = TextField(max_length=64, help_text="slug of the grade")
    firm_lots = LotsField(max_value=MAX_LOTS, help_text="firm lots per delivery period")
    volume_lots = LotsField(max_value=MAX_LOTS * 1_000, help_text="lots per contract month")
    months = StrictIntegerField(min_value=1, max_value=MAX_MONTHS)
    starts_at = TimestampField(required=False, allow_null=True, default=None)
    take_share_ppm = PpmField(default=1_000_000)
    overage_policy = StrictChoiceField(choices=OveragePolicy.choices, default=OveragePolicy.STOP)
    payment = StrictChoiceField(choices=Payment.choices, default=Payment.PREPAID)
    rollover_share_ppm = PpmField(default=0, help_text="of the paid unused volume; prepaid only")
    rollover_cap_lots = StrictIntegerField(min_value=0, max_value=MAX_LOTS * 1_000, default=0)
    max_rate_micros_per_mtok = MicrosPerMtokField(
        max_value=MAX_RATE_MICROS_PER_MTOK,
        allow_null=True,
        default=None,
        help_text="the most that overage may cost; null: whatever its rate is",
    )


class QuoteOut(serializers.ModelSerializer[Quote]):
    grade = serializers.CharField(source="grade.family.slug")
    grade_id = serializers.UUIDField()
    rate_per_mtok = serializers.SerializerMethodField(help_text="rate_micros_per_mtok as a decimal string")
    month_price_micros = serializers.SerializerMethodField(help_text="volume x rate, before tax")
    contract_id = serializers.SerializerMethodField()

    class Meta:
        model = Quote
        fields = (
            "id", "grade", "grade_id", "status", "firm_lots", "volume_lots", "months", "starts_at", "take_share_ppm",
            "rollover_share_ppm", "rollover_cap_lots", "notice_days", "termination_fee_ppm", "amends_id",
            "overage_policy", "max_rate_micros_per_mtok", "payment", "rate_micros_per_mtok", "rate_per_mtok",
            "month_price_micros", "contract_id", "expires_at", "created_at",
        )  # fmt: skip

    def get_rate_per_mtok(self, quote: Quote) -> str:
        return decimal_string(quote.rate_micros_per_mtok, _RATE_DECIMALS)

    def get_month_price_micros(self, quote: Quote) -> int:
        return services.month_price_micros(quote.volume_lots, quote.rate_micros_per_mtok)

    def get_contract_id(self, quote: Quote) -> UUID | None:
        contract = getattr(quote, "contract", None)
        return None if contract is None else contract.id


class EntitlementOut(serializers.ModelSerializer[Entitlement]):
    rate_micros_per_mtok = serializers.IntegerField(source="rate.micros_per_mtok")
    remaining_numerator = serializers.SerializerMethodField()
    entitled_lots = serializers.SerializerMethodField()
    used_lots = serializers.SerializerMethodField(help_text="used volume in lots, as a decimal string")
    used_ppm = serializers.SerializerMethodField(help_text="share of the volume that is used or held")

    class Meta:
        model = Entitlement
        fields = (
            "id", "period_start", "period_end", "rate_id", "rate_micros_per_mtok", "entitled_lots", "used_lots",
            "entitled_numerator", "held_numerator", "used_numerator", "released_numerator", "failed_numerator",
            "rollover_numerator", "remaining_numerator", "used_ppm", "paid_at", "settled_at",
        )  # fmt: skip

    def get_remaining_numerator(self, entitlement: Entitlement) -> int:
        return entitlement.entitled_numerator - _gone(entitlement)

    def get_entitled_lots(self, entitlement: Entitlement) -> int:
        return entitlement.entitled_numerator // NUMERATOR_PER_LOT

    def get_used_lots(self, entitlement: Entitlement) -> str:
        return decimal_string(entitlement.used_numerator, 9)

    def get_used_ppm(self, entitlement: Entitlement) -> int:
        return _gone(entitlement) * 1_000_000 // max(1, entitlement.entitled_numerator)


class ContractOut(serializers.ModelSerializer[Contract]):
    grade = serializers.CharField(source="grade.family.slug")
    grade_id = serializers.UUIDField()
    model = serializers.CharField(source="grade.family.model")
    rate_micros_per_mtok = serializers.SerializerMethodField()
    ends_unpaid_at = serializers.SerializerMethodField(
        help_text="suspended and prepaid: when it ends at the earliest, if it stays unpaid"
    )

    class Meta:
        model = Contract
        fields = (
            "id", "grade", "grade_id", "model", "kind", "status", "currency", "payment", "overage_policy",
            "max_rate_micros_per_mtok", "rate_micros_per_mtok", "firm_lots", "volume_lots", "take_share_ppm",
            "rollover_share_ppm", "rollover_cap_lots", "notice_days", "termination_fee_ppm", "amends_id", "renews_id",
            "suspended_at", "freed_at", "ends_unpaid_at", "starts_at", "ends_at", "created_at",
        )  # fmt: skip

    def get_rate_micros_per_mtok(self, contract: Contract) -> int | None:
        return None if contract.rate is None else contract.rate.micros_per_mtok

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_ends_unpaid_at(self, contract: Contract) -> str | None:
        at = unpaid_end_of(contract)
        return None if at is None else in_utc(at)


class ContractDetailOut(ContractOut):
    """With its periods, newest first: what each entitles to, what is held and used of it."""

    entitlements = serializers.SerializerMethodField()

    class Meta(ContractOut.Meta):
        fields = (*ContractOut.Meta.fields, "entitlements")  # type: ignore[assignment]

    @extend_schema_field(EntitlementOut(many=True))
    def get_entitlements(self, contract: Contract) -> Any:
        return EntitlementOut(selectors.entitlements_of(contract.id)[:_MOST_PERIODS], many=True).data


class GenerationPartOut(serializers.ModelSerializer[Hold]):
    """What one of two contracts paid of a request."""

    contract_kind = serializers.CharField(source="contract.kind")
    rate_micros_per_mtok = serializers.IntegerField(source="rate.micros_per_mtok")
    standard_numerator = serializers.SerializerMethodField()
    cost = serializers.SerializerMethodField(help_text="exact, before tax, as a decimal string")

    class Meta:
        model = Hold
        fields = (
            "part", "status", "contract_id", "contract_kind", "rate_id", "rate_micros_per_mtok", "standard_numerator",
            "cost",
        )  # fmt: skip

    def get_standard_numerator(self, hold: Hold) -> str:
        return str(hold.captured_numerator)

    def get_cost(self, hold: Hold) -> str:
        return exact_price(hold.captured_numerator, hold.rate.micros_per_mtok)


class GenerationOut(serializers.ModelSerializer[Hold]):
    """One request, by its generation id: who paid, at which rate, and what it came to.

    One that went on beyond its contract has two parts: its figures are their sums, contract and rate the first one's.
    """

    id = serializers.UUIDField(source="request_id")
    model = serializers.CharField(source="grade.family.model")
    contract_kind = serializers.CharField(source="contract.kind")
    rate_micros_per_mtok = serializers.IntegerField(source="rate.micros_per_mtok")
    standard_numerator = serializers.SerializerMethodField()
    cost = serializers.SerializerMethodField(help_text="exact and marginal, before tax, as a decimal string")
    admitted_at = serializers.DateTimeField(source="opened_at")
    parts = serializers.SerializerMethodField(help_text="one, or two where it went on beyond its contract")

    class Meta:
        model = Hold
        fields = (
            "id", "status", "model", "contract_id", "contract_kind", "api_key_id", "grade_id", "rate_id",
            "rate_micros_per_mtok", "period_start", "standard_numerator", "cost", "attempt", "admitted_at", "ended_at",
            "parts",
        )  # fmt: skip

    def get_standard_numerator(self, hold: Hold) -> str:
        return str(sum(part.captured_numerator for part in self._parts))

    def get_cost(self, hold: Hold) -> str:
        return exact_cost((part.captured_numerator, part.rate.micros_per_mtok) for part in self._parts)

    @extend_schema_field(GenerationPartOut(many=True))
    def get_parts(self, hold: Hold) -> Any:
        return GenerationPartOut(self._parts, many=True).data

    @property
    def _parts(self) -> list[Hold]:
        parts: list[Hold] = self.context["parts"]
        return parts


class QuotesView(ApiView):
    scopes = {"GET": Scope.READ, "POST": Scope.TRADE}
    role = "buyer"
    pagination_class = CursorPagination

    @extend_schema(operation_id="quotes_list", responses=QuoteOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's quotes, newest first."""
        return self.page(selectors.quotes_of(self.organization_id), QuoteOut)

    @extend_schema(operation_id="quotes_request", request=QuoteIn, responses={201: QuoteOut})
    def post(self, request: Request) -> Response:
        """Ask the price of a committed contract. Good for 15 minutes; it fixes the price, not the capacity."""
        terms = self.parse(QuoteIn)
        quote = services.request_quote(
            organization_id=self.organization_id, grade_slug=terms.pop("grade"), **terms, now=clock.now()
        )
        return Response(QuoteOut(quote).data, status=201)


class QuoteView(ApiView):
    scopes = {"GET": Scope.READ}

    @extend_schema(operation_id="quotes_read", responses=QuoteOut)
    def get(self, request: Request, quote_id: UUID) -> Response:
        """One quote."""
        return Response(
            QuoteOut(selectors.quote_of(organization_id=self.organization_id, quote_id=quote_id)).data
        )


class QuoteAcceptView(ApiView):
    scopes = {"POST": Scope.TRADE}
    role = "buyer"

    @extend_schema(operation_id="quotes_accept", request=None, responses={201: ContractDetailOut})
    @idempotent
    def post(self, request: Request, quote_id: UUID) -> Response:
        """Turn the quote into a contract: its capacity is taken and the first month's price is held."""
        contract = services.accept_quote(
            organization_id=self.organization_id,
            quote_id=quote_id,
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        found = selectors.contract_of(organization_id=self.organization_id, contract_id=contract.id)
        return Response(ContractDetailOut(found).data, status=201)


class ContractsView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="contracts_list", responses=ContractOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's contracts of every kind, newest first."""
        return self.page(selectors.contracts_of(self.organization_id), ContractOut)


class ContractView(ApiView):
    scopes = {"GET": Scope.READ}

    @extend_schema(operation_id="contracts_read", responses=ContractDetailOut)
    def get(self, request: Request, contract_id: UUID) -> Response:
        """One contract with its entitlements and what is left of them."""
        contract = selectors.contract_of(organization_id=self.organization_id, contract_id=contract_id)
        return Response(ContractDetailOut(contract).data)


class GenerationView(ApiView):
    scopes = {"GET": Scope.READ}

    @extend_schema(operation_id="generations_read", responses=GenerationOut)
    def get(self, request: Request, generation_id: UUID) -> Response:
        """One request by the X-Generation-Id of its answer."""
        parts = selectors.holds_of_request(organization_id=self.organization_id, request_id=generation_id)
        return Response(GenerationOut(parts[0], context={"parts": parts}).data)


def _gone(entitlement: Entitlement) -> int:
    return (
        entitlement.held_numerator
        + entitlement.used_numerator
        + entitlement.released_numerator
        + entitlement.failed_numerator
    )


urlpatterns = [
    *supply_api.urlpatterns,
    *renewal_api.urlpatterns,
    path("quotes", QuotesView.as_view()),
    path("quotes/<uuid:quote_id>", QuoteView.as_view()),
    path("quotes/<uuid:quote_id>/accept", QuoteAcceptView.as_view()),
    path("contracts", ContractsView.as_view()),
    path("contracts/<uuid:contract_id>", ContractView.as_view()),
    path("generations/<uuid:generation_id>", GenerationView.as_view()),
    path("usage", UsageView.as_view()),
    path("usage/kappa", OwnKappaView.as_view()),
    path("usage/events", UsageEventsView.as_view()),
    path("usage/events/<uuid:event_id>", UsageEventView.as_view()),
]
