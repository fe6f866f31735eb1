"""Fault 58 of docs/faults.md: a migration that meets a market at work gives up; the market does not queue behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from django.db import OperationalError, connections, migrations, models
from django.db.migrations.executor import MigrationExecutor

from marketplace.errors import sqlstate_of
from tests.conftest import TestDatabase

LOCK_NOT_AVAILABLE = "55P03"
LONGEST_S = 20  # Five, and a busy machine.


@contextmanager
def long_statement(database: TestDatabase) -> Iterator[None]:
    """A report, say, that has read the contracts and goes on."""
    with psycopg.connect(database.database_url) as reader:
        reader.execute("SELECT count(*) FROM contracts_contract")
        yield


def migrate_one_more() -> None:
    """What a release may bring, on the connection that `migrate --database owner` uses."""
    connection = connections["owner"]
    state = MigrationExecutor(connection).loader.project_state()
    operation = migrations.AddField("contract", "remark", models.TextField(default=""))
    after = state.clone()
    operation.state_forwards("contracts", after)
    try:
        with connection.schema_editor(atomic=True) as editor:
            operation.database_forwards("contracts", editor, state, after)
    finally:
        connection.close()


def test_a_migration_that_meets_a_long_statement_gives_up_and_the_market_goes_on(
    committed_db: TestDatabase,
) -> None:
    with ThreadPoolExecutor(1) as pool, long_statement(committed_db):
        began = time.monotonic()
        migration = pool.submit(migrate_one_more)
        with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
            while not owner.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert time.monotonic() - began < LONGEST_S
        # Who comes now queues behind the migration, and is served while the long statement still runs.
        with psycopg.connect(committed_db.database_url, autocommit=True) as web:
            web.execute(f"SET statement_timeout = '{LONGEST_S}s'".encode())
            web.execute("SELECT count(*) FROM contracts_contract")
        with pytest.raises(OperationalError) as refused:
            migration.result(LONGEST_S)
        assert sqlstate_of(refused.value) == LOCK_NOT_AVAILABLE
        assert time.monotonic() - began < LONGEST_S
    # As a whole: nothing of it is there, and started again it is done.
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        asked = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'remark'"
        assert owner.execute(asked).fetchone() == (0,)
        migrate_one_more()
        assert owner.execute(asked).fetchone() == (1,)
