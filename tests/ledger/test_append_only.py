from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import check_ledger
from tests.conftest import TestDatabase
from tests.ledger.books import make_books

_CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_app_role_writes_money_only_through_the_functions(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_books(now).fund(1_000)
    with psycopg.connect(committed_db.database_url, autocommit=True) as app:
        for table in ("ledger_transfer", "ledger_ledgeraccount", "ledger_hold"):
            for statement in (
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"UPDATE {table} SET id = id",
                f"INSERT INTO {table} SELECT * FROM {table}",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    app.execute(statement.encode())


def test_not_even_the_owner_edits_a_transfer(committed_db: TestDatabase, now: datetime) -> None:
    make_books(now).fund(1_000)
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        for statement in (
            "UPDATE ledger_transfer SET amount_micros = 1",
            "DELETE FROM ledger_transfer",
            "TRUNCATE ledger_transfer",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation):
                owner.execute(statement.encode())


def test_checkledger_finds_what_was_changed_behind_its_back(
    committed_db: TestDatabase, now: datetime
) -> None:
    books = make_books(now)
    books.fund(1_000)
    books.post(books.prepaid, books.payable, 400)

    def check() -> tuple[int, dict[str, Any], str]:
        command = [sys.executable, "manage.py", "checkledger"]
        done = subprocess.run(
            command, cwd=_CHECKOUT, env=committed_db.environment, capture_output=True, text=True
        )
        return done.returncode, json.loads(done.stdout), done.stderr

    code, report, _ = check()
    assert (code, report["ok"], report["transfers"], report["differences"]) == (0, True, 2, [])
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        owner.execute(
            "UPDATE ledger_ledgeraccount SET credits_posted_micros = credits_posted_micros + 1 WHERE id = %s",
            [books.prepaid],
        )
    code, report, complaint = check()
    assert (code, report["ok"], report["difference_count"]) == (1, False, 2)
    assert report["differences"][1]["what"] == "debits_and_credits_of_currency"
    assert report["differences"][:1] == [
        {
            "what": "credits_posted",
            "object_id": str(books.prepaid),
            "recorded_micros": 1_001,
            "recomputed_micros": 1_000,
            "seal": None,
        }
    ]
    assert f"credits_posted of {books.prepaid}: recorded 1001, recomputed 1000" in complaint


def test_each_kind_of_difference_is_found(committed_db: TestDatabase, now: datetime) -> None:
    books = make_books(now)
    books.fund(1_000)
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        owner.execute(
            "UPDATE ledger_ledgeraccount SET debits_pending_micros = 7, debits_posted_micros = 9 WHERE id = %s",
            [books.prepaid],
        )
        found = {difference.what for difference in check_ledger()}
        assert found == {"debits_pending", "debits_posted", "debits_and_credits_of_currency"}
        owner.execute(
            "ALTER TABLE ledger_ledgeraccount DROP CONSTRAINT ledger_account_debits_must_not_exceed_credits"
        )
        owner.execute(
            "UPDATE ledger_ledgeraccount SET debits_posted_micros = 5000 WHERE id = %s", [books.prepaid]
        )
    assert "overdrawn" in {difference.what for difference in check_ledger()}
    assert LedgerAccount.objects.get(pk=books.prepaid).debits_posted_micros == 5_000
