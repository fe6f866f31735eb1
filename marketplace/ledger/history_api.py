"""REST of the books' past: balances at an instant, statements with running balances, the extract with its proofs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.exporting import MEDIA_TYPES, Exact, ExportNegotiation, Row, export, format_of
from marketplace.api.pagination import CursorPagination, page_of, window_of
from marketplace.api.serializers import StrictSerializer, TextField, TimestampField
from marketplace.api.views import ApiView
from marketplace.errors import InvalidInput
from marketplace.ledger.extract import VERIFIER, extract_lines, head
from marketplace.ledger.history import Line, balances_at, own_account, statement, statement_page
from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import accounts_of
from pricing.units import decimal_string

_MICRO_DECIMALS = 6
STATEMENT_COLUMNS = (
    "transfer_id",
    "occurred_at",
    "code",
    "reference_id",
    "amount_micros",
    "amount",
    "balance_micros",
    "balance",
    "currency",
)


class BalanceAtOut(serializers.Serializer[Any]):
    account_id = serializers.UUIDField(source="id")
    kind = serializers.CharField()
    currency = serializers.CharField()
    reference_id = serializers.UUIDField(allow_null=True)
    posted_micros = serializers.SerializerMethodField()
    posted = serializers.SerializerMethodField(help_text="posted_micros as a decimal string")

    def get_posted_micros(self, account: LedgerAccount) -> int:
        return int(self.context["balances"][account.id])

    def get_posted(self, account: LedgerAccount) -> str:
        return decimal(self.context["balances"][account.id])


class StatementLineOut(serializers.Serializer[Any]):
    transfer_id = serializers.UUIDField()
    occurred_at = serializers.DateTimeField()
    code = serializers.CharField()
    reference_id = serializers.UUIDField(allow_null=True)
    amount_micros = serializers.IntegerField(help_text="negative where the balance fell")
    amount = serializers.CharField(help_text="amount_micros as a decimal string")
    balance_micros = serializers.IntegerField(help_text="what the account had after this line")
    balance = serializers.CharField(help_text="balance_micros as a decimal string")
    currency = serializers.CharField()


class SealHeadOut(serializers.Serializer[Any]):
    number = serializers.IntegerField(help_text="0 where nothing is sealed yet")
    digest = serializers.CharField(help_text="64 hex digits", allow_null=True)
    sealed_at = serializers.DateTimeField(allow_null=True)


class BalancesAtIn(StrictSerializer):
    at = TimestampField(required=False)
    cursor = TextField(max_length=32, required=False)
    page_size = TextField(max_length=3, required=False)


class StatementIn(StrictSerializer):
    since = TimestampField(required=False)
    until = TimestampField(required=False)
    # Read elsewhere.
    format = TextField(max_length=8, required=False)
    cursor = TextField(max_length=32, required=False, allow_blank=True)
    page_size = TextField(max_length=5_000, required=False)


class BalancesAtView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="ledger_balances_at",
        parameters=[OpenApiParameter("at", OpenApiTypes.DATETIME, description="default: now")],
        responses=BalanceAtOut(many=True),
    )
    def get(self, request: Request) -> Response:
        """What each account of the organization had posted at an instant: the sum of all that occurred before it."""
        asked = BalancesAtIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        pagination = CursorPagination()
        accounts = pagination.paginate_queryset(accounts_of(self.organization_id), request, self)
        balances = balances_at(accounts, at=asked.validated_data.get("at", clock.now()))
        shown = BalanceAtOut(accounts, many=True, context={"balances": balances}).data
        return pagination.get_paginated_response(shown)


class StatementView(ApiView):
    scopes = {"GET": Scope.READ}
    pagination_class = CursorPagination
    content_negotiation_class = ExportNegotiation

    @extend_schema(
        operation_id="ledger_statement",
        parameters=[
            OpenApiParameter(
                "since", OpenApiTypes.DATETIME, description="exports only: occurred from here on"
            ),
            OpenApiParameter("until", OpenApiTypes.DATETIME, description="exports only: occurred before"),
            OpenApiParameter("format", OpenApiTypes.STR, enum=list(MEDIA_TYPES), description="default: json"),
        ],
        responses={
            (200, "application/json"): StatementLineOut(many=True),
            (200, "text/csv"): OpenApiTypes.STR,
            (200, "application/x-ndjson"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request, account_id: UUID) -> HttpResponseBase:
        """One account's movements with the balance after each, in the order of posting.

        JSON: pages, newest first. CSV and NDJSON: all of it, or what occurred in `[since, until)`, oldest first.
        """
        account = own_account(organization_id=self.organization_id, account_id=account_id)
        asked = StatementIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        since, until = asked.validated_data.get("since"), asked.validated_data.get("until")
        form = format_of(request)
        if form != "json":
            if since is not None and until is not None and since >= until:
                raise InvalidInput("must lie before until", field="since")
            rows = statement_rows(statement(account, start=since, end=until), account)
            name = f"statement-{account.kind}-{account.currency}"
            return export(rows, columns=STATEMENT_COLUMNS, form=form, filename=name)
        if since is not None or until is not None:
            raise InvalidInput("is for csv and ndjson", field="until" if since is None else "since")
        window = window_of(request)
        lines = statement_page(account, before=window.before, limit=window.size + 1)
        shown, cursor = page_of(lines, window, lambda line: line.transfer_id)
        items = StatementLineOut(list(statement_rows(iter(shown), account)), many=True).data
        return Response({"items": items, "next": cursor})


class ExtractView(ApiView):
    scopes = {"GET": Scope.READ}
    content_negotiation_class = ExportNegotiation

    @extend_schema(operation_id="ledger_extract", responses={(200, "application/x-ndjson"): OpenApiTypes.STR})
    def get(self, request: Request) -> StreamingHttpResponse:
        """The organization's side of the books with the proofs that it is all of it; see /ledger/extract/verifier."""
        lines = extract_lines(organization_id=self.organization_id, now=clock.now())
        response = StreamingHttpResponse(lines, content_type=MEDIA_TYPES["ndjson"])
        response["Content-Disposition"] = 'attachment; filename="extract.ndjson"'
        return response


