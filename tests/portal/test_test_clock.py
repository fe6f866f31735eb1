"""The test clock in the portal: given, moved and removed by owners, and shown on every page."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from marketplace.accounts.models import Membership, OrganizationClock
from marketplace.accounts.organization_clocks import clock_of
from marketplace.billing.services.clock_walks import walk_clocks
from tests.cast import PASSWORD, Party


@pytest.fixture
def browser(acme: Party) -> Client:
    client = Client()
    assert client.login(username=acme.user.email, password=PASSWORD)
    return client


def test_an_owner_gives_moves_and_removes_it(acme: Party, browser: Client) -> None:
    assert "Give it a test clock" in browser.get("/test-clock").content.decode()
    assert "test-clock" not in browser.get("/buyer").content.decode().split("<h1>")[0]
    assert browser.post("/test-clock", {"action": "create"}).status_code == 302
    to = (timezone.now() + timedelta(days=90)).astimezone(UTC).replace(microsecond=0)
    form = {"action": "advance", "to": to.strftime("%Y-%m-%dT%H:%M:%S")}
    assert browser.post("/test-clock", form).status_code == 302
    assert "On its way to" in browser.get("/test-clock").content.decode()
    refused = browser.post("/test-clock", form)
    assert (refused.status_code, "advancing" in refused.content.decode()) == (422, True)
    assert walk_clocks(now=timezone.now()) == 1
    for page in ("/buyer", "/buyer/invoices", "/buyer/buy", "/test-clock"):
        shown = browser.get(page).content.decode()
        assert 'Test clock</a>: <time datetime="' + to.isoformat() in shown
    browser.post("/test-clock", {"action": "remove"})
    assert clock_of(acme.id).now_at == to
    back = browser.post("/test-clock", {**form, "to": "2026-01-01T00:00:00"})
    assert (back.status_code, "never goes back" in back.content.decode()) == (422, True)
    assert browser.post("/test-clock", {"action": "surprise"}).status_code == 200


def test_one_that_stands_at_real_time_goes_again(acme: Party, browser: Client) -> None:
    browser.post("/test-clock", {"action": "create"})
    browser.post("/test-clock", {"action": "remove"})
    assert not OrganizationClock.objects.exists()


def test_who_does_not_own_the_organization_only_looks(acme: Party, browser: Client) -> None:
    Membership.objects.filter(organization=acme.id).update(role=Membership.Role.MEMBER)
    assert "Give it a test clock" not in browser.get("/test-clock").content.decode()
    assert browser.post("/test-clock", {"action": "create"}).status_code == 403
    assert not OrganizationClock.objects.exists()


def test_where_money_is_real_the_page_says_so(acme: Party, browser: Client, settings: Settings) -> None:
    settings.PAYMENT_PROCESSOR = "stripe"
    assert "in the sandbox only" in browser.get("/test-clock").content.decode()
    assert browser.post("/test-clock", {"action": "create"}).status_code == 302
    assert not OrganizationClock.objects.exists()
