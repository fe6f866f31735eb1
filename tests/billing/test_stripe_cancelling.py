"""Charges that nobody authenticates: cancelled by the buyer, or after a day; what succeeded meanwhile counts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.models import ProcessorOperation, TopUp
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.services.auto_top_ups import FIRST_PAUSE, set_auto_top_up, top_up_low_balances
from marketplace.billing.services.cancelling import ABANDONED_AFTER, cancel_abandoned, cancel_payment
from marketplace.billing.services.processor_reconciling import reconcile_processor
from marketplace.errors import Conflict, NotFound
from tests.billing.stripe_invoices import Owing, owing_market
from tests.billing.stripe_market import UNIT
from tests.cast import make_party
from tests.conftest import TestDatabase

ASKS = "pm_card_authenticationRequired"
CANCELS = "POST /v1/payment_intents/{id}/cancel"
Status = ProcessorOperation.Status


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    with owing_market(now) as made:
        yield made


def cancel(market: Owing, payment_id: Any, organization_id: Any = None) -> ProcessorOperation:
    return cancel_payment(
        organization_id=organization_id or market.acme.id,
        payment_id=payment_id,
        now=market.now,
        actor=SYSTEM,
    )


def test_the_buyer_cancels_and_pays_with_another_card(market: Owing) -> None:
    market.save_card(ASKS)
    asked = market.pay()
    assert (asked.status, market.status()) == ("pending", "action_required")
    with pytest.raises(Conflict):
        market.pay()
    answer = market.acme.api.post(f"/api/v1/payments/{asked.id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert cancel(market, asked.id).status == Status.FAILED
    assert len(market.sim.calls(CANCELS)) == 1
    asked.refresh_from_db()
    # The API goes by the machine's clock, by which it is long overdue.
    assert (asked.status, asked.action_url, market.status()) == ("failed", "", "overdue")
    market.save_card()
    assert market.pay().status == "succeeded"
    market.settle()
    assert market.status() == "paid"
    assert len(market.objects("payment_intent", status="succeeded")) == 1
    market.assert_books_balance()


def test_what_succeeded_in_the_same_moment_is_paid_and_not_cancelled(market: Owing) -> None:
    market.save_card(ASKS)
    asked = market.pay()
    market.sim.world.authenticate(market.operation_of(asked).object_id)
    # No message of it has arrived yet.
    assert cancel(market, asked.id).status == Status.SUCCEEDED
    assert market.status() == "paid"
    market.settle()
    assert market.receivable() == 0
    market.assert_books_balance()


@pytest.mark.parametrize("fault", ["drop", "500", "500_after", "429"])
def test_a_cancel_whose_answer_is_lost_is_asked_again(market: Owing, fault: str) -> None:
    market.save_card(ASKS)
    asked = market.pay()
    market.sim.fail(fault, CANCELS)
    with pytest.raises(ProcessorBusy):
        cancel(market, asked.id)
    assert market.operation_of(asked).status == Status.ACTION_REQUIRED
    assert cancel(market, asked.id).status == Status.FAILED


def test_only_what_waits_at_the_bank_is_cancelled_and_only_by_its_buyer(market: Owing) -> None:
    page = market.pay()
    with pytest.raises(Conflict):
        cancel(market, page.id)  # a page: it ends by itself
    mallory = make_party("Mallory", ["buyer"], market.now)
    with pytest.raises(NotFound):
        cancel(market, page.id, mallory.id)
    assert mallory.api.post(f"/api/v1/payments/{page.id}/cancel").status_code == 404


def test_an_abandoned_charge_is_cancelled_after_a_day_and_not_before(market: Owing) -> None:
    market.save_card(ASKS)
    asked = market.pay()
    sent_at = market.operation_of(asked).sent_at
    assert sent_at is not None
    assert cancel_abandoned(now=sent_at + ABANDONED_AFTER - timedelta(seconds=1)) == 0
    reconcile_processor(now=sent_at + ABANDONED_AFTER)
    asked.refresh_from_db()
    assert (asked.status, market.status()) == ("failed", "finalised")
    assert cancel_abandoned(now=sent_at + 2 * ABANDONED_AFTER) == 0


def test_an_automatic_top_up_goes_on_with_a_new_card_after_an_abandoned_one(market: Owing) -> None:
    market.save_card(ASKS)
    set_auto_top_up(
        organization_id=market.acme.id,
        enabled=True,
        threshold_micros=UNIT,
        amount_micros=10 * UNIT,
        monthly_limit_micros=100 * UNIT,
        now=market.now,
        actor=SYSTEM,
    )
    assert top_up_low_balances(now=market.now) == 1
    waiting = TopUp.objects.get(status=TopUp.Status.PENDING)
    market.save_card()
    later = market.now + ABANDONED_AFTER
    top_up_low_balances(now=later)
    assert AutoTopUp.objects.get().running_id == waiting.id
    reconcile_processor(now=later)
    waiting.refresh_from_db()
    assert waiting.status == TopUp.Status.FAILED
    top_up_low_balances(now=later)
    top_up_low_balances(now=later + FIRST_PAUSE)
    assert AutoTopUp.objects.get().failures == 0
    assert market.prepaid() >= 10 * UNIT
    market.assert_books_balance()
