"""Many holds in one call: who is covered, what is carved out of what, and that a retry moves nothing twice."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest
from django.db import DatabaseError, connection

from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Hold, LedgerAccount
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import (
    AccountPlace,
    Carving,
    HoldConflict,
    InsufficientFunds,
    NewHold,
    account_id,
    account_ids,
    carve_holds,
    close_hold,
    open_hold,
    open_holds,
    raise_holds,
)
from tests.ledger.books import Books


def opened(account: UUID, amount_micros: int, now: datetime) -> UUID:
    hold_id = uuid7()
    open_hold(id=hold_id, account_id=account, amount_micros=amount_micros, code="bid", now=now)
    return hold_id


def amount_of(hold_id: UUID) -> int:
    return Hold.objects.get(pk=hold_id).amount_micros


def test_holds_opened_together_are_all_opened_once_or_none_of_them(books: Books, now: datetime) -> None:
    books.fund(100)
    holds = [NewHold(uuid7(), books.prepaid, amount, uuid7()) for amount in (40, 0, 60)]
    with pytest.raises(InsufficientFunds):
        open_holds([*holds, NewHold(uuid7(), books.prepaid, 1, uuid7())], code="tax", now=now)
    assert not Hold.objects.exists()
    for _ in range(2):
        open_holds(holds, code="tax", now=now)
    rows = Hold.objects.order_by("id").values_list("id", "amount_micros", "reference_id", "code", "status")
    wanted = [(one.id, one.amount_micros, one.reference_id, "tax", "open") for one in holds]
    assert sorted(rows) == sorted(wanted)
    assert books.balance(books.prepaid).available_micros == 0
    with pytest.raises(HoldConflict):
        open_holds([NewHold(holds[0].id, books.prepaid, 39, holds[0].reference_id)], code="tax", now=now)
    with pytest.raises(InvalidInput):
        open_holds([NewHold(uuid7(), books.prepaid, -1, uuid7())], code="tax", now=now)
    assert check_ledger() == []


def test_accounts_asked_for_together_are_those_asked_for_singly(books: Books, now: datetime) -> None:
    owner = LedgerAccount.objects.get(pk=books.prepaid).organization_id
    known = AccountPlace(owner, AccountKind.PREPAID, "USD")
    fresh = [
        AccountPlace(owner, AccountKind.DEFERRED, "USD", reference) for reference in (uuid7(), uuid7(), None)
    ]
    found = account_ids([fresh[0], known, *fresh, known], now=now)
    assert found[known] == books.prepaid
    assert len({*found.values()}) == len(found) == 4
    for place, account in found.items():
        kept = LedgerAccount.objects.get(pk=account)
        assert (kept.organization_id, kept.kind, kept.currency, kept.reference_id) == (
            place.organization_id,
            place.kind,
            place.currency,
            place.reference_id,
        )
        assert account == account_id(
            organization_id=owner, kind=place.kind, currency="USD", reference_id=place.reference_id, now=now
        )
    assert account_ids([], now=now) == {}


def test_an_account_pays_in_the_order_given_and_passes_over_what_does_not_fit(
    books: Books, now: datetime
) -> None:
    books.fund(100)
    first, second, third, fourth = (opened(books.prepaid, 10, now) for _ in range(4))
    wanted = {second: 40, first: 60, third: 40, fourth: 5}
    assert raise_holds(wanted, now=now) == {first}
    assert [amount_of(hold) for hold in (first, second, third, fourth)] == [10, 40, 40, 10]
    assert books.balance(books.prepaid).available_micros == 0
    assert check_ledger() == []


def test_raising_again_changes_nothing_more(books: Books, now: datetime) -> None:
    books.fund(100)
    hold = opened(books.prepaid, 10, now)
    for _ in range(2):
        assert raise_holds({hold: 70}, now=now) == set()
    assert raise_holds({hold: 30}, now=now) == set()
    assert amount_of(hold) == 70
    assert books.balance(books.prepaid).pending_micros == 70


def test_each_account_answers_for_its_own_holds_and_an_unbounded_one_for_any(
    books: Books, now: datetime
) -> None:
    books.fund(20)
    poor, rich = opened(books.prepaid, 10, now), opened(books.fees, 10, now)
    assert raise_holds({poor: 21, rich: 10**15}, now=now) == {poor}
    assert amount_of(rich) == 10**15
    assert check_ledger() == []


def test_one_ended_or_unknown_hold_raises_none(books: Books, now: datetime) -> None:
    books.fund(100)
    hold, ended = opened(books.prepaid, 10, now), opened(books.prepaid, 10, now)
    close_hold(id=ended, status=Hold.Status.VOIDED, now=now)
    with pytest.raises(HoldConflict):
        raise_holds({hold: 20, ended: 20}, now=now)
    with pytest.raises(NotFound):
        raise_holds({hold: 20, uuid7(): 20}, now=now)
    with pytest.raises(InvalidInput) as refused:
        raise_holds({hold: -1}, now=now)
    assert refused.value.field == "amount_micros"
    assert raise_holds({}, now=now) == set()
    assert amount_of(hold) == 10


def test_what_is_carved_out_leaves_the_balance_as_it_was(books: Books, now: datetime) -> None:
    books.fund(50)
    source, other = opened(books.prepaid, 30, now), opened(books.prepaid, 20, now)
    parts = [Carving(uuid7(), source, 12), Carving(uuid7(), source, 18), Carving(uuid7(), other, 0)]
    reference = uuid7()
    assert carve_holds(parts, code="award", reference_id=reference, now=now) == 3
    assert [amount_of(hold) for hold in (source, other)] == [0, 20]
    carved = Hold.objects.get(pk=parts[1].id)
    assert (carved.amount_micros, carved.opened_micros, carved.code) == (18, 18, "award")
    assert (carved.account_id, carved.reference_id, carved.status) == (books.prepaid, reference, "open")
    assert books.balance(books.prepaid).pending_micros == 50
    assert check_ledger() == []


def test_carving_again_takes_nothing_more_also_when_only_a_part_was_done(books: Books, now: datetime) -> None:
    books.fund(50)
    source = opened(books.prepaid, 50, now)
    parts = [Carving(uuid7(), source, 10), Carving(uuid7(), source, 15)]
    assert carve_holds(parts[:1], code="award", now=now) == 1
    assert carve_holds(parts, code="award", now=now) == 1
    assert carve_holds(parts, code="award", now=now) == 0
    assert carve_holds([], code="award", now=now) == 0
    assert amount_of(source) == 25
    assert check_ledger() == []


def test_other_terms_are_a_conflict_and_carve_nothing(books: Books, now: datetime) -> None:
    books.fund(50)
    source, foreign = opened(books.prepaid, 50, now), opened(books.fees, 50, now)
    part = Carving(uuid7(), source, 10)
    carve_holds([part], code="award", now=now)
    fresh = Carving(uuid7(), source, 1)
    for changed, code in (
        (Carving(part.id, source, 11), "award"),
        (Carving(part.id, foreign, 10), "award"),
        (part, "usage"),
    ):
        with pytest.raises(HoldConflict):
            carve_holds([fresh, changed], code=code, now=now)
    assert amount_of(source) == 40
    assert not Hold.objects.filter(pk=fresh.id).exists()


def test_nothing_is_carved_from_too_small_ended_or_unknown_holds(books: Books, now: datetime) -> None:
    books.fund(50)
    source, ended = opened(books.prepaid, 30, now), opened(books.prepaid, 20, now)
    books.post(books.prepaid, books.payable, 10, hold_id=source)
    close_hold(id=ended, status=Hold.Status.VOIDED, now=now)
    fits = Carving(uuid7(), source, 20)
    for bad, error in (
        (Carving(uuid7(), source, 1), HoldConflict),
        (Carving(uuid7(), ended, 1), HoldConflict),
        (Carving(uuid7(), uuid7(), 1), NotFound),
    ):
        with pytest.raises(error):
            carve_holds([fits, bad], code="award", now=now)
    assert amount_of(source) == 30
    carve_holds([fits], code="award", now=now)
    assert amount_of(source) == 10
    assert check_ledger() == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT ledger_raise_holds('{%s, %s}', '{1, 1}', now())",
        "SELECT ledger_raise_holds('{%s, %s}', '{1}', now())",
        "SELECT ledger_raise_holds(NULL, NULL, now())",
        "SELECT ledger_carve_holds('{%s, %s}', '{%s, %s}', '{1, 1}', 'award', NULL, now())",
        "SELECT ledger_carve_holds('{%s, %s}', '{%s}', '{1}', 'award', NULL, now())",
    ],
)
def test_a_hold_named_twice_and_arrays_of_unequal_length_are_refused(
    books: Books, now: datetime, statement: str
) -> None:
    books.fund(50)
    hold = opened(books.prepaid, 30, now)
    with pytest.raises(DatabaseError) as refused, connection.cursor() as cursor:
        cursor.execute(statement.replace("%s", str(hold)))
    assert getattr(refused.value.__cause__, "sqlstate", "") == "TY422"
