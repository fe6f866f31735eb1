"""Contracts settled together are settled as each would have been; several workers share them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import (
    Charge,
    DeliveryOutcome,
    Earning,
    ServiceFigure,
    ServicePeriod,
    Settlement,
)
from marketplace.billing.selectors import Due, unsettled_contracts
from marketplace.billing.services import settlement_batches
from marketplace.billing.services.credit_lines import give_credit_line
from marketplace.billing.services.owing import let_owe, owed_account
from marketplace.billing.services.settlement_batches import Together, settle_together
from marketplace.billing.services.settling import settle_contract, settle_due_periods, settle_period
from marketplace.contracts.models import Accrual, Contract, Entitlement
from marketplace.contracts.on_demand import choose_on_demand_payment
from marketplace.contracts.services import open_hold, void_hold
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant, GrantPart, Hold, LedgerAccount, Transfer
from marketplace.ledger.services import NewTransfer, account_id, change_hold, post_transfers
from marketplace.models import FailingItem
from metering.models import UsageRollup
from pricing.models import Grade
from pricing.services import publish_tariff_rate
from pricing.tariffs import Tier, graduated
from providers.reconciling import reconcile_period
from tests.billing.served import FIRST_TOKEN, promise
from tests.billing.test_disputes import disputed_hour
from tests.billing.test_grants import accrue
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.test_poisoned_items import poisoned
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    PERIOD,
    assert_books_balance,
    award,
    meter,
    on_demand,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

_ACCOUNT = ("organization_id", "kind", "currency", "reference_id")


def used(
    buyer: Party, grade: Grade, plants: Sequence[Plant], lots: int, captured: int, now: datetime
) -> Contract:
    """An on-demand contract with usage of every plant in two delivery periods, and what was captured of it."""
    contract = on_demand(buyer, grade, now)
    for number, plant in enumerate(plants):
        for period in range(2):
            numerator = lots * LOT + 7 * number + period
            meter(contract, plant.offering.list_rate, plant, numerator, now + period * PERIOD)
    accrue(contract, captured, captured, now)
    return contract


class Market:
    """Contracts of one settlement period: which are ordinary, which are not, and which were settled before."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.count = 0
        self.ordinary: set[Any] = set()
        self.others: set[Any] = set()
        self.grade = make_grade(now)
        hyperion, borealis = (
            make_party("Hyperion", ["provider"], now),
            make_party("Borealis", ["provider"], now),
        )
        self.plants = [
            make_plant(hyperion, self.grade, now),
            make_plant(borealis, self.grade, now, name="b1"),
            make_plant(hyperion, self.grade, now, name="h2", list_rate=733_331),
        ]

    def buyer(self, tax_ppm: int = 0, funds: int = FUNDS) -> Party:
        self.count += 1
        buyer = make_party(f"Buyer{self.count}", ["buyer"], self.now)
        fund(buyer, funds, self.now)
        set_tax(buyer, tax_ppm)
        return buyer

    def use(self, buyer: Party, lots: int, captured: int, grade: Grade | None = None) -> Contract:
        return used(buyer, grade or self.grade, self.plants, lots, captured, self.now)

    def add_ordinary(self) -> None:
        """Two contracts of one buyer, other rates of tax, none, a levy, a credit line, nothing used, and next to it."""
        now = self.now
        acme = self.buyer(190_000)
        second = make_grade(now, slug="second", model="second")
        contracts = [
            self.use(acme, 10, 60_000),
            used(acme, second, [make_plant(self.provider(), second, now, name="s1")], 3, 9_000, now),
            self.use(self.buyer(70_001), 33, 200_000),
            self.use(self.buyer(), 1, 3_900),
        ]
        UsageRollup.objects.filter(contract_id=contracts[2].id).update(
            estimated_events=1, estimated_numerator=LOT
        )
        abroad = self.buyer(190_000)
        live_in(abroad, "DE")
        rule(now, code="levy", title="Levy", kind="levy", rate_ppm=0, levy_micros_per_mtok=25_001)
        contracts.append(self.use(abroad, 5, 60_000))
        contracts.append(self.use(self.on_credit(100_000), 7, 40_000))
        idle = on_demand(self.buyer(190_000), self.grade, now)
        accrue(idle, 500, 0, now)
        change_hold(id=Accrual.objects.get(contract=idle).ledger_hold_id, delta_micros=500, now=now)
        little = on_demand(self.buyer(190_000), self.grade, now)
        meter(little, self.plants[0].offering.list_rate, self.plants[0], 700, now)
        accrue(little, 2, 2, now)
        self.ordinary |= {contract.id for contract in [*contracts, idle, little]}

    def provider(self) -> Party:
        return make_party("Polaris", ["provider"], self.now)

    def on_credit(self, limit: int) -> Party:
        buyer = self.buyer(190_000)
        give_credit_line(organization_id=buyer.id, limit_micros=limit, now=self.now, actor=SYSTEM)
        choose_on_demand_payment(organization_id=buyer.id, payment="arrears", now=self.now, actor=SYSTEM)
        return buyer

    def add_others(self) -> None:
        """One of each of what a batch leaves to `settle_contract`."""
        now = self.now
        granted = self.buyer(190_000)
        terms = GrantTerms(kind="granted", amount_micros=5_000, currency="USD")
        give_grant(id=uuid7(), organization_id=granted.id, terms=terms, now=now)
        lowered = self.on_credit(40_000)
        contracts = [self.use(granted, 10, 60_000), self.use(lowered, 7, 40_000)]
        give_credit_line(organization_id=lowered.id, limit_micros=1_000, now=now, actor=SYSTEM)
        # No hold at all; more than was captured; captured without tax; settled before, and more since.
        late = on_demand(self.buyer(190_000), self.grade, now)
        meter(late, self.plants[0].offering.list_rate, self.plants[0], LOT, now)
        contracts += [
            late,
            self.use(self.buyer(), 10, 1_000),
            self.use(self.buyer(190_000, funds=40_000), 10, 38_700),
            self.use(self.buyer(), 4, 16_000),
        ]
        settle_contract(contract_id=contracts[-1].id, settlement_start=now, now=now + DUE_AFTER)
        meter(contracts[-1], self.plants[0].offering.list_rate, self.plants[0], LOT, now)
        indebted = self.use(self.buyer(), 2, 9_000)
        account = let_owe(indebted, 700, now=now)
        prepaid = account_id(
            organization_id=indebted.organization_id, kind="prepaid", currency="USD", now=now
        )
        post_transfers([NewTransfer(uuid7(), account, prepaid, 700, "adjustment")], now=now)
        assert owed_account(indebted, now=now) == account
        promised = make_grade(now, slug="promised", model="promised")
        promise(promised, FIRST_TOKEN)
        slow = make_plant(make_party("Rigel", ["provider"], now), promised, now, name="r1")
        contracts += [indebted, used(self.buyer(), promised, [slow], 5, 9_000, now)]
        doubted = make_grade(now, slug="doubted", model="doubted")
        plant = make_plant(make_party("Vega", ["provider"], now), doubted, now, name="v1")
        contracts.append(disputed_hour(self.buyer(190_000), doubted, plant, now))
        reconcile_period(settlement_start=now, now=now + DUE_AFTER)
        tiers = publish_tariff_rate(
            graduated([Tier(2 * LOT, 900_000), Tier(None, 300_000)]), grade_id=self.grade.id,
            source_id=self.plants[0].offering.id, valid_from=now, now=now,
        )  # fmt: skip
        tiered = on_demand(self.buyer(190_000), self.grade, now)
        meter(tiered, tiers, self.plants[0], 5 * LOT, now)
        accrue(tiered, 6_000, 4_501, now)
        contracts.append(tiered)
        contracts.append(award(self.buyer(), self.grade, [(self.plants[0], 10)], 300_000, now, now).contract)
        self.others |= {contract.id for contract in contracts}

    def due(self) -> list[Due]:
        return unsettled_contracts(since=self.now, until=self.now + HOUR)


