"""REST of what became of a bid, auction by auction, and of what a cover would hold before it is placed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import MicrosPerMtokField, StrictIntegerField, StrictSerializer, TextField
from marketplace.api.views import ApiView
from marketplace.orders.bid_rounds import OUTCOMES, WHY_LEFT_OUT, BidRound, rounds_of
from marketplace.orders.bid_serializers import StepSerializer
from marketplace.orders.models import Auction
from marketplace.orders.services.covering import preview_cover


class BidRoundSerializer(serializers.Serializer[Any]):
    """A published auction and what the bid got in it; `unfilled` also where the bid was skipped."""

    auction_id = serializers.UUIDField(source="auction.id")
    grade = serializers.CharField(source="auction.grade.family.slug")
    period_start = serializers.DateTimeField(source="auction.period_start")
    period_end = serializers.DateTimeField(source="auction.period_end")
    clearing_rate_micros_per_mtok = serializers.IntegerField(
        source="auction.clearing_rate_micros_per_mtok", allow_null=True
    )
    outcome = serializers.ChoiceField(choices=OUTCOMES)
    left_out_reason = serializers.ChoiceField(choices=list(WHY_LEFT_OUT), allow_null=True)
    lots = serializers.IntegerField(help_text="of this bid")


class BidRoundsView(ApiView):
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="bids_rounds", responses=BidRoundSerializer(many=True))
    def get(self, request: Request, bid_id: UUID) -> Response:
        """The published auctions that the bid stood for, newest first, and what it got in each or why it sat out."""
        pagination = CursorPagination()
        shown: list[Auction] = pagination.paginate_queryset(
            rounds_of(self.organization_id, bid_id), request, self
        )
        rounds = [BidRound(auction, bid_id) for auction in shown]
        return pagination.get_paginated_response(BidRoundSerializer(rounds, many=True).data)


class CoverPreviewSerializer(StrictSerializer):
    """At most this rate, for this many standard tokens a second."""

    grade = TextField(max_length=64)
    rate_micros_per_mtok = MicrosPerMtokField()
    tokens_per_second = StrictIntegerField(min_value=1, max_value=10**12)


class CoverWorstCaseSerializer(serializers.Serializer[Any]):
    """The bid of one step that it would be, and its hold (with tax) beside what the prepaid balance has free."""

    steps = StepSerializer(many=True)
    worst_case_micros = serializers.IntegerField()
    available_micros = serializers.IntegerField()
    is_covered = serializers.BooleanField(help_text="whether the balance bears the hold")


class CoverWorstCaseView(ApiView):
    role = OrganizationRole.BUYER
    # It changes nothing, but it is a trader's question, as a what-if is.
    scopes = {"POST": "trade"}

    @extend_schema(
        operation_id="bids_cover_worst_case",
        request=CoverPreviewSerializer,
        responses={200: CoverWorstCaseSerializer},
    )
    def post(self, request: Request) -> Response:
        """What "keep me covered" would hold, without placing it."""
        preview = preview_cover(
            organization_id=self.organization_id, now=clock.now(), **self.parse(CoverPreviewSerializer)
        )
        shown = {
            "steps": [{"rate_micros_per_mtok": rate, "lots": lots} for rate, lots in preview.steps],
            "worst_case_micros": preview.worst_case_micros,
            "available_micros": preview.available_micros,
            "is_covered": preview.is_covered,
        }
        return Response(CoverWorstCaseSerializer(shown).data)


urlpatterns = [
    path("bids/cover/worst-case", CoverWorstCaseView.as_view(), name="api-bids-cover-worst-case"),
    path("bids/<uuid:bid_id>/rounds", BidRoundsView.as_view(), name="api-bid-rounds"),
]
