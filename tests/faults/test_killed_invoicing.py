"""A process and PostgreSQL killed inside a batch of invoices: no number is lost, and nobody is billed twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from django.db import connection, connections
from pytest_django import DjangoDbBlocker

from marketplace.billing.models import Charge, Invoice, InvoiceLineCharge
from marketplace.billing.services.invoicing import buyers_to_invoice, issue_invoices
from marketplace.ledger.models import Transfer
from marketplace.local import postgres
from tests.billing.test_invoice_batches import MONTH, many
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.world import assert_books_balance
from tests.cast import make_grade, make_party, make_plant
from tests.conftest import TestDatabase, own_database
from tests.database import Services
from tests.faults.breakpoints import remove_stops, stop_at
from tests.faults.intake import Database
from tests.market import wait_until

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
BUYERS = 4
# In batches of two, so that one is whole when the next is cut off.
ISSUER = f"""
import django; django.setup()
from datetime import datetime
from marketplace.billing.services import invoice_batches
from marketplace.billing.services.invoicing import issue_invoices
invoice_batches.BUYERS_AT_ONCE = 2
month, now = map(datetime.fromisoformat, ("{MARCH.isoformat()}", "{APRIL_2.isoformat()}"))
issue_invoices(month_start=month, now=now)
"""


@pytest.fixture(scope="module")
def template(
    services: Services, django_db_setup: None, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[str]:
    """A month that four buyers are to be invoiced for; made once, every test has a copy."""
    name = f"tokenyard_invoice_world_{worker_name}"
    with own_database(services, django_db_blocker, worker_name, "first_invoices") as first:
        make_party("Operator", ["operator"], NOW)
        grade = make_grade(NOW)
        plant = make_plant(make_party("Hyperion", ["provider"], NOW), grade, NOW)
        many(grade, plant, NOW, BUYERS)
        connections.close_all()
        services.clone(name, template=first.name)
    yield name
    services.drop(name)


@pytest.fixture
def market(
    services: Services, template: str, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[TestDatabase]:
    with own_database(services, django_db_blocker, worker_name, "invoices", template=template) as own:
        yield own


@contextmanager
def issuing(database: TestDatabase) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ISSUER], env=database.environment, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def assert_numbers_have_no_gap(count: int) -> None:
    numbers = sorted(str(number) for number in Invoice.objects.values_list("number", flat=True))
    assert numbers == [f"TY-2026-{n:06d}" for n in range(1, count + 1)]


def assert_a_next_run_finishes(issued: int) -> None:
    """Whatever was left: the rest is issued, once, and then there is nothing to issue."""
    before = set(Invoice.objects.values_list("id", flat=True))
    assert_numbers_have_no_gap(issued)
    assert_books_balance()
    buyers: Counter[UUID] = Counter(buyers_to_invoice(month=MONTH))
    assert len(buyers) == BUYERS - issued
    made = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert {invoice.organization_id for invoice in made} == set(buyers)
    assert before.isdisjoint(invoice.id for invoice in made)
    assert_numbers_have_no_gap(BUYERS)
    assert set(Counter(Invoice.objects.values_list("organization_id", flat=True)).values()) == {1}
    assert not Charge.objects.filter(invoiced_as__isnull=True).exists()
    cited = Counter(InvoiceLineCharge.objects.values_list("charge_id", flat=True))
    assert set(cited) == set(Charge.objects.values_list("id", flat=True))
    assert set(cited.values()) == {1}
    transfers = Transfer.objects.count()
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    assert Transfer.objects.count() == transfers
    assert_books_balance()


@pytest.mark.parametrize(
    ("point", "issued"), [("amid the invoices", 0), ("after the numbers", 2), ("at the invoices' commit", 2)]
)
def test_a_process_killed_inside_a_batch_leaves_whole_batches_and_the_next_run_finishes(
    market: TestDatabase, point: str, issued: int
) -> None:
    """Killed at its commit the server still commits: it is done, and nobody was told."""
    with stop_at(point, market.owner_url) as stop, issuing(market) as process:
        [backend] = stop.wait()
        process.kill()
        process.wait()
        stop.release()
        wait_until(lambda: not _lives(backend), "the server to notice")
    assert_a_next_run_finishes(issued)


def _lives(backend: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend])
        return cursor.fetchone() is not None


@pytest.fixture
def server(services: Services, template: str, session_folder: Path) -> Iterator[Database]:
    """A PostgreSQL of this test's own, to be killed."""
    directory = Path(tempfile.mkdtemp(prefix="tokenyard-invoices-"))
    # PostgreSQL's own user must come through.
    directory.chmod(0o711)
    database = Database.copied_from(services, directory, postgres.binaries(session_folder))
    try:
        database.start()
        yield database
    finally:
        database.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize(
    ("point", "is_durable", "issued"), [("after the numbers", False, 2), ("at the invoices' commit", True, 2)]
)
def test_a_server_killed_inside_a_batch_leaves_whole_batches_and_the_next_run_finishes(
    services: Services,
    server: Database,
    template: str,
    django_db_blocker: DjangoDbBlocker,
    worker_name: str,
    point: str,
    is_durable: bool,
    issued: int,
) -> None:
    """Also where the batch was durable when the server died untold."""
    own_services = Services(os.getpid(), server.port, services.redis_url)
    with own_database(
        own_services, django_db_blocker, worker_name, "invoices", template=template, home=services
    ) as own:
        with psycopg.connect(server.admin_url, autocommit=True) as admin:
            # What a copied sequence has written ahead stands in the log of its template, until the next checkpoint.
            admin.execute("CHECKPOINT")
        with stop_at(point, own.owner_url) as stop, issuing(own) as process:
            [backend] = stop.wait()
            if is_durable:
                with server.commits_told_to_nobody():
                    stop.release()
                    server.wait_for_untold_commit(backend)
                    server.kill()
            else:
                server.kill()
            # It saw its connection break, and gave up or asked again in vain.
            assert process.wait(60) != 0
        server.start()
        remove_stops(own.owner_url)
        assert_a_next_run_finishes(issued)
