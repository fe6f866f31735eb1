"""Events reach customers' programs: signed, under one id, until they are taken or three days have gone by."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import ProgrammingError, connections, transaction
from standardwebhooks import Webhook, WebhookVerificationError

from marketplace.accounts.services import SYSTEM
from marketplace.ids import uuid7
from marketplace.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent
from marketplace.webhooks.schedule import GIVE_UP_AFTER, next_attempt
from marketplace.webhooks.sending import Outcome, record_outcome, send_due
from marketplace.webhooks.services import (
    change_endpoint,
    create_endpoint,
    forget_old_events,
    record_event,
    replay_event,
    rotate_secret,
    secrets_of,
    send_test,
)
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.webhooks.receiver import receiving

DATA = {
    "invoice_id": "01",
    "number": "TY-2026-000001",
    "currency": "USD",
    "total_micros": 1_000_000,
    "outstanding_micros": 1_000_000,
}


@pytest.fixture
def acme(committed_db: TestDatabase, now: datetime) -> Party:
    return make_party("Acme", ["buyer"], now)


def listen(
    party: Party, url: str, now: datetime, event_types: Sequence[str] | None = None
) -> WebhookEndpoint:
    return create_endpoint(
        organization_id=party.id, url=url, description="", event_types=event_types, now=now, actor=SYSTEM
    )


@transaction.atomic
def tell(
    party: Party, now: datetime, *, event_type: str = "invoice.issued", fact_id: UUID | None = None
) -> None:
    record_event(
        organization_id=party.id, event_type=event_type, fact_id=fact_id or uuid7(now), data=DATA, now=now
    )


@transaction.atomic
def tell_and_fail(party: Party, now: datetime, *, fact_id: UUID) -> None:
    record_event(organization_id=party.id, event_type="invoice.issued", fact_id=fact_id, data=DATA, now=now)
    raise ZeroDivisionError


def test_an_event_arrives_signed_and_the_specifications_library_verifies_it(
    acme: Party, now: datetime
) -> None:
    with receiving() as receiver:
        endpoint = listen(acme, receiver.url, now)
        tell(acme, now)
        assert send_due(now=now) == 1
    ((headers, body),) = receiver.received
    (secret,) = secrets_of(endpoint, now=now)
    assert Webhook(secret).verify(body, headers) == {
        "type": "invoice.issued",
        "timestamp": "2026-03-10T12:00:00Z",
        "data": DATA,
    }
    assert headers["webhook-id"] == str(WebhookEvent.objects.get().id)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"1000000", b"9000000"), headers)
    assert WebhookDelivery.objects.get().status == WebhookDelivery.Status.DELIVERED
    assert send_due(now=now + timedelta(days=1)) == 0


def test_an_event_is_told_only_if_its_fact_commits_and_once_however_often_it_is_recorded(
    acme: Party, now: datetime
) -> None:
    with receiving() as receiver:
        listen(acme, receiver.url, now)
        fact = uuid7(now)
        with pytest.raises(ZeroDivisionError):
            tell_and_fail(acme, now, fact_id=fact)
        assert send_due(now=now) == 0
        for _ in range(3):
            tell(acme, now, fact_id=fact)
        assert send_due(now=now) == 1
        assert send_due(now=now) == 0
    assert len(receiver.received) == 1


def test_nothing_is_kept_where_nobody_listens_and_an_endpoint_gets_the_types_it_asked_for(
    acme: Party, now: datetime
) -> None:
    tell(acme, now)
    assert not WebhookEvent.objects.exists()
    with receiving() as receiver:
        listen(acme, receiver.url, now, ["payout.paid"])
        tell(acme, now)
        tell(acme, now, event_type="payout.paid")
        send_due(now=now)
    assert [json.loads(body)["type"] for _, body in receiver.received] == ["payout.paid"]


def test_failures_are_tried_again_under_the_same_id_until_one_is_taken(acme: Party, now: datetime) -> None:
    with receiving(500, 302, 204) as receiver:
        endpoint = listen(acme, receiver.url, now)
        tell(acme, now)
        assert send_due(now=now) == 1
        assert send_due(now=now + timedelta(seconds=4)) == 0
        assert send_due(now=now + timedelta(seconds=6)) == 1
        endpoint.refresh_from_db()
        assert endpoint.failing_since == now
        assert send_due(now=now + timedelta(minutes=7)) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len({body for _, body in receiver.received}) == 1
    assert list(WebhookAttempt.objects.order_by("number").values_list("response_status", "problem")) == [
        (500, "answered 500"),
        (302, "answered 302"),
        (204, ""),
    ]
    endpoint.refresh_from_db()
    assert endpoint.failing_since is None


def test_who_is_down_for_a_day_gets_everything_and_who_is_down_for_three_is_disabled(
    acme: Party, now: datetime
) -> None:
    with receiving() as receiver:
        endpoint = listen(acme, "http://127.0.0.1:9/closed", now)
        tell(acme, now)
        at, tries = now, 0
        while at < now + timedelta(hours=24):
            tries += send_due(now=at)
            at += timedelta(hours=1)
        assert tries >= 5
        change_endpoint(
            organization_id=acme.id,
            endpoint_id=endpoint.id,
            changes={"url": receiver.url},
            now=at,
            actor=SYSTEM,
        )
        while not receiver.received:
            send_due(now=at)
            at += timedelta(hours=1)
        assert at < now + timedelta(hours=48)

    endpoint = listen(acme, "http://127.0.0.1:9/for-good", now)
    tell(acme, now)
    for hour in range(80):
        send_due(now=now + timedelta(hours=hour))
    endpoint.refresh_from_db()
    assert (endpoint.status, endpoint.disabled_reason) == ("disabled", "failing")
    last = WebhookDelivery.objects.filter(endpoint=endpoint).get()
    assert last.status == WebhookDelivery.Status.FAILED
    assert last.tries.order_by("-number")[0].attempted_at <= now + GIVE_UP_AFTER


def test_410_disables_the_endpoint_at_once(acme: Party, now: datetime) -> None:
    with receiving(410) as receiver:
        endpoint = listen(acme, receiver.url, now)
        tell(acme, now)
        tell(acme, now)
        send_due(now=now)
        endpoint.refresh_from_db()
        assert (endpoint.status, endpoint.disabled_reason) == ("disabled", "gone")
        assert send_due(now=now + timedelta(days=1)) == 0
        tell(acme, now)
        assert not WebhookDelivery.objects.filter(status=WebhookDelivery.Status.PENDING).exists()


def test_a_slow_endpoint_does_not_hold_up_another(acme: Party, now: datetime) -> None:
    mallory = make_party("Mallory", ["buyer"], now)
    with receiving(3.0) as slow, receiving() as quick:
        listen(mallory, slow.url, now)
        listen(acme, quick.url, now)
        for _ in range(5):
            tell(mallory, now)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(_send_elsewhere, now)
            deadline = time.monotonic() + 10
            while not slow.received and time.monotonic() < deadline:
                time.sleep(0.02)
            tell(acme, now)
            began = time.monotonic()
            assert send_due(now=now) == 1
            assert time.monotonic() - began < 2
            assert len(quick.received) == 1
            assert first.result() == 5


def _send_elsewhere(now: datetime) -> int:
    try:
        return send_due(now=now)
    finally:
        connections.close_all()


def test_two_workers_at_once_send_each_delivery_once(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        listen(acme, receiver.url, now)
        for _ in range(10):
            tell(acme, now)
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(_send_elsewhere, [now] * 4)) == 10
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == len(receiver.received) == 10


def test_what_a_dead_worker_claimed_is_tried_again_after_its_lease(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        listen(acme, receiver.url, now)
        tell(acme, now)
        # As a worker leaves it that died between claiming and writing down.
        WebhookDelivery.objects.update(attempts=1, next_attempt_at=now + timedelta(seconds=90))
        assert send_due(now=now + timedelta(seconds=60)) == 0
        assert send_due(now=now + timedelta(seconds=91)) == 1
    late = WebhookDelivery.objects.get()
    assert (late.attempts, late.status) == (2, "delivered")
    # The first worker comes back: its try is history, and changes nothing.
    assert not record_outcome(delivery_id=late.id, attempt=1, outcome=Outcome(500, "late", 1), now=now)
    assert WebhookAttempt.objects.count() == 1


def test_a_rotated_secret_signs_beside_the_former_for_a_day(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        endpoint = listen(acme, receiver.url, now)
        (former,) = secrets_of(endpoint, now=now)
        endpoint = rotate_secret(organization_id=acme.id, endpoint_id=endpoint.id, now=now, actor=SYSTEM)
        newer, kept = secrets_of(endpoint, now=now)
        assert kept == former != newer
        for at in (now, now + timedelta(hours=24)):
            tell(acme, at)
            send_due(now=at)
    (first, second) = receiver.received
    Webhook(former).verify(first[1], first[0])
    Webhook(newer).verify(first[1], first[0])
    Webhook(newer).verify(second[1], second[0])
    with pytest.raises(WebhookVerificationError):
        Webhook(former).verify(second[1], second[0])


def test_a_replay_sends_the_same_bytes_under_the_same_id(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        listen(acme, receiver.url, now)
        tell(acme, now)
        send_due(now=now)
        event = WebhookEvent.objects.get()
        assert replay_event(organization_id=acme.id, event_id=event.id, now=now) == 1
        # On its way already.
        assert replay_event(organization_id=acme.id, event_id=event.id, now=now) == 0
        send_due(now=now)
    assert receiver.received[0][1] == receiver.received[1][1]
    assert receiver.received[0][0]["webhook-id"] == receiver.received[1][0]["webhook-id"]
    assert WebhookDelivery.objects.get().attempts == 2


def test_retry_after_is_believed_up_to_an_hour(acme: Party, now: datetime) -> None:
    with receiving(429) as receiver:
        receiver.headers["Retry-After"] = "120"
        listen(acme, receiver.url, now)
        tell(acme, now)
        send_due(now=now)
        assert send_due(now=now + timedelta(seconds=119)) == 0
        assert send_due(now=now + timedelta(seconds=121)) == 1


def test_what_was_told_is_not_edited(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        endpoint = listen(acme, receiver.url, now)
        send_test(organization_id=acme.id, endpoint_id=endpoint.id, now=now)
        send_due(now=now)
    for model in (WebhookEvent, WebhookAttempt):
        with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
            model.objects.update(id=uuid7(now))


def test_old_events_go_with_their_log(acme: Party, now: datetime) -> None:
    with receiving() as receiver:
        listen(acme, receiver.url, now)
        tell(acme, now)
        send_due(now=now)
        assert forget_old_events(now=now + timedelta(days=30)) == 0
        assert forget_old_events(now=now + timedelta(days=31)) == 1
    assert not WebhookDelivery.objects.exists()


def test_the_pauses_grow_and_the_last_try_is_at_the_end(now: datetime) -> None:
    give_up = now + GIVE_UP_AFTER
    at, tries = now, 1
    pauses: list[float] = []
    while True:
        again = next_attempt(attempts=tries, give_up_at=give_up, asked_s=None, spread=99, now=at)
        if again is None:
            break
        pauses.append((again - at).total_seconds())
        at, tries = again, tries + 1
    assert at == give_up
    assert tries == 10
    assert pauses[:-1] == sorted(pauses[:-1])
