"""The provider's bond: what firm sales ask for, where it comes from, what it pays, and who waits for whom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from pytest_django import Settings

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import BondDeposit, BondWithdrawal, DeliveryOutcome
from marketplace.billing.outcomes import latest_outcomes
from marketplace.billing.services.bonds import BondBound, deposit_bond, retain_for_bond, withdraw_bond
from marketplace.billing.services.settling import settle_contract, settle_period
from marketplace.contracts.bonds import BondNotCovered, bond_of, firm_value_micros, required_micros
from marketplace.contracts.ending import amend_contract, quote_amendment
from marketplace.contracts.models import Contract
from marketplace.contracts.quoting import NotOffered
from marketplace.contracts.services import accept_quote, request_quote, set_period_rate
from marketplace.errors import Conflict, DomainError, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Transfer
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import InsufficientFunds
from marketplace.periods import contract_month
from pricing.models import Grade
from providers.models import HostHour, Outage
from providers.services import check_heartbeats
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    PERIOD,
    assert_books_balance,
    award,
    meter,
    money,
    on_demand,
)
from tests.cast import Party, Plant, fund, make_plant
from tests.conftest import TestDatabase
from tests.contracts.world import World, commit, give_money, make_world

CENT = 10_000
RATE = 300_000
# 30 lots at 0.50 per Mtok in each of the 8,640 delivery periods of 30 days, and a tenth of it.
VALUE, BOND = 129_600_000, 12_960_000


@pytest.fixture
def tenth(settings: Settings) -> None:
    settings.PROVIDER_BOND_PPM = 100_000


@pytest.fixture
def world(operator: Party, acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime) -> World:
    fund(acme, FUNDS, now)
    return World(operator, acme, hyperion, grade, plant)


def deposit(party: Party, amount_micros: int, now: datetime, *, source: str = "processor") -> BondDeposit:
    return deposit_bond(
        organization_id=party.id,
        amount_micros=amount_micros,
        source=source,
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )


def withdraw(party: Party, amount_micros: int, now: datetime) -> BondWithdrawal:
    return withdraw_bond(
        organization_id=party.id,
        amount_micros=amount_micros,
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )


def test_the_bond_is_a_share_of_thirty_days_of_what_is_sold_firm(tenth: None) -> None:
    assert (firm_value_micros(30 * 500_000), required_micros(30 * 500_000)) == (VALUE, BOND)
    # Rounded up, once, over all that is sold: 8,640 numerators of a lot at 1 micro are 8.64 micros.
    assert (firm_value_micros(1), required_micros(1), required_micros(2)) == (9, 1, 2)


def test_nobody_sells_firm_beyond_what_his_bond_covers(
    tenth: None, world: World, hyperion: Party, now: datetime
) -> None:
    with pytest.raises(NotOffered, match="0 lots are"):
        commit(world, now, firm_lots=1, volume_lots=1)
    deposit(hyperion, BOND - CENT, now)
    # Ten times 12.95, down to whole firm lots x rate: 14,988,425 of them, at 8.64 micros each.
    assert bond_of(hyperion.id, now=now).room_micros == 129_499_992
    with pytest.raises(NotOffered, match="29 lots are"):
        commit(world, now, firm_lots=30, volume_lots=1)
    deposit(hyperion, CENT, now)
    with pytest.raises(NotOffered, match="30 lots are"):
        commit(world, now, firm_lots=31, volume_lots=1)
    commit(world, now, firm_lots=30, volume_lots=1)
    bond = bond_of(hyperion.id, now=now)
    assert (bond.firm_value_micros, bond.required_micros, bond.held_micros) == (VALUE, BOND, BOND)
    assert (bond.free_micros, bond.missing_micros, bond.room_micros) == (0, 0, 0)
    with pytest.raises(NotOffered, match="0 lots are"):
        commit(world, now, firm_lots=1, volume_lots=1)


def test_what_follows_in_time_needs_the_bond_once(
    tenth: None, world: World, hyperion: Party, acme: Party, now: datetime
) -> None:
    """A bond for 30 lots: 30 of them, then 30 more from the moment on at which the first end, and no sooner."""
    deposit(hyperion, BOND, now)
    first = commit(world, now, firm_lots=30, volume_lots=1)
    assert first.ends_at is not None
    later = first.ends_at - timedelta(days=5)
    terms: dict[str, Any] = {
        "organization_id": acme.id, "grade_slug": "tiny-chat", "volume_lots": 1, "months": 1,
        "take_share_ppm": 0, "overage_policy": "stop", "payment": "prepaid", "now": later,
    }  # fmt: skip
    with pytest.raises(NotOffered, match="0 lots are"):
        request_quote(firm_lots=30, starts_at=first.ends_at - timedelta(minutes=5), **terms)
    with pytest.raises(NotOffered, match="30 lots are"):
        request_quote(firm_lots=31, starts_at=first.ends_at, **terms)
    quote = request_quote(firm_lots=30, starts_at=first.ends_at, **terms)
    accept_quote(organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=later, actor=SYSTEM)
    bond = bond_of(hyperion.id, now=later)
    assert (bond.required_micros, bond.room_micros, bond.missing_micros) == (BOND, 0, 0)
    with pytest.raises(BondBound):
        withdraw(hyperion, CENT, later)


def test_an_amendment_needs_the_bond_of_one_contract(
    tenth: None, world: World, hyperion: Party, acme: Party, now: datetime
) -> None:
    deposit(hyperion, BOND, now)
    first = request_quote(
        organization_id=acme.id, grade_slug="tiny-chat", firm_lots=30, volume_lots=1, months=3, starts_at=None,
        take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
    )  # fmt: skip
    contract = accept_quote(
        organization_id=acme.id, quote_id=first.id, operation_id=uuid7(), now=now, actor=SYSTEM
    )
    start = contract_month(contract.starts_at, 1).start
    quote = quote_amendment(
        organization_id=acme.id, contract_id=contract.id, starts_at=start, firm_lots=30, volume_lots=2, months=2,
        now=start - timedelta(days=9),
    )  # fmt: skip
    _, successor = amend_contract(
        organization_id=acme.id, contract_id=contract.id, quote_id=quote.id, operation_id=uuid7(),
        now=start - timedelta(days=9), actor=SYSTEM, lock_money=lambda _: None,
    )  # fmt: skip
    assert (successor.starts_at, successor.amends_id) == (start, contract.id)
    assert bond_of(hyperion.id, now=now).required_micros == BOND


def test_a_dearer_provider_with_a_bond_sells_before_a_cheaper_one_without(
    tenth: None, world: World, mallory: Party, hyperion: Party, now: datetime
) -> None:
    other = make_plant(mallory, world.grade, now, name="m1", firm_rate=100_000)
    deposit(hyperion, BOND, now)
    contract = commit(world, now, firm_lots=10, volume_lots=1)
    assert contract.allocations.get().offering == world.plant.offering != other.offering


def test_acceptance_looks_again_and_takes_nothing_where_the_bond_has_gone(
    tenth: None, world: World, hyperion: Party, acme: Party, now: datetime
) -> None:
    deposit(hyperion, BOND, now)
    quote = request_quote(
        organization_id=acme.id, grade_slug="tiny-chat", firm_lots=30, volume_lots=1, months=1, starts_at=None,
        take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
    )  # fmt: skip
    withdraw(hyperion, CENT, now)
    with pytest.raises(BondNotCovered):
        accept_quote(organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=SYSTEM)
    assert not Contract.objects.exists()
    assert not HostHour.objects.filter(sold_ppm__gt=0).exists()


def test_what_stands_for_contracts_is_bound_until_they_have_settled(
    tenth: None, world: World, hyperion: Party, now: datetime
) -> None:
    deposit(hyperion, BOND + 5 * CENT, now)
    contract = commit(world, now, firm_lots=30, volume_lots=1)
    with pytest.raises(BondBound) as refused:
        withdraw(hyperion, 6 * CENT, now)
    assert refused.value.field == "amount_micros"
    withdraw(hyperion, 5 * CENT, now)
    assert (money(hyperion, "bond"), money(hyperion, "payable")) == (BOND, 5 * CENT)
    assert contract.ends_at is not None
    bond = bond_of(hyperion.id, now=contract.ends_at)
    assert (bond.required_micros, bond.bound_micros) == (0, BOND)
    with pytest.raises(BondBound):
        withdraw(hyperion, CENT, contract.ends_at)
    withdraw(hyperion, BOND, contract.ends_at + timedelta(days=2))
    assert money(hyperion, "bond") == 0
    assert_books_balance()


def test_a_deposit_happens_once_and_says_where_it_came_from(
    hyperion: Party, operator: Party, plant: Plant, now: datetime
) -> None:
    key = uuid7()
    terms = {"organization_id": hyperion.id, "operation_id": key, "now": now, "actor": SYSTEM}
    for _ in range(2):
        made = deposit_bond(amount_micros=3 * CENT, source="processor", **terms)  # type: ignore[arg-type]
        assert (made.status, made.processor_reference != "") == ("succeeded", True)
    assert (money(hyperion, "bond"), money(operator, "processor")) == (3 * CENT, 3 * CENT)
    with pytest.raises(Conflict):
        deposit_bond(amount_micros=4 * CENT, source="processor", **terms)  # type: ignore[arg-type]
    with pytest.raises(InsufficientFunds):
        deposit(hyperion, CENT, now, source="earnings")
    assert BondDeposit.objects.count() == 1
    for amount, source, field in ((CENT - 1, "earnings", "amount_micros"), (CENT, "retained", "source")):
        with pytest.raises(InvalidInput) as refused:
            deposit(hyperion, amount, now, source=source)
        assert refused.value.field == field
    key = uuid7()
    for _ in range(2):
        withdraw_bond(
            organization_id=hyperion.id, amount_micros=2 * CENT, operation_id=key, now=now, actor=SYSTEM
        )
    deposit(hyperion, CENT, now, source="earnings")
    assert (money(hyperion, "bond"), money(hyperion, "payable")) == (2 * CENT, CENT)
    assert_books_balance()


def test_earnings_are_kept_until_the_bond_covers_what_is_sold(
    settings: Settings, world: World, hyperion: Party, now: datetime
) -> None:
    commit(world, now, firm_lots=30, volume_lots=1)
    settings.PROVIDER_BOND_PPM = 100_000
    deposit(hyperion, BOND - 5 * CENT, now)
    for earned, kept in ((3 * CENT, 3 * CENT), (10 * CENT, 2 * CENT), (CENT, 0)):
        give_money(World(world.operator, hyperion, hyperion, world.grade, world.plant), earned, now,
                   kind=AccountKind.PAYABLE)  # fmt: skip
        assert retain_for_bond(organization_id=hyperion.id, now=now) == kept
    assert (money(hyperion, "bond"), money(hyperion, "payable")) == (BOND, 9 * CENT)
    assert list(BondDeposit.objects.filter(source="retained").values_list("amount_micros", flat=True)) == [
        3 * CENT,
        2 * CENT,
    ]


def test_the_bond_pays_what_payable_has_not_and_is_repaid_before_the_provider(
    world: World, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """A remedy of 297 that the bond pays, and then one of 177."""
    bond = CENT + 100
    give_money(World(operator, hyperion, hyperion, grade, plant), bond, now, kind=AccountKind.BOND)
    entitlement = award(world.acme, grade, [(plant, 10)], RATE, now + PERIOD, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert money(hyperion, "bond") == bond - 297
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, 0)
    assert Transfer.objects.filter(code="remedy").count() == 1
    # It had delivered after all: the remedy is 177 now, and what comes back is the bond's before it is his.
    meter(entitlement.contract, entitlement.rate, plant, 4 * LOT, now + PERIOD)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert latest_outcomes().get().remedy_micros == 177
    assert (money(hyperion, "bond"), money(hyperion, "payable")) == (bond - 177, 1_200 - 60)
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_what_neither_payable_nor_bond_covers_is_the_markets_and_repaid_first(
    world: World, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    give_money(World(operator, hyperion, hyperion, grade, plant), 100, now, kind=AccountKind.BOND)
    give_money(World(operator, hyperion, hyperion, grade, plant), 50, now, kind=AccountKind.PAYABLE)
    entitlement = award(world.acme, grade, [(plant, 10)], RATE, now + PERIOD, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    settle_period(settlement_start=now, now=now + DUE_AFTER)

    def stand() -> tuple[int, int, int]:
        return money(hyperion, "payable"), money(hyperion, "bond"), money(operator, "operator")

    # 297 = 50 + 100 + 147.
    assert stand() == (0, 0, -147)
    meter(entitlement.contract, entitlement.rate, plant, 4 * LOT, now + PERIOD)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    # 120 less: all of it the market's.
    assert stand() == (1_200 - 60, 0, -27)
    meter(entitlement.contract, entitlement.rate, plant, 6 * LOT, now + PERIOD)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    # The other 177: 27 to the market, 100 to the bond, 50 to him.
    assert stand() == (3_000 - 150 + 50, 100, 0)
    assert money(world.acme, "prepaid") == FUNDS - 3_000
    assert check_charges(since=now).differences == []
    assert check_ledger() == []


def test_remedies_may_come_to_a_months_gross_and_the_bond(
    world: World, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Ten lots fail, replaced at 70,000 more per Mtok, with 700 in the bond; then one lot of another award."""
    give_money(World(world.operator, hyperion, hyperion, grade, plant), 700, now, kind=AccountKind.BOND)
    second = make_plant(hyperion, grade, now, name="h2", list_rate=30_000_000)
    start = now + PERIOD
    set_period_rate(
        grade_id=grade.id,
        period_start=start,
        clearing_rate_micros_per_mtok=RATE,
        overage_micros_per_mtok=RATE + 70_000,
        now=now,
    )
    award(world.acme, grade, [(plant, 10)], RATE, start, now)
    later = award(world.acme, grade, [(plant, 1)], RATE, start, now)
    meter(on_demand(world.acme, grade, now), second.offering.list_rate, second, 20 * LOT, start)
    check_heartbeats(now=now + timedelta(seconds=20))
    Outage.objects.filter(host=second.host).update(ended_at=now + timedelta(seconds=21))
    first = Contract.objects.filter(kind="spot").exclude(pk=later.contract_id).get()
    settle_contract(contract_id=first.id, settlement_start=now, now=now + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.remedy_micros, outcome.remedy_cap_micros) == (700 + 297, 3_000 + 700)
    assert (money(hyperion, "bond"), money(world.operator, "operator")) == (0, -297)
    # The bond is gone and counts for what it paid of the 997: 700 and the second award's own gross of 300 less them.
    settle_contract(contract_id=later.contract_id, settlement_start=now, now=now + DUE_AFTER)
    second_outcome = DeliveryOutcome.objects.get(contract=later.contract)
    assert (second_outcome.remedy_micros, second_outcome.remedy_cap_micros) == (3, 3)
    assert_books_balance()


