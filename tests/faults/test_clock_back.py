"""Fault 59 of docs/faults.md: the clock jumps back an hour amid the trade: the order stays, no hold ends early."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

from marketplace.contracts.models import Hold
from marketplace.contracts.services import capture_hold, sweep_holds
from marketplace.jobs import claim_job, finish_job
from marketplace.ledger.history import statement_page
from marketplace.ledger.models import LedgerAccount, Seal, Transfer
from marketplace.ledger.sealing import seal_transfers
from marketplace.ledger.selectors import check_ledger
from metering.services import gateway_source
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, ask, available, give_money, make_world
from tests.orders.world import beat

HOUR = timedelta(hours=1)
FUNDS = 10**9


def test_after_a_jump_back_the_ledgers_order_is_that_of_posting(
    committed_db: TestDatabase, now: datetime
) -> None:
    world = make_world(now - 2 * HOUR)
    jumps = (now, now + HOUR / 2, now - HOUR / 2, now - HOUR / 4, now + HOUR)
    for amount, at in enumerate(jumps, start=1):
        give_money(world, amount * FUNDS, at)
        seal_transfers(now=at)
        assert check_ledger() == [] == check_ledger(incremental=True)
    # In the order in which they were posted, whatever each was dated.
    posted = list(Transfer.objects.order_by("number").values_list("amount_micros", "occurred_at"))
    assert posted == [(amount * FUNDS, at) for amount, at in enumerate(jumps, start=1)]
    assert available(world) == 15 * FUNDS
    seals = list(Seal.objects.order_by("number"))
    assert [seal.transfer_count for seal in seals] == [1] * 5
    assert all(after.first_number == before.last_number + 1 for before, after in pairwise(seals))
    account = LedgerAccount.objects.get(organization_id=world.acme.id, kind="prepaid")
    balances = [line.balance_micros for line in statement_page(account, before=None, limit=10)]
    assert balances == [FUNDS * sum(range(1, last + 1)) for last in (5, 4, 3, 2, 1)]


def test_after_a_jump_back_no_hold_ends_early_and_each_ends_once(db: None, now: datetime) -> None:
    world = make_world(now - 2 * HOUR)
    give_money(world, FUNDS, now)
    beat(world.plant, now)
    open_id, _ = ask(world, LOT, now)
    captured_id, _ = ask(world, LOT, now)
    source_id = gateway_source(now).id
    back = now - HOUR
    # The gateway's answer comes after the jump, and once more after that.
    for at in (back, back + timedelta(seconds=1)):
        capture_hold(id=captured_id, numerator=LOT, event=b"{}\n", source_id=source_id, now=at)
    assert Hold.objects.get(pk=captured_id).captured_numerator == LOT
    later_id, opened = ask(world, LOT, back)
    assert opened.outcome == "ok"
    # Later than it should by the jump and no more; the hold that was opened after the jump is of its own hour.
    due = now + HOUR + timedelta(seconds=15 + 30)
    for at, ended in (
        (back, 0),
        (back + timedelta(minutes=30), 0),
        (due - HOUR, 1),
        (due, 1),
        (due + HOUR, 0),
    ):
        assert sweep_holds(now=at) == ended, at
    statuses = dict(Hold.objects.values_list("id", "status"))
    assert statuses == {open_id: "voided", captured_id: "captured", later_id: "voided"}
    assert available(world) == FUNDS - Hold.objects.get(pk=captured_id).captured_micros
    assert check_ledger() == []


def test_after_a_jump_back_a_periods_work_is_not_done_again(db: None, now: datetime) -> None:
    for start in (now - HOUR, now):
        assert claim_job(job="settle", period_start=start, now=start)
        assert finish_job(job="settle", period_start=start, now=start)
    # A worker is at the next one when the clock jumps: nobody takes it from him before his lease is over.
    assert claim_job(job="settle", period_start=now + HOUR, now=now + HOUR)
    for at in (now - HOUR, now, now + HOUR):
        for start in (now - HOUR, now, now + HOUR):
            assert not claim_job(job="settle", period_start=start, now=at)
    assert claim_job(job="settle", period_start=now + HOUR, now=now + 2 * HOUR)
