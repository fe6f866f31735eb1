"""The buyer's home: money, contracts, usage, charges."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.models import TopUp
from marketplace.billing.outcomes import month_outcomes_of, outcomes_of
from marketplace.billing.selectors import charges_of, top_ups_of
from marketplace.billing.service_periods import service_periods_of, with_figures
from marketplace.billing.services.cancelling import cancellable_of
from marketplace.billing.services.top_ups import top_up
from marketplace.contracts.history import events_of
from marketplace.contracts.models import Contract, ContractKind
from marketplace.contracts.renewal_selectors import renewal_of
from marketplace.contracts.selectors import contract_of, contracts_of, entitlements_of, own_kappas
from marketplace.contracts.unpaid import unpaid_end_of
from marketplace.errors import DomainError
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.burndown import burn_down, holdings_of, usage_chart
from marketplace.portal.forms import TopUpForm
from marketplace.portal.paging import page_of
from marketplace.portal.views.terms import is_changeable
from pricing.selectors import levels_of, prices_per_bucket

SPANS = ("day", "hour")
MOST_CONTRACTS = 50
RECENT = 10
RECENT_PERIODS = 24
OWN_KAPPA_SPAN = timedelta(days=30)


@require_safe
@page(OrganizationRole.BUYER)
def home(request: SeatedRequest) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    contracts = contracts_of(organization_id)
    standing = contracts.exclude(status=Contract.Status.ENDED).order_by("-id")[:MOST_CONTRACTS]
    span = _span(request)
    context = {
        "balance": _prepaid(organization_id),
        "holdings": holdings_of(list(standing), now),
        "usage": usage_chart(list(contracts.values_list("id", flat=True)), span=span, now=now),
        "span": span,
        "own_kappas": own_kappas(organization_id=organization_id, since=now - OWN_KAPPA_SPAN, until=now),
        "charges": list(charges_of(organization_id)[:RECENT]),
        "now": now,
        "gateway_url": settings.GATEWAY_URL,
    }
    return render(request, "portal/buyer.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def new_top_up(request: SeatedRequest) -> HttpResponse:
    organization_id = request.seat.organization.id
    form = TopUpForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = top_up(
                organization_id=organization_id,
                amount_micros=form.cleaned_data["amount"],
                operation_id=form.operation_id(organization_id),
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            _tell(request, made)
            return redirect("buyer-top-up" if made.action_url else "buyer-home")
    listed = page_of(top_ups_of(organization_id), request)
    waiting = [top_up.id for top_up in listed.rows if top_up.action_url]
    context = {
        "form": form,
        "balance": _prepaid(organization_id),
        "top_ups": listed,
        "cancellable": cancellable_of(organization_id, waiting),
        "currency": settings.MARKET_CURRENCY,
    }
    return render(request, "portal/top_up.html", context, status=422 if form.is_bound else 200)


@require_safe
@page(OrganizationRole.BUYER)
def contract(request: SeatedRequest, contract_id: UUID) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    found = contract_of(organization_id=organization_id, contract_id=contract_id)
    [holding] = holdings_of([found], now)
    rate = holding.entitlement.rate if holding.entitlement else found.rate
    span = _span(request)
    context = {
        "contract": found,
        "holding": holding,
        "rate": rate,
        "prices": prices_per_bucket(found.grade, rate) if rate else {},
        "periods": [(period, burn_down(period)) for period in entitlements_of(found.id)[:RECENT_PERIODS]],
        "usage": usage_chart([found.id], span=span, now=now),
        "own_kappas": own_kappas(
            organization_id=organization_id, since=now - OWN_KAPPA_SPAN, until=now, contract_id=found.id
        ),
        "span": span,
        "charges": page_of(
            charges_of(organization_id).filter(contract_id=found.id), request, by="period_start"
        ),
        "outcomes": outcomes_of(organization_id).filter(contract_id=found.id)[:RECENT_PERIODS],
        "levels": levels_of(found.grade),
        "services": with_figures(
            service_periods_of(organization_id).filter(contract_id=found.id)[:RECENT_PERIODS]
        ),
        "months": month_outcomes_of(found.id)[:RECENT_PERIODS],
        "events": events_of(found.id).reverse()[:RECENT_PERIODS],
        "changeable": is_changeable(found),
        "unpaid_end": unpaid_end_of(found),
        "renewal": renewal_of(organization_id=organization_id, contract_id=found.id)
        if found.kind == ContractKind.COMMITTED
        else None,
        "now": now,
    }
    return render(request, "portal/contract.html", context)


def _span(request: SeatedRequest) -> str:
    span = request.GET.get("usage", SPANS[0])
    return span if span in SPANS else SPANS[0]


def _prepaid(organization_id: UUID) -> object:
    return balance(
        organization_id=organization_id, kind=AccountKind.PREPAID, currency=settings.MARKET_CURRENCY
    )


def _tell(request: SeatedRequest, made: TopUp) -> None:
    amount = figures.money(made.amount_micros, made.currency)
    if made.status == TopUp.Status.SUCCEEDED:
        messages.success(request, f"{amount} are on your prepaid balance.")
    elif made.status == TopUp.Status.PENDING:
        messages.info(request, f"The payment of {amount} is under way; your balance grows when it arrives.")
    else:
        messages.error(request, f"The payment of {amount} was refused; your balance is as it was.")
