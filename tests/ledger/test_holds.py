from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.models import Hold
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import (
    HoldConflict,
    InsufficientFunds,
    change_hold,
    close_hold,
    expire_holds,
    open_hold,
)
from tests.ledger.books import Books


def test_what_is_held_cannot_be_spent_otherwise(books: Books, now: datetime) -> None:
    books.fund(100)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=70, code="usage", now=now)
    with pytest.raises(InsufficientFunds):
        books.post(books.prepaid, books.payable, 31)
    with pytest.raises(InsufficientFunds):
        open_hold(id=uuid7(), account_id=books.prepaid, amount_micros=31, code="usage", now=now)
    assert Hold.objects.count() == 1
    books.post(books.prepaid, books.payable, 70, hold_id=hold_id)
    books.post(books.prepaid, books.payable, 30)
    assert books.balance(books.prepaid).available_micros == 0
    assert check_ledger() == []


def test_a_capture_never_exceeds_its_hold(books: Books, now: datetime) -> None:
    books.fund(100)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=50, code="usage", now=now)
    books.post(books.prepaid, books.payable, 20, hold_id=hold_id)
    with pytest.raises(HoldConflict):
        books.post(books.prepaid, books.payable, 31, hold_id=hold_id)
    assert Hold.objects.get().captured_micros == 20
    with pytest.raises(HoldConflict):
        books.post(books.processor, books.payable, 1, hold_id=hold_id)
    with pytest.raises(HoldConflict):
        books.post(books.prepaid, books.payable, 1, hold_id=uuid7())


def test_a_hold_ends_once(books: Books, now: datetime) -> None:
    books.fund(100)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=50, code="usage", now=now)
    for _ in range(2):
        close_hold(id=hold_id, status=Hold.Status.VOIDED, now=now)
    for status in (Hold.Status.POSTED, Hold.Status.EXPIRED):
        with pytest.raises(HoldConflict):
            close_hold(id=hold_id, status=status, now=now)
    with pytest.raises(HoldConflict):
        change_hold(id=hold_id, delta_micros=1, now=now)
    assert books.balance(books.prepaid).available_micros == 100


def test_opening_again_on_the_same_terms_is_nothing_also_when_it_has_grown(
    books: Books, now: datetime
) -> None:
    books.fund(100)
    hold_id = uuid7()
    for _ in range(2):
        open_hold(id=hold_id, account_id=books.prepaid, amount_micros=50, code="usage", now=now)
    change_hold(id=hold_id, delta_micros=20, now=now)
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=50, code="usage", now=now)
    assert books.balance(books.prepaid).pending_micros == 70
    for terms in ({"amount_micros": 70, "code": "usage"}, {"amount_micros": 50, "code": "spot"}):
        with pytest.raises(HoldConflict):
            open_hold(id=hold_id, account_id=books.prepaid, now=now, **terms)  # type: ignore[arg-type]


def test_a_hold_grows_within_the_balance_and_shrinks_to_what_was_captured(
    books: Books, now: datetime
) -> None:
    books.fund(100)
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=books.prepaid, amount_micros=0, code="usage", now=now)
    change_hold(id=hold_id, delta_micros=100, now=now)
    with pytest.raises(InsufficientFunds):
        change_hold(id=hold_id, delta_micros=1, now=now)
    books.post(books.prepaid, books.payable, 40, hold_id=hold_id)
    with pytest.raises(HoldConflict):
        change_hold(id=hold_id, delta_micros=-61, now=now)
    change_hold(id=hold_id, delta_micros=-60, now=now)
    assert books.balance(books.prepaid).pending_micros == 0
    assert books.balance(books.prepaid).available_micros == 60
    assert check_ledger() == []


def test_holds_expire_when_their_time_has_come(books: Books, now: datetime) -> None:
    books.fund(100)
    for minutes in (1, 2, 3):
        open_hold(
            id=uuid7(),
            account_id=books.prepaid,
            amount_micros=10,
            code="usage",
            expires_at=now + timedelta(minutes=minutes),
            now=now,
        )
    open_hold(id=uuid7(), account_id=books.prepaid, amount_micros=10, code="usage", now=now)
    assert expire_holds(now=now) == 0
    assert expire_holds(now=now + timedelta(minutes=2), limit=1) == 1
    assert expire_holds(now=now + timedelta(minutes=2)) == 1
    assert books.balance(books.prepaid).pending_micros == 20
    assert Hold.objects.filter(status="expired", ended_at__isnull=False).count() == 2
    assert check_ledger() == []


def test_what_does_not_exist_is_not_found(books: Books, now: datetime) -> None:
    with pytest.raises(NotFound):
        open_hold(id=uuid7(), account_id=uuid7(), amount_micros=1, code="usage", now=now)
    with pytest.raises(NotFound):
        change_hold(id=uuid7(), delta_micros=1, now=now)
    with pytest.raises(NotFound):
        close_hold(id=uuid7(), status="voided", now=now)
    with pytest.raises(InvalidInput):
        open_hold(id=uuid7(), account_id=books.prepaid, amount_micros=-1, code="usage", now=now)
    assert not Hold.objects.exists()
