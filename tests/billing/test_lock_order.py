"""Two who need the same accounts never wait for each other: one order of locks over all calls of a transaction.

A second connection stands where another settlement or a batch of invoices does: it has the account with the lower id
and is about to ask for the one with the higher.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection, connections

from marketplace.billing.models import Invoice, Settlement
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.setting_aside import dispute_hold_id
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant, revoke_grant
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, open_hold
from marketplace.periods import calendar_month
from tests.billing.test_ending import accept, amendment
from tests.billing.test_grants import accrue
from tests.billing.test_month_ends import buy
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    assert_books_balance,
    identify,
    meter,
    on_demand,
    set_tax,
)
from tests.cast import fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

LOCK = "SELECT 1 FROM ledger_ledgeraccount WHERE id = %s FOR NO KEY UPDATE"


@contextmanager
def second_connection() -> Iterator[psycopg.Connection[Any]]:
    found = connections["owner"].settings_dict
    with psycopg.connect(
        host=found["HOST"],
        port=found["PORT"],
        user=found["USER"],
        password=found["PASSWORD"],
        dbname=found["NAME"],
    ) as other:
        yield other


def meets(work: Callable[[], object], *, lower: UUID, higher: UUID) -> None:
    """Do the work while another transaction takes `lower`, lets the work run into it, and then takes `higher`."""
    assert lower < higher
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    with second_connection() as other:
        other.execute(LOCK, (lower,))
        worker = threading.Thread(target=run)
        worker.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        give_up = time.monotonic() + 30
        while other.execute(waits).fetchone() == (0,):
            assert time.monotonic() < give_up, "the work never came to the account"
            assert worker.is_alive(), "the work ended without the account"
            time.sleep(0.02)
        # Were `higher` the work's already, this is the deadlock.
        other.execute(LOCK, (higher,))
        other.commit()
    worker.join()
    assert failed == []
    assert_books_balance()


def test_a_settlement_that_draws_grants_takes_its_accounts_in_one_step(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_party("Operator", ["operator"], now)
    hyperion, acme = make_party("Hyperion", ["provider"], now), make_party("Acme", ["buyer"], now)
    payable = account_id(organization_id=hyperion.id, kind=AccountKind.PAYABLE, currency="USD", now=now)
    prepaid = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    terms = GrantTerms(kind="granted", amount_micros=5_000, currency="USD")
    give_grant(id=uuid7(), organization_id=acme.id, terms=terms, now=now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, 1_000, 600, now)
    meets(lambda: settle_period(settlement_start=now, now=now + DUE_AFTER), lower=payable, higher=prepaid)
    assert Settlement.objects.count() == 1


def test_a_settlement_that_frees_what_was_disputed_takes_its_accounts_in_one_step(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_party("Operator", ["operator"], now)
    hyperion, acme = make_party("Hyperion", ["provider"], now), make_party("Acme", ["buyer"], now)
    payable = account_id(organization_id=hyperion.id, kind=AccountKind.PAYABLE, currency="USD", now=now)
    prepaid = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    hold_id = dispute_hold_id(Settlement.objects.get().id)
    open_hold(id=hold_id, account_id=prepaid, amount_micros=900, code="dispute", now=now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    meets(lambda: settle_period(settlement_start=now, now=now + DUE_AFTER), lower=payable, higher=prepaid)
    assert Settlement.objects.count() == 2


def test_a_grant_that_is_bought_and_taken_back_takes_both_accounts_in_one_step(
    committed_db: TestDatabase, now: datetime
) -> None:
    operator, acme = make_party("Operator", ["operator"], now), make_party("Acme", ["buyer"], now)
    prepaid = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    market = account_id(organization_id=operator.id, kind=AccountKind.OPERATOR, currency="USD", now=now)
    fund(acme, FUNDS, now)
    grant_id = uuid7()
    terms = GrantTerms(kind="purchased", amount_micros=5_000, currency="USD", cost_basis_ppm=500_000)
    give_grant(id=grant_id, organization_id=acme.id, terms=terms, now=now)
    # It goes to the market first, then to the balance.
    meets(lambda: revoke_grant(grant_id=grant_id, now=now), lower=prepaid, higher=market)


def test_a_batch_of_invoices_takes_the_accounts_of_taxes_that_are_given_back_with_the_others(
    committed_db: TestDatabase, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one buyer a remainder is posted; of the other the tax that was set aside goes back, by a later call."""
    operator, hyperion = make_party("Operator", ["operator"], now), make_party("Hyperion", ["provider"], now)
    acme, borealis = make_party("Acme", ["buyer"], now), make_party("Borealis", ["buyer"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    prepaid = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    rounding = account_id(organization_id=operator.id, kind=AccountKind.ROUNDING, currency="USD", now=now)
    for buyer, lots in ((acme, 100), (borealis, 1)):
        identify(buyer)
        set_tax(buyer, 200_000)
        fund(buyer, FUNDS, now)
        meter(on_demand(buyer, grade, now), plant.offering.list_rate, plant, lots * LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    set_tax(acme, 0)
    set_tax(borealis, 0)
    month = calendar_month(now)
    due = month.end + DUE_AFTER
    meets(lambda: issue_invoices(month_start=month.start, now=due), lower=prepaid, higher=rounding)
    assert Invoice.objects.count() == 2
    assert "not issued together" not in caplog.text


def test_an_amendment_takes_the_balance_with_the_accounts_of_the_fee(
    committed_db: TestDatabase, now: datetime
) -> None:
    """The new contract's price is held on the balance before the old one's fee goes to who supplied it."""
    make_party("Operator", ["operator"], now)
    hyperion, acme = make_party("Hyperion", ["provider"], now), make_party("Acme", ["buyer"], now)
    payable = account_id(organization_id=hyperion.id, kind=AccountKind.PAYABLE, currency="USD", now=now)
    prepaid = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    fund(acme, 100_000_000, now)
    contract = buy(acme, grade, now, months=3)
    charge_committed_months(now=contract.starts_at)
    boundary, later = Entitlement.objects.get().period_end, contract.starts_at + timedelta(days=1)
    quote = amendment(contract, later, boundary, firm_lots=50, volume_lots=4_000)
    meets(lambda: accept(contract, quote, later), lower=payable, higher=prepaid)
    assert Contract.objects.filter(amends=contract).count() == 1
