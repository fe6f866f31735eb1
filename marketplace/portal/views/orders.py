"""A buyer's order after it was placed, and the short way to place one: change a bid; keep me covered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.orders.bid_rounds import BidRound, rounds_of
from marketplace.orders.models import Bid
from marketplace.orders.selectors import find_bid, revisions_of
from marketplace.orders.services.bids import terms_of, worst_case_with_tax
from marketplace.orders.services.covering import cover_terms, place_cover
from marketplace.orders.services.revising import revise_bid
from marketplace.orders.terms import BidChanges, BidTerms
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import CoverForm, ReviseForm
from marketplace.portal.views.buying import grade_choices, holding
from pricing.units import decimal_string

RECENT_ROUNDS = 12


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def bid(request: SeatedRequest, bid_id: UUID) -> HttpResponse:
    """One bid with its receipts; posting changes it."""
    organization_id = request.seat.organization.id
    found = find_bid(organization_id, bid_id)
    form = ReviseForm(
        request.POST if request.method == "POST" else None, initial=_as_typed(found), standing=found.standing
    )
    # A grade that the bid names already may be retired since.
    named = {
        row.grade.family.slug: row.grade.family.title
        for row in found.substitutes.all()
        if row.withdrawn_at is None
    }
    form.offer_grades(list({**named, **dict(grade_choices(clock.now()))}.items()))
    if request.method == "POST" and form.is_valid():
        try:
            revise_bid(
                organization_id=organization_id,
                bid_id=bid_id,
                changes=_changes(form, standing=found.standing),
                revision=form.cleaned_data["revision"],
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The bid is changed, and what it holds with it.")
            return redirect("buyer-bid-change", bid_id=bid_id)
    context = {
        "bid": found,
        "form": form,
        "changeable": found.status == Bid.Status.OPEN and request.seat.may_change,
        "receipts": revisions_of(organization_id, bid_id)[:50],
        "rounds": [
            BidRound(auction, bid_id) for auction in rounds_of(organization_id, bid_id)[:RECENT_ROUNDS]
        ],
        "currency": found.grade.currency,
    }
    return render(request, "portal/bid.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def cover(request: SeatedRequest) -> HttpResponse:
    """Keep me covered; posting places the standing bid."""
    now = clock.now()
    form = cover_form(request, now)
    if request.method == "POST" and form.is_valid():
        try:
            place_cover(
                organization_id=request.seat.organization.id,
                terms=_cover_terms(form),
                operation_id=uuid7(),
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "You are covered: the bid stands until you cancel it.")
            return redirect("buyer-bid")
    context = {"cover": form, **_cover_holding(request, form)}
    return render(request, "portal/cover.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.BUYER)
def cover_worst_case(request: SeatedRequest) -> HttpResponse:
    """What the cover typed so far would hold: a fragment, asked for while typing."""
    form = cover_form(request, clock.now())
    form.is_valid()
    return render(request, "portal/fragments/worst_case.html", _cover_holding(request, form))


def cover_form(request: SeatedRequest, now: datetime) -> CoverForm:
    form = CoverForm(request.POST if request.method == "POST" else None)
    form.fields["grade"].choices = grade_choices(now)  # type: ignore[attr-defined]
    return form


def _cover_terms(form: CoverForm) -> BidTerms:
    data = form.cleaned_data
    return cover_terms(
        grade=data["grade"],
        client_id=f"portal-{data['operation']}",
        rate_micros_per_mtok=data["rate"],
        tokens_per_second=data["tokens_per_second"],
    )


def _cover_holding(request: SeatedRequest, form: CoverForm) -> dict[str, object]:
    data = getattr(form, "cleaned_data", {})
    held_micros = 0
    if {"grade", "rate", "tokens_per_second", "operation"} <= data.keys():
        try:
            steps = _cover_terms(form).steps
        except DomainError:
            steps = ()  # Said at the field once it is sent.
        held_micros = worst_case_with_tax(steps, request.seat.organization.tax_ppm)
    return holding(request, held_micros)


def _changes(form: ReviseForm, *, standing: bool) -> BidChanges:
    data = form.cleaned_data
    changes = BidChanges(
        steps=tuple(form.steps),
        min_fill_lots=data["min_fill_lots"] or 0,
        all_or_none=data["all_or_none"],
        max_total_micros_per_day=data["daily_budget"],
        substitutes=tuple(form.substitutes),
    )
    if standing:
        changes["valid_until"] = data["valid_until"]
    return changes


def _as_typed(bid: Bid) -> dict[str, Any]:
    """The bid as its form shows it."""
    terms = terms_of(bid)
    typed: dict[str, Any] = {
        "revision": bid.revision,
        "min_fill_lots": terms.min_fill_lots or "",
        "all_or_none": terms.all_or_none,
        "valid_until": terms.valid_until and terms.valid_until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if terms.max_total_micros_per_day is not None:
        typed["daily_budget"] = decimal_string(terms.max_total_micros_per_day, 6)
    for number, (rate, lots) in enumerate(terms.steps):
        typed[f"rate_{number}"] = decimal_string(rate, 6)
        typed[f"lots_{number}"] = lots
    for number, (grade, adjustment) in enumerate(terms.substitutes):
        typed[f"substitute_{number}"] = grade
        sign = "-" if adjustment < 0 else ""
        typed[f"adjustment_{number}"] = sign + decimal_string(abs(adjustment), 6)
    return typed
