"""What everybody may see of tokenizers: what one token of each carries, and how far that spreads."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.portal.access import PortalRequest, public
from pricing.selectors import calibrations_in_force


@require_safe
@public
def tokenizers(request: PortalRequest) -> HttpResponse:
    calibrations = [
        (one, sorted(one.classes.all(), key=lambda row: row.name)) for one in calibrations_in_force()
    ]
    return render(request, "portal/tokenizers.html", {"calibrations": calibrations, "now": clock.now()})
