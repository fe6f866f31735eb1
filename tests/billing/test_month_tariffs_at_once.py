"""Two contracts of a buyer count in one month of tiers, settled at once (real commits, real connections)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

import psycopg
from django.db import connection

from marketplace.accounts.models import Organization
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, TariffMonth
from marketplace.billing.services.settling import settle_contract
from marketplace.contracts.models import Contract
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import account_id, set_overdraft_limit
from pricing.tariffs import charge, volume
from providers.models import Host
from tests.billing.test_list_tariffs import serve
from tests.billing.test_month_tariffs import FALLING, announce
from tests.billing.test_settlement_batches import is_waited_for
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, LOT
from tests.cast import fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

HOURS = 6


def prepare(now: datetime) -> tuple[datetime, list[UUID]]:
    """Hours of 333 tokens on each of a buyer's two contracts; when they begin, and the contracts."""
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    Host.objects.update(last_heartbeat_at=now + 24 * HOUR)
    line = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=line, limit_micros=FUNDS)
    start = now + HOUR
    announce(plant, start, "volume", tiers=FALLING)
    for hour in range(HOURS):
        for payment in ("prepaid", "arrears"):
            Organization.objects.filter(pk=acme.id).update(on_demand_payment=payment)
            serve(acme, plant, start + hour * HOUR, 333)
    contracts = list(Contract.objects.values_list("id", flat=True))
    assert len(contracts) == 2
    return start, contracts


def assert_month(start: datetime, numerator: int) -> None:
    assert TariffMonth.objects.get().counted_numerator == numerator
    assert sum(one.amount_micros for one in Charge.objects.all()) == charge(volume(FALLING), numerator)
    assert check_charges(since=start).differences == []
    assert check_ledger() == []


def test_contracts_settled_at_once_come_to_the_months_tariff(
    committed_db: TestDatabase, now: datetime
) -> None:
    start, contracts = prepare(now)
    now = start + HOURS * HOUR + DUE_AFTER

    def settle(place: int) -> None:
        try:
            settle_contract(
                contract_id=contracts[place % 2], settlement_start=start + place // 2 * HOUR, now=now
            )
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(settle, [*range(2 * HOURS), *range(2 * HOURS)]))
    assert_month(start, 2 * HOURS * 333 * LOT // 1_000)


def test_who_settles_second_begins_where_the_first_ends(committed_db: TestDatabase, now: datetime) -> None:
    """Somebody is at the month before he has counted in it: the second waits, and reads it after him."""
    start, contracts = prepare(now)
    settle_contract(contract_id=contracts[0], settlement_start=start, now=start + DUE_AFTER)
    month = TariffMonth.objects.get()

    def second() -> None:
        try:
            settle_contract(contract_id=contracts[1], settlement_start=start, now=start + DUE_AFTER)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(committed_db.owner_url) as other:
            row = "SELECT 1 FROM billing_tariffmonth WHERE id = %s FOR NO KEY UPDATE"
            other.execute(row, [month.id])
            waiting = pool.submit(second)
            is_waited_for(other)
            other.execute("UPDATE billing_tariffmonth SET counted_numerator = counted_numerator + %s", [LOT])
        waiting.result(timeout=60)
    begun = Charge.objects.get(contract_id=contracts[1])
    assert begun.since_numerator == month.counted_numerator + LOT