def test_a_bond_for_one_contract_covers_one_of_many_at_once(
    committed_db: TestDatabase, settings: Settings, now: datetime
) -> None:
    settings.PROVIDER_BOND_PPM = 100_000
    world = make_world(now)
    give_money(world, FUNDS, now)
    deposit(world.hyperion, BOND + CENT, now)
    quotes = [
        request_quote(
            organization_id=world.acme.id, grade_slug="tiny-chat", firm_lots=30, volume_lots=1, months=1,
            starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
        ).id
        for _ in range(4)
    ]  # fmt: skip

    def accept(number: int) -> str:
        try:
            if number == 4:
                withdraw(world.hyperion, BOND, now)
                return "withdrawn"
            accept_quote(
                organization_id=world.acme.id,
                quote_id=quotes[number],
                operation_id=uuid7(),
                now=now,
                actor=SYSTEM,
            )
            return "accepted"
        except DomainError as error:
            return error.code
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        outcomes = sorted(pool.map(accept, range(5)))
    # Whoever comes first: the bond covers one contract, or it is withdrawn and covers none.
    assert outcomes in (
        ["accepted", "bond_bound", *["bond_not_covered"] * 3],
        [*["bond_not_covered"] * 4, "withdrawn"],
    )
    bond = bond_of(world.hyperion.id, now=now)
    assert bond.held_micros >= bond.required_micros
    assert check_ledger() == []
