"""Periods tile time and never drift, whatever zone, summer time or leap day an organization looks at them from."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.months import (
    Period,
    by_calendar_month,
    calendar_month,
    contract_month,
    contract_month_at,
    period_at,
    prorated,
)

INSTANT = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
YEARS = 10
ZONES = sorted(available_timezones())
# Local times at which zones jump, days that months lack, and the turn of a year; ten years with three leap days.
STARTS = [
    datetime(2023, 10, 29, 2, 30),  # noqa: DTZ001
    datetime(2024, 2, 29, 23, 59, 59, 999_999),  # noqa: DTZ001
    datetime(2024, 3, 31, 2, 30),  # noqa: DTZ001
    datetime(2023, 12, 31),  # noqa: DTZ001
    datetime(2024, 1, 30, 12),  # noqa: DTZ001
]


def test_there_are_zones_to_look_from() -> None:
    assert len(ZONES) > 400


@pytest.mark.parametrize("local", STARTS, ids=str)
def test_months_of_a_contract_tile_ten_years_in_every_zone(local: datetime) -> None:
    terms: dict[datetime, list[Period]] = {}
    for zone in ZONES:
        earlier, later = (local.replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1))
        # Twice where the clock shows the hour twice, or never.
        for start in [earlier] if earlier.utcoffset() == later.utcoffset() else [earlier, later]:
            anchor = start.astimezone(UTC)
            if anchor not in terms:
                terms[anchor] = months_of(anchor)
            months = terms[anchor]
            starts = [month.start for month in months]
            # Where summer time begins or ends, and elsewhere: each instant is in exactly one, seen from any zone.
            for n in (0, 1, 5, 12, 13, 49, 12 * YEARS - 1):
                # The zone it was signed in moves nothing.
                assert contract_month(start, n) == months[n]
                for at in (months[n].start, months[n].start + timedelta(days=17), months[n].end - INSTANT):
                    shown = at.astimezone(ZoneInfo(zone))
                    assert bisect_right(starts, shown) - 1 == n == contract_month_at(start, shown)
                    assert shown in months[n]
    assert len(terms) > 20


@pytest.mark.parametrize("year", [2024, 2026])
def test_every_jump_of_a_clock_in_every_zone_is_in_one_period_of_each_kind(year: int) -> None:
    """The hour that a clock shows twice, and the one that it leaves out: two instants an hour apart, not one."""
    jumps = 0
    for name in ZONES:
        zone = ZoneInfo(name)
        for at in jumps_of(zone, year):
            jumps += 1
            before, after = at - INSTANT, at
            for moment in (before, after):
                shown = moment.astimezone(zone)
                # The same instant, however it is written; and each in exactly one.
                assert shown.astimezone(UTC) == moment
                for length_s in (30, 300, 3_600, 86_400):
                    period = period_at(shown, length_s)
                    assert period == period_at(moment, length_s)
                    assert period.start <= moment < period.end
                    assert shown in period
                    assert (period.end - INSTANT).astimezone(zone) in period
                    assert period.end.astimezone(zone) not in period
                    assert Period(*(edge.astimezone(zone) for edge in period)).seconds == length_s
                assert calendar_month(shown) == calendar_month(moment)
                assert contract_month(shown, 1) == contract_month(moment, 1)
            # A period written by the zone's clock from before the jump to after it is as long as it takes.
            across = Period((at - HOUR).astimezone(zone), (at + HOUR).astimezone(zone))
            assert across.seconds == 7_200
            assert prorated(7_200, Period(across.start, at.astimezone(zone)), whole=across) == 3_600
    assert jumps > 100


def jumps_of(zone: ZoneInfo, year: int) -> list[datetime]:
    """Instants of a year at which a zone's clock is set forward or back, by halving."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(366)]
    found = []
    for start, end in pairwise(days):
        low, high = start, end
        if low.astimezone(zone).utcoffset() == high.astimezone(zone).utcoffset():
            continue
        while high - low > timedelta(seconds=1):
            middle = low + (high - low) // 2
            is_before = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
            low, high = (middle, high) if is_before else (low, middle)
        found.append(high.replace(microsecond=0))
    return found


def months_of(anchor: datetime) -> list[Period]:
    """Ten years of months, which tile the time and never drift."""
    months = [contract_month(anchor, n) for n in range(12 * YEARS)]
    assert months[0].start == anchor
    assert all(before.end == after.start for before, after in pairwise(months))
    for n, month in enumerate(months):
        # Time of day and, where the month has it, the day are the anchor's.
        assert month.start.time() == anchor.time()
        assert month.start.day == min(anchor.day, _last_day(month.start))
        assert (month.start.year * 12 + month.start.month) - (anchor.year * 12 + anchor.month) == n
    return months


def _last_day(at: datetime) -> int:
    return (calendar_month(at).end - timedelta(days=1)).day


