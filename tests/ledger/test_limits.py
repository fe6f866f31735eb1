"""What the tables and functions refuse by themselves, whoever calls them."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg
import pytest
from django.db import DataError, connection, transaction

from marketplace.ids import uuid7
from marketplace.ledger.models import Hold
from marketplace.ledger.services import expire_holds, open_hold
from tests.conftest import TestDatabase
from tests.ledger.books import Books, make_books


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "0.5", "1e400"])
def test_no_amount_is_other_than_a_whole_number(books: Books, value: str) -> None:
    """The type has no NaN that would be larger than every bound."""
    with pytest.raises(DataError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_post_transfers(%s::uuid[], %s::uuid[], %s::uuid[], %s::bigint[], %s::text[], "
            "%s::uuid[], %s::uuid[], %s)",
            [
                [uuid7()], [books.processor], [books.prepaid], [value], ["top_up"], [None], [None], books.now,
            ],
        )  # fmt: skip
    assert books.balance(books.prepaid).posted_micros == 0


def test_every_column_of_money_is_a_whole_number(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT data_type FROM information_schema.columns "
            "WHERE table_name LIKE 'ledger\\_%%' AND column_name LIKE '%%\\_micros'"
        )
        assert cursor.fetchall() == [("bigint",)]


def test_the_sweeper_passes_over_a_hold_that_is_being_captured(
    committed_db: TestDatabase, now: datetime
) -> None:
    """It waits for nobody: the locked one is left for the next sweep."""
    books = make_books(now)
    books.fund(100)
    busy, idle = uuid7(), uuid7()
    due = now + timedelta(minutes=1)
    for hold in (busy, idle):
        open_hold(id=hold, account_id=books.prepaid, amount_micros=10, code="usage", expires_at=due, now=now)
    assert expire_holds(now=due - timedelta(microseconds=1)) == 0
    with psycopg.connect(committed_db.owner_url) as capturing:
        capturing.execute("SELECT 1 FROM ledger_hold WHERE id = %s FOR NO KEY UPDATE", [busy])
        assert expire_holds(now=due) == 1
        assert Hold.objects.get(pk=idle).status == "expired"
        assert Hold.objects.get(pk=busy).status == "open"
    assert expire_holds(now=due) == 1
    assert books.balance(books.prepaid).pending_micros == 0
