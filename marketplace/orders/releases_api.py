"""REST of releases: firm volume of a committed contract, asked into spot at the buyer's floor."""

from __future__ import annotations

from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    LotsField,
    MicrosPerMtokField,
    StrictIntegerField,
    StrictSerializer,
    TimestampField,
)
from marketplace.api.views import ApiView
from marketplace.contracts.quoting import MAX_LOTS
from marketplace.orders.models import Release
from marketplace.orders.selectors import releases_of
from marketplace.orders.services.releasing import MOST_PERIODS, release


class ReleaseRequestSerializer(StrictSerializer):
    """`lots` of each of `periods` delivery periods from `period_start` on; irrevocable."""

    period_start = TimestampField()
    periods = StrictIntegerField(min_value=1, max_value=MOST_PERIODS, default=1)
    lots = LotsField(max_value=MAX_LOTS)
    floor_micros_per_mtok = MicrosPerMtokField(min_value=0)


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    """`resold_lots` is null until the period's round is published; what was not resold is the buyer's again."""

    rate_micros_per_mtok = serializers.IntegerField(
        allow_null=True, help_text="what the resold lots were sold at"
    )

    class Meta:
        model = Release
        fields = (
            "id", "contract_id", "period_start", "period_end", "lots", "floor_micros_per_mtok", "status",
            "resold_lots", "rate_micros_per_mtok", "reason", "created_at", "closed_at",
        )  # fmt: skip


class ReleasesView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"GET": "read", "POST": "trade"}
    pagination_class = CursorPagination

    @extend_schema(operation_id="contracts_releases", responses=ReleaseSerializer(many=True))
    def get(self, request: Request, contract_id: UUID) -> Response:
        """What of the contract was released into spot, newest first."""
        return self.page(releases_of(self.organization_id, contract_id), ReleaseSerializer)

    @extend_schema(
        operation_id="contracts_release",
        request=ReleaseRequestSerializer,
        responses={201: ReleaseSerializer(many=True)},
    )
    @idempotent
    def post(self, request: Request, contract_id: UUID) -> Response:
        """Release firm volume of coming delivery periods into spot, before their gates close."""
        made = release(
            organization_id=self.organization_id,
            contract_id=contract_id,
            **self.parse(ReleaseRequestSerializer),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(ReleaseSerializer(made, many=True).data, status=201)


urlpatterns = [path("contracts/<uuid:contract_id>/releases", ReleasesView.as_view(), name="api-releases")]
