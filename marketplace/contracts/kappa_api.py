"""REST of a buyer's own kappa: what his delivered text came to in o200k tokens, beside what his grades say."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.serializers import StrictSerializer, TimestampField, UuidField
from marketplace.api.views import ApiView
from marketplace.contracts.selectors import own_kappas

OWN_KAPPA_SPAN: Final = timedelta(days=30)


class OwnKappaIn(StrictSerializer):
    contract_id = UuidField(required=False)
    since = TimestampField(required=False)
    until = TimestampField(required=False)


class OwnKappaOut(serializers.Serializer[Any]):
    grade = serializers.CharField(source="grade.family.slug")
    grade_id = serializers.UUIDField(source="grade.id", help_text="the grade version")
    grade_version = serializers.IntegerField(source="grade.version")
    recounted_tokens = serializers.IntegerField(
        help_text="native output tokens, reasoning included, of requests whose text was recounted"
    )
    recount_o200k_tokens = serializers.IntegerField(help_text="o200k tokens of the same text, by the gateway")
    kappa_ppm = serializers.IntegerField(help_text="o200k tokens per native token of your own traffic")
    grade_kappa_ppm = serializers.IntegerField(help_text="kappa of the grade's output, which settles")


class OwnKappasOut(serializers.Serializer[Any]):
    items = OwnKappaOut(many=True)
    next = serializers.CharField(allow_null=True)


class OwnKappaView(ApiView):
    scopes = {"GET": Scope.READ}

    @extend_schema(
        operation_id="usage_kappa",
        parameters=[
            OpenApiParameter("contract_id", OpenApiTypes.UUID),
            OpenApiParameter("since", OpenApiTypes.DATETIME, description="default: 30 days before until"),
            OpenApiParameter("until", OpenApiTypes.DATETIME, description="default: now"),
        ],
        responses=OwnKappasOut,
    )
    def get(self, request: Request) -> Response:
        """Kappa of the organization's own delivered text, per grade version. It is shown and never settles."""
        asked = OwnKappaIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        terms: dict[str, Any] = asked.validated_data
        until: datetime = terms.get("until", clock.now())
        since: datetime = terms.get("since", until - OWN_KAPPA_SPAN)
        if since >= until:
            raise ValidationError({"since": [ErrorDetail("must lie before until", code="invalid")]})
        found = own_kappas(
            organization_id=self.organization_id,
            since=since,
            until=until,
            contract_id=terms.get("contract_id"),
        )
        return Response({"items": OwnKappaOut(found, many=True).data, "next": None})
