"""Reads over endpoints, events and deliveries; each takes the organization that asks."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet

from marketplace.errors import NotFound
from marketplace.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent


def endpoints_of(organization_id: UUID) -> QuerySet[WebhookEndpoint]:
    return WebhookEndpoint.objects.filter(organization_id=organization_id).order_by("-pk")


def endpoint_of(organization_id: UUID, endpoint_id: UUID) -> WebhookEndpoint:
    """Raises NotFound."""
    endpoint = endpoints_of(organization_id).filter(pk=endpoint_id).first()
    if endpoint is None:
        raise NotFound("There is no such endpoint.")
    return endpoint


def events_of(organization_id: UUID) -> QuerySet[WebhookEvent]:
    return WebhookEvent.objects.filter(organization_id=organization_id).order_by("-pk")


def deliveries_to(endpoint: WebhookEndpoint) -> QuerySet[WebhookDelivery]:
    """With their events and every try, newest delivery first."""
    tries = Prefetch("tries", WebhookAttempt.objects.order_by("number"))
    return (
        WebhookDelivery.objects.filter(endpoint=endpoint)
        .select_related("event")
        .prefetch_related(tries)
        .order_by("-pk")
    )


def payload_of(event: WebhookEvent) -> Any:
    """What was sent, decoded."""
    return json.loads(bytes(event.body))
