"""REST: what was billed and earned, as a file in the form of FOCUS 1.2."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.exporting import ExportNegotiation, export, format_of
from marketplace.api.serializers import (
    StrictChoiceField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView, RoleMissing
from marketplace.billing.focus.reading import FocusRange, buyer_rows, provider_rows
from marketplace.billing.focus.rows import COLUMNS
from marketplace.billing.selectors import find_invoice, find_statement
from marketplace.contracts.usage import reader_role
from marketplace.errors import InvalidInput
from marketplace.periods import calendar_month
from metering.reading import MOST_RANGE

_ROLES: Final = (OrganizationRole.BUYER.value, OrganizationRole.PROVIDER.value)


class FocusIn(StrictSerializer):
    role = StrictChoiceField(choices=_ROLES, required=False)
    since = TimestampField(required=False)
    until = TimestampField(required=False)
    invoice_id = UuidField(required=False)
    statement_id = UuidField(required=False)
    # Read elsewhere.
    format = TextField(max_length=8, required=False)


class FocusView(ApiView):
    content_negotiation_class = ExportNegotiation

    @extend_schema(
        operation_id="exports_focus",
        parameters=[
            OpenApiParameter(
                "role", OpenApiTypes.STR, enum=_ROLES, description="default: the first you have"
            ),
            OpenApiParameter(
                "since",
                OpenApiTypes.DATETIME,
                description="charge periods from here on; default: until's month",
            ),
            OpenApiParameter("until", OpenApiTypes.DATETIME, description="default: now"),
            OpenApiParameter("invoice_id", OpenApiTypes.UUID, description="instead: all rows of one invoice"),
            OpenApiParameter("statement_id", OpenApiTypes.UUID, description="instead: of one statement"),
            OpenApiParameter("format", OpenApiTypes.STR, enum=["csv", "ndjson"], description="default: csv"),
        ],
        responses={
            (200, "text/csv"): OpenApiTypes.STR,
            (200, "application/x-ndjson"): OpenApiTypes.STR,
        },
    )
    def get(self, request: Request) -> Any:
        """Charges of a buyer, or earnings of a provider, as rows of FOCUS 1.2; at most 400 days, streamed."""
        asked = FocusIn(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        terms: dict[str, Any] = asked.validated_data
        form = format_of(request)
        if "format" in terms and form == "json":
            raise InvalidInput("must be csv or ndjson", field="format")
        wanted = self._range(terms)
        role = self._role(terms.get("role"))
        name = f"focus-{wanted.since:%Y%m%d}-{wanted.until:%Y%m%d}"
        if role == OrganizationRole.BUYER:
            if "statement_id" in terms:
                raise InvalidInput("is a provider's document", field="statement_id")
            if wanted.document_id is not None:
                name = f"focus-{find_invoice(self.organization_id, wanted.document_id).number}"
            rows = buyer_rows(self.organization, wanted)
        else:
            if "invoice_id" in terms:
                raise InvalidInput("is a buyer's document", field="invoice_id")
            if wanted.document_id is not None:
                name = f"focus-{find_statement(self.organization_id, wanted.document_id).number}"
            rows = provider_rows(self.organization, wanted)
        return export(rows, columns=COLUMNS, form="csv" if form == "json" else form, filename=name)

    def _role(self, asked: str | None) -> OrganizationRole:
        role = reader_role(self.organization, asked)
        if role not in (OrganizationRole.BUYER, OrganizationRole.PROVIDER):
            raise RoleMissing("only a buyer or a provider has charges or earnings to export")
        return role

    def _range(self, terms: dict[str, Any]) -> FocusRange:
        until: datetime = terms.get("until", clock.now())
        since: datetime = terms.get("since", calendar_month(until).start)
        if since >= until:
            raise InvalidInput("must lie before until", field="since")
        if until - since > MOST_RANGE:
            raise InvalidInput(f"must lie at most {MOST_RANGE.days} days before until", field="since")
        document_id = terms.get("invoice_id") or terms.get("statement_id")
        return FocusRange(since=since, until=until, document_id=document_id)
