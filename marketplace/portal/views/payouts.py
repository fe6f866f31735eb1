"""The provider's side of the money: his bond, what is paid out when, his consent, and where payouts go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.billing.models import BondDeposit, Payout, PayoutDestinationChange
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.bonds import deposit_bond, withdraw_bond
from marketplace.billing.services.payout_destinations import (
    MAX_CHARACTERS,
    cancel_destination,
    give_consent,
    request_destination,
    withdraw_consent,
)
from marketplace.contracts.bonds import bond_of
from marketplace.errors import DomainError, InvalidInput
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import DecimalField, OperationForm, PortalForm
from providers.models import Provider

RECENT: Final = 10


class BondDepositForm(OperationForm):
    service_fields = {"amount_micros": "amount"}
    resent = "This form put in another amount before, and that stands. Send it again to put in this one too."
    amount = DecimalField(decimals=6, label="Amount to put in", help_text="In whole minor units.")
    source = forms.ChoiceField(
        label="Out of",
        choices=[("earnings", "what is owed to me"), ("processor", "a new payment")],
    )


class BondWithdrawalForm(OperationForm):
    service_fields = {"amount_micros": "amount"}
    resent = "This form took out another amount before, and that stands. Send it again to take this one too."
    amount = DecimalField(
        decimals=6, label="Amount to take out", help_text="It is paid out with the next payout."
    )


class DestinationForm(OperationForm):
    destination = forms.CharField(
        max_length=MAX_CHARACTERS, label="New destination", help_text="A bank reference, such as an IBAN."
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.PROVIDER, manage=True)
def payouts(request: SeatedRequest) -> HttpResponse:
    """Which form was sent is said by `action`; those without input answer with a message."""
    asked = request.POST.get("action", "") if request.method == "POST" else ""
    bound = {name: make(request.POST if name == asked else None) for name, make in _FORMS.items()}
    if request.method == "POST":
        form = bound.get(asked)
        try:
            if form is None or form.is_valid():
                messages.success(request, _ACTIONS.get(asked, _nothing)(request, form))
                return redirect("provider-payouts")
        except DomainError as error:
            if error.http_status == 404:
                raise
            if form is None:
                messages.error(request, f"{error.detail[:1].upper()}{error.detail[1:]}")
                return redirect("provider-payouts")
            form.refuse(error)
    now, organization_id = clock.now(), request.seat.organization.id
    changes = PayoutDestinationChange.objects.filter(organization_id=organization_id).order_by("-id")
    context = {
        "forms": bound,
        "bond": bond_of(organization_id, now=now),
        "bond_ppm": settings.PROVIDER_BOND_PPM,
        "deposits": BondDeposit.objects.filter(organization_id=organization_id).order_by("-id")[:RECENT],
        "status": payout_status(organization_id, now=billing_now(organization_id, now)),
        "payouts": Payout.objects.filter(organization_id=organization_id)
        .select_related("statement")
        .order_by("-created_at", "-id")[:RECENT],
        "provider": Provider.objects.filter(organization_id=organization_id).first(),
        "changes": changes.prefetch_related("notices")[:RECENT],
        "bank_is_ours": settings.PAYMENT_PROCESSOR == "sandbox",
        "currency": settings.MARKET_CURRENCY,
        "now": now,
    }
    return render(request, "portal/payouts.html", context, status=422 if asked else 200)


def _nothing(request: SeatedRequest, form: PortalForm | None) -> str:
    raise InvalidInput("There is no such button.", field="action")


def _deposit(request: SeatedRequest, form: PortalForm | None) -> str:
    assert isinstance(form, BondDepositForm)
    organization_id = request.seat.organization.id
    made = deposit_bond(
        organization_id=organization_id,
        amount_micros=form.cleaned_data["amount"],
        source=form.cleaned_data["source"],
        operation_id=form.operation_id(organization_id),
        now=clock.now(),
        actor=actor_of(request),
    )
    if made.status == BondDeposit.Status.PENDING:
        return "The payment is on its way; go on below where it asks you to."
    if made.status == BondDeposit.Status.FAILED:
        return "The payment failed: nothing was put in."
    return "It is in your bond."


def _withdraw(request: SeatedRequest, form: PortalForm | None) -> str:
    assert isinstance(form, BondWithdrawalForm)
    organization_id = request.seat.organization.id
    withdraw_bond(
        organization_id=organization_id,
        amount_micros=form.cleaned_data["amount"],
        operation_id=form.operation_id(organization_id),
        now=clock.now(),
        actor=actor_of(request),
    )
    return "It is yours again, and goes out with the next payout."


def _change(request: SeatedRequest, form: PortalForm | None) -> str:
    assert isinstance(form, DestinationForm)
    organization_id = request.seat.organization.id
    request_destination(
        organization_id=organization_id,
        destination=form.cleaned_data["destination"],
        operation_id=form.operation_id(organization_id),
        now=clock.now(),
        actor=actor_of(request),
    )
    return "The change takes effect in 72 hours. All owners have been told."


def _cancel(request: SeatedRequest, form: PortalForm | None) -> str:
    try:
        change_id = UUID(request.POST.get("change", ""))
    except ValueError:
        raise InvalidInput("This form is damaged; open the page again.", field="change") from None
    cancel_destination(
        organization_id=request.seat.organization.id,
        change_id=change_id,
        now=clock.now(),
        actor=actor_of(request),
    )
    return "The change is cancelled; payouts go on as before."


def _consent(request: SeatedRequest, form: PortalForm | None) -> str:
    give_consent(organization_id=request.seat.organization.id, now=clock.now(), actor=actor_of(request))
    return "Thank you. Statements from now on say that you agreed."


def _no_consent(request: SeatedRequest, form: PortalForm | None) -> str:
    withdraw_consent(organization_id=request.seat.organization.id, now=clock.now(), actor=actor_of(request))
    return "Your consent is withdrawn; nothing is paid out until you give it again."


_FORMS: Final[dict[str, type[PortalForm]]] = {
    "deposit": BondDepositForm,
    "withdraw": BondWithdrawalForm,
    "destination": DestinationForm,
}
_ACTIONS: Final[dict[str, Callable[[SeatedRequest, PortalForm | None], str]]] = {
    "deposit": _deposit,
    "withdraw": _withdraw,
    "destination": _change,
    "cancel": _cancel,
    "consent": _consent,
    "no_consent": _no_consent,
}
