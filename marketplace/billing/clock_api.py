"""REST of test clocks: an organization of a sandbox market rehearses its billing ahead of time."""

from __future__ import annotations

from typing import Any, ClassVar

from django.urls import path
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts import organization_clocks
from marketplace.accounts.models import OrganizationClock
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent
from marketplace.api.serializers import StrictSerializer, TimestampField
from marketplace.api.views import ApiView
from marketplace.billing.clock_events import events_between


class ClockEventSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField(help_text="by the organization's own time")
    kind = serializers.CharField(
        help_text="month_charged, month_squared_up, contract_*, invoice_* (the status it went to), dunning, "
        "invoice_payment, credit_note_issued, top_up, grant_expired, statement_issued, payout, "
        "payout_destination_applied"
    )
    object_kind = serializers.CharField()
    object_id = serializers.UUIDField()
    detail = serializers.DictField(child=serializers.JSONField())


class ClockSerializer(serializers.ModelSerializer[OrganizationClock]):
    """`events` are those of the last advance, or since the time that was asked for. `none`: it keeps real time."""

    id = serializers.UUIDField(allow_null=True)
    status = serializers.ChoiceField(choices=[("none", "None"), *OrganizationClock.Status.choices])
    created_at = serializers.DateTimeField(allow_null=True)
    now_at = serializers.SerializerMethodField(help_text="the organization's billing time")
    progress_ppm = serializers.SerializerMethodField(help_text="how far the last advance has come")
    events = serializers.SerializerMethodField()

    class Meta:
        model = OrganizationClock
        fields = (
            "id",
            "status",
            "now_at",
            "from_at",
            "target_at",
            "progress_ppm",
            "failure",
            "created_at",
            "events",
        )

    @extend_schema_field(serializers.DateTimeField())
    def get_now_at(self, clock_: OrganizationClock) -> str:
        return serializers.DateTimeField().to_representation(max(clock_.now_at, clock.now()))

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_progress_ppm(self, clock_: OrganizationClock) -> int | None:
        if clock_.from_at is None or clock_.target_at is None:
            return None
        return 1_000_000 * (clock_.now_at - clock_.from_at) // (clock_.target_at - clock_.from_at)

    @extend_schema_field(ClockEventSerializer(many=True))
    def get_events(self, clock_: OrganizationClock) -> Any:
        since = self.context.get("since") or clock_.from_at or clock_.created_at or clock_.now_at
        found = events_between(clock_.organization_id, since=since, until=max(clock_.now_at, clock.now()))
        return ClockEventSerializer(found, many=True).data


class AdvanceRequest(StrictSerializer):
    to = TimestampField(help_text="after the clock's time, 366 days ahead of it at most")


class SinceQuery(StrictSerializer):
    since = TimestampField(required=False)


class ClockView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.MANAGE, "DELETE": Scope.MANAGE}

    @extend_schema(
        operation_id="test_clock_retrieve",
        responses=ClockSerializer,
        parameters=[OpenApiParameter("since", str, description="events from then on, by the clock's dates")],
    )
    def get(self, request: Request) -> Response:
        """The organization's test clock: its time, how its last advance goes, and what happened, 1,000 at most."""
        query = SinceQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        found = OrganizationClock.objects.filter(organization_id=self.organization_id).first()
        found = found or OrganizationClock(
            id=None, organization_id=self.organization_id, status="none", now_at=clock.now()
        )
        return Response(ClockSerializer(found, context=query.validated_data).data)

    @extend_schema(operation_id="test_clock_create", request=None, responses={201: ClockSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        """Give the organization a test clock that stands at real time. Only where money is play money."""
        made = organization_clocks.create_clock(
            organization_id=self.organization_id, now=clock.now(), actor=self.actor
        )
        return Response(ClockSerializer(made).data, status=201)

    @extend_schema(operation_id="test_clock_remove", responses={204: None})
    def delete(self, request: Request) -> Response:
        """Back to real time; not while the clock is ahead of it."""
        organization_clocks.remove_clock(
            organization_id=self.organization_id, now=clock.now(), actor=self.actor
        )
        return Response(status=204)


class ClockAdvanceView(ApiView):
    scopes: ClassVar = {"POST": Scope.MANAGE}

    @extend_schema(
        operation_id="test_clock_advance", request=AdvanceRequest, responses={202: ClockSerializer}
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Move the clock forward. A worker takes it there, stop by stop; `GET` shows how it goes."""
        begun = organization_clocks.begin_advance(
            organization_id=self.organization_id,
            to=self.parse(AdvanceRequest)["to"],
            now=clock.now(),
            actor=self.actor,
        )
        return Response(ClockSerializer(begun).data, status=202)


urlpatterns = [
    path("test-clock", ClockView.as_view()),
    path("test-clock/advance", ClockAdvanceView.as_view()),
]
