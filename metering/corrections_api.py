"""REST of corrections: the operator amends, voids or backfills usage, and everything he did can be listed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.accounts.services import record_audit
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView
from metering.correcting import MAX_REASON, amend_event, backfill_event, void_event
from metering.models import UsageCorrection
from metering.usage import MAX_COUNT
from pricing.units import Bucket

_TARGET: Final = ("source_id", "event_id")
_BACKFILL: Final = ("contract_id", "offering_id", "rate_id", "period_start", "occurred_at", "request_id")
_NEEDS: Final = {
    "amend": (*_TARGET, "buckets"),
    "void": _TARGET,
    "backfill": (*_BACKFILL, "buckets"),
}
_MAY: Final = _NEEDS | {"backfill": (*_NEEDS["backfill"], "api_key_id")}


class BucketsIn(StrictSerializer):
    """Native tokens by bucket; null or left out: not reported."""

    def get_fields(self) -> Any:
        return {
            bucket.value: StrictIntegerField(
                min_value=0, max_value=MAX_COUNT, required=False, allow_null=True
            )
            for bucket in Bucket
        }


class CorrectionIn(StrictSerializer):
    """An amendment names an event and its buckets, a void an event; a backfill says what was never reported."""

    kind = StrictChoiceField(choices=list(_NEEDS))
    reason = TextField(max_length=MAX_REASON)
    source_id = UuidField(required=False)
    event_id = UuidField(required=False)
    buckets = BucketsIn(required=False)
    contract_id = UuidField(required=False)
    offering_id = UuidField(required=False)
    rate_id = UuidField(required=False)
    api_key_id = UuidField(required=False, allow_null=True)
    request_id = UuidField(required=False)
    period_start = TimestampField(required=False)
    occurred_at = TimestampField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        kind = attrs["kind"]
        missing = [name for name in _NEEDS[kind] if name not in attrs]
        strange = sorted(attrs.keys() - {"kind", "reason", *_MAY[kind]})
        errors = {name: [ErrorDetail(f"is needed to {kind}", code="required")] for name in missing}
        errors |= {
            name: [ErrorDetail(f"has no meaning in a {kind}", code="unknown_field")] for name in strange
        }
        if errors:
            raise ValidationError(errors)
        return attrs


class RecordedCorrectionOut(serializers.ModelSerializer[UsageCorrection]):
    """Why an event no longer counts, or counts otherwise."""

    class Meta:
        model = UsageCorrection
        fields = (
            "id",
            "kind",
            "target_id",
            "target_source_id",
            "replacement_id",
            "replacement_source_id",
            "reason",
            "actor",
            "created_at",
        )


class CorrectionsView(ApiView):
    scopes = {"GET": Scope.OPERATE, "POST": Scope.OPERATE}
    role = "operator"
    pagination_class = CursorPagination

    @extend_schema(operation_id="usage_corrections_list", responses=RecordedCorrectionOut(many=True))
    def get(self, request: Request) -> Response:
        """Every correction of stored usage, newest first."""
        corrections: QuerySet[UsageCorrection] = UsageCorrection.objects.order_by("-pk")
        return self.page(corrections, RecordedCorrectionOut)

    @extend_schema(operation_id="usage_correct", request=CorrectionIn, responses={201: RecordedCorrectionOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """Amend, void or backfill usage. The sums follow at once; a settled period gets an adjustment by itself."""
        asked = self.parse(CorrectionIn)
        now = clock.now()
        correction = _correct(asked, actor=f"{self.actor.kind}:{self.actor.id}", now=now)
        record_audit(
            organization_id=self.organization_id,
            actor=self.actor,
            action=f"usage.{correction.kind}",
            object_kind="usage_correction",
            object_id=correction.id,
            now=now,
        )
        return Response(RecordedCorrectionOut(correction).data, status=201)


def _correct(asked: dict[str, Any], *, actor: str, now: datetime) -> UsageCorrection:
    kind = asked.pop("kind")
    if "buckets" in asked:
        asked["buckets"] = {Bucket(name): tokens for name, tokens in asked["buckets"].items()}
    if kind == UsageCorrection.Kind.AMEND:
        return amend_event(**asked, actor=actor, now=now)
    if kind == UsageCorrection.Kind.VOID:
        return void_event(**asked, actor=actor, now=now)
    api_key_id: UUID | None = asked.pop("api_key_id", None)
    return backfill_event(**asked, api_key_id=api_key_id, actor=actor, now=now)
