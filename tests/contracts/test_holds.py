"""Delivery holds: which contract pays, what is held, what is captured, and what never happens."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from marketplace.contracts.models import Accrual, Contract, Entitlement, Hold, OnDemandBucket
from marketplace.contracts.services import (
    advance_contracts,
    capture_hold,
    extend_hold,
    mark_month_paid,
    open_spot_contract,
    record_award,
    suspend_contract,
    sweep_holds,
    void_hold,
)
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import account_id, open_hold, set_overdraft_limit
from metering.models import UsageBatch
from metering.services import gateway_source
from pricing.services import publish_rate
from providers.models import HostPeriod
from providers.services import record_heartbeat
from tests.contracts.world import LOT, World, ask, available, commit, give_money, make_world

MTOK = 10**12


@pytest.fixture
def world(db: None, now: datetime) -> World:
    return make_world(now)


def heartbeat(world: World, now: datetime) -> None:
    record_heartbeat(
        host_id=world.plant.host.id, boot_id="boot-1", ready=True, in_flight=0, registers={}, energy_millijoules=None,
        now=now,
    )  # fmt: skip


def capture(hold_id: UUID, numerator: int, now: datetime) -> tuple[str, int, int, bool]:
    return capture_hold(
        id=hold_id, numerator=numerator, event=b"{}\n", source_id=gateway_source(now).id, now=now
    )


def test_on_demand_holds_the_list_price_and_captures_what_was_used(world: World, now: datetime) -> None:
    give_money(world, 1_000_000, now)
    hold_id, opened = ask(world, 2 * LOT, now)
    assert opened.outcome == "ok"
    assert (opened.kind, opened.rate_micros_per_mtok) == ("on_demand", 600_000)
    # 2 lots at 600,000 micros per Mtok (1,000 lots) are 1,200 micros.
    assert opened.amount_micros == 1_200
    assert available(world) == 1_000_000 - 1_200
    assert capture(hold_id, LOT // 2 + 1, now) == ("ok", LOT // 2 + 1, 301, False)
    assert available(world) == 1_000_000 - 301
    accrual = Accrual.objects.get()
    assert (accrual.held_micros, accrual.captured_micros) == (0, 301)
    assert UsageBatch.objects.count() == 1
    assert check_ledger() == []


def test_tax_is_held_with_the_price(world: World, now: datetime) -> None:
    type(world.acme.organization).objects.filter(pk=world.acme.id).update(tax_ppm=190_000)
    give_money(world, 1_000_000, now)
    _, opened = ask(world, 2 * LOT, now)
    assert opened.amount_micros == 1_428


def test_capture_twice_counts_once(world: World, now: datetime) -> None:
    give_money(world, 1_000_000, now)
    hold_id, _ = ask(world, LOT, now)
    assert capture(hold_id, 400, now)[0] == "ok"
    assert capture(hold_id, 900, now) == ("captured", 400, 1, True)
    assert void_hold(id=hold_id, now=now) == "captured"
    assert UsageBatch.objects.count() == 1


def test_capture_never_exceeds_the_hold(world: World, now: datetime) -> None:
    give_money(world, 1_000_000, now)
    hold_id, opened = ask(world, LOT, now)
    assert capture(hold_id, 3 * LOT, now) == ("ok", LOT, opened.amount_micros, True)


def test_void_gives_everything_back(world: World, now: datetime) -> None:
    give_money(world, 1_000_000, now)
    level = None
    for _ in range(2):
        hold_id, _ = ask(world, LOT, now)
        assert void_hold(id=hold_id, now=now) == "ok"
        bucket = OnDemandBucket.objects.get()
        assert level in (None, bucket.level_numerator)
        level = bucket.level_numerator
    assert available(world) == 1_000_000
    assert void_hold(id=uuid7(), now=now) == "missing"


def test_extension_costs_what_it_adds_and_fails_without_money(world: World, now: datetime) -> None:
    give_money(world, 1_000, now)
    hold_id, opened = ask(world, LOT, now)
    assert opened.amount_micros == 600
    assert extend_hold(id=hold_id, delta_numerator=LOT // 2, now=now) == "ok"
    assert available(world) == 100
    assert extend_hold(id=hold_id, delta_numerator=LOT // 2, now=now) == "insufficient_funds"
    hold = Hold.objects.get(pk=hold_id)
    assert (hold.amount_numerator, hold.amount_micros) == (LOT + LOT // 2, 900)
    assert extend_hold(id=hold_id, delta_numerator=-LOT // 2, now=now) == "ok"
    assert available(world) == 400
    void_hold(id=hold_id, now=now)
    assert extend_hold(id=hold_id, delta_numerator=1, now=now) == "closed"
    assert check_ledger() == []


def test_without_money_nothing_is_held(world: World, now: datetime) -> None:
    _, opened = ask(world, LOT, now)
    assert opened.outcome == "insufficient_funds"
    assert not Hold.objects.exists()
    assert not Accrual.objects.exists()
    bucket = OnDemandBucket.objects.get()
    assert bucket.level_numerator == bucket.depth_numerator


def test_capacity_is_refused_with_a_time_to_come_back(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    # 850 standard tokens a second, 95% of them unsold: sixty seconds of it are the depth.
    depth = 850 * 950_000 * 60
    assert ask(world, depth, now)[1].outcome == "ok"
    _, opened = ask(world, LOT, now)
    assert opened.outcome == "capacity_unavailable"
    assert opened.retry_after_ms is not None
    assert opened.retry_after_ms == -(-LOT * 1000 // (850 * 950_000))
    later = now + timedelta(milliseconds=opened.retry_after_ms)
    assert ask(world, LOT, later)[1].outcome == "ok"


def test_sold_capacity_is_not_offered_on_demand(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    HostPeriod.objects.filter(period_start=now).update(sold_ppm=950_000)
    _, opened = ask(world, LOT, now + timedelta(seconds=1))
    assert opened.outcome == "capacity_unavailable"
    assert opened.retry_after_ms == 299_000


def test_a_silent_or_excluded_host_is_not_chosen(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    assert ask(world, LOT, now, exclude=(world.plant.offering.id,))[1].outcome == "no_offering"
    assert ask(world, LOT, now + timedelta(seconds=16))[1].outcome == "no_offering"


def test_another_organizations_contract_does_not_exist(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    _, opened = ask(world, LOT, now)
    from tests.cast import make_party

    mallory = make_party("Mallory", ["buyer"], now)
    from marketplace.contracts.services import open_hold as open_delivery_hold

    found = open_delivery_hold(
        id=uuid7(), organization_id=mallory.id, grade_ids=[world.grade.id], numerators=[LOT],
        contract_id=opened.contract_id, now=now,
    )  # fmt: skip
    assert found.outcome == "contract_not_found"


def test_a_committed_contract_pays_first_and_stops_when_it_is_exhausted(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    contract = commit(world, now, volume_lots=3)
    start = contract.starts_at
    heartbeat(world, start)
    hold_id, opened = ask(world, 2 * LOT, start)
    assert (opened.outcome, opened.kind, opened.amount_micros) == ("ok", "committed", 0)
    assert ask(world, 2 * LOT, start)[1].outcome == "contract_exhausted"
    assert ask(world, 2 * LOT, start, contract_id=contract.id)[1].outcome == "contract_exhausted"
    capture(hold_id, LOT, start)
    entitlement = Entitlement.objects.get()
    assert (entitlement.held_numerator, entitlement.used_numerator) == (0, LOT)
    assert contract.allocations.get().served_numerator == LOT
    assert ask(world, LOT, start)[1].outcome == "ok"


def test_overage_at_list_goes_on_demand(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    contract = commit(world, now, volume_lots=1, overage_policy="list")
    heartbeat(world, contract.starts_at)
    for contract_id in (None, contract.id):
        _, opened = ask(world, 2 * LOT, contract.starts_at, contract_id=contract_id)
        assert (opened.outcome, opened.kind) == ("ok", "on_demand")


def test_the_firm_rate_is_a_token_bucket(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    contract = commit(world, now, firm_lots=30, volume_lots=100)
    start = contract.starts_at
    heartbeat(world, start)
    # 30 lots in 300 s are 0.1 lots a second; 60 s of it are 6 lots.
    assert ask(world, 6 * LOT, start)[1].outcome == "ok"
    _, opened = ask(world, LOT, start)
    assert (opened.outcome, opened.retry_after_ms) == ("rate_limited", 10_000)
    assert ask(world, LOT, start + timedelta(seconds=10))[1].outcome == "ok"


def test_an_unpaid_month_is_not_delivered(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    contract = commit(world, now)
    heartbeat(world, contract.starts_at)
    suspend_contract(contract_id=contract.id, now=now)
    _, opened = ask(world, LOT, contract.starts_at, contract_id=contract.id)
    assert opened.outcome == "contract_suspended"
    entitlement = Entitlement.objects.get()
    mark_month_paid(entitlement_id=entitlement.id, now=contract.starts_at)
    assert ask(world, LOT, contract.starts_at, contract_id=contract.id)[1].outcome == "ok"


def test_arrears_hold_volume_and_credit(world: World, now: datetime) -> None:
    receivable = account_id(
        organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now
    )
    contract = commit(world, now, payment="arrears")
    heartbeat(world, contract.starts_at)
    at = contract.starts_at
    assert ask(world, LOT, at, contract_id=contract.id)[1].outcome == "insufficient_funds"
    assert Entitlement.objects.get().held_numerator == 0
    set_overdraft_limit(account_id=receivable, limit_micros=500)
    _, opened = ask(world, LOT, at, contract_id=contract.id)
    assert (opened.outcome, opened.amount_micros) == ("ok", 500)
    assert ask(world, 1, at, contract_id=contract.id)[1].outcome == "insufficient_funds"


def award(world: World, start: datetime, lots: int, now: datetime) -> Contract:
    contract = open_spot_contract(
        id=uuid7(),
        organization_id=world.acme.id,
        grade_id=world.grade.id,
        max_rate_micros_per_mtok=400_000,
        now=now,
    )
    rate = publish_rate(
        grade_id=world.grade.id, kind="clearing", micros_per_mtok=300_000, source_id=contract.id, now=now
    )
    hold_id = uuid7()
    open_hold(
        id=hold_id,
        account_id=account_id(
            organization_id=world.acme.id, kind=AccountKind.PREPAID, currency="USD", now=now
        ),
        amount_micros=lots * 300,
        code="spot",
        now=now,
    )
    for _ in range(2):
        record_award(
            contract_id=contract.id,
            period_start=start,
            period_end=start + timedelta(seconds=300),
            lots=lots,
            rate_id=rate.id,
            ledger_hold_id=hold_id,
            shares=[(world.plant.offering.id, lots)],
            now=now,
        )
    return contract


def test_a_spot_award_is_delivered_in_its_period_only(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    start = now + timedelta(seconds=300)
    contract = award(world, start, 50, now)
    assert ask(world, LOT, now, contract_id=contract.id)[1].outcome == "contract_exhausted"
    heartbeat(world, start)
    _, opened = ask(world, LOT, start)
    assert (opened.kind, opened.contract_id, opened.rate_micros_per_mtok) == ("spot", contract.id, 300_000)
    heartbeat(world, start + timedelta(seconds=300))
    _, opened = ask(world, LOT, start + timedelta(seconds=300))
    assert opened.kind == "on_demand"


def test_months_come_once_and_the_term_ends(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    contract = commit(world, now)
    assert advance_contracts(now=contract.starts_at) == 0
    assert contract.ends_at is not None
    assert advance_contracts(now=contract.ends_at) == 1
    assert advance_contracts(now=contract.ends_at) == 0
    contract.refresh_from_db()
    assert contract.status == "ended"
    assert Entitlement.objects.filter(contract=contract).count() == 1


def test_a_dispatched_hold_is_voided_only_when_its_period_is_about_to_settle(
    world: World, now: datetime
) -> None:
    give_money(world, 10**9, now)
    hold_id, _ = ask(world, LOT, now)
    assert sweep_holds(now=now + timedelta(seconds=60)) == 0
    assert Hold.objects.get(pk=hold_id).status == "open"
    # The hour ends, its last request may run 15 s, and half of the settlement grace is over.
    assert sweep_holds(now=now + timedelta(seconds=3600 + 15 + 30)) == 1
    assert Hold.objects.get(pk=hold_id).status == "voided"
    assert available(world) == 10**9
