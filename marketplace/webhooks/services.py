"""Everything that writes endpoints, events and deliveries, except what comes of sending (`sending`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.egress import check_url
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id, uuid7
from marketplace.webhooks.catalogue import EVENT_TYPES
from marketplace.webhooks.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from marketplace.webhooks.notices import mail_now, mailed_organizations, queue_notices
from marketplace.webhooks.schedule import GIVE_UP_AFTER
from marketplace.webhooks.signing import signing_secret

MOST_ENDPOINTS: Final = 10
# How long the former secret signs beside the new one.
ROTATION: Final = timedelta(hours=24)
KEPT: Final = timedelta(days=30)
_TEST: Final = "endpoint.test"

# One statement however many facts: an event only where somebody listens, and a delivery for each who does.
_RECORD = """
WITH facts AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(bodies)s::bytea[])
        AS f (id, organization_id, body)
), listening AS (
    SELECT id, organization_id FROM webhooks_webhookendpoint
     WHERE organization_id = ANY (%(organizations)s::uuid[]) AND status = 'active'
       AND (cardinality(event_types) = 0 OR %(type)s = ANY (event_types))
), told AS (
    INSERT INTO webhooks_webhookevent (id, organization_id, type, body, occurred_at, created_at)
    SELECT id, organization_id, %(type)s, body, %(now)s, %(now)s FROM facts
     WHERE organization_id IN (SELECT organization_id FROM listening)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, organization_id
)
INSERT INTO webhooks_webhookdelivery (id, event_id, endpoint_id, status, attempts, next_attempt_at, give_up_at)
SELECT uuidv7(), told.id, listening.id, 'pending', 0, %(now)s, %(give_up)s
  FROM told JOIN listening USING (organization_id)
"""
_REPLAY = """
INSERT INTO webhooks_webhookdelivery (id, event_id, endpoint_id, status, attempts, next_attempt_at, give_up_at)
SELECT uuidv7(), %(event)s, id, 'pending', 0, %(now)s, %(give_up)s FROM webhooks_webhookendpoint
 WHERE organization_id = %(organization)s AND status = 'active'
   AND (cardinality(event_types) = 0 OR %(type)s = ANY (event_types))
ON CONFLICT ON CONSTRAINT webhooks_delivery_one_per_endpoint DO UPDATE
   SET status = 'pending', next_attempt_at = excluded.next_attempt_at, give_up_at = excluded.give_up_at,
       ended_at = NULL
 WHERE webhooks_webhookdelivery.status <> 'pending'
