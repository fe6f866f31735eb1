"""Releases against requests, each other and the gate, on real connections: no volume is used and sold at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from django.db import connection

from marketplace.contracts.models import Contract, Entitlement, Nomination
from marketplace.errors import DomainError
from marketplace.orders.models import Ask, Auction, Release
from marketplace.orders.services.rounds import advance_auctions
from pricing.units import NUMERATOR_PER_LOT as LOT
from tests.cast import fund
from tests.conftest import TestDatabase
from tests.contracts.world import World, make_world
from tests.orders.test_releases import FUNDS, VOLUME, buy, hold_on, let_go
from tests.orders.world import PERIOD, beat


def together(tasks: list[Callable[[], str]]) -> Counter[str]:
    def run(task: Callable[[], str]) -> str:
        try:
            return task()
        except DomainError as error:
            return error.code
        finally:
            connection.close()

    with ThreadPoolExecutor(12) as pool:
        return Counter(pool.map(run, tasks))


def committed(world: World, now: datetime) -> Contract:
    fund(world.acme, FUNDS, now)
    return buy(world.acme, world.grade, now)


def test_releases_and_requests_never_take_more_than_the_month_has(
    committed_db: TestDatabase, now: datetime
) -> None:
    world = make_world(now)
    contract = committed(world, now)
    # All but 60 lots of the month is gone: releases of 5 and requests of 5 lots compete for it.
    Entitlement.objects.filter(contract=contract).update(used_numerator=(VOLUME - 60) * LOT)
    at = contract.starts_at
    beat(world.plant, at)
    ahead = at + 10 * PERIOD

    def use() -> str:
        return hold_on(contract, 5, at + timedelta(seconds=120))[1]

    def let(number: int) -> Callable[[], str]:
        def one() -> str:
            let_go(contract, at, period_start=ahead + number * PERIOD, lots=5)
            return "released"

        return one

    done = together([task for number in range(12) for task in (let(number), use)])
    month = Entitlement.objects.get(contract=contract)
    assert month.released_numerator == 5 * LOT * done["released"]
    assert month.held_numerator == 5 * LOT * done["ok"]
    assert month.held_numerator + month.released_numerator <= 60 * LOT
    # Of requests the bucket may refuse some; what it left, the releases had.
    assert done["released"] + done["ok"] == 12 or done["rate_limited"] > 0
    assert done["released"] > 0


def test_of_one_period_no_more_than_the_firm_lots_is_released(
    committed_db: TestDatabase, now: datetime
) -> None:
    world = make_world(now)
    contract = committed(world, now)

    def let() -> str:
        let_go(contract, now, lots=30)
        return "released"

    assert together([let] * 10) == {"released": 3, "invalid_input": 7}
    nomination = Nomination.objects.get()
    assert nomination.released_lots == 90
    assert Entitlement.objects.get(contract=contract).released_numerator == 90 * LOT


def test_a_release_at_the_gate_is_in_the_book_or_refused(committed_db: TestDatabase, now: datetime) -> None:
    world = make_world(now)
    contract = committed(world, now)
    beat(world.plant, now)
    advance_auctions(now=now)
    gate = Auction.objects.get(period_start=contract.starts_at).gate_at
    before = gate - timedelta(milliseconds=1)
    beat(world.plant, before)

    def let() -> str:
        let_go(contract, before, lots=10)
        return "released"

    def close() -> str:
        advance_auctions(now=gate)
        return "closed"

    done = together([let, let, let, close, let, close, let, let])
    assert done["released"] + done["market_closed"] == 6
    assert done["closed"] == 2
    assert Release.objects.count() == done["released"]
    # Whoever was told that he released stands in the sealed book, and its lots are asked once.
    asked = sum(Ask.objects.filter(release__isnull=False).values_list("lots", flat=True))
    auction = Auction.objects.get(period_start=contract.starts_at)
    assert auction.book is not None
    in_book = sum(ask["lots"] for ask in auction.book["asks"] if ask["rate"] == 100_000)
    assert asked == in_book == 10 * done["released"]
    advance_auctions(now=gate + timedelta(seconds=1))
    assert Entitlement.objects.get(contract=contract).released_numerator == 0