def everything() -> dict[str, list[Any]]:
    """All that settlement writes; accounts by what they are, since their ids are made up anew each time."""

    def rows(model: Any, *names: str) -> list[Any]:
        found = model.objects.values_list(*names) if names else model.objects.values()
        return sorted(found, key=repr)

    account = tuple(f"account__{name}" for name in _ACCOUNT)
    return {
        "settlements": rows(Settlement),
        "charges": rows(Charge),
        "earnings": rows(Earning),
        "outcomes": rows(DeliveryOutcome),
        "services": rows(ServicePeriod),
        "figures": rows(ServiceFigure),
        "transfers": rows(
            Transfer,
            *("id", "amount_micros", "code", "hold_id", "reference_id", "occurred_at"),
            *(f"debit_{name}" for name in account),
            *(f"credit_{name}" for name in account),
        ),
        "holds": rows(
            Hold,
            *("id", "amount_micros", "opened_micros", "captured_micros", "code", "reference_id", "status"),
            *("expires_at", "created_at", "ended_at"),
            *account,
        ),
        "balances": rows(
            LedgerAccount,
            *_ACCOUNT,
            *("debits_must_not_exceed_credits", "overdraft_limit_micros", "credit_line_micros"),
            *("debits_posted_micros", "credits_posted_micros", "debits_pending_micros", "created_at"),
        ),
        "accruals": rows(Accrual),
        "contracts": rows(Contract),
        "awards": rows(Entitlement),
        "grants": rows(Grant),
        "parts": rows(GrantPart, "hold_id", "grant_id", "part_id"),
    }


