"""Placements of one grade do not wait for each other, and none slips past a gate that closed (real commits)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from django.db import connection, transaction

from marketplace.accounts.services import SYSTEM
from marketplace.orders.models import Auction, Bid, MarketControl
from marketplace.orders.services.controls import halt_market
from marketplace.orders.services.phases import MarketClosed
from marketplace.orders.services.rounds import close_due_auctions, open_auctions
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.orders.world import PERIOD, beat, bid_of

SOON_S = 20


class Pause:
    """A placement that has done all its work and does not commit until it is told to."""

    def __init__(self, pool: ThreadPoolExecutor, place: Callable[[], Bid]) -> None:
        self._placed, self._commit = threading.Event(), threading.Event()
        self._place = place
        self._done = pool.submit(closing, self._run)
        assert self._placed.wait(SOON_S)

    def _run(self) -> Bid:
        with transaction.atomic():
            try:
                bid = self._place()
            finally:
                self._placed.set()
            assert self._commit.wait(SOON_S)
        return bid

    def commit(self) -> Bid:
        self._commit.set()
        bid: Bid = self._done.result(SOON_S)
        return bid


def closing(work: Callable[[], Any]) -> Any:
    try:
        return work()
    finally:
        connection.close()


def wait_until_waiting(count: int) -> None:
    """So many of this database's sessions wait for a lock."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.fetchone() == (count,):
                return
        time.sleep(0.02)
    pytest.fail("nobody waits")


class Market(NamedTuple):
    acme: Party
    mallory: Party
    operator: Party
    plant: Plant


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Market:
    operator = make_party("Operator", ["operator"], now)
    grade = make_grade(now)
    acme, mallory = make_party("Acme", ["buyer"], now), make_party("Mallory", ["buyer"], now)
    hyperion = make_party("Hyperion", ["provider"], now)
    plant = make_plant(hyperion, grade, now)
    for party in (acme, mallory):
        fund(party, 10**9, now)
    open_auctions(now=now)
    return Market(acme, mallory, operator, plant)


def test_placements_of_one_grade_do_not_wait_for_each_other(
    market: Market, pool: ThreadPoolExecutor, now: datetime
) -> None:
    first = Pause(pool, lambda: bid_of(market.acme, now))
    second = pool.submit(closing, lambda: bid_of(market.mallory, now)).result(SOON_S)
    # The other one has committed, this one not.
    assert [bid.pk for bid in Bid.objects.all()] == [second.pk]
    assert {first.commit().pk, second.pk} == {bid.pk for bid in Bid.objects.all()}


@pytest.mark.parametrize("single", [False, True])
def test_a_gate_takes_in_who_placed_before_and_nobody_slips_past_it(
    market: Market, pool: ThreadPoolExecutor, now: datetime, single: bool
) -> None:
    before, gate = now + PERIOD * 0.5, now + PERIOD * 0.92
    beat(market.plant, gate)
    early = Pause(pool, lambda: bid_of(market.acme, before))
    closed = pool.submit(closing, lambda: close_due_auctions(now=gate))
    wait_until_waiting(1)
    # Its request came before the gate too, but the gate is closing: it waits behind it, so that a stream of placements
    # keeps no gate open.
    terms = {"period_start": now + PERIOD} if single else {}
    late: Future[Bid] = pool.submit(closing, lambda: bid_of(market.mallory, before, **terms))
    wait_until_waiting(2)
    in_book = early.commit()
    assert closed.result(SOON_S) == 1
    if single:
        with pytest.raises(MarketClosed):
            late.result(SOON_S)
    else:
        late.result(SOON_S)
    auction = Auction.objects.get(status=Auction.Status.CLOSED)
    assert auction.book is not None
    assert [entry["id"] for entry in auction.book["bids"]] == [str(in_book.pk)]


def test_after_its_gate_a_round_is_held_by_no_placement(
    market: Market, pool: ThreadPoolExecutor, now: datetime
) -> None:
    gate = now + PERIOD * 0.92
    beat(market.plant, gate)
    assert close_due_auctions(now=gate) == 1
    placed = Pause(pool, lambda: bid_of(market.acme, gate))
    with transaction.atomic():
        # As clearing and publishing lock it.
        assert Auction.objects.select_for_update(nowait=True).get().status == Auction.Status.CLOSED
    placed.commit()


def test_a_halt_waits_for_who_places_and_lets_nobody_by(
    market: Market, pool: ThreadPoolExecutor, now: datetime
) -> None:
    placed = Pause(pool, lambda: bid_of(market.acme, now))
    halted = pool.submit(
        closing,
        lambda: halt_market(
            operator_id=market.operator.id,
            grade=market.plant.offering.grade,
            reason="a test of the bell",
            actor=SYSTEM,
            now=now,
        ),
    )
    wait_until_waiting(1)
    late = pool.submit(closing, lambda: bid_of(market.mallory, now))
    wait_until_waiting(2)
    placed.commit()
    assert halted.result(SOON_S).status == MarketControl.Status.HALTED
    late.result(SOON_S)
    assert Bid.objects.count() == 2
