"""Requests, grants and moved time, from admission to capture, against a model that only adds up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from marketplace.contracts.models import Accrual, Hold
from marketplace.contracts.services import capture_hold, void_hold
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, expire_grants, give_grant, revoke_grant
from marketplace.ledger.models import Grant, LedgerAccount
from marketplace.ledger.selectors import balance, check_ledger
from metering.services import gateway_source
from tests.contracts.world import LOT, World, ask, available, give_money, make_world
from tests.orders.world import beat

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
LOT_MICROS = 600


@dataclass
class Model:
    """All the credit that acme has, wherever it lies, in micros: what is held or used is taken from it once."""

    money: int = 0
    given: int = 0
    ended: int = 0
    open: dict[UUID, int] = field(default_factory=dict)
    done: dict[UUID, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.money + self.given - self.ended - sum(self.open.values()) - sum(self.done.values())


class MarketMachine(RuleBasedStateMachine):
    """Money paid in and credit given, requests admitted, captured and voided, grants revoked and expired."""

    @initialize()
    def start(self) -> None:
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.world: World = make_world(NOW)
        self.source_id = gateway_source(NOW).id
        self.model = Model()
        self.now = NOW

    def teardown(self) -> None:
        if hasattr(self, "atomic"):
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    @rule(lots=st.integers(1, 4))
    def pay_in(self, lots: int) -> None:
        give_money(self.world, lots * LOT_MICROS, self.now)
        self.model.money += lots * LOT_MICROS

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
        """Never into the next settlement period, whose accrual would be another row."""
        self.now += timedelta(seconds=seconds)
        beat(self.world.plant, self.now)
        due = Grant.objects.filter(
            free_micros__gt=0, expires_at__lte=self.now, status__in=("open", "expired")
        )
        self.model.ended += sum(due.values_list("free_micros", flat=True))
        self.model.ended += sum(Grant.objects.filter(status="revoked").values_list("free_micros", flat=True))
        expire_grants(now=self.now)

    @property
    def usable(self) -> int:
        grants = Grant.objects.filter(status="open").exclude(expires_at__lte=self.now)
        return available(self.world) + sum(grants.values_list("free_micros", flat=True))

    @invariant()
    def books_and_model_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert check_ledger() == []
        free = sum(Grant.objects.values_list("free_micros", flat=True))
        assert available(self.world) + free == self.model.left
        assert available(self.world) >= 0
        statuses = dict(Hold.objects.values_list("id", "status"))
        assert {id_ for id_, status in statuses.items() if status == "open"} == set(self.model.open)
        accruals = Accrual.objects.all()
        assert sum(one.held_micros for one in accruals) == sum(self.model.open.values())
        assert sum(one.captured_micros for one in accruals) == sum(self.model.done.values())
        accounts = LedgerAccount.objects.all()
        assert sum(one.credits_posted_micros - one.debits_posted_micros for one in accounts) == 0
        prepaid = balance(organization_id=self.world.acme.id, kind="prepaid", currency="USD")
        assert prepaid.posted_micros == self.model.money


@pytest.mark.django_db
def test_requests_and_grants_do_what_the_model_does() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        MarketMachine,
        settings=hypothesis_settings(
            max_examples=25, stateful_step_count=20, deadline=None, derandomize=True
        ),
    )
