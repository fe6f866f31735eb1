"""REST of the spot market: bids of the caller, auctions and market data for everyone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.idempotency import idempotent
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    LotsField,
    MicrosField,
    MicrosPerMtokField,
    StrictBooleanField,
    StrictSerializer,
    TextField,
    TimestampField,
)
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import NotFound
from marketplace.orders import selectors
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.bids import MAX_STEPS, BidTerms, cancel_bid, place_bid
from pricing.models import Grade
from pricing.selectors import grade_in_force, prices_per_bucket


class StepSerializer(StrictSerializer):
    rate_micros_per_mtok = MicrosPerMtokField()
    lots = LotsField()


class BidRequestSerializer(StrictSerializer):
    """`period_start` left out makes the bid standing: it enters every book until it is cancelled."""

    grade = TextField(max_length=64)
    client_id = TextField(max_length=64)
    steps = serializers.ListField(child=StepSerializer(), min_length=1, max_length=MAX_STEPS)
    period_start = TimestampField(required=False, allow_null=True, default=None)
    min_fill_lots = LotsField(min_value=0, required=False, default=0)
    all_or_none = StrictBooleanField(required=False, default=False)
    max_total_micros_per_day = MicrosField(required=False, allow_null=True, default=None)

    def terms(self, data: dict[str, Any]) -> BidTerms:
        steps = tuple((step["rate_micros_per_mtok"], step["lots"]) for step in data["steps"])
        return BidTerms(**{**data, "steps": steps})


class TradeSerializer(serializers.Serializer[Any]):
    period_start = serializers.DateTimeField(source="auction.period_start")
    lots = serializers.IntegerField()
    rate_micros_per_mtok = serializers.IntegerField()


class BidSerializer(serializers.ModelSerializer[Bid]):
    grade = serializers.CharField(source="grade.family.slug")
    steps = serializers.SerializerMethodField()
    held_micros = serializers.SerializerMethodField()
    trades = serializers.SerializerMethodField()

    class Meta:
        model = Bid
        fields = (
            "id",
            "grade",
            "client_id",
            "contract_id",
            "status",
            "standing",
            "period_start",
            "steps",
            "min_fill_lots",
            "all_or_none",
            "max_total_micros_per_day",
            "held_micros",
            "skip_reason",
            "trades",
            "created_at",
            "ended_at",
        )

    @extend_schema_field(StepSerializer(many=True))
    def get_steps(self, bid: Bid) -> list[dict[str, int]]:
        return [
            {"rate_micros_per_mtok": step.rate_micros_per_mtok, "lots": step.lots} for step in bid.steps.all()
        ]

    @extend_schema_field(serializers.IntegerField())
    def get_held_micros(self, bid: Bid) -> int:
        return bid.ledger_hold.amount_micros if bid.ledger_hold and bid.status == Bid.Status.OPEN else 0

    @extend_schema_field(TradeSerializer(many=True))
    def get_trades(self, bid: Bid) -> Any:
        return TradeSerializer(list(bid.trades.all())[:20], many=True).data


class AuctionSerializer(serializers.ModelSerializer[Auction]):
    """What is public of every auction, at once and for ever."""

    grade = serializers.CharField(source="grade.family.slug")

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
            "rule_version",
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
    depth = DepthSerializer(allow_null=True)
    prices = serializers.DictField(child=serializers.CharField())


class BidsView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"GET": "read", "POST": "trade"}
    pagination_class = CursorPagination

    @extend_schema(operation_id="bids_list", responses=BidSerializer(many=True))
    def get(self, request: Request) -> Response:
        return self.page(selectors.bids_of(self.organization_id), BidSerializer)

    @extend_schema(operation_id="bids_place", request=BidRequestSerializer, responses={201: BidSerializer})
    @idempotent
    def post(self, request: Request) -> Response:
        bid = place_bid(
            organization_id=self.organization_id,
            terms=BidRequestSerializer().terms(self.parse(BidRequestSerializer)),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(BidSerializer(selectors.find_bid(self.organization_id, bid.id)).data, status=201)


class BidView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"GET": "read", "DELETE": "trade"}

    @extend_schema(operation_id="bids_read", responses=BidSerializer)
    def get(self, request: Request, bid_id: UUID) -> Response:
        return Response(BidSerializer(selectors.find_bid(self.organization_id, bid_id)).data)

    @extend_schema(operation_id="bids_cancel", responses={200: BidSerializer})
    def delete(self, request: Request, bid_id: UUID) -> Response:
        cancel_bid(organization_id=self.organization_id, bid_id=bid_id, now=clock.now(), actor=self.actor)
        return Response(BidSerializer(selectors.find_bid(self.organization_id, bid_id)).data)


class MarketView(PublicView):
    @extend_schema(operation_id="market_read", responses=MarketSerializer)
    def get(self, request: Request, slug: str) -> Response:
        now = clock.now()
        grade = _grade(slug)
        last = selectors.last_clearing(grade.id)
        disclosure = selectors.disclosure_of(last, now) if last else None
        rate = last.clearing_rate_micros_per_mtok if last else None
        shown = {
            "grade": slug,
            "grade_id": grade.id,
            "model": grade.family.model,
            "last": last,
            "open": selectors.current_auction(grade.id, now),
            "depth": disclosure,
            "prices": {} if rate is None else _plain_prices(grade, rate),
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
    path("bids/<uuid:bid_id>", BidView.as_view(), name="api-bid"),
    path("auctions/<uuid:auction_id>", AuctionView.as_view(), name="api-auction"),
    path("market/<slug:slug>", MarketView.as_view(), name="api-market"),
    path("market/<slug:slug>/history", MarketHistoryView.as_view(), name="api-market-history"),
]
