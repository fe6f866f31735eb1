"""REST for outages of a host: what was recorded, and what its provider announces."""

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
from marketplace.api.serializers import StrictSerializer, TimestampField
from marketplace.api.views import ApiView
from providers import selectors, services
from providers.models import Outage


class OutageIn(StrictSerializer):
    starts_at = TimestampField(help_text="a whole UTC hour, at least an hour ahead")
    ends_at = TimestampField(help_text="a whole UTC hour, at most 14 days later")


class OutageOut(serializers.ModelSerializer[Outage]):
    """`planned` was announced; the other kinds were recorded. `offering_id` is null for the whole host."""

    class Meta:
        model = Outage
        fields = ("id", "host_id", "offering_id", "kind", "started_at", "ended_at", "created_at")


class HostOutagesView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="outages_list", responses=OutageOut(many=True))
    def get(self, request: Request, host_id: UUID) -> Response:
        """Outages of a host, newest first; one that was withdrawn ends where it starts."""
        host = selectors.find_host(self.organization_id, host_id)
        return self.page(Outage.objects.filter(host=host).order_by("-pk"), OutageOut)

    @extend_schema(operation_id="outages_announce", request=OutageIn, responses={201: OutageOut})
    def post(self, request: Request, host_id: UUID) -> Response:
        """Announce an outage: what is unsold in it is not sold any more, and nobody fails in it. 409 `hours_sold`
        when something is sold already."""
        outage = services.announce_outage(
            organization_id=self.organization_id,
            host_id=host_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(OutageIn),
        )
        return Response(OutageOut(outage).data, status=201)


class HostOutageView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"DELETE": Scope.PROVIDE}

    @extend_schema(operation_id="outages_withdraw", responses={204: None})
    def delete(self, request: Request, host_id: UUID, outage_id: UUID) -> Response:
        """Take an announcement back before it begins; its hours are sold again."""
        services.withdraw_outage(
            organization_id=self.organization_id,
            host_id=host_id,
            outage_id=outage_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(status=204)


urlpatterns: list[Any] = [
    path("hosts/<uuid:host_id>/outages", HostOutagesView.as_view(), name="api-outages"),
    path("hosts/<uuid:host_id>/outages/<uuid:outage_id>", HostOutageView.as_view(), name="api-outage"),
]
