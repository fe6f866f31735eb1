"""API keys of the organization: made here, shown once, revoked here."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from marketplace import clock
from marketplace.accounts.models import ApiKey, OrganizationRole
from marketplace.accounts.scopes import scopes_allowed
from marketplace.accounts.selectors import api_keys_of
from marketplace.accounts.services import create_api_key, revoke_api_key
from marketplace.contracts.models import Contract
from marketplace.contracts.selectors import contract_of, contracts_of
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import ApiKeyForm
from marketplace.portal.paging import page_of

SCOPES_SAY = {
    "read": "read: see everything of the organization",
    "inference": "inference: send requests to the gateway",
    "trade": "trade: buy, bid, top up",
    "provide": "provide: manage hosts and offers",
    "manage": "manage: people and keys",
    "operate": "operate: run the market",
}
# What a program that only sends requests needs, and no more.
FIRST_CHOICE = ["read", "inference"]


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.BUYER, manage=True)
def keys(request: SeatedRequest) -> HttpResponse:
    form = _form(request)
    if request.method == "POST" and form.is_valid():
        made = _create(request, form)
        if made is not None:
            api_key, secret = made
            # Not a redirect: the secret is shown in this answer and nowhere else, ever.
            return _render(request, _form(request, blank=True), made=api_key, secret=secret)
    return _render(request, form, status=422 if form.is_bound else 200)


@require_POST
@page(OrganizationRole.BUYER, manage=True)
def revoke(request: SeatedRequest, api_key_id: UUID) -> HttpResponse:
    revoked = revoke_api_key(
        organization_id=request.seat.organization.id,
        api_key_id=api_key_id,
        now=clock.now(),
        actor=actor_of(request),
    )
    messages.success(
        request, f"Key ty_{revoked.key_id} is revoked. Programs that use it stop within seconds."
    )
    return redirect("buyer-keys")


def _create(request: SeatedRequest, form: ApiKeyForm) -> tuple[ApiKey, str] | None:
    now, data = clock.now(), form.cleaned_data
    organization_id = request.seat.organization.id
    days = data["expires_in_days"]
    try:
        if data["default_contract"] is not None:
            contract_of(organization_id=organization_id, contract_id=data["default_contract"])
        return create_api_key(
            organization_id=organization_id,
            label=data["label"],
            scopes=data["scopes"],
            project=data["project"],
            expires_at=now + timedelta(days=days) if days else None,
            default_contract_id=data["default_contract"],
            now=now,
            actor=actor_of(request),
        )
    except DomainError as error:
        form.refuse(error)
        return None


def _form(request: SeatedRequest, *, blank: bool = False) -> ApiKeyForm:
    form = ApiKeyForm(request.POST if request.method == "POST" and not blank else None)
    allowed = scopes_allowed(request.seat.organization.roles)
    form.fields["scopes"].choices = [(scope, SCOPES_SAY[scope]) for scope in allowed]  # type: ignore[attr-defined]
    form.fields["scopes"].initial = [scope for scope in FIRST_CHOICE if scope in allowed]
    active = (
        contracts_of(request.seat.organization.id).filter(status=Contract.Status.ACTIVE).order_by("-id")[:100]
    )
    form.fields["default_contract"].choices = [  # type: ignore[attr-defined]
        ("", "Let the market choose"),
        *(
            (
                str(contract.id),
                f"{contract.kind.replace('_', ' ')}, {contract.grade.family.title} ({contract.id})",
            )
            for contract in active
        ),
    ]
    return form


def _render(
    request: SeatedRequest,
    form: ApiKeyForm,
    *,
    made: ApiKey | None = None,
    secret: str = "",
    status: int = 200,
) -> HttpResponse:
    context = {
        "form": form,
        "keys": page_of(api_keys_of(request.seat.organization.id), request),
        "made": made,
        "secret": secret,
        "gateway_url": settings.GATEWAY_URL,
        "now": clock.now(),
    }
    return render(request, "portal/keys.html", context, status=status)
