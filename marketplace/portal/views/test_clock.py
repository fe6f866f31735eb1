"""An organization's test clock: given, moved forward, removed, and what happened on the way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationClock
from marketplace.accounts.organization_clocks import begin_advance, create_clock, remove_clock
from marketplace.billing.clock_events import events_between
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import PortalForm

_SHOWN: Final = 200


class AdvanceForm(PortalForm):
    to = forms.DateTimeField(
        label="Advance to (UTC)",
        help_text="After the clock's time, 366 days ahead of it at most.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )

    def clean_to(self) -> datetime:
        to: datetime = self.cleaned_data["to"]
        return to.replace(tzinfo=UTC) if to.tzinfo is None else to


@require_http_methods(["GET", "HEAD", "POST"])
@page(manage=True)
def rehearsal(request: SeatedRequest) -> HttpResponse:
    """The page; which of its forms was sent, its `action` says."""
    now, organization_id = clock.now(), request.seat.organization.id
    action = request.POST.get("action") if request.method == "POST" else None
    form = AdvanceForm(request.POST if action == "advance" else None)
    try:
        if action == "create":
            create_clock(organization_id=organization_id, now=now, actor=actor_of(request))
            return redirect("test-clock")
        if action == "remove":
            remove_clock(organization_id=organization_id, now=now, actor=actor_of(request))
            return redirect("test-clock")
        if action == "advance" and form.is_valid():
            begin_advance(
                organization_id=organization_id,
                to=form.cleaned_data["to"],
                now=now,
                actor=actor_of(request),
            )
            return redirect("test-clock")
    except DomainError as error:
        if action == "advance":
            form.refuse(error)
        else:
            messages.error(request, error.detail)
            return redirect("test-clock")
    found = OrganizationClock.objects.filter(organization_id=organization_id).first()
    events = (
        events_between(organization_id, since=found.from_at or found.created_at, until=max(found.now_at, now))
        if found
        else []
    )
    context = {
        "form": form,
        "clock": found,
        "now": now,
        "own_now": max(found.now_at, now) if found else None,
        # The newest first: what the last stop has done.
        "events": events[: -_SHOWN - 1 : -1],
        "events_left_out": max(0, len(events) - _SHOWN),
        "is_sandbox": settings.PAYMENT_PROCESSOR == "sandbox",
    }
    return render(request, "portal/test_clock.html", context, status=422 if form.is_bound else 200)
