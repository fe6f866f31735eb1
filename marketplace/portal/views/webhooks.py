"""Webhook endpoints of the organization: added, watched, tried and silenced here."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from marketplace import clock
from marketplace.errors import DomainError, InvalidInput
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.forms import WebhookForm
from marketplace.portal.paging import page_of
from marketplace.webhooks import selectors, services
from marketplace.webhooks.catalogue import EVENT_TYPES
from marketplace.webhooks.models import WebhookEndpoint


@require_http_methods(["GET", "HEAD", "POST"])
@page(manage=True)
def endpoints(request: SeatedRequest) -> HttpResponse:
    form = WebhookForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = services.create_endpoint(
                organization_id=request.seat.organization.id,
                url=form.cleaned_data["url"],
                description=form.cleaned_data["description"],
                event_types=form.cleaned_data["event_types"] or None,
                now=clock.now(),
                actor=actor_of(request),
            )
        except DomainError as error:
            form.refuse(error)
        else:
            messages.success(request, "The endpoint is added. Send it a test event to try it.")
            return redirect("webhook", made.pk)
    context = {
        "form": form,
        "endpoints": page_of(selectors.endpoints_of(request.seat.organization.id), request),
        "catalogue": EVENT_TYPES.items(),
        "now": clock.now(),
    }
    return render(request, "portal/webhooks.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(manage=True)
def endpoint(request: SeatedRequest, endpoint_id: UUID) -> HttpResponse:
    found = selectors.endpoint_of(request.seat.organization.id, endpoint_id)
    if request.method == "POST":
        act = _ACTIONS.get(request.POST.get("action", ""), _nothing)
        try:
            messages.success(request, act(request, found))
        except DomainError as error:
            messages.error(request, error.detail)
        return redirect("webhooks") if act is _remove else redirect("webhook", found.pk)
    now = clock.now()
    context = {
        "endpoint": found,
        "secrets": services.secrets_of(found, now=now) if request.seat.may_manage else [],
        "deliveries": page_of(selectors.deliveries_to(found), request),
        "now": now,
    }
    return render(request, "portal/webhook.html", context)


def _nothing(request: SeatedRequest, found: WebhookEndpoint) -> str:
    raise InvalidInput("There is no such button.", field="action")


def _test(request: SeatedRequest, found: WebhookEndpoint) -> str:
    services.send_test(organization_id=request.seat.organization.id, endpoint_id=found.pk, now=clock.now())
    return "A test event is on its way; the log below shows how it went."


def _rotate(request: SeatedRequest, found: WebhookEndpoint) -> str:
    services.rotate_secret(
        organization_id=request.seat.organization.id,
        endpoint_id=found.pk,
        now=clock.now(),
        actor=actor_of(request),
    )
    return "The secret is changed. The former one signs beside it for 24 hours."


def _set(status: str) -> Callable[[SeatedRequest, WebhookEndpoint], str]:
    def act(request: SeatedRequest, found: WebhookEndpoint) -> str:
        services.change_endpoint(
            organization_id=request.seat.organization.id,
            endpoint_id=found.pk,
            changes={"status": status},
            now=clock.now(),
            actor=actor_of(request),
        )
        return f"The endpoint is {status}."

    return act


def _replay(request: SeatedRequest, found: WebhookEndpoint) -> str:
    try:
        event_id = UUID(request.POST.get("event", ""))
    except ValueError:
        raise InvalidInput("This form is damaged; open the page again.", field="event") from None
    count = services.replay_event(
        organization_id=request.seat.organization.id, event_id=event_id, now=clock.now()
    )
    return f"The event is sent again to {count} endpoint{'' if count == 1 else 's'}."


def _remove(request: SeatedRequest, found: WebhookEndpoint) -> str:
    services.remove_endpoint(
        organization_id=request.seat.organization.id,
        endpoint_id=found.pk,
        now=clock.now(),
        actor=actor_of(request),
    )
    return "The endpoint is removed."


_ACTIONS: dict[str, Callable[[SeatedRequest, WebhookEndpoint], str]] = {
    "test": _test,
    "rotate": _rotate,
    "enable": _set(WebhookEndpoint.Status.ACTIVE),
    "disable": _set(WebhookEndpoint.Status.DISABLED),
    "replay": _replay,
    "remove": _remove,
}
