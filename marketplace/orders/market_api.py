"""REST of market data, for everybody and without a key: price index, history, depth, live prices, leaderboard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.api.exporting import ExportNegotiation, Row, export, format_of
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictSerializer,
    TextField,
    TimestampField,
)
from marketplace.api.views import PublicView
from marketplace.errors import InvalidInput, NotFound
from marketplace.orders import leaderboard
from marketplace.orders.api import DepthSerializer
from marketplace.orders.asking import count_question
from marketplace.orders.market_data import in_chunks, index_values, latest_index_values, market_history
from marketplace.orders.models import Auction, PriceIndex
from marketplace.orders.selectors import DISCLOSURE_DELAY, PUBLISHED, disclosure_of
from marketplace.orders.services.indexing import recompute_index
from marketplace.orders.streaming import PriceStream

_SLUG = 64
# By one network address in a minute: anybody may ask, and each answer reads a window's trades.
MOST_RECOMPUTED = 30
GRADE = OpenApiParameter("grade", OpenApiTypes.STR, description="slug; default: every grade")
SINCE = OpenApiParameter("since", OpenApiTypes.DATETIME, description="the earliest start")
UNTIL = OpenApiParameter("until", OpenApiTypes.DATETIME, description="starts before this")
FORMAT = OpenApiParameter(
    "format",
    OpenApiTypes.STR,
    enum=["json", "csv", "ndjson"],
    description="csv and ndjson stream the whole result as a file; also by Accept.",
)


class RangeIn(StrictSerializer):
    """What lists of market data may be asked: a grade and a half-open range of time."""

    grade = TextField(max_length=_SLUG, required=False)
    since = TimestampField(required=False)
    until = TimestampField(required=False)
    # Read elsewhere.
    cursor = TextField(max_length=32, required=False)
    page_size = TextField(max_length=3, required=False)
    format = TextField(max_length=8, required=False)


class IndexIn(RangeIn):
    span = StrictChoiceField(choices=PriceIndex.Span.choices, required=False)


class GradeIn(StrictSerializer):
    grade = TextField(max_length=_SLUG, required=False)


class IndexSerializer(serializers.ModelSerializer[PriceIndex]):
    """A published value. `basis` other than spot is a fall-back; counts are of the arm's-length trades it rests on."""

    grade = serializers.CharField(source="family.slug")

    class Meta:
        model = PriceIndex
        fields = (
            "id",
            "grade",
            "span",
            "window_start",
            "window_end",
            "method_version",
            "rate_micros_per_mtok",
            "basis",
            "trades",
            "auctions",
            "groups",
            "lots",
            "inputs_digest",
            "published_at",
        )


class RecomputedSerializer(serializers.Serializer[Any]):
    rate_micros_per_mtok = serializers.IntegerField(source="rate", allow_null=True)
    basis = serializers.ChoiceField(choices=PriceIndex.Basis.choices)
    trades = serializers.IntegerField()
    auctions = serializers.IntegerField()
    groups = serializers.IntegerField()
    lots = serializers.IntegerField()


class RecomputationSerializer(serializers.Serializer[Any]):
    """`matches`: the stored trades give the published value, and are the ones it was computed from."""

    published = IndexSerializer()
    recomputed = RecomputedSerializer(source="value")
    inputs_digest = serializers.CharField()
    matches = serializers.BooleanField()


class HistorySerializer(serializers.ModelSerializer[Auction]):
    """One delivery period. `[rate_low, rate_high]` is null until the disclosure rule lets it be shown."""

    grade = serializers.CharField(source="grade.family.slug")
    grade_version = serializers.IntegerField(source="grade.version")
    outcome = serializers.SerializerMethodField()
    is_disclosed = serializers.BooleanField()
    rate_low_micros_per_mtok = serializers.SerializerMethodField()
    rate_high_micros_per_mtok = serializers.SerializerMethodField()

    class Meta:
        model = Auction
        fields = (
            "id",
            "grade",
            "grade_version",
            "period_start",
            "period_end",
            "status",
            "outcome",
            "clearing_rate_micros_per_mtok",
            "quantity_lots",
            "is_disclosed",
            "rate_low_micros_per_mtok",
            "rate_high_micros_per_mtok",
            "rule_version",
            "book_digest",
            "result_digest",
            "published_at",
        )

    @staticmethod
    def outcome_of(auction: Any) -> str:
        """missed: the gate was closed too late to trade; no_trade: no price suited both sides."""
        if auction.was_missed:
            return "missed"
        return "traded" if auction.clearing_rate_micros_per_mtok is not None else "no_trade"

    def get_outcome(self, auction: Any) -> str:
        return self.outcome_of(auction)

    def get_rate_low_micros_per_mtok(self, auction: Any) -> int | None:
        return auction.rate_low_micros_per_mtok if auction.is_disclosed else None

    def get_rate_high_micros_per_mtok(self, auction: Any) -> int | None:
        return auction.rate_high_micros_per_mtok if auction.is_disclosed else None


