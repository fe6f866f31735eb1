"""Against Stripe's own test mode, where a key is given: STRIPE_SMOKE_KEY=sk_test_... Else nothing leaves here."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from marketplace.billing.processors.base import Instruction, Outcome, OutcomeStatus
from marketplace.billing.processors.stripe import StripeProcessor
from marketplace.ids import uuid7


def test_buyer_page_charge_and_refund_against_stripes_test_mode() -> None:
    key = os.environ.get("STRIPE_SMOKE_KEY", "")
    if not key:
        pytest.skip("STRIPE_SMOKE_KEY is not set: NOTHING was run against the real Stripe")
    assert key.startswith(("sk_test_", "rk_test_")), "never with a live key"
    stripe = StripeProcessor(secret_key=key, api_base="https://api.stripe.com", timeout_s=15)
    made = _instruction("payer")
    payer = stripe.perform(made)
    assert payer.status == OutcomeStatus.SUCCEEDED
    assert stripe.perform(made).reference == payer.reference
    assert _found(stripe, made).reference == payer.reference
    pages = {
        "success_url": "https://example.com/",
        "cancel_url": "https://example.com/",
        "description": "Smoke test",
    }
    page = stripe.perform(_instruction("checkout", payer=payer.reference, **pages))
    assert page.action_url.startswith("https://")
    pay = _instruction("charge", payer=payer.reference, payment_method="pm_card_visa", **pages)
    charge = stripe.perform(pay)
    assert charge.status == OutcomeStatus.SUCCEEDED
    assert _found(stripe, pay).charge == charge.charge
    assert stripe.perform(_instruction("refund", charge=charge.charge)).status == OutcomeStatus.SUCCEEDED
    excess = stripe.perform(_instruction("refund", charge=charge.charge))
    assert (excess.status, excess.reason) == (OutcomeStatus.FAILED, "charge_already_refunded")
    asks = _instruction(
        "charge", payer=payer.reference, payment_method="pm_card_authenticationRequired", **pages
    )
    asked = stripe.perform(asks)
    assert asked.status == OutcomeStatus.ACTION_REQUIRED
    assert asked.action_url.startswith("https://")
    assert stripe.balance_micros("USD") is not None


def _found(stripe: StripeProcessor, given: Instruction) -> Outcome:
    found = stripe.find(given)
    assert found is not None
    return found


def _instruction(kind: str, **terms: str) -> Instruction:
    operation_id = uuid7()
    return Instruction(
        operation_id=operation_id,
        kind=kind,
        key=f"smoke-{operation_id.hex}",
        organization_id=operation_id,
        amount_micros=5_000_000,
        currency="USD",
        sent_at=datetime.now(UTC),
        terms=terms,
    )
