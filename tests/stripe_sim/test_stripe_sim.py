"""The simulator itself, driven by Stripe's own SDK: it must refuse what Stripe refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from tests.stripe_sim.app import SECRET_KEY
from tests.stripe_sim.server import StripeSim, sign, stripe_sim


@pytest.fixture
def sim() -> Iterator[StripeSim]:
    with stripe_sim() as made:
        yield made


@pytest.fixture
def client(sim: StripeSim) -> stripe.StripeClient:
    return client_of(sim)


def client_of(sim: StripeSim, *, timeout: float = 5) -> stripe.StripeClient:
    return stripe.StripeClient(
        SECRET_KEY,
        base_addresses={"api": sim.url},
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=timeout),
    )


def charged(client: stripe.StripeClient, amount: int = 1000, card: str = "pm_card_visa", **more: Any) -> Any:
    params: Any = {"amount": amount, "currency": "usd", "payment_method": card, "confirm": True, **more}
    return client.v1.payment_intents.create(params)


def account_of(sim: StripeSim, client: stripe.StripeClient) -> str:
    account = client.v1.accounts.create(
        {"type": "express", "capabilities": {"transfers": {"requested": True}}}
    )
    sim.world.onboard(account.id)
    return account.id


def test_a_key_answers_once_refuses_other_bodies_and_replays_failures(
    sim: StripeSim, client: stripe.StripeClient
) -> None:
    key: Any = {"idempotency_key": "k1"}
    first = client.v1.customers.create({"name": "Acme"}, key)
    assert client.v1.customers.create({"name": "Acme"}, key).id == first.id
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "Mallory"}, key)
    sim.fail("500", "POST /v1/customers")
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            client.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k2"})
    assert len(client.v1.customers.list().data) == 1


def test_a_key_in_use_is_told_so(sim: StripeSim, client: stripe.StripeClient) -> None:
    sim.fail("slow", "POST /v1/customers")
    results: list[str] = []

    def create() -> None:
        results.append(client_of(sim).v1.customers.create({}, {"idempotency_key": "k"}).id)

    other = threading.Thread(target=create)
    other.start()
    time.sleep(0.2)
    with pytest.raises(stripe.StripeError) as caught:
        client.v1.customers.create({}, {"idempotency_key": "k"})
    other.join()
    assert caught.value.http_status == 409
    assert client.v1.customers.create({}, {"idempotency_key": "k"}).id == results[0]


def test_a_key_is_forgotten_after_a_day(sim: StripeSim, client: stripe.StripeClient) -> None:
    first = client.v1.customers.create({}, {"idempotency_key": "k"})
    sim.world.advance(24 * 3600 + 1)
    assert client.v1.customers.create({}, {"idempotency_key": "k"}).id != first.id


def test_unknown_parameters_and_addresses_are_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: colour"):
        charged(client, colour="red")
    for bad in ({"amount": 0}, {"amount": 10**12}, {"currency": "zzz"}):
        with pytest.raises(stripe.InvalidRequestError):
            charged(client, **bad)


def test_cards_are_declined_and_ask_for_authentication(sim: StripeSim, client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.CardError) as declined:
        charged(client, card="pm_card_chargeDeclinedInsufficientFunds")
    refusal: Any = declined.value.error
    assert (declined.value.code, refusal.decline_code) == ("card_declined", "insufficient_funds")
    with pytest.raises(stripe.CardError) as asked:
        charged(client, card="pm_card_authenticationRequired", off_session=True)
    assert asked.value.code == "authentication_required"
    error: Any = asked.value.error
    intent_id = error.payment_intent.id
    again = client.v1.payment_intents.confirm(
        intent_id, {"payment_method": "pm_card_authenticationRequired", "return_url": "https://x.example"}
    )
    assert again.status == "requires_action"
    sim.world.authenticate(intent_id)
    assert client.v1.payment_intents.retrieve(intent_id).status == "succeeded"


def test_refunds_never_exceed_the_charge(client: stripe.StripeClient) -> None:
    intent = charged(client)
    client.v1.refunds.create({"payment_intent": intent.id, "amount": 600})
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        client.v1.refunds.create({"payment_intent": intent.id, "amount": 600})
    client.v1.refunds.create({"payment_intent": intent.id})
    with pytest.raises(stripe.InvalidRequestError, match="already been refunded"):
        client.v1.refunds.create({"payment_intent": intent.id})


def test_setup_and_checkout_save_cards_and_take_money(sim: StripeSim, client: stripe.StripeClient) -> None:
    customer = client.v1.customers.create({}).id
    setup = client.v1.checkout.sessions.create(
        {"mode": "setup", "customer": customer, "currency": "usd", "success_url": "https://x.example"}
    )
    sim.world.pay_checkout(setup.id)
    saved = client.v1.payment_methods.list({"customer": customer}).data
    assert [one.card.last4 for one in saved if one.card] == ["4242"]
    price: Any = {"currency": "usd", "unit_amount": 500, "product_data": {"name": "Credit"}}
    paid = client.v1.checkout.sessions.create(
        {
            "mode": "payment",
            "customer": customer,
            "success_url": "https://x.example",
            "line_items": [{"price_data": price, "quantity": 1}],
        }
    )
    sim.world.pay_checkout(paid.id)
    assert client.v1.checkout.sessions.retrieve(paid.id).payment_status == "paid"


def test_transfers_obey_balances_and_sources(sim: StripeSim, client: stripe.StripeClient) -> None:
    intent = charged(client)
    account = account_of(sim, client)
    plain: Any = {"amount": 800, "currency": "usd", "destination": account}
    with pytest.raises(stripe.InvalidRequestError, match="insufficient available funds"):
        client.v1.transfers.create(plain)
    sourced = plain | {"source_transaction": intent.latest_charge}
    transfer = client.v1.transfers.create(sourced)
    with pytest.raises(stripe.InvalidRequestError, match="200 left"):
        client.v1.transfers.create(sourced)
    as_provider: Any = {"stripe_account": account}
    with pytest.raises(stripe.InvalidRequestError, match="insufficient funds"):
        client.v1.payouts.create({"amount": 800, "currency": "usd"}, as_provider)
    sim.world.advance(3 * 86_400)
    payout = client.v1.payouts.create({"amount": 500, "currency": "usd"}, as_provider)
    assert client.v1.payouts.retrieve(payout.id, options=as_provider).status == "pending"
    with pytest.raises(stripe.InvalidRequestError):  # it is not the platform's
        client.v1.payouts.retrieve(payout.id)
    with pytest.raises(stripe.InvalidRequestError, match="not have enough balance"):
        client.v1.transfers.reversals.create(transfer.id, {"amount": 800})
    client.v1.transfers.reversals.create(transfer.id, {"amount": 300})
    assert client.v1.transfers.retrieve(transfer.id).amount_reversed == 300


def test_an_account_with_requirements_due_gets_no_transfer(client: stripe.StripeClient) -> None:
    account = client.v1.accounts.create({"type": "express"})
    assert account.requirements is not None
    assert account.requirements.currently_due
    with pytest.raises(stripe.InvalidRequestError, match="capabilities"):
        client.v1.transfers.create({"amount": 1, "currency": "usd", "destination": account.id})


def test_disputes_take_money_and_fee_and_give_it_back_when_won(
    sim: StripeSim, client: stripe.StripeClient
) -> None:
    intent = charged(client, card="pm_card_bypassPending")
    before = client.v1.balance.retrieve().available[0].amount
    dispute = sim.world.dispute(intent.latest_charge)
    assert client.v1.balance.retrieve().available[0].amount == before - 1000 - 1500
    sim.world.close_dispute(dispute["id"], won=True)
    assert client.v1.balance.retrieve().available[0].amount == before - 1500


def test_an_answer_that_is_lost_leaves_its_effect(sim: StripeSim, client: stripe.StripeClient) -> None:
    sim.fail("drop", "POST /v1/payment_intents")
    with pytest.raises(stripe.APIConnectionError):
        charged(client)
    assert [one.status for one in client.v1.payment_intents.list().data] == ["succeeded"]
    sim.fail("500_after", "POST /v1/payment_intents")
    with pytest.raises(stripe.APIError):
        charged(client)
    assert len(client.v1.payment_intents.list().data) == 2


def test_busy_and_hanging_servers_are_felt(sim: StripeSim, client: stripe.StripeClient) -> None:
    sim.fail("429", "POST /v1/customers")
    with pytest.raises(stripe.RateLimitError):
        client.v1.customers.create({})
    sim.fail("hang", "POST /v1/customers", seconds=2)
    with pytest.raises(stripe.APIConnectionError):
        client_of(sim, timeout=0.3).v1.customers.create({})


def test_webhooks_verify_with_either_secret_and_come_as_often_as_told(
    sim: StripeSim, client: stripe.StripeClient
) -> None:
    charged(client)
    sim.secrets = ["whsec_old", "whsec_new"]
    seen: list[str] = []

    def receiver(raw: bytes, header: str) -> int:
        for secret in sim.secrets:
            event = stripe.Webhook.construct_event(raw, header, secret)
        seen.append(event.id)
        return 500 if len(seen) == 1 else 200

    kinds = len(sim.queue)
    assert sim.deliver(receiver, times=2, seed=1).count(200) == 2 * kinds - 1
    assert len(sim.queue) == 1
    assert sim.deliver(receiver) == [200]
    stale = sign(b"{}", ["s"], at=int(time.time()) - 301)
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        stripe.Webhook.construct_event(b"{}", stale, "s")


def test_lists_page_in_both_directions(client: stripe.StripeClient) -> None:
    ids = [client.v1.customers.create({}).id for _ in range(5)][::-1]
    assert [one.id for one in client.v1.customers.list({"limit": 2}).auto_paging_iter()] == ids
    assert [one.id for one in client.v1.customers.list({"limit": 2, "ending_before": ids[-1]})] == ids[2:4]
    listed = client.v1.events.list({"types": ["customer.created"], "limit": 100})
    assert len(listed.data) == 5
