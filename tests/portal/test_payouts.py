"""Bond, consent and destination in the portal: an owner's to change, everybody's in the organization to read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest
from django.test import Client

from marketplace.billing.models import BondDeposit, BondWithdrawal, PayoutDestinationChange
from marketplace.ids import uuid7
from providers.models import Provider
from tests.billing.world import money
from tests.cast import Party, Plant
from tests.portal.conftest import SignIn

PAGE = "/provider/payouts"


@pytest.fixture
def browser(hyperion: Party, plant: Plant, sign_in: SignIn) -> Client:
    return sign_in(hyperion)


def send(browser: Client, action: str, **fields: str) -> str:
    answer = browser.post(PAGE, {"action": action, "operation": str(uuid7()), **fields}, follow=True)
    return str(answer.content.decode())


def test_a_bond_is_put_in_and_taken_out_once_however_often_the_button_is_pressed(
    browser: Client, hyperion: Party
) -> None:
    form = {"action": "deposit", "operation": str(uuid7()), "amount": "25.00", "source": "processor"}
    for _ in range(2):
        assert browser.post(PAGE, form).status_code == 302
    assert money(hyperion, "bond") == 25_000_000
    assert "only 25000000 micros" in send(browser, "withdraw", amount="25.01").lower()
    assert browser.post(PAGE, form | {"action": "withdraw", "amount": "5"}).status_code == 302
    assert (money(hyperion, "bond"), money(hyperion, "payable")) == (20_000_000, 5_000_000)
    assert (BondDeposit.objects.count(), BondWithdrawal.objects.count()) == (1, 1)
    wrong = browser.post(PAGE, form | {"operation": str(uuid7()), "amount": "0.001"})
    assert wrong.status_code == 422
    assert "20.00" in browser.get(PAGE).content.decode()


def test_consent_is_given_and_withdrawn(browser: Client, now: datetime) -> None:
    assert "has not consented to self-billing" in browser.get(PAGE).content.decode()
    send(browser, "consent")
    assert Provider.objects.get().self_billing_consent_at is not None
    assert "has not consented" not in browser.get(PAGE).content.decode()
    send(browser, "no_consent")
    assert Provider.objects.get().self_billing_consent_at is None


def test_a_new_destination_shows_who_was_told_and_may_be_cancelled(browser: Client, hyperion: Party) -> None:
    shown = send(browser, "destination", destination="DE89 3704 0044")
    assert "DE89 3704 0044" in shown
    assert f"{hyperion.user.email} (requested)" in shown
    change = PayoutDestinationChange.objects.get()
    assert Provider.objects.get().payout_destination == ""
    send(browser, "cancel", change=str(change.id))
    change.refresh_from_db()
    assert change.status == PayoutDestinationChange.Status.CANCELLED
    assert "There is no such button" in send(browser, "surprise")
    assert "damaged" in send(browser, "cancel", change="x")


def test_who_may_only_read_changes_nothing(
    browser: Client, hyperion: Party, viewer_of: Callable[[Party], Client], mallory: Party, sign_in: SignIn
) -> None:
    send(browser, "destination", destination="DE89 3704 0044")
    change = PayoutDestinationChange.objects.get()
    viewer = viewer_of(hyperion)
    assert "I agree" not in viewer.get(PAGE).content.decode()
    for action in ("deposit", "withdraw", "destination", "cancel", "consent", "no_consent"):
        assert viewer.post(PAGE, {"action": action, "change": str(change.id)}).status_code == 403
    stranger = sign_in(mallory)
    assert stranger.post(PAGE, {"action": "cancel", "change": str(change.id)}).status_code == 404
    change.refresh_from_db()
    assert change.status == PayoutDestinationChange.Status.PENDING
    assert "DE89" not in stranger.get(PAGE).content.decode()