class AuctionDepthSerializer(serializers.Serializer[Any]):
    """`depth` is null until `disclosed_at`, or for ever if the auction was never published."""

    auction_id = serializers.UUIDField()
    grade = serializers.CharField()
    period_start = serializers.DateTimeField()
    depth = DepthSerializer(allow_null=True)
    disclosed_at = serializers.DateTimeField(
        allow_null=True, help_text="when it becomes public; null when it is already"
    )


class StandingSerializer(serializers.Serializer[Any]):
    """An offering's figures over the window; null where the data do not exist. Energy is that of its whole host."""

    provider = serializers.CharField()
    grade = serializers.CharField()
    region = serializers.CharField()
    list_rate_micros_per_mtok = serializers.IntegerField()
    dependable_numerator_per_s = serializers.IntegerField(help_text="benched")
    delivered_numerator = serializers.IntegerField()
    delivered_numerator_per_s = serializers.IntegerField(
        allow_null=True, help_text="over the periods in which it delivered"
    )
    tokens_per_currency_unit = serializers.IntegerField(help_text="standard tokens, at the list rate")
    millitokens_per_s_per_currency_unit = serializers.IntegerField(
        allow_null=True, help_text="delivered standard tokens a second, per unit of the list price of an Mtok"
    )
    microtokens_per_joule = serializers.IntegerField(allow_null=True)
    spot_awarded_lots = serializers.IntegerField()
    spot_delivered_numerator = serializers.IntegerField()
    delivered_of_awarded_ppm = serializers.IntegerField(allow_null=True)
    uptime_ppm = serializers.IntegerField(allow_null=True)
    first_byte_p50_ms = serializers.IntegerField(help_text="benched")
    first_byte_p95_ms = serializers.IntegerField(help_text="benched")


class LeaderboardSerializer(serializers.Serializer[Any]):
    window_start = serializers.DateTimeField()
    window_end = serializers.DateTimeField()
    items = StandingSerializer(many=True)


class PriceEventSerializer(serializers.Serializer[Any]):
    """One server-sent event. `data` is JSON: the auction, its grade, period, rate, lots and result digest."""

    id = serializers.CharField(help_text="send it back as Last-Event-ID")
    event = serializers.ChoiceField(choices=["price"])
    data = serializers.CharField()  # type: ignore[assignment]


_FILES = {(200, "text/csv"): OpenApiTypes.STR, (200, "application/x-ndjson"): OpenApiTypes.STR}


class DataView(PublicView):
    """A list of market data: a page of JSON, or all of it as a file."""

    content_negotiation_class = ExportNegotiation
    pagination_class = CursorPagination

    def asked(self, serializer: type[StrictSerializer]) -> dict[str, Any]:
        """The parameters. Raises ValidationError (422) naming those at fault."""
        parsed = serializer(data=self.request.query_params.dict())
        parsed.is_valid(raise_exception=True)
        terms: dict[str, Any] = parsed.validated_data
        if "since" in terms and "until" in terms and terms["since"] >= terms["until"]:
            raise InvalidInput("It must lie before until.", field="since")
        return {name: terms[name] for name in ("grade", "span", "since", "until") if name in terms}

    def answer(self, rows: Any, serializer: type[serializers.ModelSerializer[Any]], name: str) -> Any:
        form = format_of(self.request)
        if form == "json":
            return self.page(rows, serializer)
        columns = list(serializer.Meta.fields)
        return export(_cells(in_chunks(rows), serializer), columns=columns, form=form, filename=name)


def _cells(rows: Iterable[Any], serializer: type[serializers.ModelSerializer[Any]]) -> Iterable[Row]:
    shown = serializer()
    for row in rows:
        yield shown.to_representation(row)


class IndexView(DataView):
    @extend_schema(
        operation_id="market_index",
        parameters=[
            GRADE,
            OpenApiParameter("span", OpenApiTypes.STR, enum=list(PriceIndex.Span.values)),
            SINCE,
            UNTIL,
            FORMAT,
        ],
        responses={(200, "application/json"): IndexSerializer(many=True), **_FILES},
    )
    def get(self, request: Request) -> Any:
        """Published index values, newest window first."""
        return self.answer(index_values(**self.asked(IndexIn)), IndexSerializer, "price-index")


