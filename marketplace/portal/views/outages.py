"""A provider takes a host out of sale for hours to come, and back."""

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
from marketplace.portal.market_forms import outage_form
from marketplace.portal.views.provider import host_page
from providers.services import announce_outage, withdraw_outage


@require_POST
@page(OrganizationRole.PROVIDER)
def announce(request: SeatedRequest, host_id: UUID) -> HttpResponse:
    """What is refused is said on the host's page, at its field."""
    now = clock.now()
    form = outage_form(now, request.POST)
    if form.is_valid():
        try:
            announce_outage(
                organization_id=request.seat.organization.id,
                host_id=host_id,
                **form.cleaned_data,
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The outage is announced: nothing of the host is sold in its hours.")
            return redirect("provider-host", host_id=host_id)
    return host_page(request, host_id, form)


@require_POST
@page(OrganizationRole.PROVIDER)
def withdraw(request: SeatedRequest, host_id: UUID, outage_id: UUID) -> HttpResponse:
    try:
        withdraw_outage(
            organization_id=request.seat.organization.id,
            host_id=host_id,
            outage_id=outage_id,
            now=clock.now(),
            actor=actor_of(request),
        )
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(request, error.detail)
    else:
        messages.success(request, "The announcement is withdrawn: its hours are sold again.")
    return redirect("provider-host", host_id=host_id)
