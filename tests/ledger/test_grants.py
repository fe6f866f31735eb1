"""Grants: burned in order where a hold is taken, exact at capture, and nothing lost when they end."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.grants import (
    GrantTerms,
    draw_grants,
    expire_grants,
    give_grant,
    grant_credit,
    revoke_grant,
)
from marketplace.ledger.models import Grant, Hold, LedgerAccount, Transfer
from marketplace.ledger.services import (
    GrantEnded,
    HoldConflict,
    InsufficientFunds,
    TransferConflict,
    call,
    change_hold,
    close_hold,
    open_hold,
)
from tests.conftest import TestDatabase
from tests.ledger.books import Books, make_books
from tests.peers.cases import runs

DAY = timedelta(days=1)
GRADE, OTHER_GRADE = UUID(int=7 << 80 | 1), UUID(int=7 << 80 | 2)


def owner_of(books: Books) -> UUID:
    return LedgerAccount.objects.get(pk=books.prepaid).organization_id


def give(books: Books, amount: int, **terms: Any) -> Grant:
    kind = terms.pop("kind", "granted")
    return give_grant(
        id=uuid7(),
        organization_id=owner_of(books),
        terms=GrantTerms(kind=kind, amount_micros=amount, currency="USD", **terms),
        now=books.now,
    )


def burning_hold(books: Books, grade: UUID = GRADE) -> UUID:
    hold = uuid7()
    open_hold(id=hold, account_id=books.prepaid, amount_micros=0, code="usage", now=books.now)
    call("SELECT ledger_let_hold_burn(%s, %s)", (hold, grade))
    return hold


def free(*grants: Grant) -> list[int]:
    return [Grant.objects.get(pk=grant.id).free_micros for grant in grants]


def burn(books: Books, amount: int) -> UUID:
    hold = burning_hold(books)
    change_hold(id=hold, delta_micros=amount, now=books.now)
    return hold


@runs("credit-03")
def test_what_was_given_is_burned_before_what_was_bought(books: Books) -> None:
    books.fund(70)
    paid = give(books, 70, kind="purchased", cost_basis_ppm=1_000_000)
    promo = give(books, 30)
    burn(books, 80)
    assert free(promo, paid) == [0, 20]
    assert check_ledger() == []


@runs("credit-04")
def test_priority_comes_before_everything(books: Books) -> None:
    second = give(books, 100, priority=2, expires_at=books.now + DAY)
    first = give(books, 100, priority=1)
    burn(books, 120)
    assert free(first, second) == [0, 80]
    assert books.balance(books.prepaid).pending_micros == 0


def test_the_sooner_to_expire_is_burned_first_and_what_never_does_last(books: Books) -> None:
    never = give(books, 10)
    late, soon = give(books, 10, expires_at=books.now + 2 * DAY), give(books, 10, expires_at=books.now + DAY)
    burn(books, 15)
    assert free(soon, late, never) == [0, 5, 10]


@runs("credit-06")
def test_a_hundred_thousand_grants_are_burned_at_once(committed_db: TestDatabase, now: datetime) -> None:
    """The order comes from an index: the time does not grow with the number of grants."""
    books = make_books(now)
    sooner = give(books, 100, expires_at=now + DAY)
    other = give(books, 100, expires_at=now + 2 * DAY)
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        owner.execute(
            "WITH copied AS (INSERT INTO ledger_ledgeraccount (id, organization_id, kind, currency, reference_id,"
            " debits_must_not_exceed_credits, overdraft_limit_micros, debits_posted_micros, credits_posted_micros,"
            " debits_pending_micros, created_at) SELECT uuidv7(), organization_id, 'grant', 'USD', uuidv7(), true, 0,"
            " 0, 100, 0, created_at FROM ledger_ledgeraccount, generate_series(1, 100000) WHERE id = %s RETURNING *)"
            " INSERT INTO ledger_grant (id, organization_id, account_id, kind, currency, amount_micros, free_micros,"
            " cost_basis_ppm, priority, expires_at, status, created_at) SELECT reference_id, organization_id, id,"
            " 'granted', 'USD', 100, 100, 0, 100, %s, 'open', created_at FROM copied",
            [other.account_id, other.expires_at],
        )
        owner.execute("ANALYZE ledger_grant")
    began = time.perf_counter()
    burn(books, 99)
    assert time.perf_counter() - began < 1
    assert free(sooner, other) == [1, 100]
    assert Grant.objects.filter(free_micros=100).count() == 100_001


@runs("credit-14")
def test_half_of_it_is_paid_and_all_of_it_spent(books: Books) -> None:
    books.fund(50)
    grant = give(books, 100, kind="purchased", cost_basis_ppm=500_000)
    assert books.balance(books.prepaid).posted_micros == 0
    paid = Transfer.objects.get(code="grant_purchase")
    assert (paid.amount_micros, paid.credit_account_id) == (50, grant.account_id)
    assert grant_credit(organization_id=owner_of(books), currency="USD", now=books.now) == 100


def test_a_purchase_that_the_balance_does_not_cover_gives_nothing(books: Books) -> None:
    books.fund(49)
    with pytest.raises(InsufficientFunds):
        give(books, 100, kind="purchased", cost_basis_ppm=500_000)
    assert not Grant.objects.exists()
    assert check_ledger() == []


def test_grants_pay_first_and_the_balance_the_rest(books: Books) -> None:
    """Drawn in order at capture; the rest of the hold is free again."""
    books.fund(100)
    first, second = give(books, 30, priority=1), give(books, 40, priority=2)
    hold = burn(books, 90)
    assert free(first, second) == [0, 0]
    assert books.balance(books.prepaid).pending_micros == 20
    assert draw_grants(hold_id=hold, amount_micros=50, now=books.now) == 50
    books.post(books.prepaid, books.payable, 50, hold_id=hold)
    close_hold(id=hold, status="posted", now=books.now)
    assert free(first, second) == [0, 20]
    assert (books.balance(books.prepaid).posted_micros, books.balance(books.prepaid).pending_micros) == (
        100,
        0,
    )
    assert books.balance(books.payable).posted_micros == 50
    assert check_ledger() == []


def test_drawing_twice_draws_once(books: Books) -> None:
    give(books, 30)
    hold = burn(books, 30)
    assert draw_grants(hold_id=hold, amount_micros=30, now=books.now) == 30
    assert draw_grants(hold_id=hold, amount_micros=30, now=books.now) == 0
    close_hold(id=hold, status="voided", now=books.now)
    with pytest.raises(HoldConflict):
        draw_grants(hold_id=hold, amount_micros=30, now=books.now)


def test_what_is_given_back_goes_to_the_balance_first_and_to_grants_in_reverse(books: Books) -> None:
    books.fund(100)
    first, second = give(books, 30, priority=1), give(books, 40, priority=2)
    hold = burn(books, 90)
    change_hold(id=hold, delta_micros=-30, now=books.now)
    assert (free(first, second), books.balance(books.prepaid).pending_micros) == ([0, 10], 0)
    change_hold(id=hold, delta_micros=-55, now=books.now)
    assert free(first, second) == [25, 40]
    change_hold(id=hold, delta_micros=-5, now=books.now)
    assert free(first, second) == [30, 40]
    with pytest.raises(HoldConflict):
        change_hold(id=hold, delta_micros=-1, now=books.now)
    assert check_ledger() == []


def test_a_grant_for_a_grade_pays_for_that_grade_alone(books: Books) -> None:
    books.fund(100)
    scoped = give(books, 30, grade_id=OTHER_GRADE)
    everywhere = give(books, 30, priority=999)
    burn(books, 40)
    assert free(scoped, everywhere) == [30, 0]
    assert books.balance(books.prepaid).pending_micros == 10


def test_neither_grants_nor_balance_are_overdrawn(books: Books) -> None:
    books.fund(10)
    grant = give(books, 30)
    hold = burning_hold(books)
    with pytest.raises(InsufficientFunds):
        change_hold(id=hold, delta_micros=41, now=books.now)
    assert free(grant) == [30]
    change_hold(id=hold, delta_micros=40, now=books.now)
    assert check_ledger() == []


def test_what_expires_is_breakage_and_what_a_hold_gives_back_later_too(books: Books) -> None:
    grant = give(books, 100, expires_at=books.now + DAY)
    hold = burn(books, 60)
    later = books.now + DAY
    assert expire_grants(now=later - timedelta(microseconds=1)) == 0
    assert expire_grants(now=later) == 1
    breakage = LedgerAccount.objects.get(kind="breakage")
    assert breakage.credits_posted_micros == 40
    # Held in time, so it pays; the rest comes back to a grant that has ended.
    assert draw_grants(hold_id=hold, amount_micros=20, now=later) == 20
    assert free(grant) == [40]
    assert expire_grants(now=later) == 1
    breakage.refresh_from_db()
    assert (breakage.credits_posted_micros, free(grant)) == (80, [0])
    assert expire_grants(now=later) == 0
    books.fund(5)
    burn(books, 5)
    assert books.balance(books.prepaid).pending_micros == 5 + 20
    assert check_ledger() == []


def test_an_expired_grant_is_not_burned_before_the_sweeper_has_come(books: Books) -> None:
    give(books, 100, expires_at=books.now + DAY)
    hold = burning_hold(books)
    with pytest.raises(InsufficientFunds):
        change_hold(id=hold, delta_micros=1, now=books.now + DAY)


def test_revoking_pays_back_what_was_paid(books: Books) -> None:
    books.fund(50)
    grant = give(books, 100, kind="purchased", cost_basis_ppm=500_000)
    burn(books, 40)
    assert revoke_grant(grant_id=grant.id, now=books.now) == 60
    assert books.balance(books.prepaid).posted_micros == 30
    assert revoke_grant(grant_id=grant.id, now=books.now) == 0
    with pytest.raises(NotFound):
        revoke_grant(grant_id=uuid7(), now=books.now)
    assert check_ledger() == []


def test_a_grant_ends_one_way(books: Books) -> None:
    grant = give(books, 100, expires_at=books.now + DAY)
    expire_grants(now=books.now + DAY)
    with pytest.raises(GrantEnded):
        revoke_grant(grant_id=grant.id, now=books.now + DAY)


def test_the_same_grant_is_given_once(books: Books) -> None:
    terms = GrantTerms(kind="granted", amount_micros=10, currency="USD")
    id_, owner = uuid7(), owner_of(books)
    for _ in range(2):
        give_grant(id=id_, organization_id=owner, terms=terms, now=books.now)
    assert grant_credit(organization_id=owner, currency="USD", now=books.now) == 10
    with pytest.raises(TransferConflict):
        give_grant(
            id=id_,
            organization_id=owner,
            terms=GrantTerms(kind="granted", amount_micros=11, currency="USD"),
            now=books.now,
        )


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"amount_micros": 0}, "amount_micros"),
        ({"amount_micros": 2**63}, "amount_micros"),
        ({"kind": "gift"}, "kind"),
        ({"cost_basis_ppm": 1}, "cost_basis_ppm"),
        ({"kind": "purchased", "cost_basis_ppm": 1_000_001}, "cost_basis_ppm"),
        ({"priority": -1}, "priority"),
        ({"priority": 1_000}, "priority"),
        ({"expires_at": 0}, "expires_at"),
    ],
)
def test_bad_terms_name_the_field(books: Books, terms: dict[str, Any], field: str) -> None:
    if "expires_at" in terms:
        terms = {"expires_at": books.now}
    good: dict[str, Any] = {"kind": "granted", "amount_micros": 1, "currency": "USD"}
    with pytest.raises(InvalidInput) as refused:
        give_grant(
            id=uuid7(), organization_id=owner_of(books), terms=GrantTerms(**good | terms), now=books.now
        )
    assert refused.value.field == field


def test_fifty_at_once_burn_each_micro_once(committed_db: TestDatabase, now: datetime) -> None:
    """Grants for 6 and a balance for 4: exactly 10 of 50 are held."""
    books = make_books(now)
    books.fund(40)
    grants = [give(books, 20), give(books, 20), give(books, 20)]
    holds = [burning_hold(books) for _ in range(50)]
    outcomes: list[str] = []

    def work(mine: list[UUID]) -> None:
        for hold in mine:
            try:
                change_hold(id=hold, delta_micros=10, now=now)
                outcomes.append("held")
            except InsufficientFunds:
                outcomes.append("refused")
        connection.close()

    threads = [threading.Thread(target=work, args=(holds[start::10],)) for start in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held"] * 10 + ["refused"] * 40
    assert free(*grants) == [0, 0, 0]
    assert books.balance(books.prepaid).available_micros == 0
    assert check_ledger() == []


MOVES = st.lists(st.tuples(st.sampled_from(["grow", "shrink", "give"]), st.integers(1, 40)), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_any_sequence_holds_the_first_grants_in_order(books: Books, moves: list[tuple[str, int]]) -> None:
    """Against the plainest model: grants in a row, what is held fills them from the left."""
    for earlier in Grant.objects.filter(free_micros__gt=0, status="open"):
        revoke_grant(grant_id=earlier.id, now=books.now)
    books.fund(60)
    money = books.balance(books.prepaid).available_micros
    grants = [give(books, 15, priority=1), give(books, 25, priority=2)]
    amounts, hold, held = [15, 25], burning_hold(books), 0
    for move, amount in moves:
        if move == "give":
            grants.append(give(books, amount, priority=900 + len(grants)))
            amounts.append(amount)
            if held > sum(amounts[:-1]):
                return  # What the balance holds already is not moved to a grant that came later.
        elif move == "grow":
            if held + amount <= sum(amounts) + money:
                change_hold(id=hold, delta_micros=amount, now=books.now)
                held += amount
        elif move == "shrink" and amount <= held:
            change_hold(id=hold, delta_micros=-amount, now=books.now)
            held -= amount
        rest, expected = held, []
        for whole in amounts:
            taken = min(rest, whole)
            expected.append(whole - taken)
            rest -= taken
        assert free(*grants) == expected
    drawn = draw_grants(hold_id=hold, amount_micros=held // 2, now=books.now)
    assert drawn == min(held // 2, sum(amounts))
    close_hold(id=hold, status="voided", now=books.now)
    assert not Hold.objects.filter(status="open", reference_id=hold).exists()
    assert check_ledger() == []
