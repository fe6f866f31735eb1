"""REST: what awards came to, for the buyer who had them and the provider who owed them."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Q
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import StrictSerializer, TextField, UuidField
from marketplace.api.views import ApiView
from marketplace.billing.models import DeliveryOutcome
from marketplace.billing.outcomes import outcomes_of
from marketplace.billing.serializers import NumeratorField


class DeliveryOutcomeSerializer(serializers.ModelSerializer[DeliveryOutcome]):
    """entitled = released + delivered + failed + unused (A = R + U + F + N), in millionths of a standard token."""

    entitled_numerator = NumeratorField()
    released_numerator = NumeratorField()
    delivered_numerator = NumeratorField()
    failed_numerator = NumeratorField(help_text="F: what the provider failed. The buyer never pays it.")
    unused_numerator = NumeratorField(help_text="N: what nobody asked for. The provider never pays it.")
    curtailed_numerator = NumeratorField(
        help_text="What of entitled the host could not supply any more from some moment of the period on."
    )
    excused_numerator = NumeratorField(
        help_text="What of unused would have failed, had what was asked for cost the host no more than its bench's mix."
    )
    replaced_numerator = NumeratorField(
        help_text="What of F the buyer bought elsewhere, at replacement_micros_per_mtok."
    )

    class Meta:
        model = DeliveryOutcome
        fields = (
            "id",
            "contract_id",
            "settlement_id",
            "run",
            "offering_id",
            "grade_id",
            "period_start",
            "period_end",
            "entitled_numerator",
            "released_numerator",
            "delivered_numerator",
            "failed_numerator",
            "unused_numerator",
            "curtailed_numerator",
            "excused_numerator",
            "down_ms",
            "rate_micros_per_mtok",
            "replaced_numerator",
            "replacement_micros_per_mtok",
            "remedy_micros",
            "remedy_cap_micros",
            "created_at",
        )


class OutcomesIn(StrictSerializer):
    contract_id = UuidField(required=False)
    offering_id = UuidField(required=False)
    # Read by the pages.
    cursor = TextField(max_length=64, required=False)
    page_size = TextField(max_length=8, required=False)


class DeliveryOutcomesView(ApiView):
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="delivery_outcomes_list",
        parameters=[
            OpenApiParameter("contract_id", UUID, description="only this contract's"),
            OpenApiParameter("offering_id", UUID, description="only this offering's"),
        ],
        responses=DeliveryOutcomeSerializer(many=True),
    )
    def get(self, request: Request) -> Response:
        """What settled spot awards came to, by offering and delivery period: those you bought and those you owed.

        Of committed contracts the periods in which something was down.

        A later run replaces an earlier one; only what holds is listed.
        """
        asked = OutcomesIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        named = Q()
        for name in ("contract_id", "offering_id"):
            if name in asked.validated_data:
                named &= Q(**{name: asked.validated_data[name]})
        return self.page(outcomes_of(self.organization_id).filter(named), DeliveryOutcomeSerializer)