def singly(due: Sequence[Due], now: datetime) -> list[tuple[Any, ...]]:
    """What `settle_contract` said of each; a refusal by its code."""
    told: list[tuple[Any, ...]] = []
    for item in due:
        try:
            settled = settle_contract(
                contract_id=item.contract_id, settlement_start=item.settlement_start, now=now
            )
        except DomainError as error:
            told.append((item.contract_id, error.code))
        else:
            told.append((item.contract_id, settled))
    return told


def test_a_batch_writes_what_single_settlements_would(operator: Party, now: datetime) -> None:
    market = Market(now)
    market.add_ordinary()
    market.add_others()
    due, later = market.due(), now + DUE_AFTER
    assert {item.contract_id for item in due} == market.ordinary | market.others
    before = everything()
    with transaction.atomic():
        told = singly(due, later)
        expected = everything()
        transaction.set_rollback(True)
    assert everything() == before

    together = settle_together(due, now=later)
    assert {one.contract_id for one in together.settled} == market.ordinary
    assert {item.contract_id for item in together.singly} == market.others
    assert together.taken == []
    told_now = [(one.contract_id, one) for one in together.settled] + singly(together.singly, later)
    assert sorted(told_now, key=repr) == sorted(told, key=repr)
    for name, rows in everything().items():
        assert rows == expected[name], name
    assert [code for _, code in told if isinstance(code, str)] == ["charge_exceeds_hold"]
    assert Charge.objects.filter(tax_held_micros__gt=0).count() >= 5
    assert_books_balance()

    # Again: what is settled has nothing new, and is nobody's to settle singly.
    again = settle_together([item for item in due if item.contract_id in market.ordinary], now=later)
    assert again == Together()
    assert everything()["settlements"] == expected["settlements"]


def test_a_batch_takes_as_many_statements_for_many_contracts_as_for_few(
    operator: Party, now: datetime
) -> None:
    market = Market(now)
    few = {market.use(market.buyer(190_000), 3, 20_000).id for _ in range(3)}
    with CaptureQueriesContext(connection) as for_few:
        assert {one.contract_id for one in settle_together(market.due(), now=now + DUE_AFTER).settled} == few
    # Others sell as well, and some accounts of fees are new.
    market.plants.append(make_plant(market.provider(), market.grade, now, name="p1"))
    many = {market.use(market.buyer(190_000), 3, 20_000).id for _ in range(12)}
    with CaptureQueriesContext(connection) as for_many:
        assert {one.contract_id for one in settle_together(market.due(), now=now + DUE_AFTER).settled} == many
    assert len(for_many) == len(for_few)


