"""Where meters disagree: what each side sees of it, the provider's acceptance, the operator's ruling."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing import disputes
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.paging import page_of

# Numbers between the two are given through REST, where each row can be named.
RULINGS = ("lower", "higher")


@require_safe
@page(OrganizationRole.BUYER)
def of_buyer(request: SeatedRequest) -> HttpResponse:
    return _listed(request, OrganizationRole.BUYER)


@require_safe
@page(OrganizationRole.PROVIDER)
def of_provider(request: SeatedRequest) -> HttpResponse:
    return _listed(request, OrganizationRole.PROVIDER)


@require_safe
@page(OrganizationRole.OPERATOR)
def of_operator(request: SeatedRequest) -> HttpResponse:
    return _listed(request, OrganizationRole.OPERATOR)


@require_POST
@page(OrganizationRole.PROVIDER)
def accept(request: SeatedRequest, discrepancy_id: UUID) -> HttpResponse:
    try:
        disputes.accept(
            organization=request.seat.organization,
            discrepancy_id=discrepancy_id,
            reason=request.POST.get("reason", ""),
            actor=actor_of(request),
            now=clock.now(),
        )
        messages.success(request, "The lower count stands; what was withheld is not billed.")
    except DomainError as error:
        _say(request, error)
    return redirect("provider-discrepancies")


@require_POST
@page(OrganizationRole.OPERATOR)
def resolve(request: SeatedRequest, discrepancy_id: UUID) -> HttpResponse:
    try:
        disputes.resolve(
            operator=request.seat.organization,
            discrepancy_id=discrepancy_id,
            ruling=request.POST.get("ruling", ""),
            reason=request.POST.get("reason", ""),
            actor=actor_of(request),
            now=clock.now(),
        )
        messages.success(request, "Ruled. The next settlement run charges what that frees.")
    except DomainError as error:
        _say(request, error)
    return redirect("operator-discrepancies")


def _say(request: SeatedRequest, error: DomainError) -> None:
    """What does not exist is no page; everything else is said on the list."""
    if error.http_status == 404:
        raise error
    messages.error(request, f"{error.field.capitalize()} {error.detail}." if error.field else error.detail)


def _listed(request: SeatedRequest, role: OrganizationRole) -> HttpResponse:
    organization = request.seat.organization
    listed = page_of(disputes.discrepancies_of(organization), request)
    context = {
        "page": listed,
        "discrepancies": disputes.seen_by(organization, listed.rows),
        "role": role.value,
        "period": timedelta(seconds=settings.SETTLEMENT_PERIOD_S),
        "rulings": RULINGS,
        "now": clock.now(),
    }
    return render(request, "portal/discrepancies.html", context)
