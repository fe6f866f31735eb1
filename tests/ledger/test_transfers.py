from __future__ import annotations

import random
from datetime import datetime
from uuid import UUID

import pytest
from django.db import connection

from marketplace.accounts.models import Organization
from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, LedgerAccount, Transfer
from marketplace.ledger.selectors import check_ledger, entries_of
from marketplace.ledger.services import (
    HoldConflict,
    InsufficientFunds,
    NewTransfer,
    TransferConflict,
    account_id,
    close_hold,
    open_hold,
    post_transfers,
    set_overdraft_limit,
)
from tests.ledger.books import Books


def test_a_transfer_debits_one_and_credits_the_other(books: Books) -> None:
    books.fund(1_000)
    assert books.post(books.prepaid, books.payable, 400) == 1
    assert books.balance(books.prepaid).posted_micros == 600
    assert books.balance(books.payable).posted_micros == 400
    assert books.balance(books.processor).posted_micros == 1_000
    assert check_ledger() == []


def test_retry_with_the_same_id_moves_money_once(books: Books) -> None:
    books.fund(1_000)
    transfer_id = uuid7()
    assert [books.post(books.prepaid, books.payable, 400, id=transfer_id) for _ in range(3)] == [1, 0, 0]
    assert books.balance(books.prepaid).posted_micros == 600


@pytest.mark.parametrize("change", ["amount", "debit", "credit", "code", "reference"])
def test_the_same_id_on_other_terms_is_a_conflict(books: Books, change: str) -> None:
    books.fund(1_000)
    first = NewTransfer(uuid7(), books.prepaid, books.payable, 400, "usage")
    post_transfers([first], now=books.now)
    other = {
        "amount": NewTransfer(first.id, books.prepaid, books.payable, 401, "usage"),
        "debit": NewTransfer(first.id, books.processor, books.payable, 400, "usage"),
        "credit": NewTransfer(first.id, books.prepaid, books.fees, 400, "usage"),
        "code": NewTransfer(first.id, books.prepaid, books.payable, 400, "spot"),
        "reference": NewTransfer(first.id, books.prepaid, books.payable, 400, "usage", reference_id=uuid7()),
    }[change]
    fresh = NewTransfer(uuid7(), books.prepaid, books.fees, 1, "fee")
    for batch in ([other], [fresh, other]):
        with pytest.raises(TransferConflict):
            post_transfers(batch, now=books.now)
    assert books.balance(books.prepaid).posted_micros == 600
    assert books.balance(books.fees).posted_micros == 0
    assert check_ledger() == []


def test_a_batch_may_repeat_itself_but_not_contradict_itself(books: Books) -> None:
    books.fund(1_000)
    one = NewTransfer(uuid7(), books.prepaid, books.payable, 100, "usage")
    two = NewTransfer(uuid7(), books.prepaid, books.fees, 10, "fee")
    assert post_transfers([one, two, one], now=books.now) == 2
    assert post_transfers([one, one], now=books.now) == 0
    three = NewTransfer(uuid7(), books.prepaid, books.payable, 5, "usage")
    assert post_transfers([two, three], now=books.now) == 1
    contradiction = NewTransfer(uuid7(), books.prepaid, books.payable, 7, "usage")
    again = NewTransfer(contradiction.id, books.prepaid, books.payable, 8, "usage")
    with pytest.raises(TransferConflict):
        post_transfers([contradiction, again], now=books.now)
    assert books.balance(books.prepaid).posted_micros == 885
    assert check_ledger() == []


def test_a_balance_is_never_overdrawn(books: Books) -> None:
    books.fund(100)
    with pytest.raises(InsufficientFunds):
        books.post(books.prepaid, books.payable, 101)
    both = [NewTransfer(uuid7(), books.prepaid, books.payable, 60, "usage") for _ in range(2)]
    with pytest.raises(InsufficientFunds):
        post_transfers(both, now=books.now)
    assert books.post(books.prepaid, books.payable, 100) == 1
    assert books.balance(books.prepaid).available_micros == 0
    assert Transfer.objects.count() == 2


def test_money_that_comes_and_goes_in_one_call_is_one_movement(books: Books) -> None:
    out = NewTransfer(uuid7(), books.prepaid, books.payable, 50, "usage")
    into = NewTransfer(uuid7(), books.processor, books.prepaid, 50, "top_up")
    assert post_transfers([out, into], now=books.now) == 2


def test_a_credit_line_is_an_overdraft_limit(books: Books) -> None:
    set_overdraft_limit(account_id=books.prepaid, limit_micros=500)
    books.post(books.prepaid, books.payable, 500)
    with pytest.raises(InsufficientFunds):
        books.post(books.prepaid, books.payable, 1)
    with pytest.raises(InsufficientFunds):
        set_overdraft_limit(account_id=books.prepaid, limit_micros=499)
    assert books.balance(books.prepaid).posted_micros == -500
    with pytest.raises(NotFound):
        set_overdraft_limit(account_id=uuid7(), limit_micros=1)


def test_the_markets_own_accounts_have_no_bound(books: Books) -> None:
    books.post(books.fees, books.payable, 5)
    assert books.balance(books.fees).posted_micros == -5
    bounded = LedgerAccount.objects.get(pk=books.payable)
    assert bounded.debits_must_not_exceed_credits
    with pytest.raises(InsufficientFunds):
        books.post(books.payable, books.fees, 6)