moments = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from(ZONES).map(ZoneInfo),
)


@given(moments, st.integers(0, 12 * YEARS))
def test_every_instant_is_in_exactly_one_month_of_a_contract(start: datetime, n: int) -> None:
    month = contract_month(start, n)
    for at in (month.start, month.start + (month.end - month.start) / 3, month.end - INSTANT):
        assert contract_month_at(start, at) == n
    assert contract_month_at(start, month.end) == n + 1
    assert 28 <= (month.end - month.start).days <= 31


@given(moments, st.integers(1, 400_000))
def test_every_instant_is_in_exactly_one_period_of_any_length(at: datetime, length_s: int) -> None:
    period = period_at(at, length_s)
    assert at in period
    assert period.seconds == length_s
    assert period_at(period.end - INSTANT, length_s) == period
    assert period_at(period.end, length_s).start == period.end
    assert at not in period_at(period.end, length_s)


@given(moments)
def test_every_instant_is_in_exactly_one_calendar_month_of_utc(at: datetime) -> None:
    month = calendar_month(at)
    assert at in month
    assert calendar_month(month.end - INSTANT) == month
    assert calendar_month(month.end).start == month.end
    assert (month.start.day, month.start.hour, month.start.tzinfo) == (1, 0, UTC)


@given(moments, st.integers(0, 40))
def test_a_contract_months_parts_on_invoices_tile_it(start: datetime, n: int) -> None:
    month = contract_month(start, n)
    parts = list(by_calendar_month(month))
    assert 1 <= len(parts) <= 3  # a month of 30 January touches January, February and March
    assert (parts[0].start, parts[-1].end) == month
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert len({calendar_month(part.start).start for part in parts}) == len(parts)
    assert all(calendar_month(part.end - INSTANT) == calendar_month(part.start) for part in parts)


@given(
    moments,
    st.integers(0, 40),
    st.integers(-(10**12), 10**12),
    st.lists(st.floats(0, 1), max_size=6),
)
def test_parts_of_an_amount_add_up_to_it(start: datetime, n: int, amount: int, cuts: list[float]) -> None:
    whole = contract_month(start, n)
    at = sorted({whole.start, whole.end, *(whole.start + (whole.end - whole.start) * cut for cut in cuts)})
    parts = [Period(first, last) for first, last in pairwise(at)]
    shares = [prorated(amount, part, whole=whole) for part in parts]
    assert sum(shares) == amount
    for part, share in zip(parts, shares, strict=True):
        exact = amount * ((part.end - part.start) / (whole.end - whole.start))
        assert abs(share - exact) <= 1 + abs(amount) * 1e-12


def test_the_last_of_a_month_comes_back() -> None:
    for year, february in ((2026, 28), (2028, 29)):
        start = datetime(year, 1, 31, tzinfo=UTC)
        assert [contract_month(start, n).start.day for n in range(5)] == [31, february, 31, 30, 31]
    leap_day = datetime(2024, 2, 29, tzinfo=UTC)
    assert [contract_month(leap_day, 12 * year).start.day for year in range(5)] == [29, 28, 28, 28, 29]


def test_summer_time_moves_the_clock_on_the_wall_and_not_the_instant() -> None:
    start = datetime(2026, 3, 15, tzinfo=ZoneInfo("Europe/Berlin"))
    second = contract_month(start, 1).start
    assert second == datetime(2026, 4, 14, 23, tzinfo=UTC)
    assert second.astimezone(ZoneInfo("Europe/Berlin")).isoformat() == "2026-04-15T01:00:00+02:00"


def test_an_hour_that_the_clock_shows_twice_is_in_the_period_once() -> None:
    """Both are written 02:30 in Berlin; Python takes them for one time of that zone."""
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    second = first.replace(fold=1)
    assert (first == second, first.astimezone(UTC) == second.astimezone(UTC)) == (True, False)
    between = Period(
        datetime(2026, 10, 25, 2, tzinfo=berlin), datetime(2026, 10, 25, 2, tzinfo=berlin, fold=1)
    )
    assert between.seconds == 3_600
    assert first in between
    assert second not in between


def test_shares_are_of_time_passed_and_not_of_the_clock() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    whole = Period(datetime(2026, 3, 29, tzinfo=berlin), datetime(2026, 3, 30, tzinfo=berlin))  # of 23 hours
    morning = Period(whole.start, datetime(2026, 3, 29, 12, tzinfo=berlin))
    assert prorated(23_000, morning, whole=whole) == 11_000


def test_days_of_a_leap_february_share_by_seconds() -> None:
    whole = calendar_month(datetime(2028, 2, 10, tzinfo=UTC))
    half = Period(whole.start, whole.start + timedelta(days=14, hours=12))
    assert prorated(1_001, half, whole=whole) == 500  # half to even
    assert prorated(1_001, Period(half.end, whole.end), whole=whole) == 501
