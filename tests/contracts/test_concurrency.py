"""No balance and no entitlement is ever overdrawn, whoever asks at once (real commits, real connections)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import psycopg
from django.db import connection

from marketplace.contracts.models import Accrual, Entitlement, Hold
from marketplace.contracts.services import capture_hold, sweep_holds
from marketplace.ledger.selectors import check_ledger
from metering.services import gateway_source
from providers.services import record_heartbeat
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, ask, available, commit, give_money, make_world


def together(world: World, requests: int, numerator: int, at: datetime) -> Counter[str]:
    source_id = gateway_source(at).id

    def one(_: int) -> str:
        try:
            hold_id, opened = ask(world, numerator, at)
            if opened.outcome == "ok":
                capture_hold(id=hold_id, numerator=numerator, event=b"{}\n", source_id=source_id, now=at)
            return opened.outcome
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(one, range(requests)))


def test_a_hundred_requests_on_funds_for_ten_are_ten(committed_db: TestDatabase, now: datetime) -> None:
    world = make_world(now)
    give_money(world, 10 * 60 + 59, now)
    assert together(world, 100, LOT // 10, now) == {"ok": 10, "insufficient_funds": 90}
    assert available(world) == 59
    accrual = Accrual.objects.get()
    assert (accrual.held_micros, accrual.captured_micros) == (0, 600)
    assert check_ledger() == []


def test_an_entitlement_is_never_overdrawn(committed_db: TestDatabase, now: datetime) -> None:
    world = make_world(now)
    give_money(world, 10**9, now)
    contract = commit(world, now, firm_lots=30, volume_lots=2)
    record_heartbeat(
        host_id=world.plant.host.id, boot_id="b", ready=True, in_flight=0, registers={}, energy_millijoules=None,
        now=contract.starts_at,
    )  # fmt: skip
    outcomes = together(world, 60, LOT // 10, contract.starts_at)
    assert outcomes == {"ok": 20, "contract_exhausted": 40}
    entitlement = Entitlement.objects.get()
    assert (entitlement.held_numerator, entitlement.used_numerator) == (0, 2 * LOT)


def test_two_sweepers_share_the_work_and_wait_for_nobody(committed_db: TestDatabase, now: datetime) -> None:
    world = make_world(now)
    give_money(world, 10**9, now)
    holds = [ask(world, LOT // 100, now)[0] for _ in range(30)]
    due = now + timedelta(seconds=3600 + 15 + 30)
    with psycopg.connect(committed_db.environment["DATABASE_URL"]) as busy:
        # Another is just ending five of them. A second's wait for any of them would be an error.
        locked = "SELECT 1 FROM contracts_hold WHERE id = ANY (%s) FOR UPDATE"
        assert busy.execute(locked, [holds[5:10]]).rowcount == 5
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")
        try:
            assert sweep_holds(now=due) == 25
        finally:
            with connection.cursor() as cursor:
                cursor.execute("RESET lock_timeout")
    assert set(Hold.objects.filter(status="open").values_list("pk", flat=True)) == set(holds[5:10])

    def sweep(_: int) -> int:
        try:
            return sweep_holds(now=due)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(sweep, range(4))) == 5
    assert set(Hold.objects.values_list("status", flat=True)) == {"voided"}
    assert available(world) == 10**9
    assert check_ledger() == []
