"""A buyer ends a committed contract early, or asks what other terms would cost."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.billing.services.terminating import terminate_contract
from marketplace.contracts.committed import month_of
from marketplace.contracts.ending import LEAST_NOTICE, first_end, quote_amendment
from marketplace.contracts.models import Contract, ContractKind
from marketplace.contracts.quoting import MAX_START_AHEAD
from marketplace.contracts.selectors import contract_of
from marketplace.contracts.suspending import RUNNING
from marketplace.errors import DomainError, NotFound
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import AmendmentForm, TerminateForm


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER)
def terms(request: SeatedRequest, contract_id: UUID) -> HttpResponse:
    """Both forms; which one was sent, its button says."""
    now, organization_id = clock.now(), request.seat.organization.id
    own_now = billing_now(organization_id, now)
    found = contract_of(organization_id=organization_id, contract_id=contract_id)
    if not is_changeable(found):
        raise NotFound("There is no such page of this contract.")
    posted = request.POST if request.method == "POST" else None
    amending = posted is not None and "amend" in posted
    starts = later_months(found, own_now)
    amendment = AmendmentForm(
        posted if amending else None,
        starts=starts,
        initial={"firm_lots": found.firm_lots, "volume_lots": found.volume_lots, "months": 1},
    )
    ending = TerminateForm(posted if posted is not None and not amending else None)
    if amending and amendment.is_valid():
        try:
            quote = quote_amendment(
                organization_id=organization_id,
                contract_id=contract_id,
                starts_at=datetime.fromisoformat(amendment.cleaned_data["starts_at"]),
                firm_lots=amendment.cleaned_data["firm_lots"],
                volume_lots=amendment.cleaned_data["volume_lots"],
                months=amendment.cleaned_data["months"],
                now=now,
            )
            return redirect("buyer-quote", quote_id=quote.id)
        except DomainError as error:
            amendment.refuse(error)
    if ending.is_bound and ending.is_valid():
        try:
            ended = terminate_contract(
                organization_id=organization_id,
                contract_id=contract_id,
                ends_at=ending.cleaned_data["ends_at"],
                reason=ending.cleaned_data["reason"] or "ended by the buyer",
                operation_id=ending.operation_id(organization_id),
                now=now,
                actor=actor_of(request),
            )
        except DomainError as error:
            ending.refuse(error)
        else:
            fee = figures.money(ended.fee_micros, found.currency)
            refund = figures.money(ended.refund_micros, found.currency)
            messages.success(request, f"The contract ends early. Fee {fee}, given back {refund}, before tax.")
            return redirect("buyer-contract", contract_id=contract_id)
    context = {
        "contract": found,
        "amendment": amendment,
        "ending": ending,
        "first_end": first_end(found, now=own_now),
        "amendable": bool(starts),
        "bound": amendment if amendment.is_bound else ending,
    }
    return render(
        request, "portal/terms.html", context, status=422 if amendment.is_bound or ending.is_bound else 200
    )


def is_changeable(contract: Contract) -> bool:
    """Whether it can be ended or amended at all."""
    return contract.kind == ContractKind.COMMITTED and contract.status in RUNNING


def later_months(contract: Contract, now: datetime) -> list[datetime]:
    """Where an amendment may begin."""
    starts, number = [], 1
    while (month := month_of(contract, number)) is not None:
        if now + LEAST_NOTICE <= month.start <= now + MAX_START_AHEAD:
            starts.append(month.start)
        number += 1
    return starts
