"""A buyer releases firm volume of a committed contract into spot, and sees what became of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.contracts.models import Contract, ContractKind
from marketplace.contracts.quoting import first_open_start
from marketplace.contracts.selectors import contract_of
from marketplace.errors import DomainError
from marketplace.orders.selectors import releases_of
from marketplace.orders.services.releasing import release
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import ReleaseForm
from marketplace.portal.paging import page_of


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def releases(request: SeatedRequest, contract_id: UUID) -> HttpResponse:
    """What of a contract was released; posting releases more."""
    now, organization_id = clock.now(), request.seat.organization.id
    found = contract_of(organization_id=organization_id, contract_id=contract_id)
    form = release_form(found, now, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = release(
                organization_id=organization_id,
                contract_id=contract_id,
                period_start=form.cleaned_data["period_start"],
                periods=form.cleaned_data["periods"],
                lots=form.cleaned_data["lots"],
                floor_micros_per_mtok=form.cleaned_data["floor"],
                operation_id=form.operation_id(organization_id),
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            periods = "one period" if len(made) == 1 else f"{len(made)} periods"
            messages.success(
                request, f"Released for {periods}. What nobody buys is yours again after each auction."
            )
            return redirect("buyer-releases", contract_id=contract_id)
    context = {
        "contract": found,
        "form": form,
        "releasable": is_releasable(found) and request.seat.may_change,
        "releases": page_of(
            releases_of(organization_id, contract_id).order_by("-period_start", "-id"),
            request,
            by="period_start",
        ),
        "currency": found.currency,
    }
    return render(request, "portal/releases.html", context, status=422 if form.is_bound else 200)


def is_releasable(contract: Contract) -> bool:
    """Whether the contract has firm volume that may be released at all."""
    return contract.kind == ContractKind.COMMITTED and contract.status == Contract.Status.ACTIVE


def release_form(contract: Contract, now: datetime, data: Any = None) -> ReleaseForm:
    """For the next delivery period that can be released, unless something else was typed."""
    start = max(first_open_start(now), contract.starts_at).astimezone(UTC)
    return ReleaseForm(data, initial={"period_start": start.strftime("%Y-%m-%dT%H:%M:%S"), "periods": 1})
