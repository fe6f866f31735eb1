"""REST: documents as PDF, credit notes, payments of what is due; the operator's rules of tax and discounts."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.http import HttpResponse
from django.urls import path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.idempotency import idempotent, idempotent_in_phases
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    MicrosField,
    PpmField,
    StrictBooleanField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.api.views import ApiView
from marketplace.billing.models import (
    ChargeKind,
    CreditNote,
    CreditNoteLine,
    Discount,
    InvoicePayment,
    TaxRule,
)
from marketplace.billing.printing.documents import (
    credit_note_pdf,
    find_credit_note,
    invoice_pdf,
    statement_pdf,
)
from marketplace.billing.serializers import InvoiceSerializer
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.discounts import end_discount, give_discount
from marketplace.billing.services.invoicing import reissue_invoice
from marketplace.billing.services.paying import pay_invoice, payments_of
from marketplace.billing.services.taxes import add_tax_rule, end_tax_rule, tax_rules
from marketplace.errors import InvalidInput

PDF: Any = {(200, "application/pdf"): OpenApiTypes.BINARY}
_LONGEST_REASON = 300


class PaymentIn(StrictSerializer):
    source = StrictChoiceField(choices=InvoicePayment.Source.values)  # type: ignore[assignment]


class InvoicePaymentOut(serializers.ModelSerializer[InvoicePayment]):
    class Meta:
        model = InvoicePayment
        fields = (
            "id",
            "invoice_id",
            "source",
            "amount_micros",
            "status",
            "processor_reference",
            "action_url",
            "failure",
            "reversed_micros",
            "created_at",
        )


class CreditedLineIn(StrictSerializer):
    line_id = UuidField(help_text="of the invoice")
    net_micros = MicrosField(
        help_text="Without tax, which follows; at most what is left. A credit line goes with all the rest only."
    )


class CreditNoteIn(StrictSerializer):
    reason = TextField(max_length=_LONGEST_REASON)
    lines = serializers.ListField(
        child=CreditedLineIn(),
        required=False,
        min_length=1,
        max_length=1_000,
        help_text="left out: everything that is left",
    )


class CreditNoteLineOut(serializers.ModelSerializer[CreditNoteLine]):
    number = serializers.IntegerField(source="line.number")
    description = serializers.CharField(source="line.description")

    class Meta:
        model = CreditNoteLine
        fields = ("line_id", "number", "description", "net_micros", "tax_micros")


class CreditNoteOut(serializers.ModelSerializer[CreditNote]):
    invoice_number = serializers.CharField(source="invoice.number")

    class Meta:
        model = CreditNote
        fields = (
            "id",
            "number",
            "invoice_id",
            "invoice_number",
            "currency",
            "reason",
            "net_micros",
            "tax_micros",
            "rounding_micros",
            "total_micros",
            "due_micros",
            "content_sha256",
            "created_at",
        )


class CreditNoteDetailOut(CreditNoteOut):
    lines = CreditNoteLineOut(many=True)
    parties = serializers.JSONField()

    class Meta(CreditNoteOut.Meta):
        fields = (*CreditNoteOut.Meta.fields, "parties", "lines")  # type: ignore[assignment]


class ReissueIn(StrictSerializer):
    reason = TextField(max_length=_LONGEST_REASON)


class TaxRuleIn(StrictSerializer):
    jurisdiction = TextField(
        max_length=6, help_text="the buyer's country, two capital letters, or a part of it such as US-NY"
    )
    code = TextField(max_length=32, help_text="rules of different codes stack")
    title = TextField(max_length=100)
    kind = StrictChoiceField(choices=TaxRule.Kind.values)
    rate_ppm = PpmField(default=0)
    levy_micros_per_mtok = MicrosField(
        min_value=0, default=0, help_text="of volume that hosts outside of home_regions delivered"
    )
    home_regions = serializers.ListField(
        child=TextField(max_length=64), required=False, min_length=1, max_length=100
    )
    buyers = StrictChoiceField(choices=TaxRule.Buyers.values, default=TaxRule.Buyers.ALL)
    reverse_charge = StrictBooleanField(default=False)
    valid_from = TimestampField()
    valid_until = TimestampField(required=False, allow_null=True, default=None)


class TaxRuleOut(serializers.ModelSerializer[TaxRule]):
    class Meta:
        model = TaxRule
        fields = (
            "id",
            "jurisdiction",
            "code",
            "title",
            "kind",
            "rate_ppm",
            "levy_micros_per_mtok",
            "home_regions",
            "buyers",
            "reverse_charge",
            "valid_from",
            "valid_until",
            "created_at",
        )


class TaxRuleEndIn(StrictSerializer):
    valid_until = TimestampField()


class DiscountIn(StrictSerializer):
    organization_id = UuidField()
    title = TextField(max_length=100)
    rate_ppm = PpmField(min_value=1, required=False)
    amount_micros = MicrosField(required=False)
    line_kind = StrictChoiceField(choices=ChargeKind.values, required=False, help_text="left out: all lines")
    max_invoices = StrictIntegerField(min_value=1, max_value=1_200, required=False)
    valid_from = TimestampField()
    valid_until = TimestampField(required=False, allow_null=True, default=None)


class DiscountOut(serializers.ModelSerializer[Discount]):
    class Meta:
        model = Discount
        fields = (
            "id",
            "organization_id",
            "title",
            "rate_ppm",
            "amount_micros",
            "line_kind",
            "max_invoices",
            "valid_from",
            "valid_until",
            "created_at",
        )


class _BuyerView(ApiView):
    role = OrganizationRole.BUYER


class _OperatorView(ApiView):
    role = OrganizationRole.OPERATOR
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}


class InvoicePdfView(_BuyerView):
    @extend_schema(operation_id="invoices_pdf", responses=PDF)
    def get(self, request: Request, invoice_id: UUID) -> HttpResponse:
        """The invoice as it was issued; the same bytes each time."""
        return pdf_answer(invoice_pdf(self.organization_id, invoice_id))


class StatementPdfView(ApiView):
    role = OrganizationRole.PROVIDER

    @extend_schema(operation_id="statements_pdf", responses=PDF)
    def get(self, request: Request, statement_id: UUID) -> HttpResponse:
        """The statement as it was issued; the same bytes each time."""
        return pdf_answer(statement_pdf(self.organization_id, statement_id))


class CreditNotePdfView(_BuyerView):
    @extend_schema(operation_id="credit_notes_pdf", responses=PDF)
    def get(self, request: Request, note_id: UUID) -> HttpResponse:
        """The credit note as it was issued; the same bytes each time."""
        return pdf_answer(credit_note_pdf(self.organization_id, note_id))


class CreditNotesView(_BuyerView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="credit_notes_list", responses=CreditNoteOut(many=True))
    def get(self, request: Request) -> Response:
        """The organization's credit notes."""
        rows = CreditNote.objects.filter(organization_id=self.organization_id).select_related("invoice")
        return self.page(rows, CreditNoteOut)


