"""The saved card, refunds, the provider's account at the processor, and what the processor leaves to the operator."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.billing.models import InvoicePayment, ProcessorOperation, ProcessorReport
from marketplace.billing.services.cancelling import cancel_payment
from marketplace.billing.services.cards import remove_card, saved_card, set_collection
from marketplace.billing.services.collecting import save_card
from marketplace.billing.services.left_to_people import give_up_operation, operations_left_to_people
from marketplace.billing.services.provider_accounts import onboarding_link
from marketplace.billing.services.refunds import find_payment, left_of, refund_payment, refunds_of
from marketplace.errors import DomainError, NotFound
from marketplace.ids import uuid7
from marketplace.isolating import items_left_to_people
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import ReasonForm, RefundForm
from marketplace.portal.paging import page_of

REPORTS = 14
FAILING = 50


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def card(request: SeatedRequest) -> HttpResponse:
    organization_id, now = request.seat.organization.id, clock.now()
    if request.method == "POST":
        action = request.POST.get("action", "")
        try:
            if action == "save":
                left_at = save_card(
                    organization_id=organization_id,
                    operation_id=uuid7(),
                    currency=settings.MARKET_CURRENCY,
                    now=now,
                )
                if left_at.action_url:
                    return _onward(request, left_at.action_url, "Save a card", "buyer-card")
                messages.info(request, "The payment processor cannot be reached: try again in a moment.")
            elif action == "remove":
                remove_card(organization_id=organization_id, now=now, actor=actor_of(request))
                messages.success(request, "The card is forgotten.")
            elif action in ("charge", "ask"):
                set_collection(
                    organization_id=organization_id,
                    collect_automatically=action == "charge",
                    now=now,
                    actor=actor_of(request),
                )
                messages.success(request, "Saved.")
        except DomainError as error:
            _say(request, error)
        return redirect("buyer-card")
    return render(request, "portal/card.html", {"card": saved_card(organization_id)})


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def refund(request: SeatedRequest, payment_id: UUID) -> HttpResponse:
    organization_id = request.seat.organization.id
    payment = find_payment(organization_id, payment_id)
    form = RefundForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = refund_payment(
                organization_id=organization_id,
                payment_id=payment_id,
                amount_micros=form.cleaned_data["amount"],
                operation_id=form.operation_id(organization_id),
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            if made.status == ProcessorOperation.Status.FAILED:
                messages.error(request, "The processor refused it; the money is on your balance again.")
            else:
                messages.success(request, "It is on its way back to the card.")
            return redirect("buyer-refund", payment_id)
    context = {
        "form": form,
        "payment": payment,
        "left_micros": left_of(payment),
        "refunds": refunds_of(organization_id).filter(parent_id=payment.id).order_by("-id"),
        "balance": balance(
            organization_id=organization_id, kind=AccountKind.PREPAID, currency=payment.currency
        ),
    }
    return render(request, "portal/refund.html", context, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.BUYER)
def cancel(request: SeatedRequest, payment_id: UUID) -> HttpResponse:
    """Of a charge that waits for the buyer at his bank, so that he may pay another way."""
    try:
        ended = cancel_payment(
            organization_id=request.seat.organization.id,
            payment_id=payment_id,
            now=clock.now(),
            actor=actor_of(request),
        )
    except DomainError as error:
        if error.http_status == 404:
            raise
        _say(request, error)
        return redirect("buyer-home")
    if ended.status == ProcessorOperation.Status.SUCCEEDED:
        messages.success(request, "It had been paid already, so it counts.")
    else:
        messages.success(request, "Cancelled: nothing was charged.")
    if ended.purpose == ProcessorOperation.Purpose.INVOICE:
        return redirect("buyer-invoice", InvoicePayment.objects.get(pk=payment_id).invoice_id)
    return redirect("buyer-top-up")


@require_POST
@page(OrganizationRole.PROVIDER)
def payout_account(request: SeatedRequest) -> HttpResponse:
    """To the processor's own pages, at a link that is good for minutes."""
    try:
        link = onboarding_link(organization_id=request.seat.organization.id, now=clock.now())
        return _onward(request, link, "Payouts", "provider-earnings")
    except DomainError as error:
        _say(request, error)
    return redirect("provider-earnings")


@require_safe
@page(OrganizationRole.OPERATOR)
def operations(request: SeatedRequest) -> HttpResponse:
    left = operations_left_to_people(clock.now()).select_related("organization")
    context = {
        "operations": page_of(left, request),
        "failing": items_left_to_people().order_by("first_failed_at")[:FAILING],
        "reports": ProcessorReport.objects.order_by("-until")[:REPORTS],
        "now": clock.now(),
    }
    return render(request, "portal/processor.html", context)


@require_POST
@page(OrganizationRole.OPERATOR)
def give_up(request: SeatedRequest, operation_id: UUID) -> HttpResponse:
    form = ReasonForm(request.POST)
    try:
        give_up_operation(
            operation_id=operation_id,
            reason=form.cleaned_data["reason"] if form.is_valid() else "",
            now=clock.now(),
            actor=actor_of(request),
        )
        messages.success(request, "Recorded as never done.")
    except DomainError as error:
        _say(request, error)
    return redirect("operator-processor")


def _onward(request: SeatedRequest, url: str, title: str, back: str) -> HttpResponse:
    """A link to the processor's page: the portal's forms may lead nowhere else by themselves (`form-action`)."""
    return render(request, "portal/onward.html", {"url": url, "title": title, "back": reverse(back)})


def _say(request: SeatedRequest, error: DomainError) -> None:
    if isinstance(error, NotFound) and error.field is None:
        raise error
    messages.error(request, f"{error.detail[:1].upper()}{error.detail[1:].removesuffix('.')}.")
