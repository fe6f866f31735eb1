"""`checkcharges` recomputes what settlement has charged."""

from __future__ import annotations

import json
from datetime import datetime
from io import StringIO

import psycopg
import pytest
import time_machine
from django.core.management import call_command

from marketplace.billing.auditing import check_charges
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract
from metering.models import UsageRollup
from pricing.models import Grade
from tests.billing.world import DUE_AFTER, FUNDS, LOT, accrue, award, meter, on_demand
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase


@pytest.fixture
def contract(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    """Settled: usage on demand, and a spot award of which less than the minimum take was used."""
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    accrue(contract, now, 600, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    won = award(acme, grade, [(plant, 10)], 400_000, now, now)
    meter(won.contract, won.rate, plant, 2 * LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    return contract


def test_settled_periods_need_no_further_run(contract: Contract, plant: Plant, now: datetime) -> None:
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (2, 0, [])
    # Late usage is nobody's mistake, until it is settled.
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (1, 1, [])
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (2, 0, [])


def test_usage_moved_to_another_rate_behind_settlements_back_is_not_taken_for_settled(
    contract: Contract, plant: Plant, now: datetime
) -> None:
    """Though its sum is the same; and the next run sets it right."""
    firm = plant.offering.firm_rate
    UsageRollup.objects.filter(contract_id=contract.id).update(rate_id=firm.id)
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (1, 1, [])
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (2, 0, [])


def test_checkcharges_finds_a_charge_that_was_changed(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    with time_machine.travel(now + DUE_AFTER, tick=False):
        told, complaint = StringIO(), StringIO()
        call_command("checkcharges", stdout=told, stderr=complaint)
        report = json.loads(told.getvalue())
        assert (report["ok"], report["settled"], report["unsettled"], report["differences"]) == (
            True,
            1,
            0,
            [],
        )
        with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
            owner.execute("ALTER TABLE billing_charge DISABLE TRIGGER USER")
            owner.execute("UPDATE billing_charge SET amount_micros = amount_micros + 1")
        told = StringIO()
        with pytest.raises(SystemExit, match="1"):
            call_command("checkcharges", stdout=told, stderr=complaint)
    report = json.loads(told.getvalue())
    assert report["difference_count"] == 2
    assert {(item["what"], item["amount_micros"]) for item in report["differences"]} == {
        ("lines", -1),
        ("product", -1),
    }
    assert f"lines of contract {contract.id}" in complaint.getvalue()
