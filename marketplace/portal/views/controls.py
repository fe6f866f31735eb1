"""The operator's hand on the spot markets: halt and resume, the administered rate, the cap and its reviews."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.errors import DomainError
from marketplace.orders import controls_selectors as selectors
from marketplace.orders.services import controls as services
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import AdministeredRateForm, CapForm, PortalForm, ReasonForm
from pricing.models import Grade
from pricing.selectors import grades_in_force

RECENT = 20


@require_safe
@page(OrganizationRole.OPERATOR)
def controls(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    states = selectors.states_of(list(grades_in_force(now)), now=now)
    return render(request, "portal/controls.html", {"states": states, "now": now})


@require_safe
@page(OrganizationRole.OPERATOR)
def control(request: SeatedRequest, slug: str) -> HttpResponse:
    return _shown(request, _grade(slug))


@require_POST
@page(OrganizationRole.OPERATOR)
def halt(request: SeatedRequest, slug: str) -> HttpResponse:
    grade, form = _grade(slug), ReasonForm(request.POST, auto_id="halt_%s")

    def act() -> None:
        services.halt_market(
            operator_id=request.seat.organization.id,
            grade=grade,
            now=clock.now(),
            actor=actor_of(request),
            **form.cleaned_data,
        )

    return _done(request, grade, "halt", form, act, "Trading is halted. Gates pass without trades.")


@require_POST
@page(OrganizationRole.OPERATOR)
def resume(request: SeatedRequest, slug: str) -> HttpResponse:
    grade, form = _grade(slug), ReasonForm(request.POST, auto_id="resume_%s")

    def act() -> None:
        services.resume_market(
            operator_id=request.seat.organization.id,
            grade=grade,
            now=clock.now(),
            actor=actor_of(request),
            **form.cleaned_data,
        )

    return _done(request, grade, "resume", form, act, "The market trades again from the next gate on.")


@require_POST
@page(OrganizationRole.OPERATOR)
def administered_rate(request: SeatedRequest, slug: str) -> HttpResponse:
    grade, form = _grade(slug), AdministeredRateForm(request.POST, auto_id="rate_%s")

    def act() -> None:
        services.set_administered_rate(
            operator_id=request.seat.organization.id,
            grade=grade,
            rate_micros_per_mtok=form.cleaned_data["rate"],
            reason=form.cleaned_data["reason"],
            now=clock.now(),
            actor=actor_of(request),
        )

    return _done(request, grade, "rate", form, act, "Halted periods published from now on settle at it.")


@require_POST
@page(OrganizationRole.OPERATOR)
def cap(request: SeatedRequest, slug: str) -> HttpResponse:
    grade, form = _grade(slug), CapForm(request.POST, auto_id="cap_%s")

    def act() -> None:
        services.schedule_cap(
            operator_id=request.seat.organization.id,
            grade=grade,
            cap_micros_per_mtok=form.cleaned_data["cap"],
            effective_from=form.cleaned_data["effective_from"],
            reason=form.cleaned_data["reason"],
            now=clock.now(),
            actor=actor_of(request),
        )

    return _done(request, grade, "cap", form, act, "The cap is scheduled.")


@require_POST
@page(OrganizationRole.OPERATOR)
def decline(request: SeatedRequest, review_id: UUID) -> HttpResponse:
    try:
        review = services.decline_cap(
            operator_id=request.seat.organization.id,
            review_id=review_id,
            reason=request.POST.get("reason", ""),
            now=clock.now(),
            actor=actor_of(request),
        )
    except DomainError as error:
        if error.http_status == 404:
            raise
        messages.error(
            request, f"{error.field.capitalize()} {error.detail}." if error.field else error.detail
        )
        return redirect("operator-controls")
    messages.success(request, "Declined: the cap stays as it is.")
    return redirect("operator-control", review.grade.family.slug)


def _grade(slug: str) -> Grade:
    return selectors.grade_named(slug, at=clock.now())


def _done(
    request: SeatedRequest, grade: Grade, name: str, form: PortalForm, act: Callable[[], None], said: str
) -> HttpResponse:
    """Do it and go back to the grade's page, or show the page with what is wrong."""
    if form.is_valid():
        try:
            act()
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, said)
            return redirect("operator-control", grade.family.slug)
    return _shown(request, grade, **{name: form})


def _shown(request: SeatedRequest, grade: Grade, **sent: PortalForm) -> HttpResponse:
    now = clock.now()
    forms: dict[str, PortalForm] = {
        "halt": ReasonForm(auto_id="halt_%s"),
        "resume": ReasonForm(auto_id="resume_%s"),
        "rate": AdministeredRateForm(auto_id="rate_%s"),
        "cap": CapForm(auto_id="cap_%s"),
    }
    context = {
        "state": selectors.state_of(grade, now=now),
        "changes": list(selectors.changes_of(grade)[:RECENT]),
        "reviews": list(selectors.cap_reviews_of(grade)[:RECENT]),
        "forms": {**forms, **sent},
        "wrong": next(iter(sent.values()), None),
        "now": now,
    }
    return render(request, "portal/control.html", context, status=422 if sent else 200)
