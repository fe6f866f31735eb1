"""The operator's monitoring: who has market power, and who behaves as if the price were the good."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.grant_earnings import grant_earnings
from marketplace.orders import monitoring, screens
from marketplace.periods import Period
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.paging import page_of


@require_safe
@page(OrganizationRole.OPERATOR)
def home(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    window = Period(now - monitoring.WINDOW, now)
    tested = page_of(monitoring.auctions_to_test(), request)
    powers = monitoring.powers_of(tested.rows)
    grades = monitoring.concentrations(window)
    wash = monitoring.wash_report(window)
    withdrawn = monitoring.spoof_report(window)
    found = grant_earnings(window)
    by_grants = [
        (str(pair.buyer_organization_id), str(pair.provider_organization_id), pair) for pair in found.pairs
    ]
    named = {seller.group for power in powers for seller in power.sellers}
    named |= {side.largest for grade in grades for side in (grade.buyers, grade.sellers)}
    named |= {crossing.organization_id for crossing in wash.self_crossings}
    named |= {group for pair in wash.round_trips for group in (pair.first, pair.second)}
    named |= {one.group for one in withdrawn}
    named |= {group for buyer, provider, _ in by_grants for group in (buyer, provider)}
    context = {
        "page": tested,
        "powers": powers,
        "grades": grades,
        "wash": wash,
        "withdrawn": withdrawn,
        "by_grants": by_grants,
        "by_grants_is_cut": found.is_cut,
        "currency": settings.MARKET_CURRENCY,
        "names": monitoring.names_of(named),
        "round_trip_threshold_ppm": screens.RECIPROCAL_THRESHOLD_PPM,
        "late_cancels_threshold": screens.LATE_CANCELS_THRESHOLD,
        "window": window,
        "now": now,
    }
    return render(request, "portal/monitoring.html", context)
