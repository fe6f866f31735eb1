"""REST of the spot market: bids of the caller, auctions and market data for everyone."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.views import ApiView, PublicView
from marketplace.contracts.selectors import period_rate
from marketplace.errors import InvalidInput, NotFound
from marketplace.orders import bid_rounds_api, controls_api, order_api, releases_api, selectors
from marketplace.orders.bid_serializers import (
    BidChangeSerializer,
    BidRequestSerializer,
    BidSerializer,
    BidWithReceiptSerializer,
    changed_bid,
)
from marketplace.orders.controls_selectors import public_state_of
from marketplace.orders.models import Auction
from marketplace.orders.services.bids import cancel_bid, place_bid
from marketplace.orders.services.revising import revise_bid
from marketplace.periods import delivery_period
from pricing.models import Grade
from pricing.selectors import grade_in_force, prices_per_bucket

IF_MATCH: Final = OpenApiParameter(
    name="If-Match",
    location=OpenApiParameter.HEADER,
    required=False,
    type={"type": "string", "pattern": '^"[1-9][0-9]{0,9}"$'},
    description="The revision you saw, in quotes, as the ETag of the bid gives it; instead of `revision`.",
)


class AuctionSerializer(serializers.ModelSerializer[Auction]):
    """What is public of every auction, at once and for ever."""

    grade = serializers.CharField(source="grade.family.slug")
    joined = serializers.ListField(
        child=serializers.UUIDField(),
        help_text="the auctions cleared together with this one, it among them; empty where it stood alone",
    )

    class Meta:
        model = Auction
        fields = (
            "id",
            "grade",
            "grade_id",
            "period_start",
            "period_end",
            "status",
            "quantity_lots",
            "clearing_rate_micros_per_mtok",
            "halted",
            "rule_version",
            "joined",
            "book_digest",
            "result_digest",
            "published_at",
        )


class OpenAuctionSerializer(serializers.ModelSerializer[Auction]):
    class Meta:
        model = Auction
        fields = ("id", "period_start", "period_end", "status", "opens_at", "no_cancel_at", "gate_at")


class CurvePointSerializer(serializers.Serializer[Any]):
    rate_micros_per_mtok = serializers.IntegerField()
    lots = serializers.IntegerField(help_text="cumulative")


class DepthSerializer(serializers.Serializer[Any]):
    demand = CurvePointSerializer(many=True)
    supply = CurvePointSerializer(many=True)
    rate_low_micros_per_mtok = serializers.IntegerField(allow_null=True)
    rate_high_micros_per_mtok = serializers.IntegerField(allow_null=True)


class MarketSerializer(serializers.Serializer[Any]):
    """One grade's market: the last price that traded, the book open now, the plain price per bucket at that rate."""

    grade = serializers.CharField()
    grade_id = serializers.UUIDField()
    model = serializers.CharField()
    last = AuctionSerializer(allow_null=True)
    open = OpenAuctionSerializer(allow_null=True)
    control = controls_api.PublicControlSerializer()
    depth = DepthSerializer(allow_null=True)
    prices = serializers.DictField(child=serializers.CharField())
    overage_rate_micros_per_mtok = serializers.IntegerField(
        allow_null=True,
        help_text="of the delivery period that runs; null where none was published: then it is the list rate",
    )


class BidsView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"GET": "read", "POST": "trade"}
    pagination_class = CursorPagination

    @extend_schema(operation_id="bids_list", responses=BidSerializer(many=True))
    def get(self, request: Request) -> Response:
        return self.page(selectors.bids_of(self.organization_id), BidSerializer)

    @extend_schema(
        operation_id="bids_place", request=BidRequestSerializer, responses={201: BidWithReceiptSerializer}
    )
    @idempotent
    def post(self, request: Request) -> Response:
        bid = place_bid(
            organization_id=self.organization_id,
            terms=BidRequestSerializer().terms(self.parse(BidRequestSerializer)),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return changed_bid(self.organization_id, bid.id, status=201)


class BidView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"GET": "read", "PATCH": "trade", "DELETE": "trade"}

    @extend_schema(operation_id="bids_read", responses=BidSerializer)
    def get(self, request: Request, bid_id: UUID) -> Response:
        bid = selectors.find_bid(self.organization_id, bid_id)
        return Response(BidSerializer(bid).data, headers={"ETag": f'"{bid.revision}"'})

    @extend_schema(
        operation_id="bids_revise",
        request=BidChangeSerializer,
        responses={200: BidWithReceiptSerializer},
        parameters=[IF_MATCH],
    )
    def patch(self, request: Request, bid_id: UUID) -> Response:
        data = self.parse(BidChangeSerializer)
        revise_bid(
            organization_id=self.organization_id,
            bid_id=bid_id,
            changes=BidChangeSerializer().changes(data),
            revision=_expected_revision(request, data.get("revision")),
            now=clock.now(),
            actor=self.actor,
        )
        return changed_bid(self.organization_id, bid_id)

    @extend_schema(operation_id="bids_cancel", responses={200: BidWithReceiptSerializer})
    def delete(self, request: Request, bid_id: UUID) -> Response:
        cancel_bid(organization_id=self.organization_id, bid_id=bid_id, now=clock.now(), actor=self.actor)
        return changed_bid(self.organization_id, bid_id)


