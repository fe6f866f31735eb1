from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from django.db import connection

from marketplace.ids import uuid7
from marketplace.ledger.models import Hold, Transfer
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import (
    HoldConflict,
    InsufficientFunds,
    NewTransfer,
    TransferConflict,
    close_hold,
    expire_holds,
    open_hold,
    post_transfers,
)
from tests.conftest import TestDatabase
from tests.ledger.books import make_books


def at_once(count: int, work: Callable[[int], str]) -> Counter[str]:
    """Run `work(0..count-1)` in as many threads, all let go at the same moment; how each ended."""
    gate = threading.Barrier(count)

    def run(index: int) -> str:
        try:
            connection.ensure_connection()
            gate.wait()
            return work(index)
        except (InsufficientFunds, TransferConflict, HoldConflict) as error:
            return type(error).__name__
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(run, range(count)))


def test_of_50_spends_with_funds_for_10_exactly_10_succeed(committed_db: TestDatabase, now: datetime) -> None:
    books = make_books(now)
    books.fund(100)
    ended = at_once(50, lambda _: str(books.post(books.prepaid, books.payable, 10)))
    assert ended == {"1": 10, "InsufficientFunds": 40}
    assert books.balance(books.prepaid).available_micros == 0
    assert Transfer.objects.count() == 11
    assert check_ledger() == []


def test_of_50_holds_with_funds_for_10_exactly_10_are_opened(
    committed_db: TestDatabase, now: datetime
) -> None:
    books = make_books(now)
    books.fund(100)

    def hold(_: int) -> str:
        open_hold(id=uuid7(), account_id=books.prepaid, amount_micros=10, code="usage", now=now)
        return "held"

    assert at_once(50, hold) == {"held": 10, "InsufficientFunds": 40}
    assert Hold.objects.count() == 10
    assert check_ledger() == []


def test_20_retries_of_one_transfer_at_once_post_it_once(committed_db: TestDatabase, now: datetime) -> None:
    books = make_books(now)
    books.fund(1_000)
    transfer_id = uuid7()
    ended = at_once(20, lambda _: str(books.post(books.prepaid, books.payable, 10, id=transfer_id)))
    assert ended == {"1": 1, "0": 19}
    assert books.balance(books.payable).posted_micros == 10


def test_one_id_for_different_accounts_at_once_is_posted_once_and_refused_otherwise(
    committed_db: TestDatabase, now: datetime
) -> None:
    books = make_books(now)
    transfer_id = uuid7()
    # Pairs without a common account share no lock: only the id's unique index can decide.
    pairs = [(books.processor, books.prepaid), (books.fees, books.payable)]
    ended = at_once(10, lambda index: str(books.post(*pairs[index % 2], 10, id=transfer_id)))
    assert ended == {"1": 1, "0": 4, "TransferConflict": 5}
    assert Transfer.objects.count() == 1
    assert check_ledger() == []


def test_capture_and_expiry_race_and_one_wins(committed_db: TestDatabase, now: datetime) -> None:
    books = make_books(now)
    books.fund(1_000)
    for _ in range(10):
        hold_id = uuid7()
        open_hold(
            id=hold_id, account_id=books.prepaid, amount_micros=10, code="usage", expires_at=now, now=now
        )

        def race(index: int, hold_id: object = hold_id) -> str:
            if index == 0:
                return f"expired {expire_holds(now=now + timedelta(seconds=1))}"
            books.post(books.prepaid, books.payable, 10, hold_id=hold_id)  # type: ignore[arg-type]
            return "captured"

        ended = at_once(2, race)
        hold = Hold.objects.get(pk=hold_id)
        if ended["captured"]:
            assert hold.captured_micros == 10
        else:
            assert hold.captured_micros == 0
            assert hold.status == "expired"
    assert check_ledger() == []


def test_a_storm_of_batches_in_any_order_neither_deadlocks_nor_loses(
    committed_db: TestDatabase, now: datetime
) -> None:
    books = make_books(now)
    books.fund(10**9)
    accounts = [books.prepaid, books.payable, books.fees, books.processor]

    def storm(index: int) -> str:
        chance = random.Random(index)
        for _ in range(20):
            batch = []
            for _ in range(10):
                debit, credit = chance.sample(accounts, 2)
                batch.append(NewTransfer(uuid7(), debit, credit, chance.randint(1, 100), "usage"))
            hold_id = uuid7()
            try:
                open_hold(id=hold_id, account_id=books.prepaid, amount_micros=5, code="usage", now=now)
                post_transfers(batch, now=now)
                close_hold(id=hold_id, status="voided", now=now)
            except InsufficientFunds:
                close_hold(id=hold_id, status="voided", now=now)
        return "done"

    assert at_once(8, storm) == {"done": 8}
    assert check_ledger() == []
