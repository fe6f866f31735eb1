"""REST of single usage events: those behind a period, and one with what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.pagination import page_of, window_of
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.contracts.usage import Reach, reach_of
from marketplace.contracts.usage_api import METER, METERS, PAGE, ROLE, ROLES, UsageReader
from marketplace.errors import InvalidInput
from marketplace.periods import delivery_period
from metering.events import Seen, events_of_period, find_evidence
from metering.models import MeterKind, UsageCorrection


class BucketsOut(serializers.Serializer[Any]):
    """Native tokens; null was not reported, which is not zero."""

    uncached_input = serializers.IntegerField(allow_null=True)
    cache_read = serializers.IntegerField(allow_null=True)
    cache_write = serializers.IntegerField(allow_null=True)
    output = serializers.IntegerField(allow_null=True)
    reasoning = serializers.IntegerField(allow_null=True)
    image_input = serializers.IntegerField(allow_null=True)
    audio_input = serializers.IntegerField(allow_null=True)
    audio_output = serializers.IntegerField(allow_null=True)


class UsageEventOut(serializers.Serializer[Any]):
    """One request's metered facts, as one meter saw them."""

    id = serializers.UUIDField(source="event.id")
    source_id = serializers.UUIDField(source="event.source_id", help_text="the meter that said it")
    meter = serializers.ChoiceField(METERS)
    layer = serializers.ChoiceField(["validated", "estimated", "edited"])
    status = serializers.CharField(
        help_text="counted, amended or voided; only counted events are in sums and charges"
    )
    request_id = serializers.UUIDField(source="event.request_id")
    attempt = serializers.IntegerField(source="event.attempt")
    part = serializers.IntegerField(source="event.part")
    contract_id = serializers.SerializerMethodField(help_text="null for providers")
    api_key_id = serializers.SerializerMethodField(
        help_text="null for providers, and where the meter knows none"
    )
    rate_id = serializers.SerializerMethodField(help_text="null for providers")
    offering_id = serializers.UUIDField(source="event.offering_id")
    grade_id = serializers.UUIDField(source="event.grade_id")
    period_start = serializers.DateTimeField(source="event.period_start")
    occurred_at = serializers.DateTimeField(source="event.occurred_at")
    buckets = BucketsOut()
    numerator = serializers.SerializerMethodField(help_text="millionths of a standard token")
    recount_o200k_tokens = serializers.IntegerField(source="event.recount_o200k_tokens", allow_null=True)
    flags = serializers.ListField(child=serializers.CharField())
    finish = serializers.CharField(source="event.finish")
    bytes_in = serializers.IntegerField(source="event.bytes_in")
    bytes_out = serializers.IntegerField(source="event.bytes_out")
    first_byte_ms = serializers.IntegerField(
        source="event.first_byte_ms",
        allow_null=True,
        help_text="from admission to the first chunk with output: time to first token",
    )
    duration_ms = serializers.IntegerField(source="event.duration_ms", allow_null=True)

    def get_contract_id(self, seen: Seen) -> UUID | None:
        return seen.event.contract_id if self._sees_buyers else None

    def get_api_key_id(self, seen: Seen) -> UUID | None:
        return seen.event.api_key_id if self._sees_buyers else None

    def get_rate_id(self, seen: Seen) -> UUID | None:
        return seen.event.rate_id if self._sees_buyers else None

    def get_numerator(self, seen: Seen) -> str:
        return str(seen.event.numerator)

    @property
    def _sees_buyers(self) -> bool:
        return bool(self.context["sees_buyers"])


class CorrectionOut(serializers.ModelSerializer[UsageCorrection]):
    kind = serializers.CharField(help_text="amend, void or backfill")
    actor = serializers.SerializerMethodField(help_text="null but for the operator")

    class Meta:
        model = UsageCorrection
        fields = ("id", "kind", "target_id", "replacement_id", "reason", "actor", "created_at")

    def get_actor(self, correction: UsageCorrection) -> str | None:
        return correction.actor if self.context["sees_actors"] else None


