"""Money out through the simulated Stripe: onboarding, transfers out of payments, reversals, disputes, banks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.accounts.models import Organization
from marketplace.billing.models import (
    DisputeShare,
    PaymentDispute,
    Payout,
    ProcessorOperation,
    Statement,
    TopUp,
)
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.payment_disputes import recover_owed
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from providers.models import Provider
from providers.services import ensure_provider
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim


@dataclass
class Selling(StripeMarket):
    hyperion: Party

    def earn_without_balance(self, units: int) -> Statement:
        """The same out of the operator's own, as a remedy's waterfall ends."""
        return self.earn(units, of=self.operator, kind=AccountKind.OPERATOR)

    def earn(
        self, units: int, *, of: Party | None = None, kind: AccountKind = AccountKind.PREPAID
    ) -> Statement:
        """`units` of hyperion's were used, and it is stated: the transfers that settling makes."""
        ids: dict[str, Any] = {"currency": "USD", "now": self.now}
        transfer = NewTransfer(
            id=uuid7(),
            debit_id=account_id(organization_id=(of or self.acme).id, kind=kind, **ids),
            credit_id=account_id(organization_id=self.hyperion.id, kind=AccountKind.PAYABLE, **ids),
            amount_micros=units * UNIT,
            code="usage",
        )
        post_transfers([transfer], now=self.now)
        count = Statement.objects.count()
        return Statement.objects.create(
            id=uuid7(),
            organization_id=self.hyperion.id,
            issuer_id=self.operator.id,
            period_start=self.now + timedelta(days=31 * count),
            period_end=self.now + timedelta(days=31 * (count + 1)),
            number=f"S-{count}",
            currency="USD",
            gross_micros=units * UNIT,
            fee_micros=0,
            net_micros=units * UNIT,
            created_at=self.now,
        )

    def payable(self) -> int:
        return self.balance(self.hyperion, AccountKind.PAYABLE).posted_micros

    def charge_of(self, made: TopUp) -> str:
        return self.collection(made.id).charge_object_id


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Selling]:
    with stripe_sim() as sim, pay_by(sim):
        base = make_stripe_market(sim, now)
        hyperion = make_party("Hyperion", ["provider"], now)
        ensure_provider(organization_id=hyperion.id, display_name="Hyperion", now=now)
        Provider.objects.update(self_billing_consent_at=now)
        Organization.objects.filter(pk=hyperion.id).update(
            legal_name="Hyperion Ltd", address="1 Main Street", tax_number="DE123"
        )
        yield Selling(base.sim, base.now, base.operator, base.acme, hyperion)


def link_payment(market: Selling, payout: Payout, made: TopUp) -> None:
    """The statement of these tests has no lines, so its payout was taken from the free balance."""
    transfer = ProcessorOperation.objects.get(subject_id=payout.id, kind="transfer")
    assert transfer.parent_id is None
    ProcessorOperation.objects.filter(pk=transfer.pk).update(parent=market.collection(made.id))


def paid_out(market: Selling, units: int = 60) -> tuple[TopUp, Payout]:
    market.save_card("pm_card_bypassPending")
    made = market.top_up(100)
    market.onboard(market.hyperion)
    market.earn(units)
    [payout] = pay_out_statements(now=market.now)
    assert payout.status == Payout.Status.PAID
    link_payment(market, payout, made)
    return made, payout


def paid_out_to_account(market: Selling) -> tuple[TopUp, Payout]:
    """As `paid_out`, but the bank has not been paid: the money lies in the provider's account at Stripe."""
    market.sim.fail("429", "POST /v1/payouts", times=1)
    return paid_out(market)


def test_a_provider_with_requirements_due_is_not_paid_and_is_told_what_is_due(market: Selling) -> None:
    market.save_card("pm_card_bypassPending")
    market.top_up(100)
    market.earn(60)
    assert (
        payout_blocked_reason(market.hyperion.id)
        == "the provider has no account at the payment processor yet"
    )
    market.onboard(market.hyperion, due=["external_account"])
    assert "external_account" in str(payout_blocked_reason(market.hyperion.id))
    assert pay_out_statements(now=market.now) == []
    assert market.payable() == 60 * UNIT
    assert not market.objects("transfer")
    market.onboard(market.hyperion)
    [payout] = pay_out_statements(now=market.now)
    assert payout.status == Payout.Status.PAID
    assert market.payable() == 0
    market.assert_books_balance()


def test_onboarding_asks_for_the_country_first(market: Selling) -> None:
    from marketplace.billing.services.provider_accounts import onboarding_link

    with pytest.raises(InvalidInput) as refused:
        onboarding_link(organization_id=market.hyperion.id, now=market.now)
    assert refused.value.field == "country"
    market.onboard(market.hyperion)
    market.onboard(market.hyperion)
    assert len(market.objects("account")) == 1


