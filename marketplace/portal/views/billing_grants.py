"""The operator's grants: given, refunded as far as they were paid for, revoked; and the trail of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.models import ProcessorOperation
from marketplace.billing.operator_selectors import all_grants, buyers, find_grant, refundable_payments
from marketplace.billing.services.grant_refunds import give_grant_back, refund_id, sendable
from marketplace.billing.services.rehearsing import FiguresChanged, carry_out, rehearse
from marketplace.errors import DomainError
from marketplace.ledger.grants import (
    GrantTerms,
    give_grant,
    paid_part,
    refund_grant,
    refundable,
    revoke_grant,
)
from marketplace.ledger.models import Grant, GrantRefund
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.billing_forms import GiveBackForm, GrantForm, choose
from marketplace.portal.paging import page_of
from marketplace.portal.steps import Look, in_two_steps, trail
from pricing.models import Grade
from pricing.selectors import grades_in_force

_MOST_BUYERS = 1_000
Figures = TypeVar("Figures")


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def grants(request: SeatedRequest) -> HttpResponse:
    now = clock.now()
    form = GrantForm(request.POST if request.method == "POST" else None)
    choose(
        form,
        {
            "organization": [(str(one.id), one.name) for one in buyers()[:_MOST_BUYERS]],
            "grade": [
                ("", "Every grade"),
                *((str(one.id), one.family.title) for one in grades_in_force(now)),
            ],
        },
    )

    def give() -> Grant:
        return give_grant(
            id=form.operation_id(request.seat.organization.id),
            organization_id=form.cleaned_data["organization"],
            terms=GrantTerms(currency=settings.MARKET_CURRENCY, **form.terms()),
            now=now,
            actor=actor_of(request),
        )

    def do(shown: str) -> HttpResponse:
        grant = carry_out(give, _terms_of, shown=shown)
        messages.success(request, "The credit is given and is burned from the next request on.")
        return redirect("operator-billing-grant", grant.id)

    back = reverse("operator-billing-grants")
    answer = in_two_steps(request, form, look=lambda: rehearse(give, _look_at_gift), do=do, back=back)
    if answer is not None:
        return answer
    listed = page_of(all_grants(), request)
    context = {
        "form": form,
        "listed": listed,
        "grades": _titles(listed.rows),
        "now": now,
        "currency": settings.MARKET_CURRENCY,
        "trail": trail(("grant",)),
    }
    return render(request, "portal/billing_grants.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def grant(request: SeatedRequest, grant_id: UUID) -> HttpResponse:
    """One grant; posting gives part of it back."""
    now = clock.now()
    found = find_grant(grant_id)
    form = GiveBackForm(request.POST if request.method == "POST" else None)
    payments = refundable_payments(found.organization_id) if found.cost_basis_ppm else []
    choose(form, {"payment": [("", "The buyer's balance"), *map(_payment_choice, payments)]})

    def tried(amount: int | None, of: Callable[[GrantRefund], Figures]) -> Figures:
        """The ledger's part alone: no processor is asked while it is only looked at."""
        return rehearse(
            lambda: refund_grant(
                id=refund_id(form.operation_id(request.seat.organization.id)),
                grant_id=grant_id,
                amount_micros=amount,
                now=now,
                actor=actor_of(request),
            ),
            of,
        )

    def look() -> Look:
        to_card = form.cleaned_data["payment"] is not None
        return tried(
            form.cleaned_data["amount"], lambda refund: _look_at_refund(found, refund, to_card=to_card)
        )

    def do(shown: str) -> HttpResponse:
        # So much as was shown, not "all": what became free or was used meanwhile is not meant.
        amount = _amount_in(shown)
        if tried(amount, _figures) != shown:
            raise FiguresChanged("The figures have changed since they were shown: look at them again.")
        given = give_grant_back(
            grant_id=grant_id,
            amount_micros=amount,
            payment_id=form.cleaned_data["payment"],
            operation_id=form.operation_id(request.seat.organization.id),
            now=now,
            actor=actor_of(request),
        )
        if given.sent is not None and given.sent.status == ProcessorOperation.Status.FAILED:
            messages.error(request, "The processor refused it: what was paid is on the buyer's balance.")
        else:
            messages.success(request, "It is given back.")
        return redirect("operator-billing-grant", grant_id)

    back = reverse("operator-billing-grant", args=[grant_id])
    answer = in_two_steps(request, form, look=look, do=do, back=back)
    if answer is not None:
        return answer
    is_open = found.status == Grant.Status.OPEN and (found.expires_at is None or found.expires_at > now)
    context = {
        "grant": found,
        "grade": _titles([found]).get(found.grade_id) if found.grade_id else None,
        "form": form,
        "is_open": is_open,
        "paid_micros": paid_part(found.amount_micros, found.cost_basis_ppm),
        "held_micros": found.account.debits_pending_micros,
        "refundable_micros": refundable(found) if is_open else 0,
        "refunds": list(found.refunds.order_by("-id")),
        "revoked": paid_part(found.free_micros, found.cost_basis_ppm),
        "now": now,
        "trail": trail(("grant",), [found.id]),
    }
    return render(request, "portal/billing_grant.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.OPERATOR, manage=True)
def revoke(request: SeatedRequest, grant_id: UUID) -> HttpResponse:
    found = find_grant(grant_id)
    try:
        revoked = revoke_grant(grant_id=grant_id, now=clock.now(), actor=actor_of(request))
    except DomainError as error:
        messages.error(request, f"{error.detail[:1].upper()}{error.detail[1:]}.")
    else:
        messages.success(request, f"Revoked: {figures.money(revoked, found.currency)} of it was unused.")
    return redirect("operator-billing-grant", grant_id)


def _payment_choice(payment: ProcessorOperation) -> tuple[str, str]:
    left = figures.money(payment.amount_micros - payment.refunded_micros, payment.currency)
    what = "Top-up" if payment.purpose == ProcessorOperation.Purpose.TOP_UP else "Invoice payment"
    return str(
        payment.subject_id
    ), f"Its card: {what} of {figures.day_time(payment.requested_at)}, {left} left"


def _titles(listed: list[Grant]) -> dict[UUID, str]:
    ids = {one.grade_id for one in listed if one.grade_id}
    rows = Grade.objects.filter(id__in=ids).select_related("family") if ids else ()
    return {one.id: f"{one.family.title} v{one.version}" for one in rows}


def _terms_of(grant: Grant) -> str:
    return f"{grant.organization_id}:{grant.kind}:{grant.amount_micros}:{grant.cost_basis_ppm}"


def _look_at_gift(grant: Grant) -> Look:
    paid = paid_part(grant.amount_micros, grant.cost_basis_ppm)
    return Look(
        title=f"Credit for {grant.organization.name}",
        lead="Burned before the balance, at the priority "
        f"{grant.priority}, until {f'{grant.expires_at:%d %b %Y %H:%M}' if grant.expires_at else 'it is used up'}.",
        rows=[
            ("The buyer pays from his balance", figures.money(paid, grant.currency)),
            ("The market gives", figures.money(grant.amount_micros - paid, grant.currency)),
        ],
        totals=[("Credit", figures.money(grant.amount_micros, grant.currency))],
        warning="It moves money at once. What is unused can be refunded or revoked later.",
        button="Give the credit",
        shown=_terms_of(grant),
    )


def _figures(refund: GrantRefund) -> str:
    return f"{refund.amount_micros}:{refund.paid_micros}"


def _amount_in(shown: str) -> int:
    amount, _, _ = shown.partition(":")
    if not (amount.isascii() and amount.isdigit() and len(amount) < 20):
        raise FiguresChanged("Look at the figures first.")
    return int(amount)


def _look_at_refund(grant: Grant, refund: GrantRefund, *, to_card: bool) -> Look:
    def money(micros: int) -> str:
        return figures.money(micros, grant.currency)

    sent = sendable(refund.paid_micros, grant.currency) if to_card else 0
    rows = [
        ("Not paid for: back to the market", money(refund.amount_micros - refund.paid_micros)),
        ("Paid for: to the buyer's balance", money(refund.paid_micros - sent)),
    ]
    if to_card:
        rows.append(("Paid for: to the card", money(sent)))
    return Look(
        title=f"Give back credit of {grant.organization.name}",
        lead=f"The cost basis is {figures.percent(grant.cost_basis_ppm)}, pro rata and rounded down.",
        rows=rows,
        totals=[
            ("Credit that ends", money(refund.amount_micros)),
            ("The buyer gets", money(refund.paid_micros)),
        ],
        warning="This cannot be taken back.",
        button="Give it back" if refund.paid_micros else "Void it",
        shown=_figures(refund),
    )