@pytest.mark.parametrize("amount", [0, -1, 2**63, 10**400, True, 1.0, "1"])
def test_an_amount_is_a_whole_positive_number_of_64_bits(books: Books, amount: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        books.post(books.processor, books.prepaid, amount)
    assert refused.value.field == "amount_micros"
    assert not Transfer.objects.exists()


def test_a_sum_beyond_64_bits_is_refused_and_never_wraps(books: Books) -> None:
    books.fund(2**63 - 1)
    with pytest.raises(InvalidInput):
        books.fund(1)
    batch = [NewTransfer(uuid7(), books.processor, books.payable, 2**62, "top_up") for _ in range(3)]
    with pytest.raises(InvalidInput):
        post_transfers(batch, now=books.now)
    assert books.balance(books.prepaid).posted_micros == 2**63 - 1
    assert check_ledger() == []


def test_accounts_that_do_not_exist_are_not_found(books: Books) -> None:
    good = NewTransfer(uuid7(), books.processor, books.prepaid, 1, "top_up")
    for bad in (
        NewTransfer(uuid7(), books.processor, uuid7(), 1, "top_up"),
        NewTransfer(uuid7(), uuid7(), books.prepaid, 1, "top_up"),
    ):
        for batch in ([bad], [good, bad]):
            with pytest.raises(NotFound):
                post_transfers(batch, now=books.now)
    assert not Transfer.objects.exists()


def test_no_transfer_between_currencies(books: Books, now: datetime) -> None:
    organization = Organization.objects.get(name="Books buyer")
    yen = account_id(organization_id=organization.id, kind="prepaid", currency="JPY", now=now)
    good = NewTransfer(uuid7(), books.processor, books.prepaid, 1, "top_up")
    bad = NewTransfer(uuid7(), books.processor, yen, 1, "top_up")
    for batch in ([bad], [good, bad]):
        with pytest.raises(InvalidInput, match="currencies"):
            post_transfers(batch, now=now)


def test_an_account_is_made_once_per_organization_kind_currency_and_reference(
    books: Books, now: datetime
) -> None:
    organization = Organization.objects.get(name="Books buyer")
    contract = uuid7()

    def deferred(reference_id: UUID | None) -> UUID:
        return account_id(
            organization_id=organization.id,
            kind=AccountKind.DEFERRED,
            currency="USD",
            reference_id=reference_id,
            now=now,
        )

    assert deferred(contract) == deferred(contract)
    assert len({deferred(contract), deferred(uuid7()), deferred(None)}) == 3
    assert deferred(None) == deferred(None)


def test_a_hundred_random_batches_agree_with_their_entries(books: Books) -> None:
    chance = random.Random(7)
    accounts = [books.prepaid, books.payable, books.fees, books.processor]
    expected = dict.fromkeys(accounts, 0)
    posted = 0
    for _ in range(100):
        batch = []
        for _ in range(chance.randint(1, 20)):
            debit, credit = chance.sample(accounts, 2)
            batch.append(NewTransfer(uuid7(), debit, credit, chance.randint(1, 10**6), "usage"))
        try:
            assert post_transfers(batch, now=books.now) == len(batch)
        except InsufficientFunds:
            continue
        posted += len(batch)
        for transfer in batch:
            expected[transfer.debit_id] -= transfer.amount_micros
            expected[transfer.credit_id] += transfer.amount_micros
    assert posted > 100
    assert check_ledger() == []
    for account, amount in expected.items():
        found = LedgerAccount.objects.get(pk=account)
        assert found.credits_posted_micros - found.debits_posted_micros == amount
        entries = entries_of([account], limit=10_000)
        assert sum(entry.amount_micros for entry in entries) == amount


def test_entries_are_paged_newest_first_and_show_both_sides_of_an_own_movement(books: Books) -> None:
    books.fund(1_000)
    for amount in range(1, 6):
        books.post(books.prepaid, books.payable, amount)
    first = entries_of([books.prepaid, books.payable], limit=2)
    assert [entry.amount_micros for entry in first] == [-5, 5, -4, 4]
    second = entries_of([books.prepaid, books.payable], before=first[-1].transfer_id, limit=10)
    assert [entry.amount_micros for entry in second] == [-3, 3, -2, 2, -1, 1, 1_000]
    assert entries_of([]) == []


def test_the_functions_refuse_arrays_of_different_lengths(books: Books) -> None:
    from django.db import DatabaseError, transaction

    with pytest.raises(DatabaseError, match="differ in length"), transaction.atomic():  # noqa: SIM117
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT ledger_post_transfers(%s::uuid[], '{}', '{}', '{}', '{}', '{}', '{}', now())",
                [[uuid7()]],
            )


def test_a_capture_may_come_in_the_same_batch_as_other_movements(books: Books, now: datetime) -> None:
    books.fund(1_000)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=300, code="usage", now=now)
    batch = [
        NewTransfer(uuid7(), books.prepaid, books.payable, 100, "usage", hold_id=hold_id),
        NewTransfer(uuid7(), books.prepaid, books.payable, 150, "usage", hold_id=hold_id),
        NewTransfer(uuid7(), books.payable, books.fees, 12, "fee"),
    ]
    assert post_transfers(batch, now=now) == 3
    assert books.balance(books.prepaid).pending_micros == 50
    close_hold(id=hold_id, status="posted", now=now)
    # A retry after the hold has ended finds everything done; something new does not fit any more.
    assert post_transfers(batch, now=now) == 0
    with pytest.raises(HoldConflict):
        books.post(books.prepaid, books.payable, 1, hold_id=hold_id)
    assert books.balance(books.prepaid).available_micros == 750
    assert check_ledger() == []