class CreditNoteView(_BuyerView):
    @extend_schema(operation_id="credit_notes_retrieve", responses=CreditNoteDetailOut)
    def get(self, request: Request, note_id: UUID) -> Response:
        """One credit note with its lines."""
        return Response(CreditNoteDetailOut(find_credit_note(self.organization_id, note_id)).data)


class InvoicePaymentsView(_BuyerView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.TRADE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="invoices_payments_list", responses=InvoicePaymentOut(many=True))
    def get(self, request: Request, invoice_id: UUID) -> Response:
        """What was tried to pay an invoice; `action_url` is where the buyer goes on while one waits for him."""
        return self.page(payments_of(self.organization_id, invoice_id), InvoicePaymentOut)

    @extend_schema(operation_id="invoices_pay", request=PaymentIn, responses={201: InvoicePaymentOut})
    @idempotent_in_phases
    def post(self, request: Request, invoice_id: UUID) -> Response:
        """Pay all that is outstanding, from the balance or through the processor. Needs an Idempotency-Key.

        While the payment is pending, `action_url` says where the buyer goes on: the processor's page, or his bank's.
        """
        made = pay_invoice(
            organization_id=self.organization_id,
            invoice_id=invoice_id,
            **self.parse(PaymentIn),
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(InvoicePaymentOut(made).data, status=201)


class InvoiceCreditView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="invoices_credit", request=CreditNoteIn, responses={201: CreditNoteOut})
    @idempotent
    def post(self, request: Request, invoice_id: UUID) -> Response:
        """Credit lines of a buyer's invoice, or all that is left of it. Needs an Idempotency-Key."""
        data = self.parse(CreditNoteIn)
        amounts = None
        if "lines" in data:
            amounts = {line["line_id"]: line["net_micros"] for line in data["lines"]}
            if len(amounts) != len(data["lines"]):
                raise InvalidInput("names a line twice", field="lines")
        made = issue_credit_note(
            invoice_id=invoice_id,
            amounts_micros=amounts,
            reason=data["reason"],
            operation_id=self.operation_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(CreditNoteOut(made).data, status=201)


class InvoiceReissueView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="invoices_reissue", request=ReissueIn, responses={201: InvoiceSerializer})
    @idempotent
    def post(self, request: Request, invoice_id: UUID) -> Response:
        """Void a wrong invoice and issue its charges anew under a new number. Needs an Idempotency-Key."""
        made = reissue_invoice(
            invoice_id=invoice_id, **self.parse(ReissueIn), now=clock.now(), actor=self.actor
        )
        return Response(InvoiceSerializer(made).data, status=201)


