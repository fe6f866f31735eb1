"""The operator's monitoring over real rounds: who is needed, who dominates, who trades with himself, who withdraws."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.services import SYSTEM
from marketplace.orders.monitoring import concentrations, spoof_report, wash_report
from marketplace.orders.services.bids import cancel_bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.periods import Period
from pricing.models import Grade
from tests.cast import Party, fund, make_party, make_plant
from tests.orders.exchange import FLOOR, HOUR, PERIOD, Exchange, make_exchange

ROUTES = ("pivotal", "concentration", "wash-trades", "spoofing")


@pytest.fixture
def exchange(grade: Grade, operator: Party, now: datetime) -> Exchange:
    return make_exchange(grade, now, standing=False)


def window(now: datetime) -> Period:
    return Period(now, now + HOUR)


def read(operator: Party, name: str, at: datetime) -> Any:
    with time_machine.travel(at, tick=False):
        answer = operator.api.get(f"/api/v1/monitoring/{name}")
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_sellers_are_pivotal_when_demand_needs_them(
    exchange: Exchange, operator: Party, now: datetime
) -> None:
    exchange.bid(exchange.buyers[0], now, steps=((450_000, 20),), period_start=now + PERIOD)
    exchange.run(now)
    # More than two hosts can make, and below the floor what nobody counts as demand.
    at = now + PERIOD
    exchange.bid(exchange.buyers[0], at, steps=((450_000, 600), (FLOOR - 1, 500)), client_id="big")
    exchange.run(at)
    tight, loose = read(operator, "pivotal", now + HOUR)["items"]
    assert (tight["demand_lots"], loose["demand_lots"]) == (600, 20)
    assert [one["is_pivotal"] for one in tight["sellers"]] == [True] * 3
    assert [one["is_pivotal"] for one in loose["sellers"]] == [False] * 3
    # Without him and the two largest others nobody is left.
    assert [one["is_jointly_pivotal"] for one in loose["sellers"]] == [True] * 3
    largest = tight["sellers"][0]
    assert largest["residual_lots"] == tight["supply_lots"] - largest["lots"]
    assert largest["residual_supply_ppm"] == 1_000_000 * largest["residual_lots"] // 600


def test_concentration_counts_both_sides_by_lots(exchange: Exchange, now: datetime) -> None:
    first, second, _ = exchange.buyers
    exchange.bid(first, now, steps=((450_000, 30),))
    exchange.bid(second, now, steps=((450_000, 10),))
    exchange.run(now)
    [found] = concentrations(window(now))
    assert (found.grade, found.buyers.lots, found.sellers.lots) == ("tiny-chat", 40, 40)
    assert found.buyers.hhi_ppm == 1_000_000 * (30 * 30 + 10 * 10) // (40 * 40)
    assert (found.buyers.largest, found.buyers.largest_share_ppm) == (str(first.id), 750_000)
    assert concentrations(Period(now + HOUR, now + 2 * HOUR)) == []


def test_one_owner_on_both_sides_shows_and_so_does_trading_back_and_forth(
    exchange: Exchange, operator: Party, now: datetime
) -> None:
    one, other = (make_party(name, ["buyer", "provider"], now) for name in ("One", "Other"))
    fund(one, 100_000_000, now)
    fund(other, 100_000_000, now)
    # Cheaper than anybody else: they sell all that they make.
    plants = [
        make_plant(one, exchange.grade, now, spot_floor=100_000),
        make_plant(other, exchange.grade, now, spot_floor=150_000),
    ]
    both = Exchange(exchange.grade, [one, other], [one, other], [*exchange.plants, *plants])
    both.bid(one, now, steps=((450_000, 40),))
    both.bid(other, now, steps=((450_000, 30),))
    both.run(now)
    report = wash_report(window(now))
    crossed = {crossing.organization_id: crossing.lots for crossing in report.self_crossings}
    assert crossed == {str(one.id): 40, str(other.id): 30}
    assert report.round_trips == []
    shown = read(operator, "wash-trades", now + HOUR)
    assert {row["organization_id"] for row in shown["self_crossings"]} == set(crossed)
    # Netted before it was cleared: nothing of it was traded.
    assert concentrations(window(now)) == []


def test_withdrawals_just_before_the_no_cancel_phase_are_late(
    exchange: Exchange, operator: Party, now: datetime
) -> None:
    hasty, early, trader = exchange.buyers
    exchange.bid(trader, now, steps=((450_000, 10),))
    bids = [
        (party, exchange.bid(party, now, steps=((1_000, lots),), client_id=f"c{lots}"))
        for party, lots in ((hasty, 500), (early, 700), (trader, 20))
    ]
    exchange.run(now)
    begin = now + PERIOD
    advance_auctions(now=begin)
    # The no-cancel phase begins at 80% of a period, and its last tenth before that at 70%.
    for (party, bid), share in zip(bids, (0.75, 0.65, 0.05), strict=True):
        cancel_bid(organization_id=party.id, bid_id=bid.id, now=begin + PERIOD * share, actor=SYSTEM)
    found = {one.group: one for one in spoof_report(window(now))}
    late = found[str(hasty.id)]
    assert (late.late_cancels, late.late_cancelled_lots, late.traded_lots) == (1, 500, 0)
    assert late.is_suspicious
    assert not found[str(early.id)].late_cancels
    assert not found[str(early.id)].is_suspicious
    assert found[str(trader.id)].cancel_to_trade_ppm == 2_000_000
    shown = read(operator, "spoofing", now + HOUR)["organizations"]
    assert shown[0]["organization_id"] == str(hasty.id)


def test_reports_cost_a_constant_number_of_queries(
    exchange: Exchange,
    operator: Party,
    now: datetime,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for buyer in exchange.buyers:
        exchange.bid(buyer, now, steps=((450_000, 10),))
    exchange.run(now, rounds=4)
    with time_machine.travel(now + HOUR, tick=False):
        for name in ROUTES:
            operator.api.get(f"/api/v1/monitoring/{name}")
            # Key, its last use, the market's clock; then what the report reads.
            with django_assert_max_num_queries(3 + 4):
                operator.api.get(f"/api/v1/monitoring/{name}")


@pytest.mark.parametrize("name", ROUTES)
def test_reports_are_the_operators_alone(
    operator: Party, acme: Party, hyperion: Party, mallory: Party, name: str
) -> None:
    for party in (acme, hyperion, mallory):
        answer = party.api.get(f"/api/v1/monitoring/{name}")
        assert (answer.status_code, answer.json()["code"]) == (403, "role_missing")


@pytest.mark.parametrize("name", ROUTES[1:])
def test_a_window_has_an_order_and_an_end(operator: Party, now: datetime, name: str) -> None:
    for query in (
        "since=2026-03-10T12:00:00Z&until=2026-03-10T12:00:00Z",
        "since=2026-01-01T00:00:00Z&until=2026-03-10T12:00:00Z",
        "since=yesterday",
    ):
        answer = operator.api.get(f"/api/v1/monitoring/{name}?{query}")
        assert (answer.status_code, answer.json()["field"]) == (422, "since")
    week = timedelta(days=7)
    at = (now - week).isoformat().replace("+00:00", "Z")
    assert (
        operator.api.get(f"/api/v1/monitoring/{name}?since={at}&until=2026-03-10T12:00:00Z").status_code
        == 200
    )
