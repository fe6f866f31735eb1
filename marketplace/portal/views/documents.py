"""Invoices and what they are made of: invoice, line, charge, roll-ups. Every amount opens to its cause."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.selectors import api_keys_of
from marketplace.billing.models import InvoicePayment
from marketplace.billing.selectors import (
    charges_of,
    charges_of_line,
    find_charge,
    find_invoice,
    find_invoice_line,
    invoices_of,
    rollups_of_charge,
    withheld_of_charge,
)
from marketplace.billing.services.cancelling import cancellable_of
from marketplace.billing.services.cards import saved_card
from marketplace.billing.services.lifecycle import outstanding
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.burndown import exact_amount
from marketplace.portal.paging import page_of

MOST_ROLLUPS = 500


@require_safe
@page(OrganizationRole.BUYER)
def invoices(request: SeatedRequest) -> HttpResponse:
    listed = page_of(invoices_of(request.seat.organization.id), request)
    return render(request, "portal/invoices.html", {"invoices": listed})


@require_safe
@page(OrganizationRole.BUYER)
def invoice(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    found = find_invoice(request.seat.organization.id, invoice_id)
    payments = list(found.payments.order_by("-created_at", "-id"))
    waiting = [payment.id for payment in payments if payment.action_url]
    context = {
        "invoice": found,
        "outstanding": outstanding(found),
        "notes": list(found.credit_notes.order_by("number")),
        "payments": payments,
        "cancellable": cancellable_of(request.seat.organization.id, waiting),
        "is_under_way": found.payments.filter(status=InvoicePayment.Status.PENDING).exists(),
        "card": saved_card(request.seat.organization.id),
    }
    return render(request, "portal/invoice.html", context)


@require_safe
@page(OrganizationRole.BUYER)
def invoice_line(request: SeatedRequest, line_id: UUID) -> HttpResponse:
    line = find_invoice_line(request.seat.organization.id, line_id)
    return render(
        request,
        "portal/invoice_line.html",
        {"line": line, "charges": page_of(charges_of_line(line), request, by="period_start")},
    )


@require_safe
@page(OrganizationRole.BUYER)
def charges(request: SeatedRequest) -> HttpResponse:
    listed = page_of(charges_of(request.seat.organization.id), request, by="period_start")
    return render(request, "portal/charges.html", {"charges": listed})


@require_safe
@page(OrganizationRole.BUYER)
def charge(request: SeatedRequest, charge_id: UUID) -> HttpResponse:
    organization_id = request.seat.organization.id
    found = find_charge(organization_id, charge_id)
    rollups = list(rollups_of_charge(found)[: MOST_ROLLUPS + 1])
    labels = dict(
        api_keys_of(organization_id)
        .filter(id__in={rollup.api_key_id for rollup in rollups})
        .values_list("id", "label")
    )
    context = {
        "charge": found,
        "rollups": [(rollup, labels.get(rollup.api_key_id, "")) for rollup in rollups[:MOST_ROLLUPS]],
        "more": len(rollups) > MOST_ROLLUPS,
        "numerator": sum(rollup.numerator for rollup in rollups),
        "withheld": withheld_of_charge(found),
        "exact": exact_amount(found.numerator, found.rate_micros_per_mtok),
    }
    return render(request, "portal/charge.html", context)
