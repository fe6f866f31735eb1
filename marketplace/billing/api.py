"""REST: balance, top-ups, charges with what they were computed from, invoices, statements, earnings, payouts."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Prefetch, QuerySet
from django.urls import path
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.api.idempotency import idempotent_in_phases
from marketplace.api.pagination import CursorPagination, page_of, window_of
from marketplace.api.views import ApiView
from marketplace.billing import serializers, simulations_api, terms_api
from marketplace.billing.clock_api import urlpatterns as clock_urls
from marketplace.billing.disputes_api import (
    DiscrepanciesView,
    DiscrepancyAcceptView,
    DiscrepancyResolveView,
    DiscrepancyView,
    RecountBaselinesView,
)
from marketplace.billing.documents_api import urlpatterns as document_urls
from marketplace.billing.evidence_api import urlpatterns as evidence_urls
from marketplace.billing.focus_api import FocusView
from marketplace.billing.grant_earnings_api import urlpatterns as grant_earning_urls
from marketplace.billing.models import Charge, Earning, Invoice, InvoiceLine, Payout, Statement, TopUp
from marketplace.billing.operator_postings_api import urlpatterns as operator_posting_urls
from marketplace.billing.outcomes_api import DeliveryOutcomesView
from marketplace.billing.payments_api import urlpatterns as payment_urls
from marketplace.billing.payouts_api import urlpatterns as payout_urls
from marketplace.billing.selectors import (
    estimates_left,
    events_of_charge,
    rollups_of_charge,
    with_estimates,
    withheld_of_charge,
)
from marketplace.billing.service_periods_api import ServicePeriodsView
from marketplace.billing.services.top_ups import top_up
from marketplace.errors import NotFound
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from pricing.units import format_micros

_FILTERS = [
    OpenApiParameter("contract_id", UUID, description="only this contract's"),
    OpenApiParameter("invoice_line_id", UUID, description="only those behind this line of an invoice"),
]


class BalanceView(ApiView):
    @extend_schema(operation_id="balance_retrieve", responses=serializers.BalanceSerializer)
    def get(self, request: Request) -> Response:
        """The organization's balances: prepaid and receivable of a buyer, payable of a provider."""
        kinds: list[AccountKind] = []
        if self.organization.has_role(OrganizationRole.BUYER):
            kinds += [AccountKind.PREPAID, AccountKind.RECEIVABLE]
        if self.organization.has_role(OrganizationRole.PROVIDER):
            kinds.append(AccountKind.PAYABLE)
        currency = settings.MARKET_CURRENCY
        accounts = []
        for kind in kinds:
            found = balance(organization_id=self.organization_id, kind=kind, currency=currency)
            accounts.append(
                {
                    "kind": kind.value,
                    "posted_micros": found.posted_micros,
                    "pending_micros": found.pending_micros,
                    "available_micros": found.available_micros,
                    "available": format_micros(found.available_micros, currency),
                }
            )
        return Response(serializers.BalanceSerializer({"currency": currency, "accounts": accounts}).data)


class TopUpsView(ApiView):
    scopes: ClassVar = {"GET": "read", "POST": "trade"}
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="top_ups_list", responses=serializers.TopUpSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The organization's top-ups, newest first."""
        return self.page(
            TopUp.objects.filter(organization_id=self.organization_id), serializers.TopUpSerializer
        )

    @extend_schema(
        operation_id="top_ups_create",
        request=serializers.TopUpRequest,
        responses={201: serializers.TopUpSerializer},
    )
    @idempotent_in_phases
    def post(self, request: Request) -> Response:
        """Bring money in through the payment processor. Needs an Idempotency-Key.

        While it is pending, `action_url` says where the buyer goes on: the processor's own page, or his bank's.
        """
        data = self.parse(serializers.TopUpRequest)
        made = top_up(
            organization_id=self.organization_id,
            amount_micros=data["amount_micros"],
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(serializers.TopUpSerializer(made).data, status=201)


class ChargesView(ApiView):
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(
        operation_id="charges_list", parameters=_FILTERS, responses=serializers.ChargeSerializer(many=True)
    )
    def get(self, request: Request) -> Response:
        """The organization's charges, newest period first."""
        rows = _charges(self.organization_id)
        contract_id, line_id = _uuid_of(request, "contract_id"), _uuid_of(request, "invoice_line_id")
        if contract_id is not None:
            rows = rows.filter(contract_id=contract_id)
        if line_id is not None:
            rows = rows.filter(invoiced_as__line_id=line_id)
        return self.page(rows, serializers.ChargeSerializer)


class ChargeView(ApiView):
    role = OrganizationRole.BUYER

    @extend_schema(operation_id="charges_retrieve", responses=serializers.ChargeDetailSerializer)
    def get(self, request: Request, charge_id: UUID) -> Response:
        """One charge with the roll-up rows it was computed from: their numerators, less what is withheld because meters
        disagree, sum to its own.

        An adjustment corrects an earlier charge: its roll-ups are those of the whole corrected period.
        """
        charge = _charge(self.organization_id, charge_id)
        charge.rollups = list(rollups_of_charge(charge))  # type: ignore[attr-defined]
        charge.withheld_numerator = withheld_of_charge(charge)  # type: ignore[attr-defined]
        return Response(serializers.ChargeDetailSerializer(charge).data)


class ChargeEventsView(ApiView):
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="charges_events_list", responses=serializers.ChargeEventSerializer(many=True))
    def get(self, request: Request, charge_id: UUID) -> Response:
        """The usage events behind a charge's roll-ups, as the gateway metered them."""
        rows = events_of_charge(_charge(self.organization_id, charge_id))
        window = window_of(request)
        if window.before is not None:
            rows = rows.filter(id__lt=window.before)
        shown, cursor = page_of(list(rows[: window.size + 1]), window, lambda event: event.id)
        return Response({"items": serializers.ChargeEventSerializer(shown, many=True).data, "next": cursor})


