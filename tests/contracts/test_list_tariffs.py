"""What a request on demand pays is fixed at its admission, by the list tariff in force then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import transaction

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.holds import open_part
from marketplace.contracts.models import Hold
from marketplace.contracts.services import capture_hold, extend_hold
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, set_overdraft_limit
from metering.services import gateway_source
from pricing.tariffs import Window
from providers.models import Host
from providers.services import announce_tariff
from tests.cast import Plant, make_plant
from tests.contracts.world import LOT, World, ask, commit, give_money, make_world

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def world(db: None, now: datetime) -> World:
    made = make_world(now)
    give_money(made, 10_000_000, now)
    # Its host is alive for as long as a test looks ahead.
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    return made


def announce_package(plant: Plant, valid_from: datetime, now: datetime, *, lots: int, micros: int) -> None:
    announce_tariff(
        organization_id=plant.host.provider.organization_id,
        offering_id=plant.offering.id,
        kind="package",
        valid_from=valid_from,
        package_lots=lots,
        package_micros=micros,
        now=now,
        actor=SYSTEM,
    )


def announce(
    plant: Plant, valid_from: datetime, now: datetime, *, rate: int, windows: Sequence[Window] = ()
) -> None:
    announce_tariff(
        organization_id=plant.host.provider.organization_id,
        offering_id=plant.offering.id,
        kind="time_of_use" if windows else "per_unit",
        valid_from=valid_from,
        rate_micros_per_mtok=rate,
        windows=windows,
        now=now,
        actor=SYSTEM,
    )


def capture(hold_id: UUID, numerator: int, now: datetime) -> tuple[str, int, int, bool]:
    return capture_hold(
        id=hold_id, numerator=numerator, event=b"{}\n", source_id=gateway_source(now).id, now=now
    )


def test_a_request_keeps_its_rate_across_a_windows_end(world: World, now: datetime) -> None:
    """From 22:00 to 02:00 at 200,000; admitted a second before the end, it runs on into dearer times."""
    announce(world.plant, now + HOUR, now, rate=800_000, windows=[Window(22 * 3_600, 2 * 3_600, 200_000)])
    end = now + 14 * HOUR
    hold_id, opened = ask(world, LOT, end - SECOND)
    assert (opened.outcome, opened.rate_micros_per_mtok, opened.amount_micros) == ("ok", 200_000, 200)
    _, dearer = ask(world, LOT, end)
    assert (dearer.rate_micros_per_mtok, dearer.amount_micros) == (800_000, 800)
    # What is added later and what is captured is priced as admitted.
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=end + SECOND) == "ok"
    assert capture(hold_id, 2 * LOT, end + 2 * SECOND)[:3] == ("ok", 2 * LOT, 400)
    hold = Hold.objects.get(pk=hold_id)
    assert hold.rate.micros_per_mtok == 200_000
    assert opened.rate_id == hold.rate_id != dearer.rate_id


def test_part_1_of_a_request_costs_the_list_tariff_of_its_admission(world: World, now: datetime) -> None:
    contract = commit(world, now, volume_lots=1, overage_policy="list")
    start = contract.starts_at
    seconds = start.hour * 3_600 + start.minute * 60
    announce(world.plant, start, now, rate=800_000, windows=[Window(seconds, seconds + 300, 250_000)])
    hold_id, first = ask(world, LOT, start)
    assert first.contract_id == contract.id
    for late in (1, 400):
        at = start + late * SECOND
        with transaction.atomic():
            over = open_part(hold_id=hold_id, id=uuid7(at), amount_numerator=LOT // 10, now=at)
            assert (over.outcome, over.rate_micros_per_mtok) == ("ok", 250_000)
            transaction.set_rollback(True)


def test_a_window_reaches_over_midnight(world: World, now: datetime) -> None:
    announce(world.plant, now + HOUR, now, rate=800_000, windows=[Window(22 * 3_600, 2 * 3_600, 200_000)])
    midnight = now + 12 * HOUR
    opened = [ask(world, LOT, midnight + step)[1] for step in (-SECOND, 0 * SECOND, SECOND)]
    # One rate on both sides, so one line of the invoice.
    assert len({one.rate_id for one in opened}) == 1
    assert {one.rate_micros_per_mtok for one in opened} == {200_000}


def test_a_version_begins_with_its_period_and_not_before(world: World, now: datetime) -> None:
    start = now + HOUR
    announce(world.plant, start, now, rate=100_000)
    moments = (start - timedelta(microseconds=1), start)
    assert [ask(world, LOT, at)[1].rate_micros_per_mtok for at in moments] == [600_000, 100_000]


def test_the_cheapest_offering_is_the_cheapest_of_that_moment(world: World, now: datetime) -> None:
    other = make_plant(world.hyperion, world.grade, now, name="h2", list_rate=500_000)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    start = now + HOUR
    announce(world.plant, start, now, rate=400_000)
    announce(other, start + HOUR, now, rate=300_000)
    chosen = [ask(world, LOT, at)[1].offering_id for at in (now, start, start + HOUR)]
    assert chosen == [other.offering.id, world.plant.offering.id, other.offering.id]


def test_a_contract_above_its_take_compares_with_the_list_rate_of_that_moment(
    world: World, now: datetime
) -> None:
    """In arrears and nothing to take: whichever is cheaper, the contract at 500,000 or the list price then."""
    receivable = account_id(
        organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now
    )
    set_overdraft_limit(account_id=receivable, limit_micros=1_000_000)
    start = now + 2 * HOUR
    announce(world.plant, start, now, rate=499_999)
    commit(world, now, payment="arrears", take_share_ppm=0)
    for at, kind in ((start - SECOND, "committed"), (start, "on_demand")):
        _, opened = ask(world, LOT, at)
        assert (opened.outcome, opened.kind) == ("ok", kind)


def test_a_package_draws_no_request_that_comes_to_less_elsewhere(world: World, now: datetime) -> None:
    """A million lots for 9 units are 9,000 micros the Mtok; but a lot is 600 micros elsewhere, and here 9 units."""
    other = make_plant(world.hyperion, world.grade, now, name="h2", list_rate=600_000)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    start = now + HOUR
    announce_package(world.plant, start, now, lots=1_000_000, micros=9_000_000)
    _, opened = ask(world, LOT, start)
    assert (opened.offering_id, opened.amount_micros, opened.unit_numerator) == (other.offering.id, 600, None)
    # Where it is the only one its whole price is set aside, and a balance that does not cover it says so.
    _, opened = ask(world, LOT, start, exclude=(other.offering.id,))
    assert (opened.outcome, opened.offering_id, opened.amount_micros) == (
        "ok",
        world.plant.offering.id,
        9_000_001,
    )
    _, opened = ask(world, LOT, start, exclude=(other.offering.id,))
    assert opened.outcome == "insufficient_funds"
    # A small package is cheaper than the other's lot, and so it is taken.
    small = make_plant(world.hyperion, world.grade, now, name="h3", list_rate=600_000)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    announce_package(small, start, now, lots=1, micros=100)
    _, opened = ask(world, LOT, start)
    assert (opened.offering_id, opened.amount_micros) == (small.offering.id, 101)


def test_a_package_is_above_a_highest_rate_that_its_own_rate_is_below(world: World, now: datetime) -> None:
    contract = commit(world, now, volume_lots=1, overage_policy="list", max_rate_micros_per_mtok=700_000)
    start = contract.starts_at
    announce_package(world.plant, start, now, lots=10, micros=5_000)
    hold_id, first = ask(world, LOT, start)
    assert first.contract_id == contract.id
    over = open_part(hold_id=hold_id, id=uuid7(start), amount_numerator=LOT, now=start)
    assert (over.outcome, over.rate_micros_per_mtok) == ("overage_above_max_rate", 5_000_000)
    over = open_part(hold_id=hold_id, id=uuid7(start), amount_numerator=10 * LOT, now=start)
    assert (over.outcome, over.rate_micros_per_mtok, over.amount_micros) == ("ok", 500_000, 5_001)
    _, opened = ask(world, LOT, start, contract_id=contract.id)
    assert (opened.outcome, opened.rate_micros_per_mtok) == ("overage_above_max_rate", 5_000_000)
