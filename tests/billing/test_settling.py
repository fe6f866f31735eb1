"""A settlement period squared up: who pays what to whom, once, whatever comes twice or late."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from marketplace.billing.models import Charge, Earning, Settlement
from marketplace.billing.services.settling import SettlementResult, settle_due_periods, settle_period
from marketplace.contracts.models import Accrual, Entitlement
from marketplace.ledger.services import change_hold
from pricing.models import Grade
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    PERIOD,
    accrue,
    assert_books_balance,
    award,
    meter,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_plant


@pytest.fixture
def rich_acme(acme: Party, now: datetime) -> Party:
    fund(acme, FUNDS, now)
    return acme


def settle(start: datetime) -> SettlementResult:
    return settle_period(settlement_start=start, now=start + DUE_AFTER)


def test_on_demand_usage_is_charged_once_rounded_and_the_rest_of_the_hold_is_freed(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    # Three requests of 700.001 standard tokens at 0.60 per Mtok: each captured as 421 micros, together 1,260.0018.
    for n in range(3):
        meter(contract, plant.offering.list_rate, plant, 700_001_000, now + n * PERIOD)
    accrue(contract, now, 3 * 421, now)
    result = settle(now)
    assert [(item.run, item.charges, item.amount_micros) for item in result.settled] == [(1, 1, 1_260)]
    charge = Charge.objects.get()
    assert (charge.kind, charge.numerator, charge.amount_micros) == ("usage", 2_100_003_000, 1_260)
    assert (charge.period_start, charge.period_end) == (now, now + HOUR)
    earning = Earning.objects.get()
    assert (earning.organization_id, earning.gross_micros, earning.fee_micros) == (hyperion.id, 1_260, 63)
    assert money(rich_acme, "prepaid") == FUNDS - 1_260
    assert pending(rich_acme) == 0
    assert (money(hyperion, "payable"), money(operator, "fees")) == (1_197, 63)
    assert_books_balance()


def test_settling_again_changes_nothing(rich_acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    contract = on_demand(rich_acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, 5 * LOT, now)
    accrue(contract, now, 3_000, now)
    settle(now)
    before = money(rich_acme, "prepaid")
    assert settle(now).settled == []
    assert settle_due_periods(now=now + 2 * DUE_AFTER).settled == []
    assert (Settlement.objects.count(), Charge.objects.count()) == (1, 1)
    assert money(rich_acme, "prepaid") == before == FUNDS - 3_000
    assert_books_balance()


def test_a_period_waits_until_the_longest_request_and_the_grace_are_over(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, now, 600, now)
    early = now + HOUR + timedelta(seconds=grade.max_request_s + 59)
    result = settle_period(settlement_start=now, now=early)
    assert [reason for _, reason in result.waiting] == ["not_due"]
    assert Charge.objects.count() == 0
    assert len(settle_period(settlement_start=now, now=early + timedelta(seconds=1)).settled) == 1


def test_usage_is_split_over_who_delivered_it(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    meter(contract, rate, plant, LOT // 3, now)
    meter(contract, rate, second, LOT // 3, now)
    accrue(contract, now, 402, now)
    settle(now)
    charge = Charge.objects.get()
    grosses = {earning.offering_id: earning.gross_micros for earning in charge.earnings.all()}
    assert charge.amount_micros == 400 == sum(grosses.values())
    assert grosses == {plant.offering.id: 200, second.offering.id: 200}
    assert_books_balance()


def test_late_usage_becomes_an_adjustment(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    meter(contract, rate, plant, LOT, now)
    accrue(contract, now, 600, now)
    settle(now)
    meter(contract, rate, plant, LOT, now)
    assert [item.run for item in settle_due_periods(now=now + 2 * DUE_AFTER).settled] == [2]
    late = Charge.objects.get(kind="adjustment")
    assert (late.numerator, late.amount_micros) == (LOT, 600)
    assert (money(rich_acme, "prepaid"), money(hyperion, "payable")) == (FUNDS - 1_200, 1_140)
    assert settle(now).settled == []
    assert_books_balance()


def test_usage_that_shrinks_is_refunded_with_the_fee(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    meter(contract, rate, plant, 2 * LOT, now)
    accrue(contract, now, 1_200, now)
    settle(now)
    meter(contract, rate, plant, -LOT, now)
    settle(now)
    refund = Charge.objects.get(kind="adjustment")
    assert (refund.numerator, refund.amount_micros) == (-LOT, -600)
    assert money(rich_acme, "prepaid") == FUNDS - 600
    assert (money(hyperion, "payable"), money(operator, "fees")) == (570, 30)
    assert_books_balance()


def test_a_charge_above_what_was_captured_is_refused(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, 2 * LOT, now)
    accrue(contract, now, 600, now)
    result = settle(now)
    assert [reason.partition(":")[0] for _, reason in result.failed] == ["charge_exceeds_hold"]
    assert (Charge.objects.count(), Settlement.objects.count()) == (0, 0)
    assert money(rich_acme, "prepaid") == FUNDS
    assert_books_balance()


def test_an_accrual_without_usage_is_freed(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    accrual = accrue(contract, now, 0, now)
    change_hold(id=accrual.ledger_hold_id, delta_micros=500, now=now)
    assert pending(rich_acme) == 500
    settle(now)
    assert pending(rich_acme) == 0
    assert Charge.objects.count() == 0
    assert settle(now).settled == []
    assert_books_balance()


def test_one_contract_that_fails_does_not_hold_up_the_others(
    rich_acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(mallory, FUNDS, now)
    rate = plant.offering.list_rate
    for buyer, captured in ((rich_acme, 1), (mallory, 600)):
        contract = on_demand(buyer, grade, now)
        meter(contract, rate, plant, LOT, now)
        accrue(contract, now, captured, now)
    result = settle(now)
    assert (len(result.settled), len(result.failed)) == (1, 1)
    assert Charge.objects.get().organization_id == mallory.id


def test_spot_pays_usage_to_who_delivered_and_the_minimum_take_to_the_allocated(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    entitlement = award(rich_acme, grade, [(plant, 5), (second, 5)], 300_001, now, now)
    assert pending(rich_acme) == 3_001
    meter(entitlement.contract, entitlement.rate, plant, 2 * LOT, now)
    settle(now)
    lines = {charge.kind: charge for charge in Charge.objects.all()}
    assert {kind: (line.numerator, line.amount_micros) for kind, line in lines.items()} == {
        "spot": (2 * LOT, 600),
        "minimum_take": (3 * LOT, 900),
    }
    take = {earning.offering_id: earning.gross_micros for earning in lines["minimum_take"].earnings.all()}
    assert take == {plant.offering.id: 450, second.offering.id: 450}
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 1_500, 0)
    assert Entitlement.objects.get().settled_at is not None
    assert settle(now).settled == []
    assert_books_balance()


def test_unused_spot_pays_the_minimum_take(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], 300_000, now, now)
    settle(now)
    charge = Charge.objects.get()
    assert (charge.kind, charge.amount_micros) == ("minimum_take", 1_500)
    assert money(rich_acme, "prepaid") == FUNDS - 1_500
    assert_books_balance()


def test_late_spot_usage_first_fills_the_minimum_take(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], 300_000, now, now)
    settle(now)
    meter(entitlement.contract, entitlement.rate, plant, 4 * LOT, now)
    assert [item.amount_micros for item in settle(now).settled] == [0]
    meter(entitlement.contract, entitlement.rate, plant, 2 * LOT, now)
    assert [item.amount_micros for item in settle(now).settled] == [300]
    assert money(rich_acme, "prepaid") == FUNDS - 1_800
    assert_books_balance()


def test_the_tax_of_a_charge_stays_pending(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(rich_acme, 190_000)
    contract = on_demand(rich_acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, now, 714, now)
    settle(now)
    charge = Charge.objects.get()
    assert (charge.amount_micros, charge.tax_held_micros) == (600, 114)
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 600, 114)
    assert_books_balance()


@pytest.mark.parametrize(
    "statement", ["UPDATE billing_charge SET amount_micros = 0", "DELETE FROM billing_earning"]
)
def test_charges_and_earnings_are_append_only(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime, statement: str
) -> None:
    contract = on_demand(rich_acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, now, 600, now)
    settle(now)
    with pytest.raises((DatabaseError, IntegrityError)), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert Accrual.objects.count() == 1