class InvoicesView(ApiView):
    role = OrganizationRole.BUYER
    pagination_class = CursorPagination

    @extend_schema(operation_id="invoices_list", responses=serializers.InvoiceSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The organization's invoices, newest month first."""
        return self.page(_invoices(self.organization_id), serializers.InvoiceSerializer)


class InvoiceView(ApiView):
    role = OrganizationRole.BUYER

    @extend_schema(operation_id="invoices_retrieve", responses=serializers.InvoiceDetailSerializer)
    def get(self, request: Request, invoice_id: UUID) -> Response:
        """One invoice with its lines. Each line opens to its charges: GET /charges?invoice_line_id=<line id>."""
        lines = InvoiceLine.objects.annotate(charges_count=Count("charges")).order_by("number")
        invoice = (
            _invoices(self.organization_id)
            .filter(pk=invoice_id)
            .prefetch_related(Prefetch("lines", lines))
            .first()
        )
        if invoice is None:
            raise NotFound("There is no such invoice.")
        left = estimates_left(invoice.lines.all())
        for line in invoice.lines.all():
            line.estimated_left = left.get(line.id, 0)  # type: ignore[attr-defined]
        return Response(serializers.InvoiceDetailSerializer(invoice).data)


class StatementsView(ApiView):
    role = OrganizationRole.PROVIDER
    pagination_class = CursorPagination

    @extend_schema(operation_id="statements_list", responses=serializers.StatementSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The provider's statements, newest month first."""
        rows = Statement.objects.filter(organization_id=self.organization_id)
        return self.page(rows, serializers.StatementSerializer)


class StatementView(ApiView):
    role = OrganizationRole.PROVIDER

    @extend_schema(operation_id="statements_retrieve", responses=serializers.StatementDetailSerializer)
    def get(self, request: Request, statement_id: UUID) -> Response:
        """One statement with its lines and its payout, or why there is none."""
        rows = Statement.objects.filter(organization_id=self.organization_id, pk=statement_id)
        statement = rows.prefetch_related("lines").first()
        if statement is None:
            raise NotFound("There is no such statement.")
        return Response(serializers.StatementDetailSerializer(statement).data)


class EarningsView(ApiView):
    role = OrganizationRole.PROVIDER
    pagination_class = CursorPagination

    @extend_schema(operation_id="earnings_list", responses=serializers.EarningSerializer(many=True))
    def get(self, request: Request) -> Response:
        """What the provider earned, by charge and offering: gross, the market's fee, net."""
        rows = Earning.objects.filter(organization_id=self.organization_id, ask__isnull=True)
        rows = rows.select_related("charge")
        return self.page(rows, serializers.EarningSerializer)


class PayoutsView(ApiView):
    role = OrganizationRole.PROVIDER
    pagination_class = CursorPagination

    @extend_schema(operation_id="payouts_list", responses=serializers.PayoutSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Money sent to the provider."""
        return self.page(
            Payout.objects.filter(organization_id=self.organization_id), serializers.PayoutSerializer
        )


def _charges(organization_id: UUID) -> QuerySet[Charge]:
    return with_estimates(Charge.objects.filter(organization_id=organization_id))


def _charge(organization_id: UUID, charge_id: UUID) -> Charge:
    charge = _charges(organization_id).filter(pk=charge_id).first()
    if charge is None:
        raise NotFound("There is no such charge.")
    return charge


def _invoices(organization_id: UUID) -> QuerySet[Invoice]:
    return Invoice.objects.filter(organization_id=organization_id).exclude(
        status__in=[Invoice.Status.DRAFT, Invoice.Status.GRACE]
    )


def _uuid_of(request: Request, name: str) -> UUID | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        if len(text) != 36:
            raise ValueError
        return UUID(text)
    except ValueError:
        raise ValidationError({name: [ErrorDetail("must be a UUID", code="invalid")]}) from None


urlpatterns = [
    path("balance", BalanceView.as_view()),
    path("top-ups", TopUpsView.as_view()),
    path("charges", ChargesView.as_view()),
    path("charges/<uuid:charge_id>", ChargeView.as_view()),
    path("charges/<uuid:charge_id>/events", ChargeEventsView.as_view()),
    path("invoices", InvoicesView.as_view()),
    path("invoices/<uuid:invoice_id>", InvoiceView.as_view()),
    path("statements", StatementsView.as_view()),
    path("statements/<uuid:statement_id>", StatementView.as_view()),
    path("earnings", EarningsView.as_view()),
    path("payouts", PayoutsView.as_view()),
    path("delivery-outcomes", DeliveryOutcomesView.as_view()),
    path("service-periods", ServicePeriodsView.as_view()),
    path("discrepancies", DiscrepanciesView.as_view()),
    path("discrepancies/<uuid:discrepancy_id>", DiscrepancyView.as_view()),
    path("discrepancies/<uuid:discrepancy_id>/accept", DiscrepancyAcceptView.as_view()),
    path("discrepancies/<uuid:discrepancy_id>/resolve", DiscrepancyResolveView.as_view()),
    path("recount-baselines", RecountBaselinesView.as_view()),
    path("exports/focus", FocusView.as_view()),
    *document_urls,
    *payout_urls,
    *payment_urls,
    *evidence_urls,
    *terms_api.urlpatterns,
    *simulations_api.urlpatterns,
    *clock_urls,
    *operator_posting_urls,
    *grant_earning_urls,
]
