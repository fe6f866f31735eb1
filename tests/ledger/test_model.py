"""The ledger against forty lines of Python that keep every fact in the plainest way."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import transaction
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from marketplace.ids import uuid7
from marketplace.ledger.models import Hold
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import (
    HoldConflict,
    InsufficientFunds,
    NewTransfer,
    TransferConflict,
    change_hold,
    close_hold,
    expire_holds,
    open_hold,
    post_transfers,
)
from tests.ledger.books import Books, make_books

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
AMOUNTS = st.integers(min_value=1, max_value=200)


@dataclass
class ModelHold:
    account: UUID
    amount: int
    expires_at: datetime
    captured: int = 0
    status: str = "open"

    @property
    def pending(self) -> int:
        return self.amount - self.captured if self.status == "open" else 0


@dataclass
class Model:
    """Balances are sums over what happened; a rule is checked by trying it on the sums."""

    bounded: set[UUID]
    transfers: dict[UUID, NewTransfer] = field(default_factory=dict)
    holds: dict[UUID, ModelHold] = field(default_factory=dict)

    def available(self, account: UUID) -> int:
        posted = sum(
            (t.credit_id == account) * t.amount_micros - (t.debit_id == account) * t.amount_micros
            for t in self.transfers.values()
        )
        return posted - self.pending(account)

    def pending(self, account: UUID) -> int:
        return sum(hold.pending for hold in self.holds.values() if hold.account == account)

    def post(self, transfer: NewTransfer) -> str:
        known = self.transfers.get(transfer.id)
        if known is not None:
            return "0" if known == transfer else "TransferConflict"
        hold = self.holds.get(transfer.hold_id) if transfer.hold_id else None
        if hold is not None:
            if hold.status != "open" or hold.account != transfer.debit_id:
                return "HoldConflict"
            if hold.captured + transfer.amount_micros > hold.amount:
                return "HoldConflict"
            hold.captured += transfer.amount_micros
        elif self.short(transfer.debit_id, transfer.amount_micros):
            return "InsufficientFunds"
        self.transfers[transfer.id] = transfer
        return "1"

    def short(self, account: UUID, amount: int) -> bool:
        return account in self.bounded and self.available(account) < amount


class LedgerMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.books: Books = make_books(NOW)
        self.model = Model(bounded={self.books.prepaid, self.books.payable})
        self.accounts = [self.books.prepaid, self.books.payable, self.books.fees, self.books.processor]
        self.now = NOW

    def teardown(self) -> None:
        if hasattr(self, "atomic"):
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    def outcome(self, transfer: NewTransfer) -> str:
        try:
            return str(post_transfers([transfer], now=self.now))
        except (InsufficientFunds, TransferConflict, HoldConflict) as error:
            return type(error).__name__

    @rule(amount=AMOUNTS, pair=st.permutations(range(4)))
    def post(self, amount: int, pair: list[int]) -> None:
        transfer = NewTransfer(uuid7(), self.accounts[pair[0]], self.accounts[pair[1]], amount, "usage")
        assert self.outcome(transfer) == self.model.post(transfer)

    @precondition(lambda self: self.model.transfers)
    @rule(data=st.data(), other_amount=st.booleans())
    def post_again(self, data: st.DataObject, other_amount: bool) -> None:
        known = data.draw(st.sampled_from(list(self.model.transfers.values())))
        amount = known.amount_micros + other_amount
        again = NewTransfer(
            known.id, known.debit_id, known.credit_id, amount, known.code, hold_id=known.hold_id
        )
        assert self.outcome(again) == self.model.post(again)

    @rule(
        amount=st.integers(min_value=0, max_value=200), account=st.integers(0, 3), minutes=st.integers(1, 9)
    )
    def hold(self, amount: int, account: int, minutes: int) -> None:
        hold_id, account_id = uuid7(), self.accounts[account]
        expires_at = self.now + timedelta(minutes=minutes)
        terms = {"account_id": account_id, "amount_micros": amount, "code": "usage", "expires_at": expires_at}
        if self.model.short(account_id, amount):
            with pytest.raises(InsufficientFunds):
                open_hold(id=hold_id, now=self.now, **terms)  # type: ignore[arg-type]
        else:
            open_hold(id=hold_id, now=self.now, **terms)  # type: ignore[arg-type]
            self.model.holds[hold_id] = ModelHold(account_id, amount, expires_at)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), amount=AMOUNTS, credit=st.integers(0, 3))
    def capture(self, data: st.DataObject, amount: int, credit: int) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.holds)))
        debit_id = self.model.holds[hold_id].account
        if self.accounts[credit] == debit_id:
            return
        transfer = NewTransfer(uuid7(), debit_id, self.accounts[credit], amount, "usage", hold_id=hold_id)
        assert self.outcome(transfer) == self.model.post(transfer)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), delta=st.integers(min_value=-200, max_value=200))
    def change(self, data: st.DataObject, delta: int) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.holds)))
        hold = self.model.holds[hold_id]
        if hold.status != "open" or hold.amount + delta < hold.captured:
            with pytest.raises(HoldConflict):
                change_hold(id=hold_id, delta_micros=delta, now=self.now)
        elif delta > 0 and self.model.short(hold.account, delta):
            with pytest.raises(InsufficientFunds):
                change_hold(id=hold_id, delta_micros=delta, now=self.now)
        else:
            change_hold(id=hold_id, delta_micros=delta, now=self.now)
            hold.amount += delta

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), status=st.sampled_from(["posted", "voided"]))
    def close(self, data: st.DataObject, status: str) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.holds)))
        hold = self.model.holds[hold_id]
        if hold.status not in ("open", status):
            with pytest.raises(HoldConflict):
                close_hold(id=hold_id, status=status, now=self.now)
        else:
            close_hold(id=hold_id, status=status, now=self.now)
            hold.status = status

    @rule(minutes=st.integers(1, 5))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        due = [h for h in self.model.holds.values() if h.status == "open" and h.expires_at <= self.now]
        assert expire_holds(now=self.now) == len(due)
        for hold in due:
            hold.status = "expired"

    @invariant()
    def books_and_model_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        assert check_ledger() == []
        for account in self.accounts:
            found = self.books.balance(account)
            assert found.available_micros == self.model.available(account)
            assert found.pending_micros == self.model.pending(account)
            assert account not in self.model.bounded or found.available_micros >= 0
        rows = Hold.objects.values_list("id", "amount_micros", "captured_micros", "status")
        kept = {hold_id: (h.amount, h.captured, h.status) for hold_id, h in self.model.holds.items()}
        assert {row[0]: row[1:] for row in rows} == kept


@pytest.mark.django_db
def test_the_ledger_does_what_the_model_does() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        LedgerMachine,
        settings=hypothesis_settings(
            max_examples=25, stateful_step_count=20, deadline=None, derandomize=True
        ),
    )
