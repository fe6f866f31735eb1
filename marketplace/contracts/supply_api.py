"""REST for hosts that supply less than was measured: what they said, and what of what they owed was curtailed."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictIntegerField, StrictSerializer
from marketplace.api.views import ApiView
from marketplace.contracts import services
from marketplace.contracts.models import Curtailment
from marketplace.contracts.selectors import curtailments_of_host
from providers.models import Derating
from providers.services import deratings_of


class DeratingIn(StrictSerializer):
    available_ppm = StrictIntegerField(
        min_value=0,
        max_value=999_999,
        help_text="what the host can supply, in millionths of its dependable capacity",
    )


class DeratingOut(serializers.ModelSerializer[Derating]):
    """`bench` is a measurement that came out lower: what was sold before it takes more of the host."""

    class Meta:
        model = Derating
        fields = ("id", "host_id", "cause", "available_ppm", "started_at", "ended_at", "created_at")


class CurtailmentOut(serializers.ModelSerializer[Curtailment]):
    """Lots of a contract that the host does not deliver any more, from `curtailed_at` to the period's end."""

    contract_id = serializers.UUIDField(source="allocation.contract_id")
    offering_id = serializers.UUIDField(source="allocation.offering_id")

    class Meta:
        model = Curtailment
        fields = ("id", "contract_id", "offering_id", "period_start", "period_end", "lots", "curtailed_at")


class HostDeratingsView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="deratings_list", responses=DeratingOut(many=True))
    def get(self, request: Request, host_id: UUID) -> Response:
        """Deratings of a host, newest first."""
        return self.page(deratings_of(self.organization_id, host_id), DeratingOut)

    @extend_schema(operation_id="deratings_begin", request=DeratingIn, responses={201: DeratingOut})
    def post(self, request: Request, host_id: UUID) -> Response:
        """The host supplies only that much from now on: what is unsold leaves the sale, then spot is curtailed from the
        lowest bid up, then firm. What is curtailed is a failure. The same again changes nothing."""
        derating = services.derate_host(
            organization_id=self.organization_id,
            host_id=host_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(DeratingIn),
        )
        return Response(DeratingOut(derating).data, status=201)


class HostDeratingView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"DELETE": Scope.PROVIDE}

    @extend_schema(operation_id="deratings_end", responses={204: None})
    def delete(self, request: Request, host_id: UUID, derating_id: UUID) -> Response:
        """The host supplies all of it again; what was curtailed in periods that are open already stays so."""
        services.end_derating(
            organization_id=self.organization_id,
            host_id=host_id,
            derating_id=derating_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(status=204)


class HostCurtailmentsView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(operation_id="curtailments_list", responses=CurtailmentOut(many=True))
    def get(self, request: Request, host_id: UUID) -> Response:
        """What of a host's sold lots was curtailed, newest first."""
        return self.page(
            curtailments_of_host(organization_id=self.organization_id, host_id=host_id), CurtailmentOut
        )


urlpatterns: list[Any] = [
    path("hosts/<uuid:host_id>/deratings", HostDeratingsView.as_view(), name="api-deratings"),
    path(
        "hosts/<uuid:host_id>/deratings/<uuid:derating_id>", HostDeratingView.as_view(), name="api-derating"
    ),
    path("hosts/<uuid:host_id>/curtailments", HostCurtailmentsView.as_view(), name="api-curtailments"),
]
