"""A provider announces what an offer costs on demand from a coming moment on, and takes it back."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.tariff_forms import tariff_form
from marketplace.portal.views.provider import offering_page, prices_form
from providers.selectors import find_offering
from providers.services import announce_tariff, withdraw_tariff


@require_POST
@page(OrganizationRole.PROVIDER)
def announce(request: SeatedRequest, offering_id: UUID) -> HttpResponse:
    """What is refused is said on the offer's page, at its field."""
    now, organization_id = clock.now(), request.seat.organization.id
    offering = find_offering(organization_id, offering_id)
    form = tariff_form(now, request.POST)
    if form.is_valid():
        try:
            announce_tariff(
                organization_id=organization_id,
                offering_id=offering_id,
                **form.terms,
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The tariff is announced; until it begins the rates of now hold.")
            return redirect("provider-offering", offering_id=offering_id)
    return offering_page(request, offering, prices_form(offering), form)


@require_POST
@page(OrganizationRole.PROVIDER)
def withdraw(request: SeatedRequest, offering_id: UUID, tariff_id: UUID) -> HttpResponse:
    try:
        withdraw_tariff(
            organization_id=request.seat.organization.id,
            offering_id=offering_id,
            tariff_id=tariff_id,
            now=clock.now(),
            actor=actor_of(request),
        )
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(request, error.detail)
    else:
        messages.success(request, "The announced tariff is withdrawn.")
    return redirect("provider-offering", offering_id=offering_id)
