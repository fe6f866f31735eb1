"""What customers' programs are told of money at the processor that fails, comes back or is decided: once each."""

from __future__ import annotations

from uuid import UUID

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import PaymentDispute, Payout, ProcessorOperation
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.refunds import refund_payment
from marketplace.ids import uuid7
from tests.billing.stripe_market import UNIT
from tests.billing.test_stripe_payouts import Selling, market, paid_out
from tests.webhooks.test_facts import listen, told

__all__ = ["market"]  # A fixture of the neighbour.


def refund(market: Selling, payment_id: UUID, units: int) -> ProcessorOperation:
    return refund_payment(
        organization_id=market.acme.id,
        payment_id=payment_id,
        amount_micros=units * UNIT,
        operation_id=uuid7(),
        now=market.now,
        actor=SYSTEM,
    )


def test_a_declined_top_up_is_told_once_with_its_reason(market: Selling) -> None:
    listen(market.acme, market.now)
    market.save_card("pm_card_chargeDeclinedInsufficientFunds")
    made = market.top_up()
    market.settle()
    assert told("top_up.failed") == [
        {
            "top_up_id": str(made.id),
            "reason": "insufficient_funds",
            "amount_micros": 10 * UNIT,
            "currency": "USD",
        }
    ]
    assert told("top_up.succeeded") == []


def test_each_part_of_a_payment_that_is_refunded_is_told(market: Selling) -> None:
    listen(market.acme, market.now)
    market.save_card()
    made = market.top_up()
    parts = [refund(market, made.id, units) for units in (6, 3)]
    market.settle()
    assert [(one["refund_id"], one["amount_micros"]) for one in told("refund.succeeded")] == [
        (str(part.id), units * UNIT) for part, units in zip(parts, (6, 3), strict=True)
    ]
    assert {one["payment_id"] for one in told("refund.succeeded")} == {str(made.id)}


def test_a_refund_that_the_processor_refuses_is_told_and_the_money_is_there_again(market: Selling) -> None:
    listen(market.acme, market.now)
    market.save_card()
    made = market.top_up()
    # The bank took the payment back, and that has not reached the market yet.
    market.sim.world.dispute(market.charge_of(made))
    refused = refund(market, made.id, 6)
    assert refused.status == ProcessorOperation.Status.FAILED
    (failed,) = told("refund.failed")
    assert (failed["refund_id"], failed["amount_micros"]) == (str(refused.id), 6 * UNIT)
    assert failed["reason"] == "charge_disputed"
    assert market.prepaid() == 10 * UNIT
    assert told("refund.succeeded") == []


def test_a_dispute_is_told_when_it_is_opened_and_when_it_is_decided(market: Selling) -> None:
    listen(market.acme, market.now)
    market.save_card("pm_card_bypassPending")
    for won in (True, False):
        made = market.top_up(100)
        market.sim.world.dispute(market.charge_of(made))
        market.settle()
        dispute = PaymentDispute.objects.get(status="open")
        before = len(told("dispute.closed"))
        market.sim.world.close_dispute(dispute.object_id, won=won)
        market.settle()
        market.settle()
        closed = told("dispute.closed")
        assert len(closed) == before + 1
        assert closed[-1] == {
            "dispute_id": str(dispute.id),
            "payment_id": str(made.id),
            "status": "won" if won else "lost",
            "amount_micros": 100 * UNIT,
            "currency": "USD",
        }
    assert len(told("dispute.opened")) == 2


def test_a_payout_that_is_refused_hour_after_hour_is_told_once(market: Selling) -> None:
    listen(market.hyperion, market.now)
    market.save_card("pm_card_visa")  # its money is not available for two days
    market.top_up(100)
    market.onboard(market.hyperion)
    market.earn(60)
    [payout] = pay_out_statements(now=market.now)
    market.sweep()
    assert len(market.sim.calls("POST /v1/transfers")) == 2
    assert told("payout.failed") == [
        {
            "payout_id": str(payout.id),
            "sent_to": "account",
            "reason": "balance_insufficient",
            "amount_micros": 60 * UNIT,
            "currency": "USD",
        }
    ]
    market.sim.world.advance(3 * 86_400)
    market.sweep()
    payout.refresh_from_db()
    assert payout.status == Payout.Status.PAID
    assert (len(told("payout.failed")), len(told("payout.paid"))) == (1, 1)


def test_a_payout_that_a_bank_sends_back_is_told(market: Selling) -> None:
    listen(market.hyperion, market.now)
    _, payout = paid_out(market)
    bank = ProcessorOperation.objects.get(kind="payout")
    market.sim.world.pay_out_at_bank(bank.object_id)
    market.settle()
    assert told("payout.failed") == []
    market.sim.world.pay_out_at_bank(bank.object_id, failure="account_closed")
    market.settle()
    market.settle()
    (failed,) = told("payout.failed")
    assert (failed["payout_id"], failed["sent_to"], failed["reason"]) == (
        str(payout.id),
        "bank",
        "account_closed",
    )
