"""REST of an order's life beyond placing it: its receipts and the key they are signed with, what-ifs, cover."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from django.conf import settings
from django.urls import path
from drf_spectacular.utils import extend_schema
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
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView, PublicView
from marketplace.orders import selectors
from marketplace.orders.bid_serializers import (
    BidWithReceiptSerializer,
    ReceiptSerializer,
    StepSerializer,
    SubstituteSerializer,
    changed_bid,
    step_pairs,
    substitute_pairs,
)
from marketplace.orders.receipts import RECEIPT, key_id_of
from marketplace.orders.services.covering import cover_terms, place_cover
from marketplace.orders.services.recording import market_public_key
from marketplace.orders.services.what_if import OwnChange, what_if
from marketplace.orders.terms import MAX_STEPS, MAX_SUBSTITUTES


class MarketKeySerializer(serializers.Serializer[Any]):
    """What the market's receipts are verified with: 32 raw bytes of an Ed25519 public key, in base64."""

    market = serializers.CharField()
    key_id = serializers.CharField()
    algorithm = serializers.CharField()
    public_key = serializers.CharField()
    receipt = serializers.CharField(help_text="the form of receipts signed with it")


class MarketKeyView(PublicView):
    @extend_schema(operation_id="market_key_read", responses=MarketKeySerializer)
    def get(self, request: Request) -> Response:
        public_key = market_public_key()
        return Response(
            {
                "market": settings.PORTAL_URL,
                "key_id": key_id_of(public_key),
                "algorithm": "Ed25519",
                "public_key": base64.b64encode(public_key).decode(),
                "receipt": RECEIPT,
            }
        )


class ReceiptsView(ApiView):
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="bids_receipts", responses=ReceiptSerializer(many=True))
    def get(self, request: Request, bid_id: UUID) -> Response:
        return self.page(selectors.revisions_of(self.organization_id, bid_id), ReceiptSerializer)


class CoverSerializer(StrictSerializer):
    """At most this rate, for this many standard tokens a second; a standing bid of one step comes of it."""

    grade = TextField(max_length=64)
    client_id = TextField(max_length=64)
    rate_micros_per_mtok = MicrosPerMtokField()
    tokens_per_second = StrictIntegerField(min_value=1, max_value=10**12)
    max_total_micros_per_day = MicrosField(required=False, allow_null=True, default=None)
    valid_until = TimestampField(required=False, allow_null=True, default=None)


class CoverView(ApiView):
    role = OrganizationRole.BUYER
    scopes = {"POST": "trade"}

    @extend_schema(
        operation_id="bids_cover", request=CoverSerializer, responses={201: BidWithReceiptSerializer}
    )
    @idempotent
    def post(self, request: Request) -> Response:
        bid = place_cover(
            organization_id=self.organization_id,
            terms=cover_terms(**self.parse(CoverSerializer)),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return changed_bid(self.organization_id, bid.id, status=201)


class WhatIfRequestSerializer(StrictSerializer):
    """With `bid_id`: that order of yours, changed; without: one of yours more, for which `steps` are needed."""

    bid_id = UuidField(required=False, allow_null=True, default=None)
    steps = serializers.ListField(child=StepSerializer(), min_length=1, max_length=MAX_STEPS, required=False)
    min_fill_lots = LotsField(min_value=0, required=False)
    all_or_none = StrictBooleanField(required=False)
    substitutes = serializers.ListField(
        child=SubstituteSerializer(), max_length=MAX_SUBSTITUTES, required=False
    )

    def change(self, data: dict[str, Any]) -> OwnChange:
        if "steps" in data:
            data = {**data, "steps": step_pairs(data["steps"])}
        if "substitutes" in data:
            data = {**data, "substitutes": substitute_pairs(data["substitutes"])}
        return OwnChange(**data)


class OwnFillSerializer(serializers.Serializer[Any]):
    bid_id = serializers.UUIDField(allow_null=True, help_text="null for the order that was added")
    lots = serializers.IntegerField()
    cost_micros = serializers.IntegerField(help_text="lots x price, without tax")


class OtherFillSerializer(serializers.Serializer[Any]):
    grade = serializers.CharField()
    clearing_rate_micros_per_mtok = serializers.IntegerField()
    bid_id = serializers.UUIDField(allow_null=True, help_text="null for the order that was added")
    lots = serializers.IntegerField()
    cost_micros = serializers.IntegerField()


class OutcomeSerializer(serializers.Serializer[Any]):
    """Price and volume of the whole auction; lots, cost and fills of your own orders alone. `other_fills` are what they
    got in the grades cleared together with this one, and in none of its sums."""

    clearing_rate_micros_per_mtok = serializers.IntegerField(allow_null=True)
    quantity_lots = serializers.IntegerField()
    lots = serializers.IntegerField()
    cost_micros = serializers.IntegerField()
    fills = OwnFillSerializer(many=True)
    other_fills = OtherFillSerializer(many=True)


class WhatIfSerializer(serializers.Serializer[Any]):
    before = OutcomeSerializer()
    after = OutcomeSerializer()


class WhatIfView(ApiView):
    role = OrganizationRole.BUYER
    # It changes nothing, but it is a trader's question: a key that only reads does not get to ask it.
    scopes = {"POST": "trade"}

    @extend_schema(
        operation_id="auctions_what_if", request=WhatIfRequestSerializer, responses={200: WhatIfSerializer}
    )
    def post(self, request: Request, auction_id: UUID) -> Response:
        answer = what_if(
            organization_id=self.organization_id,
            auction_id=auction_id,
            change=WhatIfRequestSerializer().change(self.parse(WhatIfRequestSerializer)),
            now=clock.now(),
        )
        return Response(WhatIfSerializer(answer).data)


urlpatterns = [
    path("market-key", MarketKeyView.as_view(), name="api-market-key"),
    path("bids/cover", CoverView.as_view(), name="api-bids-cover"),
    path("bids/<uuid:bid_id>/receipts", ReceiptsView.as_view(), name="api-bid-receipts"),
    path("auctions/<uuid:auction_id>/what-if", WhatIfView.as_view(), name="api-what-if"),
]
