"""REST of the operator's monitoring: pivotal sellers, concentration, wash trades, withdrawn orders."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictSerializer, TextField, TimestampField
from marketplace.api.views import ApiView
from marketplace.errors import InvalidInput
from marketplace.orders import monitoring
from marketplace.periods import Period


class WindowIn(StrictSerializer):
    since = TimestampField(required=False)
    until = TimestampField(required=False)


class PivotalIn(StrictSerializer):
    grade = TextField(max_length=64, required=False)
    # Read elsewhere.
    cursor = TextField(max_length=32, required=False)
    page_size = TextField(max_length=3, required=False)


class ResidualSerializer(serializers.Serializer[Any]):
    """One seller of one auction. Below 1,000,000 ppm his volume was needed to meet the demand."""

    organization_id = serializers.UUIDField(source="group")
    lots = serializers.IntegerField()
    residual_lots = serializers.IntegerField()
    residual_supply_ppm = serializers.IntegerField()
    is_pivotal = serializers.BooleanField()
    is_jointly_pivotal = serializers.BooleanField(help_text="together with the two largest others")


class PowerSerializer(serializers.Serializer[Any]):
    auction_id = serializers.UUIDField(source="auction.pk")
    grade = serializers.CharField(source="auction.grade.family.slug")
    period_start = serializers.DateTimeField(source="auction.period_start")
    clearing_rate_micros_per_mtok = serializers.IntegerField(
        source="auction.clearing_rate_micros_per_mtok", allow_null=True
    )
    demand_lots = serializers.IntegerField(
        help_text="bid at the clearing rate or above; all that was bid without one"
    )
    supply_lots = serializers.IntegerField()
    sellers = ResidualSerializer(many=True)


class SideSerializer(serializers.Serializer[Any]):
    """`hhi_ppm`: the sum of squared shares; / 100 is the usual scale of 10,000."""

    groups = serializers.IntegerField()
    lots = serializers.IntegerField()
    hhi_ppm = serializers.IntegerField()
    largest_organization_id = serializers.UUIDField(source="largest")
    largest_share_ppm = serializers.IntegerField()


class ConcentrationSerializer(serializers.Serializer[Any]):
    grade = serializers.CharField()
    buyers = SideSerializer()
    sellers = SideSerializer()


class ConcentrationsSerializer(serializers.Serializer[Any]):
    window_start = serializers.DateTimeField()
    window_end = serializers.DateTimeField()
    grades = ConcentrationSerializer(many=True)


class SelfCrossingSerializer(serializers.Serializer[Any]):
    auction_id = serializers.UUIDField()
    grade = serializers.CharField()
    period_start = serializers.DateTimeField()
    organization_id = serializers.UUIDField()
    lots = serializers.IntegerField()


class RoundTripSerializer(serializers.Serializer[Any]):
    first_organization_id = serializers.UUIDField(source="first")
    second_organization_id = serializers.UUIDField(source="second")
    first_bought_lots = serializers.IntegerField()
    second_bought_lots = serializers.IntegerField()
    round_trip_ppm = serializers.IntegerField(help_text="of all that either traded, what went there and back")
    is_suspicious = serializers.BooleanField()


class WashSerializer(serializers.Serializer[Any]):
    window_start = serializers.DateTimeField()
    window_end = serializers.DateTimeField()
    self_crossings = SelfCrossingSerializer(many=True)
    round_trips = RoundTripSerializer(many=True)
    books_read = serializers.IntegerField()
    is_cut = serializers.BooleanField(help_text="older books with somebody on both sides were not read")


class WithdrawalsSerializer(serializers.Serializer[Any]):
    organization_id = serializers.UUIDField(source="group")
    cancels = serializers.IntegerField()
    late_cancels = serializers.IntegerField(help_text="just before a no-cancel phase")
    cancelled_lots = serializers.IntegerField()
    late_cancelled_lots = serializers.IntegerField()
    traded_lots = serializers.IntegerField()
    cancel_to_trade_ppm = serializers.IntegerField(allow_null=True)
    is_suspicious = serializers.BooleanField()


class SpoofSerializer(serializers.Serializer[Any]):
    window_start = serializers.DateTimeField()
    window_end = serializers.DateTimeField()
    organizations = WithdrawalsSerializer(many=True)


class MonitoringView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes = {"GET": Scope.READ}

    def window(self, request: Request) -> Period:
        """`[since, until)`, by default the last day. Raises InvalidInput or ValidationError naming the parameter."""
        asked = WindowIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        until = asked.validated_data.get("until") or clock.now()
        since = asked.validated_data.get("since") or until - monitoring.WINDOW
        if not timedelta(0) < until - since <= monitoring.MOST_WINDOW:
            raise InvalidInput(
                f"It must lie before until, by at most {monitoring.MOST_WINDOW.days} days.", field="since"
            )
        return Period(since, until)


_WINDOW = [
    OpenApiParameter("since", OpenApiTypes.DATETIME, description="default: 24 hours before until"),
    OpenApiParameter("until", OpenApiTypes.DATETIME, description="default: now"),
]


def _between(window: Period) -> dict[str, Any]:
    return {"window_start": window.start, "window_end": window.end}


class PivotalView(MonitoringView):
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="monitoring_pivotal",
        parameters=[OpenApiParameter("grade", OpenApiTypes.STR, description="slug; default: every grade")],
        responses=PowerSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """The residual supply of every seller in each published auction, newest first."""
        asked = PivotalIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        pagination = CursorPagination()
        rows = monitoring.auctions_to_test(grade=asked.validated_data.get("grade"))
        powers = monitoring.powers_of(pagination.paginate_queryset(rows, request, self))
        return pagination.get_paginated_response(PowerSerializer(powers, many=True).data)


class ConcentrationView(MonitoringView):
    @extend_schema(
        operation_id="monitoring_concentration", parameters=_WINDOW, responses=ConcentrationsSerializer
    )
    def get(self, request: Request) -> Response:
        """How concentrated both sides of each grade were, by lots traded."""
        window = self.window(request)
        shown = {**_between(window), "grades": monitoring.concentrations(window)}
        return Response(ConcentrationsSerializer(shown).data)


class WashTradesView(MonitoringView):
    @extend_schema(operation_id="monitoring_wash_trades", parameters=_WINDOW, responses=WashSerializer)
    def get(self, request: Request) -> Response:
        """Who stood on both sides of a book, and who traded back and forth."""
        window = self.window(request)
        report = asdict(monitoring.wash_report(window))
        return Response(WashSerializer({**_between(window), **report}).data)


class SpoofingView(MonitoringView):
    @extend_schema(operation_id="monitoring_spoofing", parameters=_WINDOW, responses=SpoofSerializer)
    def get(self, request: Request) -> Response:
        """Who withdrew bids, how much of it just before a no-cancel phase, and against how much trade."""
        window = self.window(request)
        shown = {**_between(window), "organizations": monitoring.spoof_report(window)}
        return Response(SpoofSerializer(shown).data)


urlpatterns = [
    path("monitoring/pivotal", PivotalView.as_view(), name="api-monitoring-pivotal"),
    path("monitoring/concentration", ConcentrationView.as_view(), name="api-monitoring-concentration"),
    path("monitoring/wash-trades", WashTradesView.as_view(), name="api-monitoring-wash-trades"),
    path("monitoring/spoofing", SpoofingView.as_view(), name="api-monitoring-spoofing"),
]
