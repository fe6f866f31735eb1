"""No capacity is sold twice: shares of hosts per hour and per period, also under threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.conf import settings
from django.db import DatabaseError, connection, transaction

from marketplace.accounts.services import SYSTEM
from providers import selectors, services
from providers.models import HostHour, HostPeriod
from providers.services import CapacityGone
from tests.cast import Plant, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

HOUR = timedelta(hours=1)
PERIOD = timedelta(seconds=settings.DELIVERY_PERIOD_S)
SELLABLE = 1_000_000 - settings.OPERATING_MARGIN_PPM


def test_the_running_period_and_the_next_ones_are_open(plant: Plant, now: datetime) -> None:
    starts = list(HostPeriod.objects.order_by("period_start").values_list("period_start", flat=True))
    assert starts == [now + index * PERIOD for index in range(len(starts))]
    assert len(starts) >= 4
    assert services.open_capacity(now=now) == 0
    assert services.open_capacity(now=now + PERIOD) == 1
    row = HostPeriod.objects.earliest("period_start")
    assert (row.sellable_ppm, row.sold_ppm, row.period_end) == (SELLABLE, 0, now + PERIOD)


def test_a_share_is_taken_and_given_back(plant: Plant, now: datetime) -> None:
    host = plant.host.id
    assert services.take_period_share(host_id=host, period_start=now, share_ppm=600_000) == 600_000
    with pytest.raises(CapacityGone):
        services.take_period_share(host_id=host, period_start=now, share_ppm=SELLABLE - 600_000 + 1)
    assert selectors.unsold_ppm(host, now) == SELLABLE - 600_000
    assert services.give_back_period_share(host_id=host, period_start=now, share_ppm=100_000) == 500_000
    with pytest.raises(AssertionError):
        services.give_back_period_share(host_id=host, period_start=now, share_ppm=500_001)
    assert (
        services.take_period_share(host_id=host, period_start=now, share_ppm=SELLABLE - 500_000) == SELLABLE
    )


def test_a_period_that_is_not_open_yet_is_made_with_its_firm_share(plant: Plant, now: datetime) -> None:
    host, later = plant.host.id, now + 5 * HOUR
    assert selectors.unsold_ppm(host, later) == SELLABLE
    services.take_firm_share(host_id=host, hours=[later], share_ppm=300_000, now=now)
    assert selectors.unsold_ppm(host, later) == SELLABLE - 300_000
    assert services.take_period_share(host_id=host, period_start=later, share_ppm=1) == 300_001
    with pytest.raises(CapacityGone):
        services.take_period_share(host_id=host, period_start=later + PERIOD, share_ppm=SELLABLE)
    # The taking made one period's row; the refused one was rolled back with its row.
    assert services.open_capacity(now=later) == 4


def test_firm_is_taken_in_all_hours_or_in_none(plant: Plant, now: datetime) -> None:
    host, hours = plant.host.id, [now + index * HOUR for index in range(24)]
    services.take_firm_share(host_id=host, hours=[hours[7]], share_ppm=SELLABLE, now=now)
    with pytest.raises(CapacityGone):
        services.take_firm_share(host_id=host, hours=hours, share_ppm=1, now=now)
    assert HostHour.objects.filter(sold_ppm__gt=0).count() == 1
    assert not HostPeriod.objects.filter(sold_ppm__gt=0).exists()
    with pytest.raises(CapacityGone):
        services.take_firm_share(host_id=host, hours=[hours[3]], share_ppm=SELLABLE + 1, now=now)


def test_firm_counts_in_the_periods_that_are_open_already(plant: Plant, now: datetime) -> None:
    host = plant.host.id
    services.take_firm_share(host_id=host, hours=[now], share_ppm=250_000, now=now)
    assert set(HostPeriod.objects.values_list("sold_ppm", flat=True)) == {250_000}
    services.take_period_share(host_id=host, period_start=now, share_ppm=SELLABLE - 250_000)
    with pytest.raises(CapacityGone):
        services.take_firm_share(host_id=host, hours=[now], share_ppm=1, now=now)
    assert HostHour.objects.get(hour_start=now).sold_ppm == 250_000
    services.give_back_firm_share(host_id=host, hours=[now], share_ppm=250_000, now=now)
    assert HostHour.objects.get(hour_start=now).sold_ppm == 0
    assert HostPeriod.objects.get(period_start=now).sold_ppm == SELLABLE - 250_000


def test_a_term_that_begins_within_the_hour_leaves_auctioned_periods_alone(
    plant: Plant, now: datetime
) -> None:
    host = plant.host.id
    services.take_period_share(host_id=host, period_start=now, share_ppm=SELLABLE)
    starts_at = now + 2 * PERIOD
    services.take_firm_share(host_id=host, hours=[now], share_ppm=1_000, now=now, starts_at=starts_at)
    sold = dict(HostPeriod.objects.values_list("period_start", "sold_ppm"))
    assert (sold[now], sold[now + PERIOD], sold[starts_at]) == (SELLABLE, 0, 1_000)


def test_a_period_that_is_over_does_not_stand_in_the_way(plant: Plant, now: datetime) -> None:
    services.take_period_share(host_id=plant.host.id, period_start=now, share_ppm=SELLABLE)
    services.take_firm_share(host_id=plant.host.id, hours=[now], share_ppm=5, now=now + PERIOD)
    assert HostPeriod.objects.get(period_start=now).sold_ppm == SELLABLE


def test_the_database_itself_refuses_to_sell_twice(plant: Plant, now: datetime) -> None:
    for rows in (HostPeriod.objects.filter(period_start=now), HostHour.objects.filter(hour_start=now)):
        with pytest.raises(DatabaseError, match="not_sold_twice"), transaction.atomic():
            rows.update(sold_ppm=SELLABLE + 1)


def run_together(work: list[Callable[[], object]]) -> list[bool]:
    """Each in a thread with its own connection, all at once. True where it took what it wanted."""
    barrier, done = threading.Barrier(len(work)), [False] * len(work)
    errors: list[BaseException] = []

    def one(index: int) -> None:
        try:
            barrier.wait()
            work[index]()
            done[index] = True
        except CapacityGone:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return done


def committed_plant(now: datetime) -> tuple[UUID, int, int]:
    """One host with two grades: its id, and the share that a sale takes in either grade."""
    make_party("Operator", ["operator"], now)
    hyperion = make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    make_grade(now, slug="other", model="other")
    other = services.list_offering(
        host_id=plant.host.id,
        grade_slug="other",
        spot_floor_micros_per_mtok=1,
        firm_rate_micros_per_mtok=1,
        list_rate_micros_per_mtok=1,
        now=now,
        actor=SYSTEM,
    )
    seconds = settings.DELIVERY_PERIOD_S
    shares = selectors.share_ppm_of(20, plant.offering, seconds), selectors.share_ppm_of(33, other, seconds)
    return plant.host.id, *shares


def test_two_grades_on_one_host_never_sell_more_than_the_host(
    committed_db: TestDatabase, now: datetime
) -> None:
    host_id, one, two = committed_plant(now)
    start = now + 30 * PERIOD  # No row yet: the takers make it, all at once.

    def take(share: int) -> Callable[[], object]:
        return lambda: services.take_period_share(host_id=host_id, period_start=start, share_ppm=share)

    shares = [one, two] * 10
    done = run_together([take(share) for share in shares])
    sold = sum(share for share, taken in zip(shares, done, strict=True) if taken)
    row = HostPeriod.objects.get(host_id=host_id, period_start=start)
    assert row.sold_ppm == sold <= row.sellable_ppm
    assert row.sellable_ppm - sold < min(one, two)  # Nothing that would have fitted was refused.


def test_firm_and_spot_sold_at_once_share_the_host(committed_db: TestDatabase, now: datetime) -> None:
    host_id, one, two = committed_plant(now)
    hour = now + 3 * HOUR
    starts = [hour + index * PERIOD for index in range(int(HOUR / PERIOD))]
    hours = [hour, hour + HOUR]

    def firm() -> None:
        services.take_firm_share(host_id=host_id, hours=hours, share_ppm=two, now=now)

    def spot(start: datetime) -> Callable[[], object]:
        return lambda: services.take_period_share(host_id=host_id, period_start=start, share_ppm=one)

    def openers() -> None:
        services.open_capacity(now=hour)

    work = [firm, spot(starts[0]), openers, spot(starts[1])] * 5
    done = run_together(work)
    firm_sold = two * sum(taken for index, taken in enumerate(done) if index % 4 == 0)
    assert all(done[index] for index in range(2, len(done), 4))
    for index, start in ((1, starts[0]), (3, starts[1])):
        spot_sold = one * sum(taken for at, taken in enumerate(done) if at % 4 == index)
        row = HostPeriod.objects.get(host_id=host_id, period_start=start)
        assert row.sold_ppm == firm_sold + spot_sold <= row.sellable_ppm
    assert set(HostHour.objects.filter(hour_start__in=hours).values_list("sold_ppm", flat=True)) == {
        firm_sold
    }
    untouched = HostPeriod.objects.filter(host_id=host_id, period_start__in=starts[2:])
    assert {row.sold_ppm for row in untouched} <= {firm_sold}
