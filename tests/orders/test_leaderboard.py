"""The leaderboard: throughput for the price, energy and reliability, from what was metered, exact to the last digit."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.services import SYSTEM
from marketplace.ids import uuid7
from marketplace.orders.leaderboard import standings, uptime_ppm, window_of
from metering.models import RegisterRead
from pricing.models import Grade
from pricing.tariffs import Window
from providers.models import Outage
from providers.services import announce_tariff
from tests.billing.world import LOT, PERIOD, meter, on_demand
from tests.cast import Party, Plant, fund, make_plant

HOUR = timedelta(hours=1)


def read_energy(plant: Plant, at: datetime, millijoules: int) -> None:
    RegisterRead.objects.create(
        id=uuid7(at), host_id=plant.host.id, boot_id="b", read_at=at, energy_millijoules=millijoules
    )


def test_figures_are_of_what_was_delivered(
    acme: Party,
    hyperion: Party,
    grade: Grade,
    now: datetime,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    plant = make_plant(hyperion, grade, now, list_rate=500_000)
    idle = make_plant(hyperion, grade, now, name="idle", list_rate=800_000)
    fund(acme, 100_000_000, now)
    contract = on_demand(acme, grade, now)
    for number, lots in enumerate((60, 30)):
        meter(contract, plant.offering.list_rate, plant, lots * LOT, now + number * PERIOD)
    # A counter that went down was started anew: 3,000 J, then 1,500 J more.
    read_energy(plant, now, 5_000_000)
    read_energy(plant, now + PERIOD, 8_000_000)
    read_energy(plant, now + 2 * PERIOD, 1_500_000)
    for host, kind, start in ((plant.host, "heartbeat", now + HOUR), (idle.host, "planned", now)):
        Outage.objects.create(host=host, kind=kind, started_at=start, ended_at=start + HOUR, created_at=now)
    at = now + 4 * HOUR + timedelta(seconds=settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S)
    with django_assert_max_num_queries(6):
        best, other = standings(now=at)
    assert window_of(at).end == now + 4 * HOUR
    # 90 lots in 600 s are 150 standard tokens a second, at 0.5 units per Mtok 300 per unit.
    assert (best.delivered_numerator, best.delivered_numerator_per_s) == (90 * LOT, 150 * 10**6)
    assert best.millitokens_per_s_per_currency_unit == 300_000
    assert best.tokens_per_currency_unit == 2_000_000
    # 90,000 tokens for 4,500 J.
    assert best.microtokens_per_joule == 20_000_000
    assert (best.uptime_ppm, other.uptime_ppm) == (750_000, 1_000_000)
    assert (best.provider, best.grade, best.spot_awarded_lots) == ("Hyperion", "tiny-chat", 0)
    assert best.delivered_of_awarded_ppm is None
    assert (other.delivered_numerator_per_s, other.microtokens_per_joule) == (None, None)
    assert standings(now=at, grade="other") == []
    # Usage of a period that late events may still change is not told.
    assert {one.delivered_numerator for one in standings(now=now + HOUR)} == {0}


def test_the_price_is_the_list_rate_of_the_moment(plant: Plant, now: datetime) -> None:
    announce_tariff(
        organization_id=plant.host.provider.organization_id,
        offering_id=plant.offering.id,
        kind="time_of_use",
        valid_from=now + HOUR,
        rate_micros_per_mtok=500_000,
        windows=[Window(14 * 3_600, 15 * 3_600, 250_000)],
        now=now,
        actor=SYSTEM,
    )
    found = [standings(now=now + hours * HOUR)[0] for hours in range(4)]
    assert [one.list_rate_micros_per_mtok for one in found] == [600_000, 500_000, 250_000, 500_000]
    assert [one.tokens_per_currency_unit for one in found] == [1_666_666, 2_000_000, 4_000_000, 2_000_000]


def test_outages_that_overlap_are_lost_once(now: datetime) -> None:
    day = now + timedelta(hours=10)
    down = [(now + HOUR, now + 3 * HOUR), (now + 2 * HOUR, now + 4 * HOUR), (now + HOUR, now + 2 * HOUR)]
    assert uptime_ppm(down, since=now, until=day) == 700_000
    assert uptime_ppm([(now - HOUR, day + HOUR)], since=now, until=day) == 0
    assert uptime_ppm([], since=now, until=day) == 1_000_000
    assert uptime_ppm([], since=now, until=now) is None
