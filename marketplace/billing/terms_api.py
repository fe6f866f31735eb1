"""REST: how a committed contract changes: its history, its months squared up, early end and amendment."""

from __future__ import annotations

from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    LotsField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing.models import MonthOutcome
from marketplace.billing.outcomes import month_outcomes_of
from marketplace.billing.serializers import NumeratorField
from marketplace.billing.services.terminating import EndedEarly, amend, terminate_contract
from marketplace.contracts.api import ContractOut, QuoteOut
from marketplace.contracts.ending import quote_amendment
from marketplace.contracts.history import events_of
from marketplace.contracts.models import ContractEvent
from marketplace.contracts.quoting import MAX_LOTS, MAX_MONTHS
from marketplace.contracts.selectors import contract_of


class ContractEventOut(serializers.ModelSerializer[ContractEvent]):
    class Meta:
        model = ContractEvent
        fields = (
            "id",
            "kind",
            "from_status",
            "to_status",
            "reason",
            "actor_kind",
            "actor_id",
            "detail",
            "occurred_at",
        )


class MonthOutcomeOut(serializers.ModelSerializer[MonthOutcome]):
    """volume = released + delivered + failed + unused (V = R + U + F + N), in millionths of a standard token."""

    volume_numerator = NumeratorField(help_text="V, without what rolled over into the month.")
    released_numerator = NumeratorField()
    delivered_numerator = NumeratorField(help_text="U of the month's own volume.")
    failed_numerator = NumeratorField(help_text="F: what failed in a period and was not delivered later.")
    unused_numerator = NumeratorField()
    failed_in_periods_numerator = NumeratorField(help_text="The sum of F over delivery periods.")
    take_numerator = NumeratorField(help_text="floor(take x V), whole lots.")
    true_up_numerator = NumeratorField(help_text="T: charged without delivery; in arrears only.")
    rolled_over_numerator = NumeratorField(help_text="What the next month has of it.")

    class Meta:
        model = MonthOutcome
        fields = (
            "id", "contract_id", "entitlement_id", "run", "volume_numerator", "released_numerator",
            "delivered_numerator", "failed_numerator", "unused_numerator", "failed_in_periods_numerator",
            "take_numerator", "true_up_numerator", "rolled_over_numerator", "rate_micros_per_mtok",
            "charged_micros", "refunded_micros", "created_at",
        )  # fmt: skip


class TerminateIn(StrictSerializer):
    # To be said, even if it is null: an empty body ends nothing.
    ends_at = TimestampField(allow_null=True, help_text="null: as early as its notice allows")
    reason = TextField(max_length=200, required=False, default="ended by the buyer")


class AmendmentIn(StrictSerializer):
    starts_at = TimestampField(help_text="the start of a later month of the contract, a day ahead at least")
    firm_lots = LotsField(max_value=MAX_LOTS, help_text="firm lots per delivery period")
    volume_lots = LotsField(max_value=MAX_LOTS * 1_000, help_text="lots per contract month")
    months = StrictIntegerField(min_value=1, max_value=MAX_MONTHS)


class AmendIn(StrictSerializer):
    quote_id = UuidField(help_text="of an amendment's quote of this contract")


class EndedEarlyOut(serializers.Serializer[EndedEarly]):
    contract = ContractOut()
    fee_micros = serializers.IntegerField(help_text="before tax")
    refund_micros = serializers.IntegerField(help_text="of a month paid ahead, before tax")
    successor = ContractOut(allow_null=True)


class ContractEventsView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="contract_events_list", responses=ContractEventOut(many=True))
    def get(self, request: Request, contract_id: UUID) -> Response:
        """What happened to a contract: who, when, why, and from which status to which."""
        contract = contract_of(organization_id=self.organization_id, contract_id=contract_id)
        return self.page(events_of(contract.id), ContractEventOut)


class ContractMonthsView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="contract_months_list", responses=MonthOutcomeOut(many=True))
    def get(self, request: Request, contract_id: UUID) -> Response:
        """What the months of a committed contract came to; of each, what the last run found."""
        contract = contract_of(organization_id=self.organization_id, contract_id=contract_id)
        return self.page(month_outcomes_of(contract.id), MonthOutcomeOut)


class ContractTerminateView(ApiView):
    scopes = {"POST": Scope.TRADE}
    role = "buyer"

    @extend_schema(operation_id="contracts_terminate", request=TerminateIn, responses={200: EndedEarlyOut})
    @idempotent
    def post(self, request: Request, contract_id: UUID) -> Response:
        """End a committed contract early: with notice, for the fee of its terms; what was paid ahead comes back."""
        terms = self.parse(TerminateIn)
        ended = terminate_contract(
            organization_id=self.organization_id,
            contract_id=contract_id,
            **terms,
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(EndedEarlyOut(ended).data)


class AmendmentQuotesView(ApiView):
    scopes = {"POST": Scope.TRADE}
    role = "buyer"

    @extend_schema(operation_id="amendments_quote", request=AmendmentIn, responses={201: QuoteOut})
    def post(self, request: Request, contract_id: UUID) -> Response:
        """Today's price of other firm lots, volume or months from the start of a later month on."""
        quote = quote_amendment(
            organization_id=self.organization_id,
            contract_id=contract_id,
            **self.parse(AmendmentIn),
            now=clock.now(),
        )
        return Response(QuoteOut(quote).data, status=201)


class ContractAmendView(ApiView):
    scopes = {"POST": Scope.TRADE}
    role = "buyer"

    @extend_schema(operation_id="contracts_amend", request=AmendIn, responses={201: EndedEarlyOut})
    @idempotent
    def post(self, request: Request, contract_id: UUID) -> Response:
        """Accept an amendment's quote: its contract takes the place of this one from its start on."""
        amended = amend(
            organization_id=self.organization_id,
            contract_id=contract_id,
            **self.parse(AmendIn),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(EndedEarlyOut(amended).data, status=201)


urlpatterns = [
    path("contracts/<uuid:contract_id>/events", ContractEventsView.as_view()),
    path("contracts/<uuid:contract_id>/months", ContractMonthsView.as_view()),
    path("contracts/<uuid:contract_id>/terminate", ContractTerminateView.as_view()),
    path("contracts/<uuid:contract_id>/amendment-quotes", AmendmentQuotesView.as_view()),
    path("contracts/<uuid:contract_id>/amend", ContractAmendView.as_view()),
]
