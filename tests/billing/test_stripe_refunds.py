"""Refunds that are not what they were said to be: pending, and failed after they had succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import ProcessorEvent, ProcessorOperation, TopUp
from marketplace.billing.services.processor_reconciling import compare_balances, reconcile_processor
from marketplace.billing.services.refunds import refund_payment
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Transfer
from marketplace.webhooks.models import WebhookEvent
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim
from tests.webhooks.test_facts import listen

Status = ProcessorOperation.Status


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def refund(market: StripeMarket, made: TopUp, units: int) -> ProcessorOperation:
    return refund_payment(
        organization_id=market.acme.id,
        payment_id=made.id,
        amount_micros=units * UNIT,
        operation_id=uuid7(),
        now=market.now,
        actor=SYSTEM,
    )


def at_processor(market: StripeMarket) -> int:
    return market.balance(market.operator, AccountKind.PROCESSOR).posted_micros


@pytest.mark.parametrize("news", ["webhook", "reconciler"])
def test_a_refund_that_fails_after_it_succeeded_is_the_buyers_balance_again(
    market: StripeMarket, news: str
) -> None:
    listen(market.acme, market.now)
    market.save_card("pm_card_refundFail")
    made = market.top_up(10)
    sent = refund(market, made, 6)
    assert sent.status == Status.SUCCEEDED
    market.settle()
    assert (market.prepaid(), at_processor(market)) == (4 * UNIT, 4 * UNIT)
    market.sim.world.settle_refund(sent.object_id, failure="lost_or_stolen_card")
    if news == "webhook":
        market.settle()
        market.settle()
    else:
        market.sim.queue.clear()
        reconcile_processor(now=market.now)
    sent.refresh_from_db()
    assert (sent.status, sent.reason) == (Status.FAILED, "lost_or_stolen_card")
    fee = 0 if news == "webhook" else 590_000  # the reconciler has posted it with the day's comparison
    assert (market.prepaid(), at_processor(market)) == (10 * UNIT, 10 * UNIT - fee)
    assert market.collection(made.id).refunded_micros == 0
    back = Transfer.objects.get(code="refund_failed")
    assert (back.amount_micros, back.reference_id) == (6 * UNIT, made.id)
    assert WebhookEvent.objects.filter(type="refund.failed").count() == 1
    report = compare_balances(now=market.now)
    assert (report.difference_micros, report.details["unknown_movements"]) == (0, [])
    # It is unspent money like any other: it may be sent back once more, all of it.
    assert refund(market, made, 10).status == Status.SUCCEEDED
    assert market.prepaid() == 0
    market.assert_books_balance()


def test_every_message_of_a_failed_refund_again_moves_nothing_more(market: StripeMarket) -> None:
    market.save_card("pm_card_refundFail")
    sent = refund(market, market.top_up(10), 6)
    market.sim.world.settle_refund(sent.object_id, failure="expired_or_canceled_card")
    market.sim.deliver(market.receive, times=3, seed=7)
    market.apply()
    ProcessorEvent.objects.update(status=ProcessorEvent.Status.RECEIVED)
    market.apply()
    assert market.prepaid() == 10 * UNIT
    market.assert_books_balance()


@pytest.mark.parametrize(("failure", "left"), [("", 4), ("declined", 10)])
def test_a_pending_refund_holds_the_money_until_the_bank_has_said(
    market: StripeMarket, failure: str, left: int
) -> None:
    market.save_card("pm_card_pendingRefund")
    made = market.top_up(10)
    sent = refund(market, made, 6)
    assert sent.status == Status.SENT
    assert market.balance(market.acme, AccountKind.PREPAID).pending_micros == 6 * UNIT
    market.sim.world.settle_refund(sent.object_id, failure=failure)
    market.settle()
    sent.refresh_from_db()
    assert sent.status == (Status.FAILED if failure else Status.SUCCEEDED)
    assert (market.prepaid(), market.balance(market.acme, AccountKind.PREPAID).pending_micros) == (
        left * UNIT,
        0,
    )
    assert not Transfer.objects.filter(code="refund_failed").exists()
    market.assert_books_balance()
