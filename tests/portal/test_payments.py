"""Cards, invoices paid by card, refunds, provider accounts and the operator's payments, as people see them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from django.test import Client

from marketplace.accounts.models import Organization
from marketplace.billing.models import ProcessorOperation, ProcessorPayer
from marketplace.ids import uuid7
from tests.billing.stripe_invoices import Owing, owing_market
from tests.billing.stripe_market import UNIT
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.portal.conftest import SignIn


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    with owing_market(now) as made:
        yield made


def text_of(browser: Client, path: str) -> str:
    answer = browser.get(path)
    assert answer.status_code == 200
    return answer.content.decode()


def refund_form(amount: str) -> dict[str, str]:
    return {"operation": str(uuid7()), "amount": amount}


def test_a_payment_that_waits_at_the_bank_is_cancelled(market: Owing, sign_in: SignIn) -> None:
    browser, mallory = sign_in(market.acme), sign_in(make_party("Mallory", ["buyer"], market.now))
    market.save_card("pm_card_authenticationRequired")
    paths = {}
    for asked, page in (
        (market.pay(), f"/buyer/invoices/{market.invoice.id}"),
        (market.top_up(), "/buyer/top-up"),
    ):
        paths[page] = f"/buyer/payments/{asked.id}/cancel"
        assert f'action="{paths[page]}"' in text_of(browser, page)
        assert mallory.post(paths[page]).status_code == 404
    for page, path in paths.items():
        answer = browser.post(path, follow=True)
        assert answer.redirect_chain == [(page, 302)]
        assert "Cancelled: nothing was charged." in answer.content.decode()
        assert "Cancel it" not in answer.content.decode()
    assert {one["status"] for one in market.objects("payment_intent")} == {"canceled"}


def test_a_page_of_the_processors_has_no_button_to_cancel(market: Owing, sign_in: SignIn) -> None:
    browser, asked = sign_in(market.acme), market.pay()
    page = text_of(browser, f"/buyer/invoices/{market.invoice.id}")
    assert "Go on to pay" in page
    assert "Cancel it" not in page
    refused = browser.post(f"/buyer/payments/{asked.id}/cancel", follow=True).content.decode()
    assert "Only a charge that waits for you" in refused


def test_a_bank_account_changed_at_the_processor_is_shown_and_not_cancelled_here(
    market: Owing, sign_in: SignIn
) -> None:
    seller = make_party("Seller", ["provider"], market.now)
    account = market.onboard(seller)
    market.sim.world.change_bank(account.account_id, "6666")
    market.settle()
    page = text_of(sign_in(seller), "/provider/payouts")
    assert "****6666" in page
    assert "takes effect" in page
    assert 'value="cancel"' not in page


def test_a_card_is_saved_left_uncharged_and_removed(market: Owing, sign_in: SignIn) -> None:
    browser = sign_in(market.acme)
    assert "Save a card" in text_of(browser, "/buyer/card")
    left_at = browser.post("/buyer/card", {"action": "save"})
    assert 'href="https://checkout.stripe.test/' in left_at.content.decode()
    market.sim.world.pay_checkout(ProcessorOperation.objects.get(kind="save_card").object_id)
    market.settle()
    assert "visa ending in 4242" in text_of(browser, "/buyer/card")
    browser.post("/buyer/card", {"action": "ask"})
    assert ProcessorPayer.objects.get().collect_automatically is False
    assert "you pay them" in text_of(browser, "/buyer/card")
    removed = browser.post("/buyer/card", {"action": "remove"}, follow=True).content.decode()
    assert "The card is forgotten." in removed
    assert "Save a card" in removed


def test_an_invoice_is_paid_by_card_and_its_link_is_shown(market: Owing, sign_in: SignIn) -> None:
    market.save_card("pm_card_authenticationRequired")
    browser, path = sign_in(market.acme), f"/buyer/invoices/{market.invoice.id}"
    assert "Pay with visa ending in" in text_of(browser, path)
    sent = browser.post(f"{path}/pay", {"source": "processor"}, follow=True).content.decode()
    assert "It waits for you" in sent
    assert 'href="https://hooks.stripe.test/' in sent
    shown = text_of(browser, path)
    assert "Go on to pay" in shown
    assert "action required" in shown.lower()
    assert "Pay from the balance" not in shown
    market.sim.world.authenticate(ProcessorOperation.objects.get(purpose="invoice").object_id)
    market.settle()
    shown = text_of(browser, path)
    assert "Go on to pay" not in shown
    assert "/refund" in shown


def test_a_refund_is_sent_once_and_refused_at_its_field(
    market: Owing, sign_in: SignIn, now: datetime
) -> None:
    market.save_card()
    made = market.top_up(10)
    browser, path = sign_in(market.acme), f"/buyer/payments/{made.id}/refund"
    assert path in text_of(browser, "/buyer/top-up")
    form, before = refund_form("4.00"), market.prepaid()
    for _ in range(2):
        assert browser.post(path, form).status_code == 302
    assert market.prepaid() == before - 4 * UNIT
    assert "succeeded" in text_of(browser, path)
    refused = browser.post(path, refund_form("6.01"))
    assert (refused.status_code, "is left to refund" in refused.content.decode()) == (422, True)
    mallory = make_party("Mallory", ["buyer"], now)
    assert sign_in(mallory).get(path).status_code == 404
    assert sign_in(mallory).post(path, refund_form("1.00")).status_code == 404


def test_a_provider_sets_up_payouts(market: Owing, sign_in: SignIn) -> None:
    hyperion = Organization.objects.get(name="Hyperion")
    owner = Party(hyperion, hyperion.memberships.get().user, uuid7(), "")
    browser = sign_in(owner)
    assert "Set up payouts" in text_of(browser, "/provider/earnings")
    asked = browser.post("/provider/payout-account", follow=True).content.decode()
    assert "Say in which country" in asked
    Organization.objects.filter(pk=hyperion.id).update(country="DE")
    onward = browser.post("/provider/payout-account").content.decode()
    assert 'href="https://connect.stripe.test/' in onward
    assert "<code>onboarding</code>" in text_of(browser, "/provider/earnings")


def test_the_operator_gives_up_what_never_happened(market: Owing, sign_in: SignIn) -> None:
    browser = sign_in(market.operator)
    assert "everything that was asked has its answer" in text_of(browser, "/operator/processor")
    market.save_card()
    market.sim.fail("500", "POST /v1/payment_intents", times=9)
    market.pay()
    market.make_older(timedelta(hours=23))
    market.sweep()
    ProcessorOperation.objects.update(lease_until=None)
    operation = ProcessorOperation.objects.get(purpose="invoice")
    assert str(operation.id) in text_of(browser, "/operator/processor")
    path = f"/operator/processor/{operation.id}/give-up"
    assert "Say why" in browser.post(path, {"reason": " "}, follow=True).content.decode()
    done = browser.post(path, {"reason": "not there"}, follow=True).content.decode()
    assert "Recorded as never done." in done
    operation.refresh_from_db()
    assert (operation.status, market.status()) == ("failed", "finalised")
