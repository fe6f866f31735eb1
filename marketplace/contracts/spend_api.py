"""REST of spend caps."""

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
from marketplace.api.serializers import MicrosField, StrictChoiceField, StrictSerializer, TextField, UuidField
from marketplace.api.views import ApiView
from marketplace.contracts.models import SpendCap
from marketplace.contracts.spending import set_spend_cap, spent_of


class SpendCapOut(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="cap.id")
    scope = serializers.ChoiceField(source="cap.scope", choices=SpendCap.Scope.choices)
    api_key_id = serializers.UUIDField(source="cap.api_key_id", allow_null=True)
    project = serializers.CharField(source="cap.project")
    period = serializers.ChoiceField(source="cap.period", choices=SpendCap.Period.choices)
    limit_micros = serializers.IntegerField(source="cap.limit_micros", allow_null=True)
    spent_micros = serializers.IntegerField(help_text="held or spent of what this window admitted")
    left_micros = serializers.IntegerField(allow_null=True)
    resets_at = serializers.DateTimeField()


class SpendCapRequest(StrictSerializer):
    scope = StrictChoiceField(choices=SpendCap.Scope.choices)
    api_key_id = UuidField(required=False, allow_null=True, default=None, help_text="for the scope api_key")
    project = TextField(
        required=False, allow_blank=True, default="", max_length=100, help_text="for the scope project"
    )
    period = StrictChoiceField(choices=SpendCap.Period.choices, help_text="a UTC day or calendar month")
    limit_micros = MicrosField(min_value=0, allow_null=True, help_text="tax included; null lifts the cap")


class SpendCapsView(ApiView):
    scopes: ClassVar = {"GET": Scope.READ, "PUT": Scope.MANAGE}
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="spend_caps_list", responses=SpendCapOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's spend caps, newest first, with what is taken of each now."""
        pagination = CursorPagination()
        caps = SpendCap.objects.filter(organization_id=self.organization_id).order_by("-id")
        shown = pagination.paginate_queryset(caps, request, self)
        return pagination.get_paginated_response(
            SpendCapOut(spent_of(list(shown or ()), now=clock.now()), many=True).data
        )

    @extend_schema(operation_id="spend_caps_set", request=SpendCapRequest, responses=SpendCapOut)
    def put(self, request: Request) -> Response:
        """Set or lift the cap of the organization, a project or a key. Again sets it again."""
        now = clock.now()
        cap = set_spend_cap(
            organization_id=self.organization_id, **self.parse(SpendCapRequest), now=now, actor=self.actor
        )
        [spent] = spent_of([cap], now=now)
        return Response(SpendCapOut(spent).data)


urlpatterns = [path("spend-caps", SpendCapsView.as_view())]
