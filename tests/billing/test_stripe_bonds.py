"""A bond through the simulated Stripe: on its page, once, and first to pay when the bank takes the payment back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import BondDeposit, PaymentDispute
from marketplace.billing.services.bonds import deposit_bond
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from providers.services import ensure_provider
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def test_a_deposit_waits_for_the_page_and_is_taken_back_first_in_a_dispute(
    market: StripeMarket, now: datetime
) -> None:
    hyperion: Party = make_party("Hyperion", ["provider"], now)
    ensure_provider(organization_id=hyperion.id, display_name="Hyperion", now=now)

    def held() -> int:
        return market.balance(hyperion, AccountKind.BOND).posted_micros

    key = uuid7()

    def deposit() -> BondDeposit:
        return deposit_bond(
            organization_id=hyperion.id,
            amount_micros=40 * UNIT,
            source="processor",
            operation_id=key,
            now=now,
            actor=SYSTEM,
        )

    pending = deposit()
    assert pending.status == BondDeposit.Status.PENDING
    assert pending.action_url.startswith("https://checkout.stripe.test/")
    assert held() == 0
    market.sim.world.pay_checkout(market.collection(pending.id).object_id, "pm_card_bypassPending")
    market.settle()
    market.settle()
    done = deposit()
    assert (done.status, done.action_url) == (BondDeposit.Status.SUCCEEDED, "")
    assert held() == 40 * UNIT
    assert market.balance(hyperion, AccountKind.PREPAID).posted_micros == 0
    market.sim.world.dispute(market.collection(pending.id).charge_object_id)
    market.settle()
    dispute = PaymentDispute.objects.get()
    assert (dispute.amount_micros, dispute.from_balance_micros) == (40 * UNIT, 40 * UNIT)
    assert held() == 0
    market.sim.world.close_dispute(dispute.object_id, won=True)
    market.settle()
    assert held() == 40 * UNIT
    assert compare_balances(now=now).difference_micros == 0
    market.assert_books_balance()
