"""The calls that the market makes, one after the other: against the simulator always, and against Stripe's own test
mode where a key is given: STRIPE_SMOKE_KEY=sk_test_... Else nothing leaves here.

STRIPE_SMOKE_ACCOUNT=acct_... is a connected test account that has been through onboarding, with transfers and payouts
on, payouts manual and a bank account: nobody can onboard one from a program.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe as sdk

from marketplace.billing.processor_webhooks import _is_signed
from marketplace.billing.processors.base import Instruction, Outcome, OutcomeStatus
from marketplace.billing.processors.stripe import API_VERSION, StripeProcessor
from marketplace.billing.processors.stripe_objects import notice_of
from marketplace.ids import uuid7
from tests.stripe_sim.app import SECRET_KEY
from tests.stripe_sim.server import sign, stripe_sim

PAGES = {
    "success_url": "https://example.com/",
    "cancel_url": "https://example.com/",
    "description": "Smoke test",
}


@dataclass
class Bench:
    """A processor under test, and the SDK as it comes for what the market leaves to people and browsers."""

    stripe: StripeProcessor
    client: Any

    @classmethod
    def at(cls, api_base: str, key: str) -> Bench:
        client = sdk.StripeClient(key, stripe_version=API_VERSION, base_addresses={"api": api_base})
        return cls(StripeProcessor(secret_key=key, api_base=api_base, timeout_s=15), client.v1)

    def done(self, kind: str, **terms: str) -> Outcome:
        outcome = self.stripe.perform(instruction(kind, **terms))
        assert outcome.status == OutcomeStatus.SUCCEEDED, (kind, outcome)
        return outcome

    def found(self, given: Instruction) -> Outcome:
        found = self.stripe.find(given)
        assert found is not None
        return found


def instruction(kind: str, reference: str = "", **terms: str) -> Instruction:
    operation_id = uuid7()
    return Instruction(
        operation_id=operation_id,
        kind=kind,
        key=f"smoke-{operation_id.hex}",
        organization_id=operation_id,
        amount_micros=5_000_000,
        currency="USD",
        sent_at=datetime.now(UTC),
        reference=reference,
        terms=terms,
    )


def pay_and_refund(bench: Bench) -> None:
    """Buyer, page, charge, refunds, 3-D Secure and its cancelling, a saved card and its end, bounds, events."""
    stripe, began = bench.stripe, datetime.now(UTC) - timedelta(minutes=1)
    made = instruction("payer")
    payer = stripe.perform(made)
    assert payer.status == OutcomeStatus.SUCCEEDED
    assert stripe.perform(made).reference == payer.reference
    assert bench.found(made).reference == payer.reference
    page = stripe.perform(instruction("checkout", payer=payer.reference, **PAGES))
    assert page.action_url.startswith("https://")
    setup = stripe.perform(instruction("save_card", payer=payer.reference, **PAGES))
    assert setup.action_url.startswith("https://")
    # What the page does with a card that is left there.
    card = bench.client.payment_methods.attach("pm_card_visa", {"customer": payer.reference}).id
    pay = instruction("charge", payer=payer.reference, payment_method=card, **PAGES)
    charge = stripe.perform(pay)
    assert charge.status == OutcomeStatus.SUCCEEDED
    assert bench.found(pay).charge == charge.charge
    bench.done("refund", charge=charge.charge)
    excess = stripe.perform(instruction("refund", charge=charge.charge))
    assert (excess.status, excess.reason) == (OutcomeStatus.FAILED, "charge_already_refunded")
    asks = instruction(
        "charge", payer=payer.reference, payment_method="pm_card_authenticationRequired", **PAGES
    )
    asked = stripe.perform(asks)
    assert asked.status == OutcomeStatus.ACTION_REQUIRED
    assert asked.action_url.startswith("https://")
    waiting = instruction("charge", asked.reference)
    assert stripe.cancel(waiting).status == OutcomeStatus.FAILED
    assert stripe.cancel(waiting).status == OutcomeStatus.FAILED
    paid = instruction("charge", charge.reference)
    assert stripe.cancel(paid).status == OutcomeStatus.SUCCEEDED
    for _ in range(2):
        stripe.forget_card(card)
    assert stripe.perform(pay).reference == charge.reference
    small = Instruction(**{**_fields(instruction("charge", **pay.terms)), "amount_micros": 490_000})
    assert stripe.perform(small).reason == "amount_too_small"
    assert stripe.balance_micros("USD") is not None
    told = [one for one in stripe.notices(since=began) if one.operation_id == pay.operation_id]
    assert "payment_intent.succeeded" in {one.event_type for one in told}


def onboard(bench: Bench) -> str:
    """As far as a program comes: the account is made, its link is there, and it is not ready."""
    made = instruction("account", country="US")
    account = bench.stripe.perform(made)
    assert account.status == OutcomeStatus.SUCCEEDED
    assert bench.found(made).reference == account.reference
    pages = {"return_url": "https://example.com/", "refresh_url": "https://example.com/"}
    assert bench.stripe.account_link(account_id=account.reference, **pages).startswith("https://")
    state = bench.stripe.account_state(account.reference)
    assert not state.payouts_enabled
    assert state.requirements_due
    return account.reference


def pay_out(bench: Bench, account: str) -> None:
    """A transfer out of one payment, part of it taken back, the rest sent to the bank."""
    stripe = bench.stripe
    state = stripe.account_state(account)
    assert state.payouts_enabled
    assert state.transfers_enabled
    assert state.bank_account
    payer = bench.done("payer")
    paid = bench.done("charge", payer=payer.reference, payment_method="pm_card_bypassPending", **PAGES)
    # Stripe keeps its fee of the payment, so less than it can be passed on.
    given = Instruction(
        **{
            **_fields(instruction("transfer", destination=account, charge=paid.charge)),
            "amount_micros": 4_000_000,
        }
    )
    transfer = stripe.perform(given)
    assert transfer.status == OutcomeStatus.SUCCEEDED
    assert bench.found(given).reference == transfer.reference
    back = Instruction(
        **{**_fields(instruction("reversal", transfer=transfer.reference)), "amount_micros": 1_000_000}
    )
    assert stripe.perform(back).status == OutcomeStatus.SUCCEEDED
    sent = Instruction(**{**_fields(instruction("payout", destination=account)), "amount_micros": 3_000_000})
    payout = stripe.perform(sent)
    assert payout.status in (OutcomeStatus.PENDING, OutcomeStatus.SUCCEEDED)
    assert bench.found(sent).reference == payout.reference
    moved = {one.source for one in stripe.movements(since=datetime.now(UTC) - timedelta(minutes=5))}
    assert {paid.charge, transfer.reference} <= moved


def hear(bench: Bench, settings: Any) -> None:
    """A real event, signed as Stripe documents it, is let in and read as its object; by another secret it is not."""
    event = next(iter(bench.client.events.list({"limit": 1}).data))
    raw = json.dumps(event.to_dict()).encode()
    settings.STRIPE_WEBHOOK_SECRETS = ["whsec_smoke"]
    assert _is_signed(raw, sign(raw, ["whsec_smoke"]))
    assert not _is_signed(raw, sign(raw, ["whsec_other"]))
    assert not _is_signed(raw, sign(raw, ["whsec_smoke"], at=int(time.time()) - 301))
    assert notice_of(json.loads(raw)) == notice_of(event)


def _fields(given: Instruction) -> dict[str, Any]:
    return {one.name: getattr(given, one.name) for one in fields(given)}


def test_the_simulator_answers_as_the_market_expects_of_stripe(settings: Any) -> None:
    with stripe_sim() as sim:
        bench = Bench.at(sim.url, SECRET_KEY)
        pay_and_refund(bench)
        account = onboard(bench)
        sim.world.onboard(account)
        pay_out(bench, account)
        hear(bench, settings)


def test_the_same_calls_against_stripes_test_mode(settings: Any) -> None:
    bench = _real()
    pay_and_refund(bench)
    onboard(bench)
    hear(bench, settings)


def test_payouts_against_stripes_test_mode() -> None:
    bench, account = _real(), os.environ.get("STRIPE_SMOKE_ACCOUNT", "")
    if not account:
        pytest.skip(
            "STRIPE_SMOKE_ACCOUNT is not set: no transfer, reversal or payout was run at the real Stripe"
        )
    pay_out(bench, account)


def _real() -> Bench:
    key = os.environ.get("STRIPE_SMOKE_KEY", "")
    if not key:
        pytest.skip("STRIPE_SMOKE_KEY is not set: NOTHING was run against the real Stripe")
    assert key.startswith(("sk_test_", "rk_test_")), "never with a live key"
    return Bench.at("https://api.stripe.com", key)