class TaxRulesView(_OperatorView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="tax_rules_list", responses=TaxRuleOut(many=True))
    def get(self, request: Request) -> Response:
        """Every rule of tax there was, is and will be."""
        return self.page(tax_rules(), TaxRuleOut)

    @extend_schema(operation_id="tax_rules_add", request=TaxRuleIn, responses={201: TaxRuleOut})
    def post(self, request: Request) -> Response:
        """Add a rule; where one of the same code holds at that time, end that first."""
        made = add_tax_rule(**self.parse(TaxRuleIn), now=clock.now(), actor=self.actor)
        return Response(TaxRuleOut(made).data, status=201)


class TaxRuleEndView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="tax_rules_end", request=TaxRuleEndIn, responses=TaxRuleOut)
    def post(self, request: Request, rule_id: UUID) -> Response:
        """Say until when a rule holds."""
        made = end_tax_rule(rule_id=rule_id, **self.parse(TaxRuleEndIn), now=clock.now(), actor=self.actor)
        return Response(TaxRuleOut(made).data)


class DiscountsView(_OperatorView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="discounts_list", responses=DiscountOut(many=True))
    def get(self, request: Request) -> Response:
        """Every discount that was given."""
        return self.page(Discount.objects.all(), DiscountOut)

    @extend_schema(operation_id="discounts_give", request=DiscountIn, responses={201: DiscountOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """Give a buyer a share or an amount off his invoices. Needs an Idempotency-Key."""
        made = give_discount(**self.parse(DiscountIn), now=clock.now(), actor=self.actor)
        return Response(DiscountOut(made).data, status=201)


class DiscountEndView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="discounts_end", request=None, responses=DiscountOut)
    def post(self, request: Request, discount_id: UUID) -> Response:
        """No further month is reduced."""
        made = end_discount(discount_id=discount_id, now=clock.now(), actor=self.actor)
        return Response(DiscountOut(made).data)


def pdf_answer(document: tuple[str, bytes]) -> HttpResponse:
    number, pdf = document
    answer = HttpResponse(pdf, content_type="application/pdf")
    answer["Content-Disposition"] = f'attachment; filename="{number}.pdf"'
    return answer


urlpatterns = [
    path("invoices/<uuid:invoice_id>/pdf", InvoicePdfView.as_view()),
    path("invoices/<uuid:invoice_id>/payments", InvoicePaymentsView.as_view()),
    path("invoices/<uuid:invoice_id>/credit-notes", InvoiceCreditView.as_view()),
    path("invoices/<uuid:invoice_id>/reissue", InvoiceReissueView.as_view()),
    path("statements/<uuid:statement_id>/pdf", StatementPdfView.as_view()),
    path("credit-notes", CreditNotesView.as_view()),
    path("credit-notes/<uuid:note_id>", CreditNoteView.as_view()),
    path("credit-notes/<uuid:note_id>/pdf", CreditNotePdfView.as_view()),
    path("tax-rules", TaxRulesView.as_view()),
    path("tax-rules/<uuid:rule_id>/end", TaxRuleEndView.as_view()),
    path("discounts", DiscountsView.as_view()),
    path("discounts/<uuid:discount_id>/end", DiscountEndView.as_view()),
]
