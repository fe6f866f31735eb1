"""REST: what settlement periods were measured at and credited, for the buyer and for the provider."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Q
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictSerializer, TextField, UuidField
from marketplace.api.views import ApiView
from marketplace.billing.models import ServiceFigure, ServicePeriod
from marketplace.billing.service_periods import figures_of, service_periods_of
from pricing.models import ServiceLevel


class ServiceFigureSerializer(serializers.ModelSerializer[ServiceFigure]):
    """One level of the grade, and what the period was measured at."""

    metric = serializers.ChoiceField(source="level.metric", choices=ServiceLevel.Metric.choices)
    percentile = serializers.IntegerField(source="level.percentile")
    limit_us = serializers.IntegerField(source="level.limit_us")
    credit_ppm = serializers.IntegerField(source="level.credit_ppm")
    minimum_requests = serializers.IntegerField(source="level.minimum_requests")
    max_input_tokens = serializers.IntegerField(source="level.max_input_tokens", allow_null=True)

    class Meta:
        model = ServiceFigure
        fields = (
            "metric",
            "percentile",
            "limit_us",
            "credit_ppm",
            "minimum_requests",
            "max_input_tokens",
            "requests",
            "measured_us",
            "is_broken",
        )
        extra_kwargs = {
            "requests": {"help_text": "how many could be measured"},
            "measured_us": {"help_text": "the percentile, by nearest rank; null where there were none"},
            "is_broken": {"help_text": "enough requests, and the percentile above the limit"},
        }


class ServicePeriodSerializer(serializers.ModelSerializer[ServicePeriod]):
    """`credit_micros` is the broken levels' share of `gross_micros`, less `remedy_micros`."""

    figures = serializers.SerializerMethodField()

    class Meta:
        model = ServicePeriod
        fields = (
            "id",
            "contract_id",
            "settlement_id",
            "run",
            "offering_id",
            "grade_id",
            "period_start",
            "period_end",
            "gross_micros",
            "remedy_micros",
            "credit_micros",
            "figures",
            "created_at",
        )
        extra_kwargs = {
            "gross_micros": {"help_text": "what the offering delivered, at the buyer's rates"},
            "remedy_micros": {"help_text": "remedies for what failed in the same period"},
        }

    @extend_schema_field(ServiceFigureSerializer(many=True))
    def get_figures(self, period: ServicePeriod) -> Any:
        return ServiceFigureSerializer(figures_of(period), many=True).data


class ServicePeriodsIn(StrictSerializer):
    contract_id = UuidField(required=False)
    offering_id = UuidField(required=False)
    # Read by the pages.
    cursor = TextField(max_length=64, required=False)
    page_size = TextField(max_length=8, required=False)


class ServicePeriodsView(ApiView):
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="service_periods_list",
        parameters=[
            OpenApiParameter("contract_id", UUID, description="only this contract's"),
            OpenApiParameter("offering_id", UUID, description="only this offering's"),
        ],
        responses=ServicePeriodSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """Settlement periods of grades with service levels, as measured: what you bought and what you delivered.

        A later run replaces an earlier one; only what holds is listed.
        """
        asked = ServicePeriodsIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        named = Q()
        for name in ("contract_id", "offering_id"):
            if name in asked.validated_data:
                named &= Q(**{name: asked.validated_data[name]})
        return self.page(service_periods_of(self.organization_id).filter(named), ServicePeriodSerializer)
