"""Spend caps on the keys' page, automatic top-ups and credit on the top-up page, credit lines of the operator."""

from __future__ import annotations

from typing import Final

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import ApiKey, Organization, OrganizationRole
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.services.auto_top_ups import auto_top_up_of, set_auto_top_up
from marketplace.billing.services.credit_lines import (
    credit_line_of,
    give_credit_line,
    given_lines,
    line_of,
)
from marketplace.contracts.models import SpendCap
from marketplace.contracts.on_demand import choose_on_demand_payment
from marketplace.contracts.spending import set_spend_cap, spent_of
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import PortalForm
from marketplace.portal.paging import page_of
from marketplace.portal.spend_forms import AutoTopUpForm, CreditLineForm, OnDemandPaymentForm, SpendCapForm
from pricing.units import decimal_string

_MOST: Final = 200


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER, manage=True)
def caps(request: SeatedRequest) -> HttpResponse:
    organization_id = request.seat.organization.id
    form = SpendCapForm(request.POST if request.method == "POST" else None)
    keys = list(ApiKey.objects.filter(organization_id=organization_id).order_by("-id")[:_MOST])
    projects = sorted({key.project for key in keys} - {""})
    form.fields["subject"].choices = [  # type: ignore[attr-defined]
        ("organization", "the whole organization"),
        *((f"project:{name}", f"project {name}") for name in projects),
        *((f"api_key:{key.id}", f"key {key.label} (ty_{key.key_id})") for key in keys if not key.revoked_at),
    ]
    if request.method == "POST" and form.is_valid():
        try:
            set_spend_cap(
                organization_id=organization_id,
                **form.subject_terms(),  # type: ignore[arg-type]
                period=form.cleaned_data["period"],
                limit_micros=form.cleaned_data["limit"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The cap is set: it holds from the next request on.")
            return redirect("buyer-spend-caps")
    shown = page_of(
        SpendCap.objects.filter(organization_id=organization_id, limit_micros__isnull=False)
        .select_related("api_key")
        .order_by("-id"),
        request,
    )
    context = {
        "form": form,
        "caps": spent_of(list(shown.rows), now=clock.now()),
        "shown": shown,
        "currency": settings.MARKET_CURRENCY,
    }
    return render(request, "portal/spend_caps.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER, manage=True)
def auto_top_up(request: SeatedRequest) -> HttpResponse:
    organization_id = request.seat.organization.id
    watch = auto_top_up_of(organization_id)
    form = AutoTopUpForm(request.POST if request.method == "POST" else None, initial=_initial(watch))
    if request.method == "POST" and form.is_valid():
        try:
            set_auto_top_up(
                organization_id=organization_id,
                enabled=form.cleaned_data["enabled"],
                threshold_micros=form.cleaned_data["threshold"],
                amount_micros=form.cleaned_data["each"],
                monthly_limit_micros=form.cleaned_data["monthly_limit"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "It is set, and holds from now on.")
            return redirect("buyer-auto-top-up")
    payment = OnDemandPaymentForm(initial={"on_demand_payment": request.seat.organization.on_demand_payment})
    return _render_top_up(request, watch, form, payment)


@require_POST
@page(OrganizationRole.BUYER, manage=True)
def on_demand_payment(request: SeatedRequest) -> HttpResponse:
    organization_id = request.seat.organization.id
    form = OnDemandPaymentForm(request.POST)
    if form.is_valid():
        try:
            choose_on_demand_payment(
                organization_id=organization_id,
                payment=form.cleaned_data["on_demand_payment"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "It is chosen, and pays from the next request on.")
            return redirect("buyer-auto-top-up")
    watch = auto_top_up_of(organization_id)
    return _render_top_up(request, watch, AutoTopUpForm(initial=_initial(watch)), form)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def credit_lines(request: SeatedRequest) -> HttpResponse:
    form = CreditLineForm(request.POST if request.method == "POST" else None)
    buyers = Organization.objects.filter(roles__contains=[OrganizationRole.BUYER]).order_by("name")
    form.fields["organization"].choices = [(str(one.id), one.name) for one in buyers[:1_000]]  # type: ignore[attr-defined]
    if request.method == "POST" and form.is_valid():
        try:
            give_credit_line(
                organization_id=form.cleaned_data["organization"],
                limit_micros=form.cleaned_data["limit"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The line is set: it holds at once.")
            return redirect("operator-credit-lines")
    shown = page_of(given_lines(), request)
    context = {
        "form": form,
        "lines": [(account.organization.name, line_of(account)) for account in shown.rows],
        "shown": shown,
        "currency": settings.MARKET_CURRENCY,
    }
    return render(request, "portal/credit_lines.html", context, status=422 if form.is_bound else 200)


def _initial(watch: AutoTopUp) -> dict[str, object]:
    if not watch.threshold_micros:
        return {}
    amounts = {
        "threshold": watch.threshold_micros,
        "each": watch.amount_micros,
        "monthly_limit": watch.monthly_limit_micros,
    }
    texts = {name: decimal_string(micros, 6, minimum_decimals=2) for name, micros in amounts.items()}
    return {"enabled": watch.status == AutoTopUp.Status.ACTIVE, **texts}


def _render_top_up(
    request: SeatedRequest, watch: AutoTopUp, form: PortalForm, payment: PortalForm
) -> HttpResponse:
    context = {
        "form": form,
        "payment": payment,
        "watch": watch,
        "line": credit_line_of(request.seat.organization.id),
        "currency": settings.MARKET_CURRENCY,
    }
    is_refused = form.is_bound or payment.is_bound
    return render(request, "portal/auto_top_up.html", context, status=422 if is_refused else 200)
