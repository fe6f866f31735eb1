"""Buying: a quote and its acceptance, bids and their cancellation."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.services import Actor
from marketplace.billing.services.terminating import amend
from marketplace.contracts.committed import month_price_micros
from marketplace.contracts.models import Contract, Payment, Quote
from marketplace.contracts.quoting import first_open_start
from marketplace.contracts.selectors import latest_entitlements, quote_of
from marketplace.contracts.services import accept_quote, request_quote
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import Balance, balance
from marketplace.orders.selectors import bids_of
from marketplace.orders.services.bids import BidTerms, cancel_bid, place_bid, worst_case_with_tax
from marketplace.periods import contract_month
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import AcceptForm, BidForm, QuoteForm
from marketplace.portal.paging import page_of
from marketplace.portal.views.market import boards_of
from pricing.rating import gross_up
from pricing.selectors import find_grade, grades_in_force, prices_per_bucket
from pricing.units import decimal_string

PERIODS_AHEAD = 12


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def quote_form(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    form = QuoteForm(request.POST if request.method == "POST" else None, initial=_asked(request))
    form.fields["grade"].choices = grade_choices(now)  # type: ignore[attr-defined]
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        try:
            made = request_quote(
                organization_id=request.seat.organization.id,
                grade_slug=data["grade"],
                firm_lots=data["firm_lots"],
                volume_lots=data["volume_lots"],
                months=data["months"],
                starts_at=data["starts_at"],
                take_share_ppm=data["take_share"],
                overage_policy=data["overage_policy"],
                max_rate_micros_per_mtok=data["max_rate"],
                payment=data["payment"],
                rollover_share_ppm=data["rollover_share"] or 0,
                rollover_cap_lots=data["rollover_cap"] or 0,
                now=now,
            )
            return redirect("buyer-quote", quote_id=made.id)
        except DomainError as error:
            form.refuse(error)
    periods_a_month = timedelta(days=30) // timedelta(seconds=settings.DELIVERY_PERIOD_S)
    context = {
        "form": form,
        "boards": boards_of(grades_in_force(now), now),
        "delivery_period": figures.length(timedelta(seconds=settings.DELIVERY_PERIOD_S)),
        "periods_a_month": periods_a_month,
        "starts_at": first_open_start(billing_now(request.seat.organization.id, now)),
        "currency": settings.MARKET_CURRENCY,
    }
    return render(request, "portal/buy.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def quote(request: SeatedRequest, quote_id: UUID) -> HttpResponse:
    """The quote; posting accepts it."""
    now, organization_id = clock.now(), request.seat.organization.id
    found = quote_of(organization_id=organization_id, quote_id=quote_id)
    form = AcceptForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            contract = _accept(found, form.operation_id(organization_id), actor_of(request), now)
        except DomainError as error:
            form.refuse(error)
            found = quote_of(organization_id=organization_id, quote_id=quote_id)
        else:
            messages.success(request, "The contract stands. Its capacity is yours from its start on.")
            return redirect("buyer-contract", contract_id=contract.id)
    month = month_price_micros(found.volume_lots, found.rate_micros_per_mtok)
    grade = find_grade(found.grade_id)
    assert grade is not None
    context = {
        "quote": found,
        "form": form,
        "accepted": found.status == Quote.Status.ACCEPTED,
        "expired": now >= found.expires_at or now >= found.starts_at,
        "good_until": min(found.expires_at, found.starts_at),
        "month_micros": month,
        "first_hold_micros": gross_up(month, request.seat.organization.tax_ppm),
        "prepaid": found.payment == Payment.PREPAID,
        "ends_at": contract_month(found.starts_at, found.months - 1).end,
        "max_rate": decimal_string(found.max_rate_micros_per_mtok or 0, 6),
        "prices": prices_per_bucket(grade, found.rate_micros_per_mtok),
        "balance": _prepaid(organization_id),
        "currency": grade.currency,
        "now": now,
    }
    return render(request, "portal/quote.html", context, status=422 if form.is_bound else 200)


def _accept(quote: Quote, operation_id: UUID, actor: Actor, now: datetime) -> Contract:
    """The contract that the quote becomes, in the place of the one that it amends."""
    organization_id = quote.organization_id
    if quote.amends_id is None:
        return accept_quote(
            organization_id=organization_id,
            quote_id=quote.id,
            operation_id=operation_id,
            now=now,
            actor=actor,
        )
    amended = amend(
        organization_id=organization_id,
        contract_id=quote.amends_id,
        quote_id=quote.id,
        operation_id=operation_id,
        now=now,
        actor=actor,
    )
    assert amended.successor is not None
    return amended.successor


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def bids(request: SeatedRequest) -> HttpResponse:
    now, organization_id = clock.now(), request.seat.organization.id
    form = _bid_form(request, now)
    if request.method == "POST" and form.is_valid():
        try:
            placed = place_bid(
                organization_id=organization_id,
                terms=_terms(form),
                # A new one each time: it is the client id that makes the same form one bid.
                operation_id=uuid7(),
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            how = "stands until you cancel it" if placed.standing else "is in the book of its period"
            messages.success(request, f"The bid {how}.")
            return redirect("buyer-bid")
    rows = bids_of(organization_id).prefetch_related(None)
    listed = page_of(rows.prefetch_related("steps", "substitutes__grade__family"), request)
    context = {
        "form": form,
        "boards": boards_of(grades_in_force(now), now),
        "bids": listed,
        "awards": latest_entitlements([bid.contract_id for bid in listed.rows]),
        **_worst_case(request, form),
        "now": now,
    }
    return render(request, "portal/bids.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.BUYER)
def worst_case(request: SeatedRequest) -> HttpResponse:
    """What the steps typed so far would hold: a fragment, asked for while typing."""
    form = _bid_form(request, clock.now())
    form.is_valid()
    return render(request, "portal/fragments/worst_case.html", _worst_case(request, form))


@require_POST
@page(OrganizationRole.BUYER)
def cancel(request: SeatedRequest, bid_id: UUID) -> HttpResponse:
    try:
        cancel_bid(
            organization_id=request.seat.organization.id,
            bid_id=bid_id,
            now=clock.now(),
            actor=actor_of(request),
        )
        messages.success(request, "The bid is cancelled and what it held is yours again.")
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(request, f"{error.detail} Try again in a moment.")
    return redirect("buyer-bid")


def _asked(request: HttpRequest) -> dict[str, str]:
    """A link may fill in the form: `?grade=...`, or all of an expired quote."""
    names = ("grade", "firm_lots", "volume_lots", "months", "payment", "overage_policy", "max_rate")
    return {name: request.GET[name] for name in names if name in request.GET}


def grade_choices(now: datetime) -> list[tuple[str, str]]:
    return [
        (grade.family.slug, f"{grade.family.title} ({grade.family.model})") for grade in grades_in_force(now)
    ]


def _bid_form(request: SeatedRequest, now: datetime) -> BidForm:
    form = BidForm(request.POST if request.method == "POST" else None, initial=_asked(request))
    form.offer_grades(grade_choices(now))
    length = timedelta(seconds=settings.DELIVERY_PERIOD_S)
    first = first_open_start(now)
    form.fields["period_start"].choices = [  # type: ignore[attr-defined]
        ("", "Every auction (standing)"),
        *(
            (
                (first + length * ahead).isoformat(),
                f"Only {figures.day_time(first + length * ahead)} UTC",
            )
            for ahead in range(PERIODS_AHEAD)
        ),
    ]
    return form


def _terms(form: BidForm) -> BidTerms:
    data = form.cleaned_data
    return BidTerms(
        grade=data["grade"],
        client_id=f"portal-{data['operation']}",
        steps=tuple(form.steps),
        period_start=data["period_start"],
        min_fill_lots=data["min_fill_lots"] or 0,
        all_or_none=data["all_or_none"],
        max_total_micros_per_day=data["daily_budget"],
        valid_until=data["valid_until"],
        substitutes=tuple(form.substitutes),
    )


def _worst_case(request: SeatedRequest, form: BidForm) -> dict[str, object]:
    more = [adjustment for _, adjustment in form.substitutes]
    return holding(request, worst_case_with_tax(form.steps, request.seat.organization.tax_ppm, more))


def holding(request: SeatedRequest, held: int) -> dict[str, object]:
    """What `fragments/worst_case.html` shows of a bid that would hold `held` micros."""
    organization = request.seat.organization
    available = _prepaid(organization.id).available_micros
    return {
        "worst_case_micros": held,
        "available_micros": available,
        "too_much": held > available,
        "taxed": organization.tax_ppm > 0,
        "currency": settings.MARKET_CURRENCY,
    }


def _prepaid(organization_id: UUID) -> Balance:
    return balance(
        organization_id=organization_id, kind=AccountKind.PREPAID, currency=settings.MARKET_CURRENCY
    )
