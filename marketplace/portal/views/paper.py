"""Documents as files, paying what is due, and who documents are made out to."""

from __future__ import annotations

from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.services import LEGAL_FIELDS, update_organization
from marketplace.billing.documents_api import pdf_answer
from marketplace.billing.evidence_api import evidence_answer
from marketplace.billing.models import InvoicePayment
from marketplace.billing.printing.documents import credit_note_pdf, invoice_pdf, statement_pdf
from marketplace.billing.selectors import find_invoice
from marketplace.billing.services.paying import pay_invoice
from marketplace.errors import DomainError, NotFound
from marketplace.ids import derived_id
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import PortalForm


class IdentityForm(PortalForm):
    legal_name = forms.CharField(max_length=200, required=False, help_text="As it is registered.")
    address = forms.CharField(
        max_length=1000,
        required=False,
        widget=forms.Textarea(attrs={"rows": "4"}),
        help_text="One line each.",
    )
    country = forms.CharField(max_length=2, required=False, help_text="Two capital letters, such as DE.")
    region = forms.CharField(
        max_length=6, required=False, help_text="A part of it with taxes of its own, such as US-NY."
    )
    tax_number = forms.CharField(
        max_length=64, required=False, help_text="Once it is verified you are taxed as a business."
    )


@require_safe
@page(OrganizationRole.BUYER)
def invoice(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    """The invoice, or with `?note=` and its number a credit note of it."""
    organization_id = request.seat.organization.id
    number = request.GET.get("note")
    if number is None:
        return pdf_answer(invoice_pdf(organization_id, invoice_id))
    found = find_invoice(organization_id, invoice_id).credit_notes.filter(number=number[:40]).first()
    if found is None:
        raise NotFound("There is no such credit note.")
    return pdf_answer(credit_note_pdf(organization_id, found.id))


@require_safe
@page(OrganizationRole.BUYER)
def evidence(request: SeatedRequest, invoice_id: UUID) -> HttpResponseBase:
    return evidence_answer(request.seat.organization.id, invoice_id)


@require_safe
@page(OrganizationRole.PROVIDER)
def statement(request: SeatedRequest, statement_id: UUID) -> HttpResponse:
    return pdf_answer(statement_pdf(request.seat.organization.id, statement_id))


@require_POST
@page(OrganizationRole.BUYER)
def pay(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    """What is due, from the balance or by card. Clicked twice it is paid once: the second finds nothing due."""
    organization_id, now = request.seat.organization.id, clock.now()
    try:
        payment = pay_invoice(
            organization_id=organization_id,
            invoice_id=invoice_id,
            source=request.POST.get("source", InvoicePayment.Source.BALANCE),
            operation_id=derived_id(invoice_id, f"portal:{now.isoformat()}"),
            now=now,
            actor=actor_of(request),
        )
        _tell(request, payment)
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(request, f"{error.detail[:1].upper()}{error.detail[1:]}.")
    return redirect("buyer-invoice", invoice_id)


def _tell(request: SeatedRequest, payment: InvoicePayment) -> None:
    if payment.status == InvoicePayment.Status.FAILED:
        messages.error(request, "The card was refused; the invoice is still to be paid.")
    elif payment.status == InvoicePayment.Status.PENDING:
        onward = (
            "It waits for you: go on to pay below." if payment.action_url else "The payment is under way."
        )
        messages.info(request, onward)
    elif payment.source == InvoicePayment.Source.BALANCE:
        messages.success(request, "Paid from the balance.")
    else:
        messages.success(request, "Paid.")


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def buyer_identity(request: SeatedRequest) -> HttpResponse:
    return _identity(request, "buyer-identity")


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.PROVIDER)
def provider_identity(request: SeatedRequest) -> HttpResponse:
    return _identity(request, "provider-identity")


def _identity(request: SeatedRequest, name: str) -> HttpResponse:
    organization = request.seat.organization
    known = {field: getattr(organization, field) for field in LEGAL_FIELDS}
    form = IdentityForm(request.POST if request.method == "POST" else None, initial=known)
    if request.method == "POST" and form.is_valid():
        try:
            update_organization(
                organization_id=organization.id,
                changes={field: form.cleaned_data[field] for field in LEGAL_FIELDS},
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "Documents from now on are made out to this.")
            return redirect(name)
    context = {"form": form, "organization": organization}
    return render(request, "portal/identity.html", context, status=422 if form.is_bound else 200)
