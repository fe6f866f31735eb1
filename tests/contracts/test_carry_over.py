"""Requests that run across the start of a period take part of its capacity, as long as they run."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.contracts.services import keep_carry_over, return_carry_over, void_hold
from marketplace.orders.models import Ask
from providers.models import HostPeriod
from providers.services import take_period_share
from tests.cast import Party, Plant, make_grade, make_plant
from tests.contracts.world import LOT, World, ask, give_money, make_world
from tests.orders.world import beat, run_round

PERIOD = timedelta(minutes=5)
SELLABLE = 950_000


@pytest.fixture
def world(db: None, now: datetime) -> World:
    made = make_world(now)
    give_money(made, 10**9, now)
    return made


def carried(plant: Plant, start: datetime) -> tuple[int, int]:
    row = HostPeriod.objects.get(host=plant.host, period_start=start)
    return row.carry_over_ppm, row.sellable_ppm


def test_a_request_that_may_run_beyond_the_start_is_kept_back(world: World, now: datetime) -> None:
    start = now + PERIOD
    admitted = start - timedelta(seconds=6)
    beat(world.plant, admitted)
    hold_id, opened = ask(world, 17 * LOT, admitted)
    assert opened.outcome == "ok"
    assert opened.expires_at == start + timedelta(seconds=9)
    # Nine of the fifteen seconds that it may take lie in the next period: 10.2 of its lots, of 255 that the host makes.
    assert keep_carry_over(period_start=start, now=admitted) == 1
    assert carried(world.plant, start) == (40_000, SELLABLE - 40_000)
    assert keep_carry_over(period_start=start, now=admitted) == 0
    # Its own period and the one after the next lose nothing.
    assert carried(world.plant, now) == carried(world.plant, start + PERIOD) == (0, SELLABLE)
    # Three seconds later six are left, and when it is over nothing is.
    later = start + timedelta(seconds=3)
    assert return_carry_over(now=later) == 1
    assert carried(world.plant, start) == (26_667, SELLABLE - 26_667)
    void_hold(id=hold_id, now=later)
    assert return_carry_over(now=later) == 1
    assert carried(world.plant, start) == (0, SELLABLE)


def test_what_was_admitted_in_the_period_itself_is_not_carried_over(world: World, now: datetime) -> None:
    ask(world, 17 * LOT, now)
    assert return_carry_over(now=now + timedelta(seconds=1)) == 0
    assert keep_carry_over(period_start=now + PERIOD, now=now + timedelta(seconds=1)) == 0


def test_what_is_sold_already_is_not_taken_away(world: World, now: datetime) -> None:
    start = now + PERIOD
    take_period_share(host_id=world.plant.host.id, period_start=start, share_ppm=930_000)
    admitted = start - timedelta(seconds=6)
    beat(world.plant, admitted)
    ask(world, 17 * LOT, admitted)
    keep_carry_over(period_start=start, now=admitted)
    assert carried(world.plant, start) == (20_000, 930_000)


def test_the_book_asks_what_is_left_beside_the_requests_that_still_run(
    operator: Party, acme: Party, hyperion: Party, now: datetime
) -> None:
    """The gate closes 45 s before the period begins, and a request of this grade may run 120 s."""
    grade = make_grade(now, max_request_s=120)
    plant = make_plant(hyperion, grade, now)
    world = World(operator, acme, hyperion, grade, plant)
    give_money(world, 10**9, now)
    admitted = now + timedelta(seconds=240)
    beat(plant, admitted)
    _, opened = ask(world, 51 * LOT, admitted)
    assert opened.outcome == "ok"
    auction = run_round(plant, now)
    # Sixty of its 120 seconds lie beyond the start: 25.5 lots, a tenth of the host.
    assert carried(plant, auction.period_start) == (100_000, SELLABLE - 100_000)
    assert Ask.objects.get(auction=auction).lots == 850_000 * 255 // 1_000_000
