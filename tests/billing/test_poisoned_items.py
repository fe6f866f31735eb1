"""One buyer or contract whose money cannot be moved keeps nobody else's from moving (fault 60)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import transaction

from marketplace.billing.models import Charge, Invoice, Payout, Settlement, Statement
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.owing import let_owe
from marketplace.billing.services.settling import settle_due_periods
from marketplace.ids import uuid7
from marketplace.isolating import TRIES
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from marketplace.models import FailingItem
from providers.models import Provider
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    accrue,
    assert_books_balance,
    identify,
    meter,
    money,
    on_demand,
)
from tests.cast import Party, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

MINUTE = timedelta(minutes=1)


@contextmanager
def poisoned(database: TestDatabase, table: str, column: str, value: UUID) -> Iterator[None]:
    """While it lasts the database refuses every new row of the table that is about `value`."""
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'poisoned' USING ERRCODE = 'data_exception'; END $$"
        )
        statement = (
            f"CREATE TRIGGER poison BEFORE INSERT ON {table} FOR EACH ROW"
            f" WHEN (NEW.{column} = '{value}') EXECUTE FUNCTION poison()"
        )
        owner.execute(statement.encode())
    try:
        yield
    finally:
        with psycopg.connect(database.owner_url, autocommit=True) as owner:
            owner.execute("DROP FUNCTION poison() CASCADE")


def buyers_with_usage(count: int) -> list[Party]:
    grade, hyperion = make_grade(MARCH), make_party("Hyperion", ["provider"], MARCH)
    make_party("Operator", ["operator"], MARCH)
    identify(hyperion)
    plant = make_plant(hyperion, grade, MARCH)
    Provider.objects.filter(organization_id=hyperion.id).update(
        self_billing_consent_at=MARCH, payout_destination="iban:test"
    )
    buyers = []
    for number in range(count):
        buyer = make_party(f"Buyer{number}", ["buyer"], MARCH)
        fund(buyer, FUNDS, MARCH)
        use(buyer, grade, plant, LOT * 33, MARCH, 70_000_000)
        buyers.append(buyer)
    return buyers


@pytest.mark.parametrize("grace_s", [0, 3_600])
def test_a_buyer_who_cannot_be_invoiced_keeps_nobody_elses_documents_or_payouts(
    committed_db: TestDatabase, settings: Any, grace_s: int
) -> None:
    settings.INVOICE_GRACE_S = grace_s
    buyers = buyers_with_usage(5)
    bad = buyers[1].id
    with poisoned(committed_db, "billing_invoice", "organization_id", bad):
        issue_due_documents(now=APRIL_2)
        issue_due_documents(now=APRIL_2 + timedelta(hours=2))
    issued = Invoice.objects.filter(status=Invoice.Status.PAID)
    assert {invoice.organization_id for invoice in issued} == {buyer.id for buyer in buyers} - {bad}
    assert Statement.objects.count() == 1
    assert Payout.objects.count() == 1
    [failing] = FailingItem.objects.all()
    assert failing.job == "billing.invoice"
    assert failing.item == str(bad)
    assert "poisoned" in failing.error

    issue_due_documents(now=APRIL_2 + timedelta(hours=4))
    issue_due_documents(now=APRIL_2 + timedelta(hours=6))
    assert Invoice.objects.filter(status=Invoice.Status.PAID).count() == 5
    assert not FailingItem.objects.exists()
    assert_books_balance()


def test_a_contract_that_cannot_be_settled_keeps_no_other_and_is_shown_to_the_operator(
    committed_db: TestDatabase, now: datetime
) -> None:
    grade, hyperion = make_grade(now), make_party("Hyperion", ["provider"], now)
    operator = make_party("Operator", ["operator"], now)
    plant = make_plant(hyperion, grade, now)
    contracts = []
    for number in range(3):
        buyer = make_party(f"Buyer{number}", ["buyer"], now)
        fund(buyer, FUNDS, now)
        contract = on_demand(buyer, grade, now)
        meter(contract, plant.offering.list_rate, plant, LOT * 10, now)
        accrue(contract, now, 70_000_000, now)
        contracts.append(contract)
    bad = contracts[0].id
    due = now + DUE_AFTER
    with poisoned(committed_db, "billing_settlement", "contract_id", bad):
        for attempt in range(TRIES):
            settle_due_periods(now=due + attempt * timedelta(seconds=2))
            settled = set(Settlement.objects.values_list("contract_id", flat=True))
            assert settled == {contract.id for contract in contracts[1:]}
    answer = operator.api.get("/api/v1/failing-items")
    [shown] = answer.json()["items"]
    assert shown["job"] == "billing.settle"
    assert shown["item"].startswith(str(bad))
    assert shown["attempts"] == TRIES
    assert "poisoned" in shown["error"]
    assert hyperion.api.get("/api/v1/failing-items").status_code == 403

    settle_due_periods(now=due + 2 * MINUTE)
    assert Charge.objects.filter(contract_id=bad).count() == 1
    assert operator.api.get("/api/v1/failing-items").json()["items"] == []
    assert_books_balance()


def test_a_debt_that_cannot_be_collected_keeps_nobody_elses_from_it(committed_db: TestDatabase) -> None:
    operator, grade = make_party("Operator", ["operator"], MARCH), make_grade(MARCH)
    market = account_id(organization_id=operator.id, kind=AccountKind.OPERATOR, currency="USD", now=MARCH)
    owing, accounts = [], []
    for number in range(3):
        buyer = make_party(f"Buyer{number}", ["buyer"], MARCH)
        with transaction.atomic():
            account = let_owe(on_demand(buyer, grade, MARCH), 500, now=MARCH)
            debt = NewTransfer(
                id=uuid7(), debit_id=account, credit_id=market, amount_micros=500, code="remedy"
            )
            post_transfers([debt], now=MARCH)
        fund(buyer, 10_000, MARCH)
        owing.append(buyer)
        accounts.append(account)
    with poisoned(committed_db, "ledger_transfer", "credit_account_id", accounts[0]):
        settle_due_periods(now=MARCH)
    assert [money(buyer, "receivable") for buyer in owing] == [-500, 0, 0]
    (failing,) = FailingItem.objects.filter(job="billing.collect_owed")
    assert "poisoned" in failing.error
    settle_due_periods(now=MARCH + timedelta(hours=1))
    assert [money(buyer, "receivable") for buyer in owing] == [0, 0, 0]
    assert not FailingItem.objects.filter(job="billing.collect_owed").exists()
    assert_books_balance()