def test_a_transfer_that_is_refused_is_asked_again_under_a_new_key(market: Selling) -> None:
    """The buyer's money is not available yet; the provider's stays held, and goes when it can."""
    market.save_card("pm_card_visa")
    market.top_up(100)
    market.onboard(market.hyperion)
    market.earn(60)
    [payout] = pay_out_statements(now=market.now)
    assert payout.status == Payout.Status.PENDING
    waiting = ProcessorOperation.objects.get(kind="transfer")
    assert (waiting.status, waiting.reason) == (ProcessorOperation.Status.REQUESTED, "balance_insufficient")
    assert market.balance(market.hyperion, AccountKind.PAYABLE).pending_micros == 60 * UNIT
    market.sim.world.advance(3 * 86_400)
    market.sweep()
    payout.refresh_from_db()
    assert payout.status == Payout.Status.PAID
    assert len(set(market.sim.calls("POST /v1/transfers"))) == 2
    assert len(market.objects("transfer")) == 1


@pytest.mark.parametrize("fault", ["drop", "500_after", "429"])
def test_whatever_befalls_a_transfer_the_provider_is_paid_once(market: Selling, fault: str) -> None:
    market.save_card("pm_card_bypassPending")
    market.top_up(100)
    market.onboard(market.hyperion)
    market.earn(60)
    market.sim.fail(fault, "POST /v1/transfers")
    [payout] = pay_out_statements(now=market.now)
    assert payout.status == Payout.Status.PENDING
    market.sweep()
    market.settle()
    payout.refresh_from_db()
    assert payout.status == Payout.Status.PAID
    assert len(market.objects("transfer")) == 1
    assert market.balance(market.hyperion, AccountKind.PAYABLE).posted_micros == 0
    market.assert_books_balance()


def test_the_bank_payout_is_followed_and_a_bank_that_refuses_moves_no_posting(market: Selling) -> None:
    paid_out(market)
    bank = ProcessorOperation.objects.get(kind="payout")
    assert bank.status == ProcessorOperation.Status.SENT
    market.sim.world.pay_out_at_bank(bank.object_id)
    market.settle()
    bank.refresh_from_db()
    assert bank.status == ProcessorOperation.Status.SUCCEEDED
    market.sim.world.pay_out_at_bank(bank.object_id, failure="account_closed")
    market.settle()
    bank.refresh_from_db()
    assert (bank.status, bank.reason) == (ProcessorOperation.Status.FAILED, "account_closed")
    assert market.payable() == 0
    market.assert_books_balance()


def test_a_dispute_of_unspent_money_costs_the_buyer_alone(market: Selling) -> None:
    market.save_card("pm_card_bypassPending")
    made = market.top_up(100)
    market.sim.world.dispute(market.charge_of(made))
    market.settle()
    market.settle()
    dispute = PaymentDispute.objects.get()
    assert (dispute.amount_micros, dispute.from_balance_micros) == (100 * UNIT, 100 * UNIT)
    assert market.prepaid() == 0
    market.sim.world.close_dispute(dispute.object_id, won=True)
    market.settle()
    assert market.prepaid() == 100 * UNIT
    assert compare_balances(now=market.now).difference_micros == 0
    market.assert_books_balance()


def test_a_dispute_after_payout_takes_the_transfer_back_and_pauses_payouts(market: Selling) -> None:
    made, _ = paid_out_to_account(market)
    market.sim.world.dispute(market.charge_of(made))
    market.settle()
    share = DisputeShare.objects.get()
    assert (share.status, share.amount_micros) == (DisputeShare.Status.REVERSED, 60 * UNIT)
    assert market.prepaid() == 0
    assert "dispute" in str(payout_blocked_reason(market.hyperion.id))
    market.earn_without_balance(5)
    assert pay_out_statements(now=market.now) == []
    assert compare_balances(now=market.now).difference_micros == 0
    market.sim.world.close_dispute(PaymentDispute.objects.get().object_id, won=True)
    market.settle()
    # Won: everybody has again what was taken from him.
    assert market.prepaid() == 40 * UNIT
    assert market.payable() == 65 * UNIT
    assert payout_blocked_reason(market.hyperion.id) is None
    assert compare_balances(now=market.now).difference_micros == 0
    market.assert_books_balance()


def test_a_dispute_after_the_bank_was_paid_is_owed_by_the_provider_and_taken_from_what_he_earns(
    market: Selling,
) -> None:
    made, _ = paid_out(market)
    market.sim.world.dispute(market.charge_of(made))
    market.settle()
    share = DisputeShare.objects.get()
    assert share.status == DisputeShare.Status.OWED
    assert market.balance(market.hyperion, AccountKind.RECEIVABLE).posted_micros == -60 * UNIT
    market.sim.world.close_dispute(PaymentDispute.objects.get().object_id, won=False)
    market.settle()
    assert "owes" in str(payout_blocked_reason(market.hyperion.id))
    market.earn_without_balance(25)
    assert recover_owed(organization_id=market.hyperion.id, now=market.now) == 25 * UNIT
    market.earn_without_balance(50)
    [payout] = pay_out_statements(now=market.now)
    assert payout.amount_micros == 15 * UNIT  # 25 + 50 - 60
    assert market.balance(market.hyperion, AccountKind.RECEIVABLE).posted_micros == 0
    assert compare_balances(now=market.now).difference_micros == 0
    market.assert_books_balance()
