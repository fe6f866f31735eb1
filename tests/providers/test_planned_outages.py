"""Announced outages: their hours leave the sale whole or not at all, and come back when they are taken back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connections

from marketplace import clock
from marketplace.accounts.services import SYSTEM
from marketplace.errors import Conflict, InvalidInput, NotFound
from providers import selectors, services
from providers.capacity import hour_of
from providers.models import HostHour, HostPeriod, Outage
from providers.services import CapacityGone, HoursSold
from tests.cast import Party, Plant, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

HOUR = timedelta(hours=1)
PERIOD = timedelta(seconds=settings.DELIVERY_PERIOD_S)
SELLABLE = 1_000_000 - settings.OPERATING_MARGIN_PPM


def announce(plant: Plant, start: datetime, end: datetime, now: datetime) -> Outage:
    return services.announce_outage(
        organization_id=plant.host.provider.organization_id,
        host_id=plant.host.id,
        starts_at=start,
        ends_at=end,
        now=now,
        actor=SYSTEM,
    )


def test_nothing_is_sold_in_an_announced_outage(plant: Plant, now: datetime) -> None:
    host, start = plant.host.id, now + 2 * HOUR
    outage = announce(plant, start, start + 2 * HOUR, now)
    assert (outage.kind, outage.started_at, outage.ended_at) == ("planned", start, start + 2 * HOUR)
    for at in (start, start + 2 * HOUR - PERIOD):
        assert selectors.unsold_ppm(host, at) == 0
        with pytest.raises(CapacityGone):
            services.take_period_share(host_id=host, period_start=at, share_ppm=1)
    with pytest.raises(CapacityGone):
        services.take_firm_share(host_id=host, hours=[start + HOUR], share_ppm=1, now=now)
    # Around it everything is as before.
    assert services.take_period_share(host_id=host, period_start=start - PERIOD, share_ppm=5) == 5
    assert services.take_period_share(host_id=host, period_start=start + 2 * HOUR, share_ppm=5) == 5
    # Periods that open while it lasts are of it, too.
    services.open_capacity(now=start)
    inside = HostPeriod.objects.filter(
        host_id=host, period_start__gte=start, period_start__lt=start + 2 * HOUR
    )
    assert {row.sellable_ppm for row in inside} == {0}


def test_the_same_announcement_again_is_the_same_outage(plant: Plant, now: datetime) -> None:
    start = now + 2 * HOUR
    assert announce(plant, start, start + HOUR, now) == announce(plant, start, start + HOUR, now)
    with pytest.raises(Conflict) as refused:
        announce(plant, start - HOUR, start + HOUR, now)
    assert refused.value.field == "starts_at"
    assert selectors.unsold_ppm(plant.host.id, start - HOUR) == SELLABLE


@pytest.mark.parametrize("firm", [True, False])
def test_what_is_sold_cannot_be_announced_away(plant: Plant, now: datetime, firm: bool) -> None:
    host, start = plant.host.id, now + 2 * HOUR
    if firm:
        services.take_firm_share(host_id=host, hours=[start + HOUR], share_ppm=1, now=now)
    else:
        services.take_period_share(host_id=host, period_start=start + HOUR + PERIOD, share_ppm=1)
    with pytest.raises(HoursSold):
        announce(plant, start, start + 2 * HOUR, now)
    assert not Outage.objects.exists()
    assert selectors.unsold_ppm(host, start) == SELLABLE
    assert set(HostHour.objects.filter(host_id=host).values_list("sellable_ppm", flat=True)) <= {SELLABLE}


def test_an_announcement_is_taken_back_before_it_begins(plant: Plant, now: datetime) -> None:
    start = now + 2 * HOUR
    outage = announce(plant, start, start + HOUR, now)
    owner: dict[str, Any] = {"organization_id": plant.host.provider.organization_id, "host_id": plant.host.id}

    def withdraw(at: datetime) -> None:
        services.withdraw_outage(**owner, outage_id=outage.pk, now=at, actor=SYSTEM)

    with pytest.raises(Conflict):
        withdraw(start)
    for _ in range(2):
        withdraw(start - timedelta(seconds=1))
        assert selectors.unsold_ppm(plant.host.id, start) == SELLABLE
    # What was taken back stays on record as an empty time, and stands in nobody's way.
    outage.refresh_from_db()
    assert outage.ended_at == outage.started_at
    announce(plant, start, start + HOUR, now)
    with pytest.raises(NotFound):
        services.withdraw_outage(**owner, outage_id=plant.host.id, now=now, actor=SYSTEM)


@pytest.mark.parametrize(
    ("window", "field"),
    [
        (lambda now: (now + 2 * HOUR + PERIOD, now + 4 * HOUR), "starts_at"),
        (lambda now: (now + 2 * HOUR, now + 3 * HOUR + PERIOD), "ends_at"),
        (lambda now: (now, now + HOUR), "starts_at"),
        (lambda now: (now - HOUR, now + HOUR), "starts_at"),
        (lambda now: (now + 2 * HOUR, now + 2 * HOUR), "ends_at"),
        (lambda now: (now + 2 * HOUR, now + HOUR), "ends_at"),
        (lambda now: (now + 2 * HOUR, now + 15 * 24 * HOUR), "ends_at"),
        (lambda now: (now + 367 * 24 * HOUR, now + 368 * 24 * HOUR), "starts_at"),
    ],
)
def test_a_window_without_sense_is_refused_by_field(
    plant: Plant, now: datetime, window: Callable[[datetime], tuple[datetime, datetime]], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        announce(plant, *window(now), now)
    assert refused.value.field == field
    assert not Outage.objects.exists()


def test_an_outage_over_rest(hyperion: Party, mallory: Party, plant: Plant) -> None:
    now = hour_of(clock.now())
    url = f"/api/v1/hosts/{plant.host.id}/outages"
    body = {"starts_at": (now + 5 * HOUR).isoformat(), "ends_at": (now + 7 * HOUR).isoformat()}
    assert mallory.api.post(url, body, format="json").status_code in (403, 404)
    made = hyperion.api.post(url, body, format="json")
    assert made.status_code == 201, made.json()
    assert made.json()["kind"] == "planned"
    (listed,) = hyperion.api.get(url).json()["items"]
    assert listed == made.json()
    services.take_firm_share(host_id=plant.host.id, hours=[now + 8 * HOUR], share_ppm=1, now=now)
    late = body | {"starts_at": (now + 8 * HOUR).isoformat(), "ends_at": (now + 9 * HOUR).isoformat()}
    refused = hyperion.api.post(url, late, format="json")
    assert (refused.status_code, refused.json()["code"]) == (409, "hours_sold")
    assert hyperion.api.delete(f"{url}/{listed['id']}").status_code == 204
    assert selectors.unsold_ppm(plant.host.id, now + 5 * HOUR) == SELLABLE


def test_a_sale_and_an_announcement_at_once_never_both_win(committed_db: TestDatabase, now: datetime) -> None:
    hyperion = make_party("hyperion", ["provider"], now)
    plant = make_plant(hyperion, make_grade(now), now)
    for round_number in range(10):
        start = now + (2 + round_number) * HOUR

        def sell(host_id: UUID, start: datetime) -> bool:
            try:
                services.take_firm_share(host_id=host_id, hours=[start], share_ppm=1, now=now)
            except CapacityGone:
                return False
            return True

        def withdraw_from_sale(host_id: UUID, start: datetime) -> bool:
            try:
                announce(plant, start, start + HOUR, now)
            except HoursSold:
                return False
            return True

        def alone(work: Callable[[UUID, datetime], bool], start: datetime = start) -> bool:
            try:
                return work(plant.host.id, start)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(alone, [sell, withdraw_from_sale]))
        assert sorted(won) == [False, True]
