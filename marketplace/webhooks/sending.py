"""Deliveries on their way: claimed by lease, tried with no transaction open, and what came of it written down.

A worker that dies leaves leases behind; after them another tries again, with the same `webhook-id`. Every try is
bounded in time and bytes, follows no redirect and, on an open market, connects to public addresses only. Each endpoint
has a few tries at once and one alone while it fails, so a slow one holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from django.conf import settings
from django.db import connection, transaction

from marketplace import clock
from marketplace.egress import PublicResolver
from marketplace.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from marketplace.webhooks.schedule import GIVE_UP_AFTER, next_attempt
from marketplace.webhooks.services import fail_pending, secrets_of
from marketplace.webhooks.signing import signed_headers

_TIMEOUT_S: Final = 15.0
_CONNECT_S: Final = 5.0
# Longer than any try with its writing down.
_LEASE: Final = timedelta(seconds=90)
_AT_ONCE: Final = 50
_MOST: Final = 200
_READ_BYTES: Final = 4_096
_GONE: Final = 410
_USER_AGENT: Final = "Tokenyard-Webhooks/1"

_CLAIM = """
UPDATE webhooks_webhookdelivery AS delivery
   SET next_attempt_at = %(lease)s, attempts = attempts + 1
 WHERE id IN (
    SELECT due.id FROM webhooks_webhookendpoint AS endpoint
     CROSS JOIN LATERAL (
        SELECT waiting.id FROM webhooks_webhookdelivery AS waiting
         WHERE waiting.endpoint_id = endpoint.id AND waiting.status = 'pending'
           AND waiting.next_attempt_at <= %(now)s
         ORDER BY waiting.next_attempt_at
         LIMIT CASE WHEN endpoint.failing_since IS NULL THEN 10 ELSE 1 END
         FOR UPDATE SKIP LOCKED
     ) AS due
     WHERE endpoint.status = 'active'
     LIMIT %(most)s
 )
RETURNING delivery.id
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one try; `status` is null and `problem` says why when nobody answered."""

    status: int | None
    problem: str
    duration_ms: int
    retry_after_s: int | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def send_due(*, now: datetime, most: int = _MOST) -> int:
    """Try what is due, at most `most` deliveries; how many were tried."""
    assert not connection.in_atomic_block, "no transaction is open while a customer's machine is waited for"
    claimed = _claim(now=now, most=most)
    if not claimed:
        return 0
    outcomes = asyncio.run(_try_all(claimed, now))
    for delivery, outcome in zip(claimed, outcomes, strict=True):
        record_outcome(delivery_id=delivery.pk, attempt=delivery.attempts, outcome=outcome, now=now)
    return len(claimed)


@transaction.atomic
def record_outcome(*, delivery_id: UUID, attempt: int, outcome: Outcome, now: datetime) -> bool:
    """Write a try down and decide what follows; False when another has taken the delivery over meanwhile.

    410 disables the endpoint, as the specification says; so do three days without a single success.
    """
    delivery = (
        WebhookDelivery.objects.select_for_update(of=("self",))
        .filter(pk=delivery_id, status=WebhookDelivery.Status.PENDING, attempts=attempt)
        .first()
    )
    if delivery is None:
        return False
    endpoint = WebhookEndpoint.objects.select_for_update().get(pk=delivery.endpoint_id)
    WebhookAttempt.objects.create(
        delivery=delivery,
        number=attempt,
        attempted_at=now,
        duration_ms=outcome.duration_ms,
        response_status=outcome.status,
        problem=outcome.problem,
    )
    if outcome.delivered:
        _end(delivery, WebhookDelivery.Status.DELIVERED, now)
        if endpoint.failing_since is not None:
            endpoint.failing_since = None
            endpoint.save(update_fields=["failing_since"])
        return True
    again = next_attempt(
        attempts=attempt,
        give_up_at=delivery.give_up_at,
        asked_s=outcome.retry_after_s,
        spread=random.randrange(100),
        now=now,
    )
    if again is None:
        _end(delivery, WebhookDelivery.Status.FAILED, now)
    else:
        delivery.next_attempt_at = again
        delivery.save(update_fields=["next_attempt_at"])
    _note_failure(endpoint, gone=outcome.status == _GONE, now=now)
    return True


def _end(delivery: WebhookDelivery, status: str, now: datetime) -> None:
    delivery.status, delivery.next_attempt_at, delivery.ended_at = status, None, now
    delivery.save(update_fields=["status", "next_attempt_at", "ended_at"])


def _note_failure(endpoint: WebhookEndpoint, *, gone: bool, now: datetime) -> None:
    endpoint.failing_since = endpoint.failing_since or now
    if endpoint.status == WebhookEndpoint.Status.ACTIVE and (
        gone or now - endpoint.failing_since >= GIVE_UP_AFTER
    ):
        endpoint.status = WebhookEndpoint.Status.DISABLED
        endpoint.disabled_reason = WebhookEndpoint.Reason.GONE if gone else WebhookEndpoint.Reason.FAILING
        fail_pending(endpoint, now=now)
    endpoint.save(update_fields=["failing_since", "status", "disabled_reason"])


@transaction.atomic
def _claim(*, now: datetime, most: int) -> list[WebhookDelivery]:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"now": now, "lease": now + _LEASE, "most": most})
        ids = [row[0] for row in cursor.fetchall()]
    return list(WebhookDelivery.objects.filter(pk__in=ids).select_related("event", "endpoint").order_by("pk"))


async def _try_all(deliveries: list[WebhookDelivery], now: datetime) -> list[Outcome]:
    resolver: AbstractResolver = ThreadedResolver()
    if not settings.ALLOW_PRIVATE_HOSTS:
        resolver = PublicResolver(resolver)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_AT_ONCE, resolver=resolver, force_close=True),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S, connect=_CONNECT_S),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as client:
        turns = asyncio.Semaphore(_AT_ONCE)
        return await asyncio.gather(*(_try(client, turns, delivery, now) for delivery in deliveries))


async def _try(
    client: aiohttp.ClientSession, turns: asyncio.Semaphore, delivery: WebhookDelivery, now: datetime
) -> Outcome:
    body = bytes(delivery.event.body)
    secrets = secrets_of(delivery.endpoint, now=now)
    async with turns:
        headers = signed_headers(
            event_id=delivery.event_id,
            body=body,
            secrets=secrets,
            # The receiver's clock is the world's, also where the market's was moved.
            at=clock.wall_now(),
        ) | {hdrs.CONTENT_TYPE: "application/json", hdrs.USER_AGENT: _USER_AGENT}
        started = time.monotonic()
        status, problem, retry_after = None, "", None
        try:
            async with client.post(
                delivery.endpoint.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
                retry_after = _seconds(answer.headers.get(hdrs.RETRY_AFTER))
                await answer.content.read(_READ_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # A body that breaks off after a good status was still an answer.
            problem = "" if status is not None else _say(error)
    outcome = Outcome(status, problem, round((time.monotonic() - started) * 1000), retry_after)
    if outcome.delivered or outcome.problem:
        return outcome
    return Outcome(status, f"answered {status}", outcome.duration_ms, retry_after)


def _seconds(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 7 else None


def _say(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "its certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorError | OSError):
        return "cannot be connected to"
    return f"the connection failed ({type(error).__name__})"
