"""What everybody may know of providers: how far their meters can be trusted."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.portal.access import PortalRequest, public
from marketplace.portal.paging import page_of
from providers.selectors import profiles_of, published_providers


@require_safe
@public
def providers(request: PortalRequest) -> HttpResponse:
    now = clock.now()
    listed = page_of(published_providers(), request)
    return render(
        request,
        "portal/providers.html",
        {"page": listed, "profiles": profiles_of(listed.rows, now=now), "now": now},
    )
