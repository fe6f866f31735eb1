"""An operation that a person gave up and that had happened all the same: in the books once, whoever tells of it."""

from __future__ import annotations

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import (
    DisputeShare,
    PaymentDispute,
    Payout,
    ProcessorEvent,
    ProcessorOperation,
    TopUp,
)
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import record_outcome
from marketplace.billing.services.payment_disputes import recover_owed
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.billing.services.refunds import refund_payment
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Transfer
from marketplace.ledger.services import account_id, open_hold
from tests.billing.stripe_market import UNIT, StripeMarket
from tests.billing.test_stripe_payouts import Selling, paid_out_to_account
from tests.billing.test_stripe_payouts import market as selling_market

market = selling_market
GIVEN_UP = Outcome(OutcomeStatus.FAILED, reason="given up: not in the dashboard")


def give_up(market: StripeMarket, operation: ProcessorOperation) -> ProcessorOperation:
    return record_outcome(operation_id=operation.id, outcome=GIVEN_UP, now=market.now)


def assert_all_is_applied(market: StripeMarket) -> None:
    market.settle()
    market.sweep()
    market.apply()
    waiting = ProcessorEvent.objects.exclude(event_type__startswith="customer.").exclude(status="applied")
    assert list(waiting.values_list("event_type", "error")) == []
    assert compare_balances(now=market.now).difference_micros == 0
    market.assert_books_balance()


def test_a_top_up_that_was_given_up_and_charged_is_received_once(market: Selling) -> None:
    market.save_card()
    market.sim.fail("drop", "POST /v1/payment_intents")
    made = market.top_up()
    give_up(market, market.collection(made.id))
    made.refresh_from_db()
    assert (made.status, market.prepaid()) == (TopUp.Status.FAILED, 0)
    assert_all_is_applied(market)
    made.refresh_from_db()
    assert (made.status, market.prepaid()) == (TopUp.Status.SUCCEEDED, 10 * UNIT)
    assert Transfer.objects.filter(code="top_up").count() == 1


@pytest.mark.parametrize(("spent", "borne"), [(0, 0), (8, 4)])
def test_a_refund_that_was_given_up_and_made_is_paid_by_what_is_left_of_the_balance(
    market: Selling, spent: int, borne: int
) -> None:
    market.save_card()
    made = market.top_up()
    market.sim.fail("drop", "POST /v1/refunds")
    refund = refund_payment(
        organization_id=market.acme.id,
        payment_id=made.id,
        amount_micros=6 * UNIT,
        operation_id=uuid7(),
        now=market.now,
        actor=SYSTEM,
    )
    assert market.prepaid() == 4 * UNIT
    give_up(market, refund)
    assert (market.prepaid(), market.collection(made.id).refunded_micros) == (10 * UNIT, 0)
    prepaid = account_id(
        organization_id=market.acme.id, kind=AccountKind.PREPAID, currency="USD", now=market.now
    )
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=spent * UNIT, code="test", now=market.now)
    assert_all_is_applied(market)
    refund.refresh_from_db()
    assert refund.status == ProcessorOperation.Status.SUCCEEDED
    assert market.balance(market.acme, AccountKind.PREPAID).posted_micros == (4 + borne) * UNIT
    assert market.collection(made.id).refunded_micros == 6 * UNIT
    fees = 10 * UNIT * 29 // 1000 + 300_000
    assert market.balance(market.operator, AccountKind.OPERATOR).posted_micros == -borne * UNIT - fees
    assert len(market.objects("refund")) == 1


def test_a_transfer_that_was_given_up_and_made_is_found_before_it_is_asked_for_again(market: Selling) -> None:
    market.save_card("pm_card_bypassPending")
    market.top_up(100)
    market.onboard(market.hyperion)
    market.earn(60)
    market.sim.fail("drop", "POST /v1/transfers")
    [payout] = pay_out_statements(now=market.now)
    transfer = ProcessorOperation.objects.get(subject_id=payout.id, kind="transfer")
    assert give_up(market, transfer).key_number == 2
    # Nobody is told: the sweeper's turn comes first.
    market.sweep()
    assert len(market.objects("transfer")) == 1
    assert Payout.objects.get().status == Payout.Status.PAID
    assert market.payable() == 0
    assert_all_is_applied(market)
    assert len(market.objects("transfer")) == 1


def hear_of_disputes(market: StripeMarket) -> None:
    """Of nothing else: that a transfer was reversed is found out later."""
    market.sim.deliver(market.receive, lose=lambda event: not event["type"].startswith("charge.dispute"))
    market.apply()


@pytest.mark.parametrize(
    ("repaid", "is_won"), [(0, None), (25, None), (60, None), (0, True), (60, True), (60, False)]
)
def test_a_reversal_that_was_given_up_and_made_costs_the_provider_once(
    market: Selling, repaid: int, is_won: bool | None
) -> None:
    """He owed it while it counted as failed; whatever of that he has paid meanwhile is his again."""
    made, _ = paid_out_to_account(market)
    market.sim.fail("drop", "POST /v1/transfers/{id}/reversals")
    market.sim.world.dispute(market.charge_of(made))
    hear_of_disputes(market)
    reversal = ProcessorOperation.objects.get(kind="reversal")
    assert give_up(market, reversal).status == ProcessorOperation.Status.FAILED
    share = DisputeShare.objects.get()
    assert share.status == DisputeShare.Status.OWED
    if repaid:
        market.earn_without_balance(repaid)
        assert recover_owed(organization_id=market.hyperion.id, now=market.now) == repaid * UNIT
    if is_won is not None:
        market.sim.world.close_dispute(PaymentDispute.objects.get().object_id, won=is_won)
        hear_of_disputes(market)
    seen = Outcome(OutcomeStatus.SUCCEEDED, market.objects("transfer_reversal")[0]["id"])
    record_outcome(operation_id=reversal.id, outcome=seen, now=market.now)
    assert market.balance(market.hyperion, AccountKind.RECEIVABLE).posted_micros == 0
    # The dispute took 60 of him once: what was reversed. Where it was won, it took nothing.
    assert market.payable() == (repaid + 60 if is_won else repaid) * UNIT
    assert compare_balances(now=market.now).difference_micros == 0
    market.assert_books_balance()
