from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import psycopg
import pytest

from marketplace.ids import uuid7
from marketplace.ledger.sealing import Sealed, seal_transfers
from marketplace.ledger.services import NewTransfer, open_hold, post_transfers
from tests.conftest import TestDatabase
from tests.database import Services
from tests.ledger.books import Books, make_books


@pytest.fixture
def books(db: None, now: datetime) -> Books:
    return make_books(now)


@pytest.fixture
def sealed_books(committed_db: TestDatabase, now: datetime) -> Books:
    """Seven transfers under three seals."""
    books = make_books(now)
    hold = uuid7()
    books.fund(1_000)
    open_hold(id=hold, account_id=books.prepaid, amount_micros=50, code="usage", now=now)
    books.post(books.prepaid, books.payable, 30, hold_id=hold)
    post_transfers(
        [
            NewTransfer(uuid7(), books.prepaid, books.payable, 9, "usage", reference_id=uuid7()),
            NewTransfer(uuid7(), books.payable, books.fees, 2, "fee"),
            NewTransfer(uuid7(), books.prepaid, books.fees, 1, "Gebühr"),
        ],
        now=now,
    )
    books.post(books.prepaid, books.payable, 5)
    books.post(books.prepaid, books.payable, 6)
    assert seal_transfers(now=now, most=3) == Sealed(seals=3, transfers=7, complete=True)
    return books


Tamper = Callable[..., None]


@pytest.fixture
def tamper(committed_db: TestDatabase, services: Services) -> Tamper:
    """Runs a statement with triggers and foreign keys switched off, as only a superuser can."""

    def run(statement: str, *values: object) -> None:
        with psycopg.connect(services.admin_url(committed_db.name), autocommit=True) as superuser:
            superuser.execute("SET session_replication_role = replica")
            superuser.execute(statement.encode(), values)

    return run
