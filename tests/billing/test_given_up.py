"""An operation that a person gave up and that had happened all the same: in the books once, whoever tells of it."""

from __future__ import annotations

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Payout, ProcessorEvent, ProcessorOperation, TopUp
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import record_outcome
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.processor_reconciling import compare_balances
from marketplace.billing.services.refunds import refund_payment
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Transfer
from marketplace.ledger.services import account_id, open_hold
from tests.billing.stripe_market import UNIT, StripeMarket
from tests.billing.test_stripe_payouts import Selling
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
