"""What a bid looks like over REST, coming in and going out."""

from __future__ import annotations

import base64
from typing import Any, cast
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.response import Response

from marketplace.api.serializers import (
    MAX_MICROS,
    LotsField,
    MicrosField,
    MicrosPerMtokField,
    StrictBooleanField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
)
from marketplace.orders import selectors
from marketplace.orders.models import Bid, BidRevision, BidSubstitute
from marketplace.orders.terms import MAX_STEPS, MAX_SUBSTITUTES, BidChanges, BidTerms


class StepSerializer(StrictSerializer):
    rate_micros_per_mtok = MicrosPerMtokField()
    lots = LotsField()


class RevisionField(StrictIntegerField):
    """The number of a bid's revision."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(min_value=1, max_value=2**31 - 1, **kwargs)


class SubstituteSerializer(StrictSerializer):
    """Another grade that the bid takes: a step is worth its rate + adjustment there."""

    grade = TextField(max_length=64)
    adjustment_micros_per_mtok = MicrosPerMtokField(min_value=-MAX_MICROS)


def substitute_pairs(substitutes: list[dict[str, Any]]) -> tuple[tuple[str, int], ...]:
    return tuple((named["grade"], named["adjustment_micros_per_mtok"]) for named in substitutes)


class NamedSubstituteSerializer(serializers.Serializer[BidSubstitute]):
    """`contract_id` is the contract of what the bid got in that grade; null before its first award there."""

    grade = serializers.CharField(source="grade.family.slug")
    adjustment_micros_per_mtok = serializers.IntegerField()
    contract_id = serializers.UUIDField(allow_null=True)


def step_pairs(steps: list[dict[str, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((step["rate_micros_per_mtok"], step["lots"]) for step in steps)


class BidRequestSerializer(StrictSerializer):
    """`period_start` left out makes the bid standing: it enters every book until it is cancelled, or until
    `valid_until`."""

    grade = TextField(max_length=64)
    client_id = TextField(max_length=64)
    steps = serializers.ListField(child=StepSerializer(), min_length=1, max_length=MAX_STEPS)
    period_start = TimestampField(required=False, allow_null=True, default=None)
    min_fill_lots = LotsField(min_value=0, required=False, default=0)
    all_or_none = StrictBooleanField(required=False, default=False)
    max_total_micros_per_day = MicrosField(required=False, allow_null=True, default=None)
    valid_until = TimestampField(required=False, allow_null=True, default=None)
    substitutes = serializers.ListField(
        child=SubstituteSerializer(), max_length=MAX_SUBSTITUTES, required=False, default=list
    )

    def terms(self, data: dict[str, Any]) -> BidTerms:
        named = substitute_pairs(data["substitutes"])
        return BidTerms(**{**data, "steps": step_pairs(data["steps"]), "substitutes": named})


class BidChangeSerializer(StrictSerializer):
    """What changes; what is left out stays. `revision` is the one you saw: here, or in the header `If-Match`."""

    revision = RevisionField(required=False)
    steps = serializers.ListField(child=StepSerializer(), min_length=1, max_length=MAX_STEPS, required=False)
    min_fill_lots = LotsField(min_value=0, required=False)
    all_or_none = StrictBooleanField(required=False)
    max_total_micros_per_day = MicrosField(required=False, allow_null=True)
    valid_until = TimestampField(required=False, allow_null=True)
    substitutes = serializers.ListField(
        child=SubstituteSerializer(), max_length=MAX_SUBSTITUTES, required=False
    )

    def changes(self, data: dict[str, Any]) -> BidChanges:
        changes = {name: value for name, value in data.items() if name != "revision"}
        if "steps" in changes:
            changes["steps"] = step_pairs(changes["steps"])
        if "substitutes" in changes:
            changes["substitutes"] = substitute_pairs(changes["substitutes"])
        return cast(BidChanges, changes)


class TradeSerializer(serializers.Serializer[Any]):
    """`grade` is the bid's own or one of its substitutes."""

    grade = serializers.CharField(source="auction.grade.family.slug")
    period_start = serializers.DateTimeField(source="auction.period_start")
    lots = serializers.IntegerField()
    rate_micros_per_mtok = serializers.IntegerField()