"""


class Fact(NamedTuple):
    """What to tell an organization. `data` must go into JSON without floats."""

    organization_id: UUID
    fact_id: UUID
    data: Mapping[str, Any]


def record_event(
    *, organization_id: UUID, event_type: str, fact_id: UUID, data: Mapping[str, Any], now: datetime
) -> None:
    """Tell an organization's endpoints, and its people by mail, that something happened, in the caller's transaction:
    it is told if, and only if, that commits. The same `event_type` of the same `fact_id` is told once. `data` must go
    into JSON without floats.
    """
    record_events([Fact(organization_id, fact_id, data)], event_type=event_type, now=now)


def record_events(facts: Sequence[Fact], *, event_type: str, now: datetime) -> None:
    """As `record_event`, of many facts of one type in one statement. Cheapest where the caller leaves out those to
    whom nobody listens (`organizations_listening`)."""
    assert connection.in_atomic_block, "an event commits with what it tells"
    assert event_type in EVENT_TYPES, event_type
    if not facts:
        return
    queue_notices(facts, event_type=event_type, now=now)
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORD,
            {
                "ids": [
                    derived_id(fact.fact_id, f"webhook:{event_type}:{fact.organization_id}") for fact in facts
                ],
                "organizations": [fact.organization_id for fact in facts],
                "bodies": [_body(event_type, fact.data, now) for fact in facts],
                "type": event_type,
                "now": now,
                "give_up": now + GIVE_UP_AFTER,
            },
        )


def organizations_listening(event_type: str) -> list[UUID]:
    """Those with an endpoint that is told of this type now, and those who are mailed of it."""
    active = WebhookEndpoint.objects.filter(status=WebhookEndpoint.Status.ACTIVE)
    told = active.filter(Q(event_types=[]) | Q(event_types__contains=[event_type]))
    listening = told.order_by().values_list("organization_id", flat=True)
    return list({*listening, *mailed_organizations(event_type)})


@transaction.atomic
def create_endpoint(
    *,
    organization_id: UUID,
    url: str,
    description: str,
    event_types: Sequence[str] | None,
    now: datetime,
    actor: Actor,
) -> WebhookEndpoint:
    """A new address to tell; `event_types` None for all of them.

    Raises InvalidInput (url, event_types), Conflict (too many, or this one is there).
    """
    url, event_types = _checked_url(url), _checked_types(event_types)
    # The organization's row is the lock of the count.
    Organization.objects.select_for_update(no_key=True).get(pk=organization_id)
    present = WebhookEndpoint.objects.filter(organization_id=organization_id)
    if present.count() >= MOST_ENDPOINTS:
        raise Conflict(f"An organization has at most {MOST_ENDPOINTS} endpoints; remove one first.")
    if present.filter(url=url).exists():
        raise Conflict("There is an endpoint with this address already.", field="url")
    endpoint = WebhookEndpoint.objects.create(
        organization_id=organization_id,
        url=url,
        description=description,
        event_types=event_types,
        created_at=now,
    )
    _audit(endpoint, "webhook_endpoint.created", actor, now)
    return endpoint


@transaction.atomic
def change_endpoint(
    *,
    organization_id: UUID,
    endpoint_id: UUID,
    changes: Mapping[str, Any],
    now: datetime,
    actor: Actor,
) -> WebhookEndpoint:
    """Change url, description, event_types or status (`active` or `disabled`). Raises NotFound, InvalidInput.

    Made active again, an endpoint starts afresh: what failed meanwhile comes only when it is replayed.
    """
    assert set(changes) <= {"url", "description", "event_types", "status"}
    endpoint = _locked(organization_id, endpoint_id)
    if "url" in changes:
        endpoint.url = _checked_url(changes["url"])
    if "event_types" in changes:
        endpoint.event_types = _checked_types(changes["event_types"])
    endpoint.description = changes.get("description", endpoint.description)
    if "status" in changes and changes["status"] != endpoint.status:
        endpoint.status = changes["status"]
        active = endpoint.status == WebhookEndpoint.Status.ACTIVE
        endpoint.disabled_reason = "" if active else WebhookEndpoint.Reason.ASKED
        endpoint.failing_since = None
        if not active:
            fail_pending(endpoint, now=now)
    endpoint.save()
    _audit(endpoint, "webhook_endpoint.changed", actor, now)
    return endpoint


@transaction.atomic
def remove_endpoint(*, organization_id: UUID, endpoint_id: UUID, now: datetime, actor: Actor) -> None:
    """For good, with its log. Raises NotFound."""
    endpoint = _locked(organization_id, endpoint_id)
    _audit(endpoint, "webhook_endpoint.removed", actor, now)
    endpoint.delete()


@transaction.atomic
def rotate_secret(
    *, organization_id: UUID, endpoint_id: UUID, now: datetime, actor: Actor
) -> WebhookEndpoint:
    """A new signing secret; for 24 hours deliveries carry a signature of the former one too.

    Raises NotFound, Conflict while a rotation is under way: a third secret would cut the first one off early.
    """
    endpoint = _locked(organization_id, endpoint_id)
    if endpoint.rotated_until is not None and endpoint.rotated_until > now:
        raise Conflict(
            "The secret was changed less than 24 hours ago; the former one still signs until then."
        )
    endpoint.secret_version = F("secret_version") + 1
    endpoint.rotated_until = now + ROTATION
    endpoint.save(update_fields=["secret_version", "rotated_until"])
    endpoint.refresh_from_db()
    _audit(endpoint, "webhook_endpoint.secret_rotated", actor, now)
    return endpoint


@transaction.atomic
def send_test(*, organization_id: UUID, endpoint_id: UUID, now: datetime) -> WebhookDelivery:
    """An `endpoint.test` event to this endpoint alone. Raises NotFound, Conflict when it is disabled."""
    endpoint = _locked(organization_id, endpoint_id)
    if endpoint.status != WebhookEndpoint.Status.ACTIVE:
        raise Conflict("The endpoint is disabled.", field="status")
    event = WebhookEvent.objects.create(
        id=uuid7(now),
        organization_id=organization_id,
        type=_TEST,
        body=_body(_TEST, {"endpoint_id": str(endpoint.pk)}, now),
        occurred_at=now,
        created_at=now,
    )
    return WebhookDelivery.objects.create(
        event=event, endpoint=endpoint, next_attempt_at=now, give_up_at=now + GIVE_UP_AFTER
    )


@transaction.atomic
def replay_event(*, organization_id: UUID, event_id: UUID, now: datetime) -> int:
    """Send an event again, under its own id, to every endpoint that listens now; to how many. What is still on its way
    is left alone. Raises NotFound, also for what is no longer kept.
    """
    event = WebhookEvent.objects.filter(pk=event_id, organization_id=organization_id).first()
    if event is None:
        raise NotFound("There is no such event.")
    with connection.cursor() as cursor:
        cursor.execute(
            _REPLAY,
            {
                "event": event.pk,
                "organization": organization_id,
                "type": event.type,
                "now": now,
                "give_up": now + GIVE_UP_AFTER,
            },
        )
        sent: int = cursor.rowcount
    return sent


def deliver_now(*, organization_id: UUID, now: datetime) -> int:
    """Send what is dated ahead of `now`, which is real, now: an organization's test clock dates facts, not deliveries.

    How many deliveries; mails go too. The body keeps the fact's time; retries, signatures and the log have real time.
    """
    mail_now(organization_id=organization_id, now=now)
    # What has been touched once lies before its event's date: a retry, or the lease of whoever is trying.
    ahead = WebhookDelivery.objects.filter(
        event__organization_id=organization_id,
        event__created_at__gt=now,
        next_attempt_at__gte=F("event__created_at"),
        status=WebhookDelivery.Status.PENDING,
    )
    return ahead.update(next_attempt_at=now, give_up_at=now + GIVE_UP_AFTER)


def forget_old_events(*, now: datetime, limit: int = 5_000) -> int:
    """Drop events older than 30 days with their log, at most `limit` of them; how many."""
    old = WebhookEvent.objects.filter(created_at__lt=now - KEPT).order_by("created_at")
    ids = list(old.values_list("pk", flat=True)[:limit])
    WebhookDelivery.objects.filter(event__in=ids).delete()
    gone, _ = WebhookEvent.objects.filter(pk__in=ids).delete()
    return gone


def secrets_of(endpoint: WebhookEndpoint, *, now: datetime) -> list[str]:
    """The secrets that sign now, newest first: two while a rotation is under way."""
    versions = [endpoint.secret_version]
    if endpoint.rotated_until is not None and endpoint.rotated_until > now:
        versions.append(endpoint.secret_version - 1)
    return [
        signing_secret(endpoint.pk, version=version, master=settings.MARKET_SIGNING_KEY)
        for version in versions
    ]


def fail_pending(endpoint: WebhookEndpoint, *, now: datetime) -> None:
    """End what is on its way to an endpoint that is not told any more."""
    WebhookDelivery.objects.filter(endpoint=endpoint, status=WebhookDelivery.Status.PENDING).update(
        status=WebhookDelivery.Status.FAILED, next_attempt_at=None, ended_at=now
    )


def _body(event_type: str, data: Mapping[str, Any], now: datetime) -> bytes:
    timestamp = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
    envelope = {"type": event_type, "timestamp": timestamp, "data": data}
    return json.dumps(envelope, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def _checked_url(url: str) -> str:
    checked = check_url(url, allow_private=settings.ALLOW_PRIVATE_HOSTS, field="url")
    if checked.startswith("http://") and not settings.ALLOW_PRIVATE_HOSTS:
        raise InvalidInput("It must begin with https://.", field="url")
    return checked


def _checked_types(event_types: Sequence[str] | None) -> list[str]:
    if event_types is None:
        return []
    unknown = sorted(set(event_types) - set(EVENT_TYPES))
    if unknown:
        raise InvalidInput(
            f"It must name event types from {', '.join(sorted(EVENT_TYPES))}.", field="event_types"
        )
    if len(set(event_types)) != len(event_types):
        raise InvalidInput("It must name each event type once.", field="event_types")
    return sorted(event_types)


def _locked(organization_id: UUID, endpoint_id: UUID) -> WebhookEndpoint:
    endpoint = (
        WebhookEndpoint.objects.select_for_update()
        .filter(pk=endpoint_id, organization_id=organization_id)
        .first()
    )
    if endpoint is None:
        raise NotFound("There is no such endpoint.")
    return endpoint


def _audit(endpoint: WebhookEndpoint, action: str, actor: Actor, now: datetime) -> None:
    record_audit(
        organization_id=endpoint.organization_id,
        actor=actor,
        action=action,
        object_kind="webhook_endpoint",
        object_id=endpoint.pk,
        detail={"url": endpoint.url, "status": endpoint.status},
        now=now,
    )
