"""REST of usage: sums by whatever groups are asked for, whole exports, single events with what became of them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.exporting import ExportNegotiation, export, format_of, instant
from marketplace.api.pagination import page_size_of
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView, RoleMissing
from marketplace.contracts.usage import (
    SUMS,
    Mark,
    UsageTerms,
    cursor_of,
    read_cursor,
    reader_role,
    usage_cells,
    usage_query,
)
from metering.api import BatchIntake
from metering.models import MeterKind
from metering.reading import Group, Place, Slice, UsageQuery, UsageRow, place_of, usage_page, usage_rows
from pricing.units import Bucket

# Buyers' own; the gateway's and the agents' counts can be read, the engines' registers are no events.
METERS: Final = (MeterKind.GATEWAY.value, MeterKind.AGENT.value)
ROLES: Final = [role.value for role in OrganizationRole]
_GROUPS: Final = [group.value for group in Group]
_CURSOR_LENGTH: Final = 2_000
_TEXT: Final = 120
PAGE: Final = [
    OpenApiParameter("cursor", OpenApiTypes.STR, description="`next` of the page before."),
    OpenApiParameter(
        "page_size",
        {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
        description="at most 200",
    ),
]
ROLE: Final = OpenApiParameter(
    "role",
    OpenApiTypes.STR,
    enum=ROLES,
    description="As what to read, where the organization has several roles; default: the first it has.",
)
METER: Final = OpenApiParameter("meter", OpenApiTypes.STR, enum=METERS, description="default: gateway")


class UsageRowOut(serializers.Serializer[Any]):
    """One slice of time and group. Only what was grouped by is in it; a bucket that nobody reported has no row."""

    start = serializers.DateTimeField()
    contract_id = serializers.UUIDField(required=False)
    api_key_id = serializers.UUIDField(required=False, allow_null=True)
    project = serializers.CharField(required=False, allow_null=True)
    model = serializers.CharField(required=False)
    grade = serializers.CharField(required=False)
    host_id = serializers.UUIDField(required=False, allow_null=True)
    offering_id = serializers.UUIDField(required=False)
    bucket = serializers.CharField(required=False)
    events = serializers.IntegerField(
        help_text="that reported the bucket; grouped without bucket, the most that any one bucket has"
    )
    native_tokens = serializers.IntegerField()
    numerator = serializers.IntegerField(help_text="millionths of a standard token")
    estimated_events = serializers.IntegerField(help_text="the part of events that no meter reported")
    estimated_numerator = serializers.IntegerField()


class UsageOut(serializers.Serializer[Any]):
    items = UsageRowOut(many=True)
    next = serializers.CharField(allow_null=True)


class UsageIn(StrictSerializer):
    role = StrictChoiceField(choices=ROLES, required=False)
    since = TimestampField(required=False)
    until = TimestampField(required=False)
    slice = StrictChoiceField(choices=[item.value for item in Slice], default=Slice.HOUR.value)
    group_by = TextField(max_length=_TEXT, required=False)
    meter = StrictChoiceField(choices=METERS, default=MeterKind.GATEWAY.value)
    contract_id = UuidField(required=False)
    api_key_id = UuidField(required=False)
    project = TextField(max_length=_TEXT, required=False)
    model = TextField(max_length=_TEXT, required=False)
    grade = TextField(max_length=_TEXT, required=False)
    host_id = UuidField(required=False)
    offering_id = UuidField(required=False)
    bucket = StrictChoiceField(choices=[bucket.value for bucket in Bucket], required=False)
    # Read elsewhere.
    cursor = TextField(max_length=_CURSOR_LENGTH, required=False)
    page_size = TextField(max_length=3, required=False)
    format = TextField(max_length=8, required=False)

    def validate_group_by(self, value: str) -> tuple[Group, ...]:
        names = value.split(",")
        if len(set(names)) != len(names) or not set(names) <= set(_GROUPS):
            raise serializers.ValidationError(f"must be different words of {', '.join(_GROUPS)}, with commas")
        return tuple(Group(name) for name in names)


class UsageReader(ApiView):
    """What the views of usage share: as what the organization reads."""

    def reading_as(self, asked: str | None) -> OrganizationRole:
        role = reader_role(self.organization, asked)
        if role is None:
            raise RoleMissing(f"only an organization with the role {str(asked)!r} may read as one")
        return role


class UsageView(BatchIntake, UsageReader):
    scopes = {"GET": Scope.READ}
    content_negotiation_class = ExportNegotiation

    @extend_schema(
        operation_id="usage_list",
        parameters=[
            ROLE,
            OpenApiParameter("since", OpenApiTypes.DATETIME, description="default: 24 hours before until"),
            OpenApiParameter("until", OpenApiTypes.DATETIME, description="default: now"),
            OpenApiParameter("slice", OpenApiTypes.STR, enum=[item.value for item in Slice]),
            OpenApiParameter(
                "group_by",
                OpenApiTypes.STR,
                description=f"Words of {', '.join(_GROUPS)}, with commas. Default: contract,api_key,bucket for a "
                "buyer, host,offering,bucket for a provider, grade,bucket for the operator.",
            ),
            METER,
            OpenApiParameter("contract_id", OpenApiTypes.UUID),
            OpenApiParameter("api_key_id", OpenApiTypes.UUID),
            OpenApiParameter("project", OpenApiTypes.STR),
            OpenApiParameter("model", OpenApiTypes.STR),
            OpenApiParameter("grade", OpenApiTypes.STR, description="slug"),
            OpenApiParameter("host_id", OpenApiTypes.UUID),
            OpenApiParameter("offering_id", OpenApiTypes.UUID),
            OpenApiParameter("bucket", OpenApiTypes.STR, enum=[bucket.value for bucket in Bucket]),
            OpenApiParameter(
                "format",
                OpenApiTypes.STR,
                enum=["json", "csv", "ndjson"],
                description="csv and ndjson stream the whole result as a file; also by Accept.",
            ),
            *PAGE,
        ],
        responses={
            (200, "application/json"): UsageOut,
            (200, "text/csv"): OpenApiTypes.STR,
            (200, "application/x-ndjson"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request) -> Any:
        """Metered usage in slices of time, newest first, summed by what it is grouped by; at most 400 days."""
        parameters = request.query_params.dict()
        asked = UsageIn(data=parameters)
        asked.is_valid(raise_exception=True)
        form = format_of(request)
        terms: dict[str, Any] = asked.validated_data
        role = self.reading_as(terms.get("role"))
        question = _question(role, parameters)
        cursor = terms.get("cursor") if form == "json" else None
        mark = _mark(cursor, question) if cursor else None
        until: datetime = terms.get("until") or (mark.until if mark else clock.now())
        since: datetime = terms.get("since") or (mark.since if mark else until - timedelta(days=1))
        query = usage_query(
            self.organization,
            role,
            UsageTerms(
                since=since,
                until=until,
                slice_by=Slice(terms["slice"]),
                groups=terms.get("group_by"),
                meter=terms["meter"],
                contract_id=terms.get("contract_id"),
                api_key_id=terms.get("api_key_id"),
                project=terms.get("project"),
                model=terms.get("model"),
                grade=terms.get("grade"),
                host_id=terms.get("host_id"),
                offering_id=terms.get("offering_id"),
                bucket=terms.get("bucket"),
            ),
        )
        if form != "json":
            columns = ["start", *query.columns, *SUMS]
            name = f"usage-{since:%Y%m%dT%H%M%SZ}-{until:%Y%m%dT%H%M%SZ}"
            return export(map(usage_cells, usage_rows(query)), columns=columns, form=form, filename=name)
        after = _place(query, mark) if mark else None
        rows, more = usage_page(query, after=after, size=page_size_of(request))
        following = cursor_of(question, query, rows[-1].place) if more else None
        return Response({"items": [_item(row) for row in rows], "next": following})


def _item(row: UsageRow) -> dict[str, Any]:
    return {
        name: instant(cell) if isinstance(cell, datetime) else cell for name, cell in usage_cells(row).items()
    }


def _mark(cursor: str, asked: str) -> Mark:
    try:
        return read_cursor(cursor, asked)
    except ValueError:
        raise _no_cursor() from None


def _place(query: UsageQuery, mark: Mark) -> Place:
    try:
        return place_of(query, mark.start, mark.keys)
    except ValueError:
        raise _no_cursor() from None


def _no_cursor() -> ValidationError:
    return ValidationError({"cursor": [ErrorDetail("is not a cursor of this list", code="invalid")]})


def _question(role: OrganizationRole, parameters: dict[str, str]) -> str:
    asked = {name: text for name, text in parameters.items() if name not in ("cursor", "page_size", "format")}
    return json.dumps([role.value, sorted(asked.items())])