class BidSerializer(serializers.ModelSerializer[Bid]):
    grade = serializers.CharField(source="grade.family.slug")
    steps = serializers.SerializerMethodField()
    substitutes = serializers.SerializerMethodField()
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
            "revision",
            "standing",
            "period_start",
            "valid_until",
            "steps",
            "substitutes",
            "min_fill_lots",
            "all_or_none",
            "max_total_micros_per_day",
            "held_micros",
            "skip_reason",
            "trades",
            "priority_at",
            "created_at",
            "ended_at",
        )

    @extend_schema_field(StepSerializer(many=True))
    def get_steps(self, bid: Bid) -> list[dict[str, int]]:
        return [
            {"rate_micros_per_mtok": step.rate_micros_per_mtok, "lots": step.lots} for step in bid.steps.all()
        ]

    @extend_schema_field(NamedSubstituteSerializer(many=True))
    def get_substitutes(self, bid: Bid) -> Any:
        rows = [row for row in bid.substitutes.all() if row.withdrawn_at is None]
        named: Any = sorted(rows, key=lambda row: row.grade.family.slug)
        return NamedSubstituteSerializer(named, many=True).data

    @extend_schema_field(serializers.IntegerField())
    def get_held_micros(self, bid: Bid) -> int:
        return bid.ledger_hold.amount_micros if bid.ledger_hold and bid.status == Bid.Status.OPEN else 0

    @extend_schema_field(TradeSerializer(many=True))
    def get_trades(self, bid: Bid) -> Any:
        return TradeSerializer(list(bid.trades.all())[:20], many=True).data


class ReceiptDocumentSerializer(serializers.Serializer[Any]):
    """What is signed, in its canonical form: names sorted, no white space, UTF-8."""

    receipt = serializers.CharField()
    market = serializers.CharField()
    key_id = serializers.CharField()
    event = serializers.ChoiceField(choices=BidRevision.Event.choices)
    bid_id = serializers.CharField()
    revision = serializers.IntegerField()
    terms_sha256 = serializers.CharField()
    held_micros = serializers.IntegerField()
    received_at = serializers.CharField()
    priority_at = serializers.CharField()
    first_period_start = serializers.CharField(allow_null=True)
    first_auction_id = serializers.CharField(allow_null=True)


class ReceiptTermsSerializer(serializers.Serializer[Any]):
    """What `terms_sha256` is the SHA-256 of, in its canonical form. Steps are [rate in micros per Mtok, lots]."""

    grade = serializers.CharField()
    client_id = serializers.CharField()
    steps = serializers.ListField(child=serializers.ListField(child=serializers.IntegerField()))
    period_start = serializers.CharField(allow_null=True)
    min_fill_lots = serializers.IntegerField()
    all_or_none = serializers.BooleanField()
    max_total_micros_per_day = serializers.IntegerField(allow_null=True)
    valid_until = serializers.CharField(allow_null=True)
    substitutes = serializers.ListField(
        child=serializers.ListField(),
        required=False,
        help_text="[grade, adjustment in micros per Mtok] each, by grade; left out where there are none",
    )


class ReceiptSerializer(serializers.Serializer[BidRevision]):
    """The market's word about one change of a bid. `signature` is base64."""

    document = ReceiptDocumentSerializer(source="receipt")
    terms = ReceiptTermsSerializer()
    signature = serializers.SerializerMethodField()

    def get_signature(self, revision: BidRevision) -> str:
        return base64.b64encode(bytes(revision.signature)).decode()


class BidWithReceiptSerializer(BidSerializer):
    """The bid after a change, with the receipt of its latest revision."""

    receipt = serializers.SerializerMethodField()

    class Meta(BidSerializer.Meta):
        fields = (*BidSerializer.Meta.fields, "receipt")  # type: ignore[assignment]

    @extend_schema_field(ReceiptSerializer(allow_null=True))
    def get_receipt(self, bid: Bid) -> Any:
        # None for a bid from before receipts were made.
        latest = bid.revisions.order_by("-number").first()
        return None if latest is None else ReceiptSerializer(latest).data


def changed_bid(organization_id: UUID, bid_id: UUID, *, status: int = 200) -> Response:
    """The bid as it is now, with its latest receipt and its revision as ETag."""
    bid = selectors.find_bid(organization_id, bid_id)
    headers = {"ETag": f'"{bid.revision}"'}
    return Response(BidWithReceiptSerializer(bid).data, status=status, headers=headers)
