"""Webhooks in the portal: added, tried, shown and replayed by owners."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.test import Client
from django.utils import timezone

from marketplace.accounts.models import Membership
from marketplace.webhooks.models import WebhookDelivery, WebhookEndpoint
from marketplace.webhooks.sending import Outcome, record_outcome
from marketplace.webhooks.services import secrets_of
from tests.cast import PASSWORD, Party, make_party

URL = "https://hooks.acme.example/tokenyard"


@pytest.fixture
def acme(db: None, now: datetime) -> Party:
    return make_party("Acme", ["buyer"], now)


@pytest.fixture
def browser(acme: Party) -> Client:
    client = Client()
    assert client.login(username=acme.user.email, password=PASSWORD)
    return client


def added(browser: Client) -> WebhookEndpoint:
    browser.post("/webhooks", {"url": URL, "description": "the books", "event_types": ["invoice.issued"]})
    return WebhookEndpoint.objects.get()


def test_an_endpoint_is_added_tried_and_its_log_read(browser: Client) -> None:
    endpoint = added(browser)
    page = f"/webhooks/{endpoint.id}"
    assert URL in browser.get("/webhooks").content.decode()
    assert browser.post(page, {"action": "test"}).status_code == 302
    delivery = WebhookDelivery.objects.get()
    WebhookDelivery.objects.update(attempts=1)
    record_outcome(
        delivery_id=delivery.id, attempt=1, outcome=Outcome(500, "answered 500", 7), now=timezone.now()
    )
    shown = browser.get(page).content.decode()
    assert "answered 500" in shown
    assert secrets_of(endpoint, now=timezone.now())[0] in shown
    for action, status in (("disable", "disabled"), ("enable", "active")):
        browser.post(page, {"action": action})
        endpoint.refresh_from_db()
        assert endpoint.status == status
    assert browser.post(page, {"action": "replay", "event": str(delivery.event_id)}).status_code == 302
    assert browser.post(page, {"action": "surprise"}, follow=True).status_code == 200
    browser.post(page, {"action": "rotate"})
    assert browser.get(page).content.decode().count("whsec_") == 2
    browser.post(page, {"action": "remove"})
    assert not WebhookEndpoint.objects.exists()


def test_what_the_service_refuses_is_said_at_its_field(browser: Client) -> None:
    answer = browser.post("/webhooks", {"url": "ftp://hooks.acme.example"})
    assert answer.status_code == 422
    assert "http://" in answer.content.decode()
    assert not WebhookEndpoint.objects.exists()


def test_a_member_sees_endpoints_but_no_secret(browser: Client) -> None:
    endpoint = added(browser)
    Membership.objects.update(role=Membership.Role.MEMBER)
    assert "whsec_" not in browser.get(f"/webhooks/{endpoint.id}").content.decode()
    assert browser.post(f"/webhooks/{endpoint.id}", {"action": "rotate"}).status_code == 403