class UsageEventDetailOut(UsageEventOut):
    """With every meter's view of the same part of the same request, and its corrections, oldest first."""

    witnesses = serializers.SerializerMethodField()
    corrections = serializers.SerializerMethodField()

    @extend_schema_field(UsageEventOut(many=True))
    def get_witnesses(self, seen: Seen) -> Any:
        return UsageEventOut(self.context["evidence"].witnesses, many=True, context=self.context).data

    @extend_schema_field(CorrectionOut(many=True))
    def get_corrections(self, seen: Seen) -> Any:
        return CorrectionOut(self.context["evidence"].corrections, many=True, context=self.context).data


class UsageEventsOut(serializers.Serializer[Any]):
    items = UsageEventOut(many=True)
    next = serializers.CharField(allow_null=True)


class UsageEventsIn(StrictSerializer):
    role = StrictChoiceField(choices=ROLES, required=False)
    contract_id = UuidField(required=False)
    offering_id = UuidField(required=False)
    period_start = TimestampField(required=False)
    meter = StrictChoiceField(choices=METERS, default=MeterKind.GATEWAY.value)
    cursor = TextField(max_length=32, required=False)
    page_size = TextField(max_length=3, required=False)


class UsageEventsView(UsageReader):
    @extend_schema(
        operation_id="usage_events_list",
        parameters=[
            ROLE,
            OpenApiParameter("contract_id", OpenApiTypes.UUID, description="not for providers"),
            OpenApiParameter("offering_id", OpenApiTypes.UUID),
            OpenApiParameter(
                "period_start",
                OpenApiTypes.DATETIME,
                description="a delivery period; default: the one that runs",
            ),
            METER,
            *PAGE,
        ],
        responses=UsageEventsOut,
    )
    def get(self, request: Request) -> Response:
        """The events behind one delivery period, of one contract (a provider: offering) or all, newest first."""
        asked = UsageEventsIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        terms: dict[str, Any] = asked.validated_data
        reach = reach_of(self.organization, self.reading_as(terms.get("role")))
        window = window_of(request)
        contract_ids, offering_ids = _named(reach, terms)
        rows = events_of_period(
            terms.get("period_start") or delivery_period(clock.now()).start,
            contract_ids=contract_ids,
            offering_ids=offering_ids,
            meter=terms["meter"],
            before=window.before,
            size=window.size + 1,
        )
        shown, following = page_of(rows, window, lambda seen: seen.event.id)
        context = {"sees_buyers": reach.sees_buyers}
        return Response({"items": UsageEventOut(shown, many=True, context=context).data, "next": following})


class UsageEventView(UsageReader):
    @extend_schema(operation_id="usage_events_read", parameters=[ROLE], responses=UsageEventDetailOut)
    def get(self, request: Request, event_id: UUID) -> Response:
        """One usage event: what each meter saw of the request, on which layer it stands, and its corrections."""
        role = request.query_params.get("role")
        if role is not None and role not in ROLES:
            raise ValidationError({"role": [ErrorDetail("is not a role", code="invalid_choice")]})
        reading_as = self.reading_as(role)
        reach = reach_of(self.organization, reading_as)
        evidence = find_evidence(event_id, contract_ids=reach.contract_ids, offering_ids=reach.offering_ids)
        context = {
            "evidence": evidence,
            "sees_buyers": reach.sees_buyers,
            "sees_actors": reading_as == OrganizationRole.OPERATOR,
        }
        return Response(UsageEventDetailOut(evidence.event, context=context).data)


def _named(reach: Reach, terms: dict[str, Any]) -> tuple[Sequence[UUID] | None, Sequence[UUID] | None]:
    """Contracts and offerings whose events are asked for, as far as they are within reach."""
    contract_id, offering_id = terms.get("contract_id"), terms.get("offering_id")
    if contract_id is not None and not reach.sees_buyers:
        raise InvalidInput("is not known to providers: it tells buyers apart", field="contract_id")
    contract_ids = reach.contract_ids if contract_id is None else _reached(contract_id, reach.contract_ids)
    offering_ids = reach.offering_ids if offering_id is None else _reached(offering_id, reach.offering_ids)
    if contract_ids is None and offering_ids is None:
        raise InvalidInput("is needed: the events of a whole market are no list", field="contract_id")
    return contract_ids, offering_ids


def _reached(wanted: UUID, reach: Any) -> list[UUID]:
    return [wanted] if reach is None or wanted in reach else []
