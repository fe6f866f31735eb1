"""Addresses for these tests only: an idempotent POST with a real effect, and one that parses."""

from __future__ import annotations

from typing import Any

from django.urls import include, path
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.services import record_audit
from marketplace.api.idempotency import idempotent
from marketplace.api.serializers import (
    LotsField,
    MicrosField,
    PpmField,
    StrictBooleanField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.errors import Conflict, DomainError


class Step(StrictSerializer):
    quantity_lots = LotsField()


class Everything(StrictSerializer):
    amount_micros = MicrosField(required=False)
    quantity_lots = LotsField(required=False)
    share_ppm = PpmField(required=False)
    count = StrictIntegerField(min_value=0, max_value=10, required=False)
    id = UuidField(required=False)
    note = TextField(max_length=10, required=False)
    flag = StrictBooleanField(required=False)
    word = StrictChoiceField(choices=["one", "two"], required=False)
    at = TimestampField(required=False)
    steps = Step(many=True, required=False)


class Poor(DomainError):
    code = "insufficient_funds"
    http_status = 402


class ParseView(ApiView):
    scopes = {"POST": "read"}

    def post(self, request: Request) -> Response:
        return Response({name: str(value) for name, value in self.parse(Everything).items()})


class EffectView(ApiView):
    """Its effect is an audit entry whose object id is the operation's."""

    scopes = {"POST": "read"}
    fail_with: Exception | None = None

    @idempotent
    def post(self, request: Request) -> Response:
        body: dict[str, Any] = self.parse(Everything)
        record_audit(
            organization_id=self.organization_id,
            actor=self.actor,
            action="probe.done",
            object_kind="operation",
            object_id=self.operation_id,
            now=clock.now(),
        )
        failures = {1: Poor("not enough"), 2: Conflict("busy", retry_after_s=5), 3: RuntimeError("crash")}
        if body.get("count") in failures:
            raise failures[body["count"]]
        operation_id = request.operation_id  # type: ignore[attr-defined]
        return Response({"operation_id": str(operation_id), "at": clock.wall_now().isoformat()}, status=201)


urlpatterns = [
    path("api/v1/parse", ParseView.as_view()),
    path("api/v1/effect", EffectView.as_view()),
    path("", include("marketplace.urls")),
]
