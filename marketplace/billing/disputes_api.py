"""REST of discrepancies between meters: each side reads what concerns it, the provider accepts, the operator rules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing import disputes
from marketplace.billing.serializers import NumeratorField
from metering.disputing import MAX_REASON_CHARACTERS
from metering.models import Discrepancy, RecountBaseline
from metering.recounts import MAX_BASELINE_PPM

MOST_RULED_ROWS = 1_000


class DiscrepancySummaryOut(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="discrepancy.pk")
    host_id = serializers.UUIDField(allow_null=True, help_text="null to buyers")
    kind = serializers.ChoiceField(
        choices=Discrepancy.Kind.choices,
        source="discrepancy.kind",
        help_text="counts: meters disagree; recount: the text comes to another count than was reported",
    )
    status = serializers.ChoiceField(choices=Discrepancy.Status.choices, source="discrepancy.status")
    settlement_start = serializers.DateTimeField(source="discrepancy.settlement_start")
    settlement_end = serializers.SerializerMethodField()
    withheld_numerator = NumeratorField(
        help_text="What of your usage is not billed: for now while open, for good once closed."
    )
    ruling = serializers.CharField(
        source="discrepancy.ruling", help_text="lower, higher, numbers or agreed; empty while open"
    )
    reason = serializers.CharField(source="discrepancy.reason")
    closed_by = serializers.CharField(source="discrepancy.closed_by")
    closed_at = serializers.DateTimeField(source="discrepancy.closed_at", allow_null=True)
    created_at = serializers.DateTimeField(source="discrepancy.created_at")

    @extend_schema_field(serializers.DateTimeField())
    def get_settlement_end(self, seen: disputes.Seen) -> str:
        end = seen.discrepancy.settlement_start + timedelta(seconds=settings.SETTLEMENT_PERIOD_S)
        return str(serializers.DateTimeField().to_representation(end))


class DisputedUsageOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    contract_id = serializers.UUIDField(allow_null=True, help_text="null to providers")
    rate_id = serializers.UUIDField()
    offering_id = serializers.UUIDField()
    period_start = serializers.DateTimeField()
    gateway_numerator = NumeratorField()
    lower_numerator = NumeratorField(help_text="of the witness who saw least")
    withheld_numerator = NumeratorField()


class DiscrepancyOut(DiscrepancySummaryOut):
    evidence = serializers.SerializerMethodField(
        help_text="what each witness saw of the host; null to buyers, whose own counts are in `usage`"
    )
    usage = serializers.SerializerMethodField()

    @extend_schema_field({"type": "object", "nullable": True, "additionalProperties": True})
    def get_evidence(self, seen: disputes.Seen) -> Any:
        return seen.evidence

    @extend_schema_field(DisputedUsageOut(many=True))
    def get_usage(self, seen: disputes.Seen) -> Any:
        rows = [
            {
                "id": row.pk,
                "contract_id": row.contract_id if seen.may_see_contracts else None,
                "rate_id": row.rate_id,
                "offering_id": row.offering_id,
                "period_start": row.period_start,
                "gateway_numerator": row.gateway_numerator,
                "lower_numerator": row.lower_numerator,
                "withheld_numerator": row.withheld_numerator,
            }
            for row in seen.usage
        ]
        return DisputedUsageOut(rows, many=True).data


class AcceptIn(StrictSerializer):
    reason = TextField(max_length=MAX_REASON_CHARACTERS)


class RuledUsageIn(StrictSerializer):
    id = UuidField(help_text="of a row of the discrepancy's usage")
    numerator = serializers.RegexField(
        r"^[0-9]{1,18}$",
        max_length=18,
        help_text="what is to be billed of it, between the lower and the gateway's",
    )


class ResolveIn(StrictSerializer):
    ruling = StrictChoiceField(choices=["lower", "higher", "numbers"])
    reason = TextField(max_length=MAX_REASON_CHARACTERS)
    numerators = serializers.ListField(child=RuledUsageIn(), required=False, max_length=MOST_RULED_ROWS)


class RecountBaselineIn(StrictSerializer):
    grade_id = UuidField(help_text="a grade version")
    baseline_ppm = StrictIntegerField(
        min_value=1, max_value=MAX_BASELINE_PPM, help_text="o200k tokens per million native tokens of output"
    )
    reason = TextField(max_length=MAX_REASON_CHARACTERS)


class RecountBaselineOut(serializers.ModelSerializer[RecountBaseline]):
    class Meta:
        model = RecountBaseline
        fields = ("id", "grade_id", "baseline_ppm", "reason", "created_at")


class DiscrepanciesView(ApiView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="discrepancies_list", responses=DiscrepancySummaryOut(many=True))
    def get(self, request: Request) -> Response:
        """Discrepancies of your hosts, or that keep usage of your contracts from being billed; newest first."""
        pagination = CursorPagination()
        rows = disputes.discrepancies_of(self.organization)
        shown = disputes.seen_by(self.organization, pagination.paginate_queryset(rows, request, self) or [])
        return pagination.get_paginated_response(DiscrepancySummaryOut(shown, many=True).data)


class _OneView(ApiView):
    def answer(self, discrepancy_id: UUID) -> Response:
        return Response(DiscrepancyOut(disputes.find_discrepancy(self.organization, discrepancy_id)).data)


class DiscrepancyView(_OneView):
    @extend_schema(operation_id="discrepancies_retrieve", responses=DiscrepancyOut)
    def get(self, request: Request, discrepancy_id: UUID) -> Response:
        """One discrepancy with its evidence and the usage it withholds, as far as they concern you."""
        return self.answer(discrepancy_id)


class DiscrepancyAcceptView(_OneView):
    role = OrganizationRole.PROVIDER
    scopes: ClassVar = {"POST": Scope.PROVIDE}

    @extend_schema(operation_id="discrepancies_accept", request=AcceptIn, responses=DiscrepancyOut)
    def post(self, request: Request, discrepancy_id: UUID) -> Response:
        """Let the lower count stand, as the provider of the host: what was withheld is not billed."""
        disputes.find_discrepancy(self.organization, discrepancy_id)
        disputes.accept(
            organization=self.organization,
            discrepancy_id=discrepancy_id,
            actor=self.actor,
            now=clock.now(),
            **self.parse(AcceptIn),
        )
        return self.answer(discrepancy_id)


class DiscrepancyResolveView(_OneView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="discrepancies_resolve", request=ResolveIn, responses=DiscrepancyOut)
    def post(self, request: Request, discrepancy_id: UUID) -> Response:
        """Rule: the lower count, the gateway's, or numbers between them; the next settlement run charges the rest."""
        data = self.parse(ResolveIn)
        numerators = {row["id"]: int(row["numerator"]) for row in data.pop("numerators", [])}
        disputes.resolve(
            operator=self.organization,
            discrepancy_id=discrepancy_id,
            numerators=numerators,
            actor=self.actor,
            now=clock.now(),
            **data,
        )
        return self.answer(discrepancy_id)


class RecountBaselinesView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="recount_baselines_list", responses=RecountBaselineOut(many=True))
    def get(self, request: Request) -> Response:
        """What was set so far; the newest of a grade version counts until three hosts show their own."""
        return self.page(RecountBaseline.objects.all(), RecountBaselineOut)

    @extend_schema(
        operation_id="recount_baselines_set", request=RecountBaselineIn, responses={201: RecountBaselineOut}
    )
    def post(self, request: Request) -> Response:
        """Say what the recount of a grade version's text comes to, where its kappa does not know."""
        made = disputes.set_recount_baseline(
            operator=self.organization, actor=self.actor, now=clock.now(), **self.parse(RecountBaselineIn)
        )
        return Response(RecountBaselineOut(made).data, status=201)
