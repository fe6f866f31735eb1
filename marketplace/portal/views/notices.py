"""Mails of the organization: where they go, which do not come, and what was sent."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.notice_forms import NoticesForm
from marketplace.portal.paging import page_of
from marketplace.webhooks.notice_texts import KINDS
from marketplace.webhooks.notices import notices_of, set_notices, settings_of


@require_http_methods(["GET", "HEAD", "POST"])
@page(manage=True)
def notices(request: SeatedRequest) -> HttpResponse:
    organization_id = request.seat.organization.id
    own = settings_of(organization_id)
    form = NoticesForm(
        request.POST if request.method == "POST" else None,
        initial={
            "addresses": "\n".join(own.addresses),
            "wanted": [name for name, _ in NoticesForm.OPTIONAL if name not in own.muted],
        },
    )
    if request.method == "POST" and form.is_valid():
        try:
            set_notices(
                organization_id=organization_id,
                addresses=form.cleaned_data["addresses"],
                muted=form.muted,
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "Saved: it holds for what happens from now on.")
            return redirect("notices")
    context = {
        "form": form,
        "own": own,
        "sent": page_of(notices_of(organization_id), request, by="created_at"),
        "legal": [kind.meaning for kind in KINDS.values() if kind.is_legal],
    }
    return render(request, "portal/notices.html", context, status=422 if form.is_bound else 200)