def _expected_revision(request: Request, named: int | None) -> int:
    """From the body or from `If-Match: "3"`; both may stand, if they agree."""
    header = request.headers.get("If-Match")
    if header is None:
        if named is None:
            raise InvalidInput("Name the revision you saw, here or in the header If-Match.", field="revision")
        return named
    matched = re.fullmatch(r'"([1-9][0-9]{0,9})"', header.strip())
    if matched is None:
        raise InvalidInput('It is a revision in quotes, like "3".', field="If-Match")
    revision = int(matched[1])
    if named is not None and named != revision:
        raise InvalidInput("It is not the revision of the header If-Match.", field="revision")
    return revision


class MarketView(PublicView):
    @extend_schema(operation_id="market_read", responses=MarketSerializer)
    def get(self, request: Request, slug: str) -> Response:
        now = clock.now()
        grade = _grade(slug)
        last = selectors.last_clearing(grade.id)
        disclosure = selectors.disclosure_of(last, now) if last else None
        rate = last.clearing_rate_micros_per_mtok if last else None
        said = period_rate(grade_id=grade.id, period_start=delivery_period(now).start)
        shown = {
            "grade": slug,
            "grade_id": grade.id,
            "model": grade.family.model,
            "last": last,
            "open": selectors.current_auction(grade.id, now),
            "control": public_state_of(grade, now=now),
            "depth": disclosure,
            "prices": {} if rate is None else _plain_prices(grade, rate),
            "overage_rate_micros_per_mtok": said.overage_rate.micros_per_mtok if said else None,
        }
        return Response(MarketSerializer(shown).data)


class MarketHistoryView(PublicView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="market_history", responses=AuctionSerializer(many=True))
    def get(self, request: Request, slug: str) -> Response:
        return self.page(selectors.published_auctions([_grade(slug).id]), AuctionSerializer)


class AuctionView(PublicView):
    @extend_schema(operation_id="auctions_read", responses=AuctionSerializer)
    def get(self, request: Request, auction_id: UUID) -> Response:
        auction = Auction.objects.filter(pk=auction_id).select_related("grade__family").first()
        if auction is None:
            raise NotFound("There is no such auction.")
        return Response(AuctionSerializer(auction).data)


def _grade(slug: str) -> Grade:
    grade = grade_in_force(slug=slug, at=clock.now())
    if grade is None:
        raise NotFound("There is no such grade in force.", field="grade")
    return grade


def _plain_prices(grade: Grade, rate: int) -> dict[str, str]:
    """Currency units per Mtok of native tokens, per bucket, exact."""
    return {str(bucket): price.per_mtok for bucket, price in prices_per_bucket(grade, rate).items()}


urlpatterns = [
    path("bids", BidsView.as_view(), name="api-bids"),
    *order_api.urlpatterns,
    *bid_rounds_api.urlpatterns,
    *releases_api.urlpatterns,
    path("bids/<uuid:bid_id>", BidView.as_view(), name="api-bid"),
    path("auctions/<uuid:auction_id>", AuctionView.as_view(), name="api-auction"),
    path("market/<slug:slug>", MarketView.as_view(), name="api-market"),
    path("market/<slug:slug>/history", MarketHistoryView.as_view(), name="api-market-history"),
    *controls_api.urlpatterns,
]