class VerifierView(ApiView):
    scopes = {"GET": Scope.READ}
    content_negotiation_class = ExportNegotiation

    @extend_schema(
        operation_id="ledger_extract_verifier", responses={(200, "text/x-python"): OpenApiTypes.STR}
    )
    def get(self, request: Request) -> HttpResponse:
        """The program that verifies an extract offline: `python verify.py extract.ndjson`."""
        response = HttpResponse(VERIFIER.read_bytes(), content_type="text/x-python")
        response["Content-Disposition"] = 'attachment; filename="verify.py"'
        return response


class SealHeadView(ApiView):
    scopes = {"GET": Scope.READ}

    @extend_schema(operation_id="ledger_seal_head", responses=SealHeadOut)
    def get(self, request: Request) -> Response:
        """The newest seal of the whole ledger. Keep its digest: an extract made later must lead to it."""
        newest = head()
        found = {
            "number": newest.number if newest else 0,
            "digest": bytes(newest.digest).hex() if newest else None,
            "sealed_at": newest.sealed_at if newest else None,
        }
        return Response(SealHeadOut(found).data)


def decimal(amount_micros: int) -> str:
    return decimal_string(amount_micros, _MICRO_DECIMALS, minimum_decimals=2)


def statement_rows(lines: Iterator[Line], account: LedgerAccount) -> Iterator[Row]:
    for line in lines:
        yield {
            "transfer_id": line.transfer_id,
            "occurred_at": line.occurred_at,
            "code": line.code,
            "reference_id": line.reference_id,
            "amount_micros": line.amount_micros,
            "amount": Exact(decimal(line.amount_micros)),
            "balance_micros": line.balance_micros,
            "balance": Exact(decimal(line.balance_micros)),
            "currency": account.currency,
        }


urlpatterns = [
    path("ledger/balances-at", BalancesAtView.as_view(), name="api-ledger-balances-at"),
    path("ledger/accounts/<uuid:account_id>/statement", StatementView.as_view(), name="api-ledger-statement"),
    path("ledger/extract", ExtractView.as_view(), name="api-ledger-extract"),
    path("ledger/extract/verifier", VerifierView.as_view(), name="api-ledger-extract-verifier"),
    path("ledger/seals/head", SealHeadView.as_view(), name="api-ledger-seal-head"),
]
