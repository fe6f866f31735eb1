"""REST of credit lines and of top-ups by themselves."""

from __future__ import annotations

from typing import Any, ClassVar

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    MicrosField,
    StrictBooleanField,
    StrictChoiceField,
    StrictSerializer,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.services.auto_top_ups import auto_top_up_of, set_auto_top_up
from marketplace.billing.services.credit_lines import (
    credit_line_of,
    give_credit_line,
    given_lines,
    line_of,
)
from marketplace.contracts.models import Payment
from marketplace.contracts.on_demand import choose_on_demand_payment


class CreditLineSerializer(serializers.Serializer[Any]):
    organization_id = serializers.UUIDField()
    currency = serializers.CharField()
    limit_micros = serializers.IntegerField()
    used_micros = serializers.IntegerField(help_text="owed and held")
    available_micros = serializers.IntegerField()


class OwnCreditLineSerializer(CreditLineSerializer):
    on_demand_payment = serializers.ChoiceField(choices=Payment.choices)


class OnDemandPaymentRequest(StrictSerializer):
    on_demand_payment = StrictChoiceField(
        choices=Payment.choices, help_text="prepaid: the balance; arrears: the credit line"
    )


class CreditLineRequest(StrictSerializer):
    organization_id = UuidField()
    limit_micros = MicrosField(min_value=0, help_text="tax included; 0 takes it away")


class AutoTopUpSerializer(serializers.ModelSerializer[AutoTopUp]):
    """Times are null where it was never set."""

    next_attempt_at = serializers.DateTimeField(allow_null=True)
    changed_at = serializers.DateTimeField(allow_null=True)

    class Meta:
        model = AutoTopUp
        fields = (
            "status",
            "threshold_micros",
            "amount_micros",
            "monthly_limit_micros",
            "currency",
            "failures",
            "stopped_reason",
            "next_attempt_at",
            "low_since",
            "changed_at",
        )


class AutoTopUpRequest(StrictSerializer):
    enabled = StrictBooleanField(help_text="false: only tell when the balance is low")
    threshold_micros = MicrosField(help_text="low is below this, of the prepaid balance that is free")
    amount_micros = MicrosField(help_text="of each top-up, whole minor units")
    monthly_limit_micros = MicrosField(help_text="of all of a UTC calendar month")


class CreditLineView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "PUT": Scope.MANAGE}
    role = OrganizationRole.BUYER

    @extend_schema(operation_id="credit_line", responses=OwnCreditLineSerializer)
    def get(self, request: Request) -> Response:
        """What the organization may owe, what it uses of that, and what pays for its on-demand usage."""
        return self._answer(self.organization.on_demand_payment)

    @extend_schema(
        operation_id="credit_line_choose", request=OnDemandPaymentRequest, responses=OwnCreditLineSerializer
    )
    def put(self, request: Request) -> Response:
        """Choose what pays for on-demand usage from now on: the balance, or the credit line."""
        payment = choose_on_demand_payment(
            organization_id=self.organization_id,
            payment=self.parse(OnDemandPaymentRequest)["on_demand_payment"],
            now=clock.now(),
            actor=self.actor,
        )
        return self._answer(payment)

    def _answer(self, payment: str) -> Response:
        line = CreditLineSerializer(credit_line_of(self.organization_id)).data
        return Response({**line, "on_demand_payment": payment})


class CreditLinesView(ApiView):
    scopes: ClassVar = {"GET": Scope.OPERATE, "PUT": Scope.OPERATE}
    role = OrganizationRole.OPERATOR
    pagination_class = CursorPagination

    @extend_schema(operation_id="credit_lines_list", responses=CreditLineSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Every credit line, newest first. For the operator."""
        pagination = CursorPagination()
        shown = pagination.paginate_queryset(given_lines(), request, self)
        lines = [line_of(account) for account in shown or ()]
        return pagination.get_paginated_response(CreditLineSerializer(lines, many=True).data)

    @extend_schema(operation_id="credit_lines_set", request=CreditLineRequest, responses=CreditLineSerializer)
    def put(self, request: Request) -> Response:
        """Set how much a buyer may owe; effective at once. For the operator. Again sets it again."""
        line = give_credit_line(**self.parse(CreditLineRequest), now=clock.now(), actor=self.actor)
        return Response(CreditLineSerializer(line).data)


class AutoTopUpView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "PUT": Scope.MANAGE}
    role = OrganizationRole.BUYER

    @extend_schema(operation_id="auto_top_up", responses=AutoTopUpSerializer)
    def get(self, request: Request) -> Response:
        """When the balance is low, and whether it is topped up then. Never set: `off`, with nothing in it."""
        found = auto_top_up_of(self.organization_id)
        return Response(AutoTopUpSerializer(found).data)

    @extend_schema(operation_id="auto_top_up_set", request=AutoTopUpRequest, responses=AutoTopUpSerializer)
    def put(self, request: Request) -> Response:
        """Set it. Again sets it again, and starts afresh what declined cards had stopped."""
        made = set_auto_top_up(
            organization_id=self.organization_id,
            **self.parse(AutoTopUpRequest),
            now=clock.now(),
            actor=self.actor,
        )
        return Response(AutoTopUpSerializer(made).data)


urlpatterns = [
    path("credit-line", CreditLineView.as_view()),
    path("credit-lines", CreditLinesView.as_view()),
    path("auto-top-up", AutoTopUpView.as_view()),
]