class LatestIndexView(PublicView):
    pagination_class = None

    @extend_schema(operation_id="market_index_latest", responses=IndexSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The newest value of every grade and span."""
        return Response(IndexSerializer(latest_index_values(), many=True).data)


class RecomputeIndexView(PublicView):
    @extend_schema(operation_id="market_index_recompute", responses=RecomputationSerializer)
    def get(self, request: Request, index_id: UUID) -> Response:
        """Compute a value anew from the stored trades, and say whether it is the published one. At most 30 a minute.

        503 while that cannot be counted.
        """
        asker = request.META.get("REMOTE_ADDR") or "nobody"
        count_question(f"index-recompute:{asker}", most=MOST_RECOMPUTED, what="recomputations")
        return Response(RecomputationSerializer(recompute_index(index_id=index_id)).data)


class AllHistoryView(DataView):
    @extend_schema(
        operation_id="market_history_list",
        parameters=[GRADE, SINCE, UNTIL, FORMAT],
        responses={(200, "application/json"): HistorySerializer(many=True), **_FILES},
    )
    def get(self, request: Request) -> Any:
        """Every published delivery period of a grade, over all its versions, newest first."""
        rows = market_history(now=clock.now(), **self.asked(RangeIn))
        return self.answer(rows, HistorySerializer, "market-history")


class AuctionDepthView(PublicView):
    @extend_schema(operation_id="auctions_depth", responses=AuctionDepthSerializer)
    def get(self, request: Request, auction_id: UUID) -> Response:
        """Demand and supply of one auction, aggregated and without names, once the disclosure rule allows it."""
        auction = Auction.objects.filter(pk=auction_id).select_related("grade__family").first()
        if auction is None:
            raise NotFound("There is no such auction.")
        depth = disclosure_of(auction, clock.now())
        published_at = auction.published_at if auction.status in PUBLISHED else None
        waits = depth is None and published_at is not None
        shown = {
            "auction_id": auction.id,
            "grade": auction.grade.family.slug,
            "period_start": auction.period_start,
            "depth": depth,
            "disclosed_at": published_at + DISCLOSURE_DELAY if published_at and waits else None,
        }
        return Response(AuctionDepthSerializer(shown).data)


class StreamNegotiation(DefaultContentNegotiation):
    """Lets `Accept: text/event-stream` through; problems are JSON as everywhere."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, str(first.media_type)


class StreamView(PublicView):
    content_negotiation_class = StreamNegotiation

    @extend_schema(
        operation_id="market_stream",
        parameters=[
            GRADE,
            OpenApiParameter(
                "Last-Event-ID",
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="Go on after this event; without it the stream begins with each grade's newest price.",
            ),
        ],
        responses={(200, "text/event-stream"): PriceEventSerializer},
    )
    def get(self, request: Request) -> Any:
        """Published prices as server-sent events (`price`); it ends by itself, and EventSource comes back.

        503 with `Retry-After` when this server serves as many streams as it may.
        """
        asked = GradeIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        if request.method == "HEAD":
            return HttpResponse(content_type="text/event-stream")
        events = PriceStream(
            grade=asked.validated_data.get("grade"),
            last_event_id=request.headers.get("Last-Event-ID"),
            now=clock.now(),
        )
        response = StreamingHttpResponse(events, content_type="text/event-stream")
        response["Cache-Control"] = "no-store"
        # nginx would keep the events until its buffer is full.
        response["X-Accel-Buffering"] = "no"
        return response


class LeaderboardView(PublicView):
    @extend_schema(operation_id="market_leaderboard", parameters=[GRADE], responses=LeaderboardSerializer)
    def get(self, request: Request) -> Response:
        """Listed offerings by delivered throughput for the price, over seven settled days."""
        now = clock.now()
        asked = GradeIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        window = leaderboard.window_of(now)
        found = leaderboard.standings(now=now, grade=asked.validated_data.get("grade"))
        shown = {
            "window_start": window.start,
            "window_end": window.end,
            "items": [asdict(one) for one in found],
        }
        return Response(LeaderboardSerializer(shown).data)


# Before `market/<slug>` of `api`: these words are no grades.
urlpatterns = [
    path("market/index", IndexView.as_view(), name="api-market-index"),
    path("market/index/latest", LatestIndexView.as_view(), name="api-market-index-latest"),
    path("market/index/<uuid:index_id>/recompute", RecomputeIndexView.as_view(), name="api-index-recompute"),
    path("market/history", AllHistoryView.as_view(), name="api-market-histories"),
    path("market/stream", StreamView.as_view(), name="api-market-stream"),
    path("market/leaderboard", LeaderboardView.as_view(), name="api-market-leaderboard"),
    path("auctions/<uuid:auction_id>/depth", AuctionDepthView.as_view(), name="api-auction-depth"),
]
