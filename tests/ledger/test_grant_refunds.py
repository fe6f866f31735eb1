"""Credit given back: what was paid for it to the balance, never more than is unused or was paid, however it is cut."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.accounts.models import AuditEntry
from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.grants import refund_grant, refundable, revoke_grant
from marketplace.ledger.models import Grant, GrantRefund, LedgerAccount, Transfer
from marketplace.ledger.services import GrantEnded, TransferConflict
from tests.conftest import TestDatabase
from tests.ledger.books import Books, make_books
from tests.ledger.test_grants import DAY, burn, free, give


def refund(books: Books, grant: Grant, amount: int | None = None, **more: Any) -> GrantRefund:
    return refund_grant(id=more.pop("id", uuid7()), grant_id=grant.id, amount_micros=amount, now=books.now)


def purchased(books: Books, amount: int, *, cost_basis_ppm: int = 500_000, **terms: Any) -> Grant:
    books.fund(amount)
    return give(books, amount, kind="purchased", cost_basis_ppm=cost_basis_ppm, **terms)


def prepaid(books: Books) -> int:
    return books.balance(books.prepaid).posted_micros


def test_what_is_unused_of_a_purchased_grant_is_given_back_as_far_as_it_was_paid(books: Books) -> None:
    """100 bought for 80, 40 held: of the 60 that are unused 48 go back, 12 to who gave them."""
    grant = purchased(books, 100, cost_basis_ppm=800_000)
    assert prepaid(books) == 20
    burn(books, 40)
    assert refundable(Grant.objects.get(pk=grant.pk)) == 48
    made = refund(books, grant)
    assert (made.amount_micros, made.paid_micros) == (60, 48)
    assert (prepaid(books), free(grant)) == (68, [0])
    assert [row.amount_micros for row in Transfer.objects.filter(code="grant_voided")] == [12]
    assert (
        LedgerAccount.objects.get(kind="operator", organization__roles=["operator"]).debits_posted_micros
        == 20
    )
    entry = AuditEntry.objects.get(action="grant.refunded")
    assert (entry.object_id, entry.detail["amount_micros"]) == (grant.id, 60)
    assert check_ledger() == []


def test_a_promotional_grant_is_only_voided(books: Books) -> None:
    grant = give(books, 100)
    made = refund(books, grant, 70)
    assert (made.paid_micros, prepaid(books), free(grant)) == (0, 0, [30])
    assert [row.amount_micros for row in Transfer.objects.filter(code="grant_voided")] == [70]
    assert check_ledger() == []


def test_the_same_refund_again_gives_nothing_and_other_terms_are_refused(books: Books) -> None:
    grant = purchased(books, 100)
    once = uuid7()
    first, again = (refund(books, grant, 40, id=once) for _ in range(2))
    assert (first.id, first.paid_micros, free(grant), prepaid(books)) == (again.id, 20, [60], 70)
    assert AuditEntry.objects.filter(action="grant.refunded").count() == 1
    for other in (41, None):
        with pytest.raises(TransferConflict):
            refund(books, grant, other, id=once)
    with pytest.raises(TransferConflict):
        refund(books, purchased(books, 100), 40, id=once)
    assert free(grant) == [60]


@pytest.mark.parametrize("amount", [61, 0, -1])
def test_never_more_than_is_unused(books: Books, amount: int) -> None:
    grant = purchased(books, 100)
    burn(books, 40)
    with pytest.raises(InvalidInput) as refused:
        refund(books, grant, amount)
    assert refused.value.field == "amount_micros"
    assert (free(grant), GrantRefund.objects.count()) == ([60], 0)


def test_nothing_is_left_to_refund_of_a_grant_that_is_used_up_or_has_ended(books: Books) -> None:
    used, expired, revoked = (
        purchased(books, 10, priority=1),
        purchased(books, 10, expires_at=books.now + DAY),
        purchased(books, 10),
    )
    burn(books, 10)
    with pytest.raises(InvalidInput):
        refund(books, used)
    # By the clock, also before the sweep has looked.
    with pytest.raises(GrantEnded):
        refund_grant(id=uuid7(), grant_id=expired.id, amount_micros=1, now=books.now + DAY)
    revoke_grant(grant_id=revoked.id, now=books.now)
    with pytest.raises(GrantEnded):
        refund(books, revoked, 1)
    with pytest.raises(NotFound):
        refund_grant(id=uuid7(), grant_id=UUID(int=9), amount_micros=1, now=books.now)
    assert not GrantRefund.objects.exists()


def test_a_refund_is_never_edited(books: Books) -> None:
    made = refund(books, purchased(books, 10), 4)
    with pytest.raises(Exception, match="permission denied"), connection.cursor() as cursor:
        cursor.execute("UPDATE ledger_grantrefund SET paid_micros = 0 WHERE id = %s", [made.id])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cost_basis_ppm=st.integers(0, 1_000_000),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    revoked=st.booleans(),
)
def test_however_it_is_cut_as_much_comes_back_and_never_more_than_was_paid(
    books: Books, cost_basis_ppm: int, cuts: list[int], revoked: bool
) -> None:
    whole = sum(cuts)
    before = prepaid(books)
    grant = purchased(books, whole, cost_basis_ppm=cost_basis_ppm)
    paid = before + whole - prepaid(books)
    kept = cuts.pop() if revoked else 0
    back = [refund(books, grant, cut).paid_micros for cut in cuts]
    assert sum(back) == (whole - kept) * cost_basis_ppm // 1_000_000
    if revoked:
        revoke_grant(grant_id=grant.id, now=books.now)
    returned = prepaid(books) - before - (whole - paid)
    assert paid - 1 <= returned <= paid if revoked else returned == paid
    assert free(grant) == [0]


def test_refunds_at_once_and_holds_beside_them_give_out_no_more_than_there_is(
    committed_db: TestDatabase, now: Any
) -> None:
    books = make_books(now)
    grant = purchased(books, 100, cost_basis_ppm=1_000_000)
    done: list[int] = []

    def give_back() -> None:
        try:
            done.append(refund(books, grant, 30).paid_micros)
        except InvalidInput:
            done.append(0)
        finally:
            connection.close()

    def spend() -> None:
        try:
            burn(books, 25)
        finally:
            connection.close()

    workers = [threading.Thread(target=work) for work in (give_back, give_back, spend, give_back, give_back)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # 100 less 25 held, or less what was refunded before the hold came and went to the balance.
    assert sum(done) in (60, 90)
    assert sum(free(grant)) == 100 - sum(done) - (25 if sum(done) == 60 else 10)
    assert check_ledger() == []
