"""The ledger page: running balances, files, and nobody else's account."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import Any

import pytest

from marketplace.ids import uuid7
from marketplace.ledger.extract_verifier import verify
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.history import statement
from marketplace.ledger.models import LedgerAccount
from marketplace.portal.figures import money
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.world import Day


def test_the_ledger_shows_the_balance_after_each_movement(
    day: Day, acme: Party, hyperion: Party, sign_in: SignIn
) -> None:
    for party, role, kind in ((acme, "buyer", "prepaid"), (hyperion, "provider", "payable")):
        account = LedgerAccount.objects.get(organization_id=party.id, kind=kind)
        lines = list(statement(account, start=None, end=None))
        shown = sign_in(party).get(f"/{role}/ledger").content.decode()
        assert lines
        for line in lines[-25:]:
            assert money(line.balance_micros, account.currency) in shown


def test_credit_is_shown_with_what_is_left_of_it(
    day: Day, acme: Party, sign_in: SignIn, now: datetime
) -> None:
    credit = GrantTerms(kind="granted", amount_micros=7_654_321, currency="USD")
    give_grant(id=uuid7(), organization_id=acme.id, terms=credit, now=now)
    shown = sign_in(acme).get("/buyer/ledger").content.decode()
    assert "Credit is spent before your balance" in shown
    assert money(7_654_321, "USD") in shown


def test_files_of_the_ledger_agree_with_the_page(day: Day, acme: Party, sign_in: SignIn) -> None:
    client = sign_in(acme)

    def body(path: str) -> bytes:
        answer: Any = client.get(path)
        assert answer.status_code == 200
        return bytes(answer.getvalue())

    account = LedgerAccount.objects.get(organization_id=acme.id, kind="prepaid")
    rows = list(csv.DictReader(io.StringIO(body(f"/buyer/ledger?account={account.id}&file=csv").decode())))
    assert [int(row["balance_micros"]) for row in rows] == [
        line.balance_micros for line in statement(account, start=None, end=None)
    ]
    assert verify(body("/buyer/ledger?file=extract").splitlines(keepends=True)).transfers >= len(rows)
    assert body("/buyer/ledger?file=verifier").startswith(b"#!/usr/bin/env python3")


def test_anothers_account_is_no_page(day: Day, acme: Party, mallory: Party, sign_in: SignIn) -> None:
    account = LedgerAccount.objects.get(organization_id=acme.id, kind="prepaid")
    client = sign_in(mallory)
    for more in ("", "&file=csv"):
        assert client.get(f"/buyer/ledger?account={account.id}{more}").status_code == 404


@pytest.mark.parametrize("query", ["account=x", "account=%00", "before=x"])
def test_bad_questions_are_bad_requests(day: Day, acme: Party, sign_in: SignIn, query: str) -> None:
    assert sign_in(acme).get(f"/buyer/ledger?{query}").status_code == 400
