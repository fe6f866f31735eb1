"""The operator's home: is the market running, is usage coming in, do the books add up."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.selectors import all_organizations
from marketplace.billing.selectors import unsettled_contracts
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance, check_ledger, totals
from marketplace.orders.controls_selectors import grades_by_status
from marketplace.orders.selectors import recent_auctions
from marketplace.periods import delivery_period
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.views.provider import capacity_bar
from metering.selectors import inbox_state, open_discrepancies, overdue_gaps
from providers.selectors import all_hosts, period_capacities

RECENT = 20
MOST_HOSTS = 50
LATE_USAGE_LOOKED_FOR = timedelta(days=1)


@require_safe
@page(OrganizationRole.OPERATOR)
def home(request: SeatedRequest) -> HttpResponse:
    return _render(request, {})


@require_POST
@page(OrganizationRole.OPERATOR)
def ledger_check(request: SeatedRequest) -> HttpResponse:
    """Re-add the whole ledger; the answer replaces the panel, or shows the whole page without htmx."""
    checked = {"differences": check_ledger(), "totals": totals(), "checked_at": clock.now()}
    if getattr(request, "htmx", False):
        return render(request, "portal/fragments/ledger_check.html", checked)
    return _render(request, checked)


def _render(request: SeatedRequest, checked: dict[str, object]) -> HttpResponse:
    now = clock.now()
    hosts = list(all_hosts()[:MOST_HOSTS])
    capacities = period_capacities([host.id for host in hosts], delivery_period(now).start)
    context = {
        "auctions": list(recent_auctions()[:RECENT]),
        "hosts": [(host, capacity_bar(capacities[host.id]), capacities[host.id]) for host in hosts],
        "inbox": inbox_state(),
        "missing_usage": list(overdue_gaps(now)),
        "discrepancies": list(open_discrepancies()[:RECENT]),
        "settlement": _settlement_lag(now),
        "markets": grades_by_status(),
        "organizations": list(all_organizations()[:MOST_HOSTS]),
        "fees": balance(
            organization_id=request.seat.organization.id,
            kind=AccountKind.FEES,
            currency=settings.MARKET_CURRENCY,
        ),
        "now": now,
        **checked,
    }
    return render(request, "portal/operator.html", context)


def _settlement_lag(now: datetime) -> dict[str, object]:
    """Periods that are due and not settled, and since when the oldest waits."""
    overdue = [
        due for due in unsettled_contracts(since=now - LATE_USAGE_LOOKED_FOR, until=now) if due.due_at <= now
    ]
    return {"overdue": len(overdue), "oldest_due_at": min((due.due_at for due in overdue), default=None)}
