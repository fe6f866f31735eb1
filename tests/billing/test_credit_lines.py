"""Credit lines: on-demand usage on credit, never beyond the line, and lines that are lowered below what is used."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

import pytest
from django.db import connection

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.billing.services.credit_lines import credit_line_of, give_credit_line
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract, Payment
from marketplace.contracts.on_demand import NoCreditLine, choose_on_demand_payment
from marketplace.contracts.services import capture_hold, void_hold
from marketplace.errors import Forbidden, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.ledger.services import InsufficientFunds, NewTransfer, account_id, open_hold, post_transfers
from metering.models import UsageBatch
from metering.services import gateway_source
from tests.billing.world import DUE_AFTER, meter
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, ask, available, give_money, make_world

LOT_MICROS = 600


@pytest.fixture
def world(db: None, now: datetime) -> World:
    return make_world(now)


def lend(world: World, limit: int, now: datetime) -> None:
    give_credit_line(organization_id=world.acme.id, limit_micros=limit, now=now, actor=SYSTEM)


def on_credit(world: World, now: datetime) -> None:
    choose_on_demand_payment(organization_id=world.acme.id, payment="arrears", now=now, actor=SYSTEM)


def used(world: World) -> int:
    return credit_line_of(world.acme.id).used_micros


def pay(world: World, amount: int, now: datetime) -> None:
    give_money(world, amount, now, kind=AccountKind.RECEIVABLE)


def test_on_demand_is_bought_on_credit_when_it_is_chosen(world: World, now: datetime) -> None:
    give_money(world, 10_000, now)
    with pytest.raises(NoCreditLine):
        on_credit(world, now)
    lend(world, 2 * LOT_MICROS, now)
    # A line alone changes nothing: one contract, one payment.
    assert ask(world, LOT, now)[1].outcome == "ok"
    assert used(world) == 0
    on_credit(world, now)
    assert [ask(world, LOT, now)[1].outcome for _ in range(3)] == ["ok", "ok", "insufficient_funds"]
    line = credit_line_of(world.acme.id)
    assert (line.used_micros, line.available_micros) == (2 * LOT_MICROS, 0)
    assert available(world) == 10_000 - LOT_MICROS
    contracts = Contract.objects.filter(organization_id=world.acme.id, kind="on_demand")
    assert sorted(contracts.values_list("payment", flat=True)) == ["arrears", "prepaid"]
    # The other is still there for whoever names it.
    prepaid = contracts.get(payment=Payment.PREPAID)
    assert ask(world, LOT, now, contract_id=prepaid.id)[1].contract_id == prepaid.id
    choose_on_demand_payment(organization_id=world.acme.id, payment="prepaid", now=now, actor=SYSTEM)
    assert ask(world, LOT, now)[1].contract_id == prepaid.id
    assert check_ledger() == []


def test_grants_are_burned_before_the_line(world: World, now: datetime) -> None:
    lend(world, LOT_MICROS, now)
    on_credit(world, now)
    terms = GrantTerms(kind="granted", amount_micros=LOT_MICROS, currency="USD")
    give_grant(id=uuid7(), organization_id=world.acme.id, terms=terms, now=now)
    assert ask(world, LOT, now)[1].outcome == "ok"
    assert used(world) == 0
    assert [ask(world, LOT, now)[1].outcome for _ in range(2)] == ["ok", "insufficient_funds"]
    assert used(world) == LOT_MICROS


def test_a_line_below_what_is_used_ends_nothing_and_admits_nothing(world: World, now: datetime) -> None:
    lend(world, 5 * LOT_MICROS, now)
    on_credit(world, now)
    holds: list[UUID] = [ask(world, LOT, now)[0] for _ in range(4)]
    lend(world, 2 * LOT_MICROS, now)
    assert used(world) == 4 * LOT_MICROS
    assert ask(world, 1, now)[1].outcome == "insufficient_funds"
    # What comes back is not lent again while more is used than the line.
    void_hold(id=holds[0], now=now)
    assert used(world) == 3 * LOT_MICROS
    assert ask(world, 1, now)[1].outcome == "insufficient_funds"
    source = gateway_source(now).id
    for hold_id in holds[1:]:
        captured = capture_hold(id=hold_id, numerator=LOT, event=b"{}\n", source_id=source, now=now)
        assert captured.captured_micros == LOT_MICROS
    pay(world, 2 * LOT_MICROS, now)
    assert used(world) == LOT_MICROS
    assert [ask(world, LOT, now)[1].outcome for _ in range(2)] == ["ok", "insufficient_funds"]
    lend(world, 3 * LOT_MICROS, now)
    assert [ask(world, LOT, now)[1].outcome for _ in range(2)] == ["ok", "insufficient_funds"]
    lend(world, 0, now)
    assert ask(world, 1, now)[1].outcome == "insufficient_funds"
    assert check_ledger() == []


def test_posting_what_is_held_fits_while_the_line_is_exceeded(world: World, now: datetime) -> None:
    lend(world, 1_000, now)
    receivable = account_id(
        organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now
    )
    fees = account_id(organization_id=world.operator.id, kind=AccountKind.FEES, currency="USD", now=now)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=receivable, amount_micros=900, code="usage", now=now)
    lend(world, 100, now)
    post_transfers([NewTransfer(uuid7(), receivable, fees, 900, "usage", hold_id)], now=now)
    assert (
        balance(organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD").posted_micros
        == -900
    )
    # 850 paid and 40 spent: 90 is used, within the line again; 11 more is not.
    pay(world, 850, now)
    post_transfers([NewTransfer(uuid7(), receivable, fees, 40, "usage")], now=now)
    with pytest.raises(InsufficientFunds):
        post_transfers([NewTransfer(uuid7(), receivable, fees, 11, "usage")], now=now)
    post_transfers([NewTransfer(uuid7(), receivable, fees, 10, "usage")], now=now)
    assert check_ledger() == []


def test_usage_on_credit_is_charged_to_the_line_and_held_no_more(world: World, now: datetime) -> None:
    lend(world, 10_000, now)
    on_credit(world, now)
    hold_id, opened = ask(world, 2 * LOT, now)
    source = gateway_source(now).id
    capture_hold(id=hold_id, numerator=LOT, event=b"{}\n", source_id=source, now=now)
    # As ingestion leaves it: the event is gone from the inbox, its volume is in the roll-up.
    UsageBatch.objects.all().delete()
    assert opened.contract_id is not None
    contract = Contract.objects.get(pk=opened.contract_id)
    meter(contract, world.plant.offering.list_rate, world.plant, LOT, now)
    settled = settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert [(one.charges, one.amount_micros) for one in settled.settled] == [(1, LOT_MICROS)]
    owed = balance(organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD")
    assert (owed.posted_micros, owed.pending_micros) == (-LOT_MICROS, 0)
    assert used(world) == LOT_MICROS
    assert check_ledger() == []


def test_fifty_at_once_never_exceed_the_line(committed_db: TestDatabase, now: datetime) -> None:
    world = make_world(now)
    lend(world, 10 * 60 + 59, now)
    on_credit(world, now)
    source = gateway_source(now).id

    def one(number: int) -> str:
        try:
            hold_id, opened = ask(world, LOT // 10, now)
            if opened.outcome == "ok" and number % 2:
                capture_hold(id=hold_id, numerator=LOT // 10, event=b"{}\n", source_id=source, now=now)
            return opened.outcome
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(one, range(50)))
    assert outcomes == {"ok": 10, "insufficient_funds": 40}
    assert used(world) == 600
    assert check_ledger() == []


def test_a_line_is_the_operators_to_give_and_to_buyers_only(world: World, now: datetime) -> None:
    with pytest.raises(Forbidden):
        give_credit_line(organization_id=world.hyperion.id, limit_micros=1, now=now, actor=SYSTEM)
    with pytest.raises(NotFound):
        give_credit_line(organization_id=uuid7(), limit_micros=1, now=now, actor=SYSTEM)
    for limit in (-1, 10**15 + 1):
        with pytest.raises(InvalidInput):
            lend(world, limit, now)
    body = {"organization_id": str(world.acme.id), "limit_micros": 5_000_000}
    assert world.acme.api.put("/api/v1/credit-lines", body, format="json").status_code == 403
    given = world.operator.api.put("/api/v1/credit-lines", body, format="json")
    assert given.status_code == 200, given.content
    assert AuditEntry.objects.get(action="credit_line.set").detail["limit_micros"] == 5_000_000
    [listed] = world.operator.api.get("/api/v1/credit-lines").json()["items"]
    assert (listed["organization_id"], listed["available_micros"]) == (str(world.acme.id), 5_000_000)
    seen = world.acme.api.get("/api/v1/credit-line").json()
    assert (seen["limit_micros"], seen["on_demand_payment"]) == (5_000_000, "prepaid")
    chosen = world.acme.api.put("/api/v1/credit-line", {"on_demand_payment": "arrears"}, format="json")
    assert chosen.json()["on_demand_payment"] == "arrears"
