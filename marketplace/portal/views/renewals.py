"""A buyer says whether a committed contract renews itself at its end."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.contracts.models import Renewal
from marketplace.contracts.renewal_selectors import renewal_of
from marketplace.contracts.renewing import set_renewal
from marketplace.contracts.selectors import contract_of
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.renewal_forms import RenewalForm
from marketplace.portal.views.terms import is_changeable
from pricing.units import decimal_string


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def renewal(request: SeatedRequest, contract_id: UUID) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    found = contract_of(organization_id=organization_id, contract_id=contract_id)
    shown = renewal_of(organization_id=organization_id, contract_id=contract_id)
    rate = shown.max_rate_micros_per_mtok
    form = RenewalForm(
        request.POST if request.method == "POST" else None,
        initial={
            "renews": "yes" if shown.renews else "no",
            "max_rate": decimal_string(rate, 6) if rate else "",
        },
    )
    if form.is_bound and form.is_valid():
        renews = form.cleaned_data["renews"] == "yes"
        try:
            set_renewal(
                organization_id=organization_id,
                contract_id=contract_id,
                renews=renews,
                # Turned off, what stands in the field is of no matter.
                max_rate_micros_per_mtok=form.cleaned_data["max_rate"] if renews else None,
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(
                request,
                "The contract renews itself at its end." if renews else "The contract does not renew itself.",
            )
            return redirect("buyer-contract", contract_id=contract_id)
    context = {
        "contract": found,
        "renewal": shown,
        "form": form,
        "settable": is_changeable(found)
        and shown.status in (Renewal.Status.OFF, Renewal.Status.ON)
        and billing_now(organization_id, now) < shown.decided_until,
    }
    return render(request, "portal/renewal.html", context, status=422 if form.is_bound else 200)
