"""Fault 16 of docs/faults.md: a full disk, and a database that only reads: 503, nothing half done, later all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest
import time_machine
from django.db import connections
from django.test import Client

from marketplace.api.models import IdempotencyRecord
from marketplace.billing.models import TopUp
from marketplace.contracts.models import Contract
from marketplace.ledger.models import Hold, Transfer
from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Bid
from tests.cast import Party
from tests.conftest import TestDatabase
from tests.contracts.world import World, available, give_money, make_world
from tests.database import Services

FUNDS = 10_000_000
BID = {"grade": "tiny-chat", "client_id": "b1", "steps": [{"rate_micros_per_mtok": 250_000, "lots": 4}]}
QUOTE = {"grade": "tiny-chat", "firm_lots": 10, "volume_lots": 100, "months": 1}
# In the order in which a purchase comes to them: the key, the contract, its hold, the log.
ON_THE_WAY = ["api_idempotencyrecord", "contracts_contract", "ledger_hold", "accounts_auditentry"]


@pytest.fixture
def world(committed_db: TestDatabase, now: datetime) -> Iterator[World]:
    with time_machine.travel(now, tick=False):
        world = make_world(now)
        give_money(world, FUNDS, now)
        yield world


@contextmanager
def read_only(database: TestDatabase, services: Services) -> Iterator[None]:
    """As on a standby, or after an administrator's or a provider's switch: whoever is connected is cut off."""
    with psycopg.connect(services.admin_url(), autocommit=True) as admin:
        _switch(admin, database.name, "SET default_transaction_read_only = on")
        try:
            yield
        finally:
            _switch(admin, database.name, "RESET default_transaction_read_only")


def _switch(admin: psycopg.Connection[tuple[object, ...]], name: str, to: str) -> None:
    connections.close_all()
    admin.execute(f'ALTER DATABASE "{name}" {to}'.encode())
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


@contextmanager
def disk_full_at(table: str, database: TestDatabase) -> Iterator[None]:
    """PostgreSQL cannot extend a table's file: the error that it gives then, given by a trigger of the test's own."""
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute(
            """CREATE OR REPLACE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN
                   RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
               END $$"""
        )
        owner.execute(
            f"""CREATE TRIGGER disk_is_full BEFORE INSERT ON {table}
                FOR EACH ROW EXECUTE FUNCTION disk_is_full()""".encode()
        )
        try:
            yield
        finally:
            owner.execute(f"DROP TRIGGER disk_is_full ON {table}".encode())


def post(party: Party, path: str, body: Any = None, *, key: str) -> Any:
    return party.api.post(f"/api/v1/{path}", body, format="json", HTTP_IDEMPOTENCY_KEY=key)


def assert_unavailable(answer: Any) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.content
    assert int(answer["Retry-After"]) > 0
    assert answer["Content-Type"] == "application/problem+json"


def counts() -> list[int]:
    return [kind.objects.count() for kind in (Transfer, Hold, Contract, Bid, TopUp)]


def readiness() -> tuple[int, str]:
    answer = Client().get("/readyz")
    return answer.status_code, answer.json()["database"]


def test_a_database_that_only_reads_is_said_to_be_away_and_changes_nothing(
    world: World, committed_db: TestDatabase, services: Services
) -> None:
    quote = post(world.acme, "quotes", QUOTE, key="quote").json()["id"]
    asked = [
        ("top-ups", {"amount_micros": 5_000_000}),
        ("bids", BID),
        (f"quotes/{quote}/accept", None),
    ]
    before, keys = counts(), IdempotencyRecord.objects.count()
    assert readiness() == (200, "ok")
    with read_only(committed_db, services):
        for path, body in asked:
            assert_unavailable(post(world.acme, path, body, key=path))
        # A standby is no place to send anybody to; what it can tell it tells.
        assert readiness() == (503, "unavailable")
        assert world.acme.api.get("/api/v1/contracts").status_code == 200
    assert (counts(), IdempotencyRecord.objects.count()) == (before, keys)
    assert readiness() == (200, "ok")
    # The same keys again: each is done, once.
    for _ in range(2):
        assert [post(world.acme, path, body, key=path).status_code for path, body in asked] == [201] * 3
    assert TopUp.objects.count() == Bid.objects.count() == 1
    assert Contract.objects.filter(quote__isnull=False).count() == 1
    assert check_ledger() == []


@pytest.mark.parametrize("table", ON_THE_WAY)
def test_a_purchase_that_meets_a_full_disk_leaves_nothing_and_is_done_when_there_is_room(
    world: World, committed_db: TestDatabase, table: str
) -> None:
    quote = post(world.acme, "quotes", QUOTE, key="quote").json()["id"]
    before = counts()
    with disk_full_at(table, committed_db):
        assert_unavailable(post(world.acme, f"quotes/{quote}/accept", key="buy"))
        assert counts() == before
        assert available(world) == FUNDS
    for _ in range(2):
        assert post(world.acme, f"quotes/{quote}/accept", key="buy").status_code == 201
    assert Contract.objects.filter(quote__isnull=False).count() == 1
    assert available(world) < FUNDS
    assert check_ledger() == []