def test_periods_are_settled_in_bounded_batches_oldest_first(
    operator: Party, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = Market(now)
    contracts = sorted(market.use(market.buyer(), 1, 3_900).id for _ in range(5))
    for contract in Contract.objects.filter(id__in=contracts[:2]):
        meter(contract, market.plants[0].offering.list_rate, market.plants[0], LOT, now + HOUR)
        hold(contract, now + HOUR, 600)
    monkeypatch.setattr(settlement_batches, "CONTRACTS_AT_ONCE", 2)
    due = unsettled_contracts(since=now, until=now + 2 * HOUR)
    assert [[item.contract_id for item in batch] for batch in settlement_batches.batches_of(due)] == [
        contracts[:2],
        contracts[2:4],
        contracts[4:],
        contracts[:2],
    ]
    result = settle_due_periods(now=now + HOUR + DUE_AFTER)
    assert [one.contract_id for one in result.settled] == [*contracts, *contracts[:2]]
    assert (result.waiting, result.failed) == ([], [])
    assert_books_balance()


def test_one_that_waits_is_left_out_of_the_batch(operator: Party, now: datetime) -> None:
    """Its request is still open; the other is settled, and it is when the request has ended."""
    market = Market(now)
    ready, buyer, hold_id = market.use(market.buyer(), 1, 3_900), market.buyer(), uuid7(now)
    terms: Any = {"organization_id": buyer.id, "grade_ids": [market.grade.id], "numerators": [LOT]}
    opened = open_hold(id=hold_id, now=now, **terms)
    result = settle_due_periods(now=now + DUE_AFTER)
    assert [one.contract_id for one in result.settled] == [ready.id]
    assert [(item.contract_id, why) for item, why in result.waiting] == [(opened.contract_id, "holds_open")]
    void_hold(id=hold_id, now=now + DUE_AFTER)
    assert [one.contract_id for one in settle_due_periods(now=now + DUE_AFTER).settled] == [
        opened.contract_id
    ]
    assert_books_balance()


def hold(contract: Contract, settlement_start: datetime, captured: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT contracts_accrue(%s, %s, %s, %s)",
            [contract.id, settlement_start, captured, settlement_start],
        )
    Accrual.objects.filter(contract=contract, settlement_start=settlement_start).update(
        held_micros=0, captured_micros=captured
    )


def test_a_contract_that_fails_in_a_batch_keeps_no_other_waiting(
    committed_db: TestDatabase, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    make_party("Operator", ["operator"], now)
    market = Market(now)
    contracts = [market.use(market.buyer(), 1, 3_900).id for _ in range(4)]
    later = now + DUE_AFTER
    # The last row that a batch writes before the money: all that it had written is undone.
    with poisoned(committed_db, "billing_charge", "contract_id", contracts[1]):
        result = settle_due_periods(now=later)
        assert {one.contract_id for one in result.settled} == {*contracts} - {contracts[1]}
        assert "not settled together" in caplog.text
        assert FailingItem.objects.get().item.startswith(str(contracts[1]))
        # From then on he is tried alone, and others are settled together.
        caplog.clear()
        more = market.use(market.buyer(), 1, 3_900).id
        assert [one.contract_id for one in settle_due_periods(now=later).settled] == [more]
        assert "not settled together" not in caplog.text
    assert [one.contract_id for one in settle_due_periods(now=later).settled] == [contracts[1]]
    assert not FailingItem.objects.exists()
    assert_books_balance()


@contextmanager
def locked(database: TestDatabase, statement: str, *values: object) -> Iterator[psycopg.Connection[Any]]:
    """While it lasts another transaction has the rows that the statement locks."""
    with psycopg.connect(database.owner_url) as other:
        assert other.execute(statement.encode(), values).fetchone() is not None
        yield other
        other.rollback()


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        try:
            return work()
        finally:
            connection.close()

    return run


def test_two_workers_share_the_contracts_and_each_is_settled_once(
    committed_db: TestDatabase, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_party("Operator", ["operator"], now)
    market = Market(now)
    contracts = sorted(market.use(market.buyer(190_000), 2, 10_000).id for _ in range(9))
    monkeypatch.setattr(settlement_batches, "CONTRACTS_AT_ONCE", 3)
    settle = in_thread(lambda: settle_due_periods(now=now + DUE_AFTER))
    with ThreadPoolExecutor(2) as pool:
        # The first is held up in the midst of its first batch; the second leaves that to him and does the rest.
        row = "SELECT 1 FROM contracts_accrual WHERE contract_id = %s FOR UPDATE"
        with locked(committed_db, row, contracts[0]) as other:
            first = pool.submit(settle)
            is_waited_for(other)
            second = pool.submit(settle).result(timeout=60)
        settled = {one.contract_id for one in first.result(timeout=60).settled}
    assert settled == set(contracts[:3])
    assert {one.contract_id for one in second.settled} == set(contracts[3:])
    assert {(item.contract_id, reason) for item, reason in second.waiting} == {
        (contract, "another_settles") for contract in contracts[:3]
    }
    assert sorted(Settlement.objects.values_list("contract_id", "run")) == [(one, 1) for one in contracts]
    assert_books_balance()


def is_waited_for(other: psycopg.Connection[Any]) -> None:
    """Return once somebody waits for what this connection has locked."""
    give_up = time.monotonic() + 30
    waits = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )
    while other.execute(waits).fetchone() == (0,):
        assert time.monotonic() < give_up, "nobody waits"
        time.sleep(0.02)


def test_four_workers_at_once_settle_each_contract_once(
    committed_db: TestDatabase, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_party("Operator", ["operator"], now)
    market = Market(now)
    contracts = sorted(market.use(market.buyer(190_000), 2, 10_000).id for _ in range(12))
    monkeypatch.setattr(settlement_batches, "CONTRACTS_AT_ONCE", 2)
    settle = in_thread(lambda: settle_due_periods(now=now + DUE_AFTER))
    with ThreadPoolExecutor(4) as pool:
        results = [future.result(timeout=120) for future in [pool.submit(settle) for _ in range(4)]]
    assert [result.failed for result in results] == [[], [], [], []]
    settled = sorted(one.contract_id for result in results for one in result.settled)
    assert settled == contracts
    assert sorted(Settlement.objects.values_list("contract_id", "run")) == [(one, 1) for one in contracts]
    assert Transfer.objects.filter(code="usage").count() == Earning.objects.filter(gross_micros__gt=0).count()
    assert_books_balance()


def test_who_settles_a_period_by_hand_waits_for_another_worker(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_party("Operator", ["operator"], now)
    market = Market(now)
    contracts = {market.use(market.buyer(), 2, 10_000).id for _ in range(2)}
    taken = min(contracts)
    row = "SELECT 1 FROM contracts_contract WHERE id = %s FOR NO KEY UPDATE"
    by_hand = in_thread(lambda: settle_period(settlement_start=now, now=now + DUE_AFTER))
    with ThreadPoolExecutor(1) as pool:
        with locked(committed_db, row, taken) as other:
            result = settle_due_periods(now=now + DUE_AFTER)
            assert {one.contract_id for one in result.settled} == contracts - {taken}
            assert [(item.contract_id, reason) for item, reason in result.waiting] == [
                (taken, "another_settles")
            ]
            waiting = pool.submit(by_hand)
            is_waited_for(other)
        assert [one.contract_id for one in waiting.result(timeout=60).settled] == [taken]
    assert_books_balance()
