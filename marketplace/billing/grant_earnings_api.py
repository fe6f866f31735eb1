"""REST of the operator: whom grants pay, and stopping a provider's payouts while he looks into it."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictSerializer, TextField, UuidField
from marketplace.api.views import ApiView
from marketplace.billing.grant_earnings import grant_earnings
from marketplace.billing.models import PayoutStop
from marketplace.billing.services.payout_stops import MAX_CHARACTERS, release_payouts, stop_payouts
from marketplace.orders.monitoring_api import MonitoringView


class GrantEarningOut(serializers.Serializer[Any]):
    buyer_organization_id = serializers.UUIDField()
    provider_organization_id = serializers.UUIDField()
    by_grants_micros = serializers.IntegerField(
        help_text="what the provider earned of this buyer that grants paid, and nobody had paid for the grants"
    )
    buyers_grants_micros = serializers.IntegerField(help_text="what such grants of this buyer paid in all")
    provider_gross_micros = serializers.IntegerField(help_text="what the provider earned in all")
    shares_people = serializers.BooleanField(help_text="somebody is a member of both organizations")
    is_stopped = serializers.BooleanField(help_text="the provider's payouts are stopped")


class GrantEarningsOut(serializers.Serializer[Any]):
    window_start = serializers.DateTimeField()
    window_end = serializers.DateTimeField()
    pairs = GrantEarningOut(many=True)
    is_cut = serializers.BooleanField(help_text="there are more, of less, that are not shown")


class PayoutStopIn(StrictSerializer):
    organization_id = UuidField(help_text="the provider")
    reason = TextField(
        max_length=MAX_CHARACTERS, help_text="for the operator's trail; the provider is not told"
    )


class PayoutStopOut(serializers.ModelSerializer[PayoutStop]):
    class Meta:
        model = PayoutStop
        fields = ("id", "organization_id", "reason", "created_at", "ended_at")


class GrantEarningsView(MonitoringView):
    @extend_schema(
        operation_id="monitoring_grant_earnings",
        parameters=[
            OpenApiParameter("since", OpenApiTypes.DATETIME, description="default: 24 hours before until"),
            OpenApiParameter("until", OpenApiTypes.DATETIME, description="default: now"),
        ],
        responses=GrantEarningsOut,
    )
    def get(self, request: Request) -> Response:
        """Which providers earned what grants paid, of which buyers, the largest first."""
        window = self.window(request)
        found = grant_earnings(window)
        shown = {"window_start": window.start, "window_end": window.end, "pairs": found.pairs}
        return Response(GrantEarningsOut({**shown, "is_cut": found.is_cut}).data)


class PayoutStopsView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="payout_stops_list", responses=PayoutStopOut(many=True))
    def get(self, request: Request) -> Response:
        """Whose payouts are or were stopped, and why; newest first."""
        return self.page(PayoutStop.objects.all(), PayoutStopOut)

    @extend_schema(operation_id="payout_stops_create", request=PayoutStopIn, responses={201: PayoutStopOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """Pay nothing out to a provider from now on; what he earns stays his. Needs an Idempotency-Key."""
        made = stop_payouts(
            **self.parse(PayoutStopIn), operation_id=self.operation_id, now=clock.now(), actor=self.actor
        )
        return Response(PayoutStopOut(made).data, status=201)


class PayoutStopReleaseView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="payout_stops_release", request=None, responses=PayoutStopOut)
    def post(self, request: Request, stop_id: UUID) -> Response:
        """Let the payouts go on, with the next run; again: nothing."""
        released = release_payouts(stop_id=stop_id, now=clock.now(), actor=self.actor)
        return Response(PayoutStopOut(released).data)


urlpatterns = [
    path("monitoring/grant-earnings", GrantEarningsView.as_view()),
    path("payout-stops", PayoutStopsView.as_view()),
    path("payout-stops/<uuid:stop_id>/release", PayoutStopReleaseView.as_view()),
]
