"""Requests, grants, credit, settlement, refunds and seals, in any order, against a model that only adds up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
from django.db import connections
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge
from marketplace.billing.services.credit_lines import give_credit_line
from marketplace.billing.services.refunds import refund_payment
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.top_ups import top_up
from marketplace.contracts.models import Accrual, Contract, Hold
from marketplace.contracts.on_demand import choose_on_demand_payment
from marketplace.contracts.services import capture_hold, void_hold
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.checking import check_ledger, totals
from marketplace.ledger.grants import GrantTerms, expire_grants, give_grant, revoke_grant
from marketplace.ledger.models import AccountKind, Grant, LedgerAccount
from marketplace.ledger.sealing import seal_transfers
from marketplace.ledger.selectors import Balance, balance
from marketplace.ledger.services import InsufficientFunds
from metering.models import UsageBatch
from metering.services import gateway_source
from tests.billing.world import DUE_AFTER, meter
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, ask, give_money, make_world
from tests.database import Services
from tests.orders.world import beat

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
LOT_MICROS = 600
TOP_UP = 3_000_000


@dataclass(frozen=True)
class Place:
    """The database of each run, a copy of the template with the world in it."""

    services: Services
    name: str
    template: str
    world: World


@dataclass
class Model:
    """All the credit that acme has, wherever it lies, in micros: what is held or used is taken from it once."""

    money: int = 0
    given: int = 0
    ended: int = 0
    line: int = 0
    settled: int = 0
    open: dict[UUID, int] = field(default_factory=dict)
    done: dict[UUID, int] = field(default_factory=dict)

    @property
    def posted(self) -> int:
        """What the accounts say: what is held or captured still lies on them until its period is settled."""
        return self.money + self.given - self.ended - self.settled

    @property
    def left(self) -> int:
        return self.posted - sum(self.open.values()) - sum(self.done.values())


class MarketMachine(RuleBasedStateMachine):
    """Money paid in and sent back, credit given and lent, requests admitted, captured and voided, grants revoked and
    expired, hours settled, books sealed. Each run has a database of its own, with real commits.
    """

    place: ClassVar[Place]
    payment: ClassVar[str]

    @initialize()
    def start(self) -> None:
        connections.close_all()
        self.place.services.clone(self.place.name, template=self.place.template)
        self.world = self.place.world
        self.source_id = gateway_source(NOW).id
        self.model = Model()
        self.now = NOW
        self.payments: dict[UUID, int] = {}
        self.pay_in(lots=8)
        if self.payment == "arrears":
            self.lend(lots=3)
            choose_on_demand_payment(
                organization_id=self.world.acme.id, payment="arrears", now=NOW, actor=SYSTEM
            )

    @property
    def kind(self) -> AccountKind:
        return AccountKind.RECEIVABLE if self.payment == "arrears" else AccountKind.PREPAID

    def balance(self, kind: AccountKind | str) -> Balance:
        return balance(organization_id=self.world.acme.id, kind=kind, currency="USD")

    @rule(lots=st.integers(1, 4))
    def pay_in(self, lots: int) -> None:
        give_money(self.world, lots * LOT_MICROS, self.now, kind=self.kind)
        self.model.money += lots * LOT_MICROS

    @precondition(lambda self: self.payment == "arrears")
    @rule(lots=st.integers(0, 6))
    def lend(self, lots: int) -> None:
        """Also below what is used: that ends nothing, and admits nothing."""
        for _ in range(2):
            give_credit_line(
                organization_id=self.world.acme.id, limit_micros=lots * LOT_MICROS, now=self.now, actor=SYSTEM
            )
        self.model.line = lots * LOT_MICROS

    @precondition(lambda self: self.payment == "prepaid")
    @rule()
    def top_up(self) -> None:
        operation_id = uuid7()
        for _ in range(2):
            made = top_up(
                organization_id=self.world.acme.id,
                amount_micros=TOP_UP,
                operation_id=operation_id,
                now=self.now,
                actor=SYSTEM,
            )
        self.payments[made.id] = TOP_UP
        self.model.money += TOP_UP

    @precondition(lambda self: self.payments)
    @rule(data=st.data(), amount=st.sampled_from([TOP_UP // 3, TOP_UP]))
    def refund(self, data: st.DataObject, amount: int) -> None:
        """Never more than the payment, never what is held, used or gone."""
        payment_id = data.draw(st.sampled_from(list(self.payments)))
        terms: Any = {
            "organization_id": self.world.acme.id,
            "payment_id": payment_id,
            "amount_micros": amount,
            "operation_id": uuid7(),
            "now": self.now,
            "actor": SYSTEM,
        }
        if amount > self.payments[payment_id]:
            with pytest.raises(InvalidInput):
                refund_payment(**terms)
        elif amount > self.free:
            with pytest.raises(InsufficientFunds):
                refund_payment(**terms)
        else:
            for _ in range(2):
                assert refund_payment(**terms).status == "succeeded"
            self.payments[payment_id] -= amount
            self.model.money -= amount

    @rule(lots=st.integers(1, 4), minutes=st.none() | st.integers(1, 4), priority=st.integers(0, 3))
    def give(self, lots: int, minutes: int | None, priority: int) -> None:
        expires_at = None if minutes is None else self.now + timedelta(seconds=10 * minutes)
        terms = GrantTerms("granted", lots * LOT_MICROS, "USD", priority=priority, expires_at=expires_at)
        id_ = uuid7(self.now)
        for _ in range(2):
            give_grant(id=id_, organization_id=self.world.acme.id, terms=terms, now=self.now)
        self.model.given += lots * LOT_MICROS

    @rule(lots=st.integers(1, 6))
    def request(self, lots: int) -> None:
        """Admitted exactly when it fits into what is free of grants that have not expired and of the balance."""
        fits = self.usable >= lots * LOT_MICROS
        hold_id, opened = ask(self.world, lots * LOT, self.now)
        if fits:
            assert opened.outcome == "ok"
            self.model.open[hold_id] = lots * LOT_MICROS
        else:
            assert opened.outcome == "insufficient_funds"

    @precondition(lambda self: self.model.open)
    @rule(data=st.data(), share=st.integers(0, 6))
    def capture(self, data: st.DataObject, share: int) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.open)))
        lots = self.model.open[hold_id] // LOT_MICROS
        used = min(share, lots)
        for _ in range(2):  # The second capture finds the first.
            capture_hold(
                id=hold_id, numerator=used * LOT, event=b"{}\n", source_id=self.source_id, now=self.now
            )
        del self.model.open[hold_id]
        self.model.done[hold_id] = used * LOT_MICROS
        if used:
            # As ingestion leaves it.
            contract = Contract.objects.get(pk=Hold.objects.get(pk=hold_id).contract_id)
            meter(contract, self.world.plant.offering.list_rate, self.world.plant, used * LOT, self.hour)

    @precondition(lambda self: self.model.open)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.open)))
        for _ in range(2):
            void_hold(id=hold_id, now=self.now)
        del self.model.open[hold_id]

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        grants = list(Grant.objects.filter(status="open").order_by("id"))
        if grants:
            self.model.ended += revoke_grant(grant_id=data.draw(st.sampled_from(grants)).id, now=self.now)

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        """Within the hour: what is open at its end is the sweeper's (tests/contracts/test_holds.py)."""
        self.pass_to(self.now + timedelta(seconds=seconds))

    @precondition(lambda self: self.model.done)
    @rule()
    def settle(self) -> None:
        """The hour's end: what was captured is charged to the micro, and the provider has his part of it."""
        start = self.hour
        for hold_id in self.model.open:
            void_hold(id=hold_id, now=self.now)
        self.model.open = {}
        UsageBatch.objects.all().delete()
        self.pass_to(start + DUE_AFTER)
        for _ in range(2):
            result = settle_period(settlement_start=start, now=self.now)
            assert (result.failed, result.waiting) == ([], [])
        self.model.settled += sum(self.model.done.values())
        self.model.done = {}

    @rule()
    def seal(self) -> None:
        seal_transfers(now=self.now)
        assert totals()["unsealed_transfers"] == 0
        assert check_ledger(incremental=True) == []

    @property
    def hour(self) -> datetime:
        return self.now.replace(minute=0, second=0, microsecond=0)

    def pass_to(self, at: datetime) -> None:
        self.now = at
        beat(self.world.plant, self.now)
        due = Grant.objects.filter(
            free_micros__gt=0, expires_at__lte=self.now, status__in=("open", "expired")
        )
        self.model.ended += sum(due.values_list("free_micros", flat=True))
        self.model.ended += sum(Grant.objects.filter(status="revoked").values_list("free_micros", flat=True))
        expire_grants(now=self.now)

    @property
    def free(self) -> int:
        return self.balance(self.kind).available_micros

    @property
    def usable(self) -> int:
        grants = Grant.objects.filter(status="open").exclude(expires_at__lte=self.now)
        return self.free + sum(grants.values_list("free_micros", flat=True))

    @invariant()
    def books_and_model_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert check_ledger() == []
        granted = sum(Grant.objects.values_list("free_micros", flat=True))
        own = self.model.left - granted
        # A line that is lowered below what is used lends nothing, and takes nothing back.
        assert self.free == max(0, own + self.model.line)
        assert self.model.line or own >= 0 or self.payment == "arrears"
        assert (
            self.balance(self.kind).posted_micros + self.balance("grant").posted_micros == self.model.posted
        )
        statuses = dict(Hold.objects.values_list("id", "status"))
        assert {id_ for id_, status in statuses.items() if status == "open"} == set(self.model.open)
        accruals = Accrual.objects.filter(ledger_hold__status="open")
        assert sum(one.held_micros for one in accruals) == sum(self.model.open.values())
        assert sum(one.captured_micros for one in accruals) == sum(self.model.done.values())
        accounts = LedgerAccount.objects.all()
        assert sum(one.credits_posted_micros - one.debits_posted_micros for one in accounts) == 0
        assert sum(Charge.objects.values_list("amount_micros", flat=True)) == self.model.settled
        earned = balance(organization_id=self.world.hyperion.id, kind="payable", currency="USD").posted_micros
        assert earned == self.model.settled * 95 // 100


@pytest.mark.parametrize("payment", ["prepaid", "arrears"])
def test_the_market_does_what_the_model_does(
    committed_db: TestDatabase, services: Services, worker_name: str, payment: str
) -> None:
    template = f"tokenyard_model_world_{worker_name}"
    world = make_world(NOW)
    connections.close_all()
    services.clone(template, template=committed_db.name)

    class Machine(MarketMachine):
        pass

    Machine.place = Place(services, committed_db.name, template, world)
    Machine.payment = payment
    try:
        run_state_machine_as_test(
            Machine,
            settings=hypothesis_settings(
                max_examples=8, stateful_step_count=30, deadline=None, derandomize=True
            ),
        )
    finally:
        services.drop(template)
