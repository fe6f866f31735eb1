"""Providers' accounts at Stripe: what no message told of them, and bank accounts that are changed there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import (
    DestinationNotice,
    Payout,
    PayoutDestinationChange,
    ProcessorAccount,
    ProcessorGate,
    ProcessorOperation,
)
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.operations import run_operation
from marketplace.billing.services.payout_destinations import DELAY, cancel_destination
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.processor_reconciling import reconcile_processor
from marketplace.billing.services.provider_accounts import LOOK_ANYHOW
from marketplace.errors import Conflict
from tests.billing.stripe_market import UNIT
from tests.billing.test_stripe_payouts import Selling, market
from tests.webhooks.test_facts import listen, told

__all__ = ["market"]

Change = PayoutDestinationChange.Status
LOOKS = "GET /v1/accounts/{id}"


def account_of(market: Selling) -> ProcessorAccount:
    return ProcessorAccount.objects.get(organization_id=market.hyperion.id)


def earning(market: Selling) -> ProcessorAccount:
    """hyperion has an account with a bank, and 60 that can be paid out of what acme has brought."""
    market.save_card("pm_card_bypassPending")
    market.top_up(100)
    account = market.onboard(market.hyperion)
    assert account.bank_account.endswith("****6789")
    market.earn(60)
    return account


def to_banks(market: Selling) -> list[dict[str, Any]]:
    return market.objects("payout")


def test_an_account_that_became_ready_without_a_message_is_found(market: Selling) -> None:
    account = market.onboard(market.hyperion, due=["external_account"])
    market.sim.world.onboard(account.account_id)
    # No message comes; the platform's list of events does not have it either.
    market.sim.queue.clear()
    market.sim.world.events.clear()
    for event in [one for one in market.sim.world.objects.values() if one["object"] == "event"]:
        del market.sim.world.objects[event["id"]]
    reconcile_processor(now=market.now + timedelta(minutes=5))
    assert (account_of(market).payouts_enabled, account_of(market).requirements_due) == (True, [])
    looks = len(market.sim.calls(LOOKS))
    reconcile_processor(now=market.now + timedelta(minutes=10))
    assert len(market.sim.calls(LOOKS)) == looks
    reconcile_processor(now=market.now + timedelta(minutes=5) + LOOK_ANYHOW)
    assert len(market.sim.calls(LOOKS)) == looks + 1


def test_an_account_that_is_gone_blocks_its_own_payouts_and_nobody_elses_calls(market: Selling) -> None:
    account = market.onboard(market.hyperion)
    del market.sim.world.objects[account.account_id]
    for day in range(1, 8):
        reconcile_processor(now=market.now + day * LOOK_ANYHOW)
    assert account_of(market).requirements_due == ["resource_missing"]
    assert ProcessorGate.objects.get().failures == 0


@pytest.mark.parametrize("news", ["webhook", "payout"])
def test_another_bank_account_waits_72_hours_and_owners_are_told(market: Selling, news: str) -> None:
    account = earning(market)
    listen(market.hyperion, market.now)
    market.sim.world.change_bank(account.account_id, "6666")
    if news == "webhook":
        market.settle()
        assert pay_out_statements(now=market.now) == []
        reasons = [reason.code for reason in payout_status(market.hyperion.id, now=market.now).reasons]
        assert reasons == ["destination_changed"]
    else:
        # The message is late: the account is read before anything is sent to a bank.
        pay_out_statements(now=market.now)
    assert to_banks(market) == []
    change = PayoutDestinationChange.objects.get()
    assert (change.status, change.effective_at) == (Change.PENDING, market.now + DELAY)
    assert (change.former[-4:], change.destination[-4:]) == ("6789", "6666")
    assert DestinationNotice.objects.filter(kind="requested").count() == 1
    assert [one["status"] for one in told("payout_destination.changed")] == ["requested"]
    pay_out_statements(now=market.now + DELAY - timedelta(seconds=1))
    assert to_banks(market) == []
    pay_out_statements(now=market.now + DELAY)
    assert [one["amount"] for one in to_banks(market)] == [6_000]
    change.refresh_from_db()
    assert change.status == Change.APPLIED
    assert Payout.objects.get().status == Payout.Status.PAID
    market.assert_books_balance()


def test_a_bank_payout_that_waits_to_be_asked_again_is_held_too(market: Selling) -> None:
    account = earning(market)
    market.sim.fail("429", "POST /v1/payouts", times=1)
    pay_out_statements(now=market.now)
    waiting = ProcessorOperation.objects.get(kind="payout")
    assert to_banks(market) == []
    market.sim.world.change_bank(account.account_id, "6666")
    market.settle()
    market.sweep()
    run_operation(operation_id=waiting.id, now=market.now)
    assert to_banks(market) == []
    market.now += DELAY
    market.sweep()
    assert len(to_banks(market)) == 1


def test_the_wait_ends_by_changing_it_back_there_and_not_by_cancelling_here(market: Selling) -> None:
    account = earning(market)
    world = market.sim.world
    before = world.objects[account.account_id]["external_accounts"]["data"]
    world.change_bank(account.account_id, "6666")
    market.settle()
    change = PayoutDestinationChange.objects.get()
    with pytest.raises(Conflict):
        cancel_destination(
            organization_id=market.hyperion.id, change_id=change.id, now=market.now, actor=SYSTEM
        )
    world.objects[account.account_id]["external_accounts"]["data"] = before
    world.emit("account.updated", world.objects[account.account_id], account.account_id)
    market.settle()
    change.refresh_from_db()
    assert change.status == Change.CANCELLED
    pay_out_statements(now=market.now)
    assert len(to_banks(market)) == 1


def test_to_remove_the_bank_account_and_to_add_another_is_a_change(market: Selling) -> None:
    account = earning(market)
    found = market.sim.world.objects[account.account_id]
    found["external_accounts"]["data"] = []
    market.sim.world.emit("account.updated", found, account.account_id)
    market.settle()
    assert not PayoutDestinationChange.objects.exists()
    market.sim.world.change_bank(account.account_id, "6666")
    market.settle()
    first = PayoutDestinationChange.objects.get(status=Change.PENDING)
    market.now += timedelta(hours=71)
    market.sim.world.change_bank(account.account_id, "7777")
    market.settle()
    second = PayoutDestinationChange.objects.get(status=Change.PENDING)
    assert second.effective_at == market.now + DELAY
    assert (second.former, second.destination[-4:]) == (first.former, "7777")
    assert market.payable() == UNIT * 60
