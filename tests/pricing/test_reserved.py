"""Reserved volumes: an integral over time, the same from every zone, and never below nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.months import Period, calendar_month, prorated
from pricing.reserved import Change, reserved_at_end, reserved_charge, reserved_on_average
from pricing.tariffs import (
    Kind,
    Tariff,
    Tier,
    billed_numerator,
    charge,
    exact_charge,
    graduated,
    package,
    per_unit,
    volume,
)
from pricing.units import NUMERATOR_PER_MTOK, div_half_even
from tests.pricing.test_tariffs import tariffs

MONTH = calendar_month(datetime(2026, 3, 1, tzinfo=UTC))
LENGTH = MONTH.microseconds
DAY = timedelta(days=1)
shared = tariffs((Kind.GRADUATED, Kind.VOLUME))


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, list[Change]]:
    """What is carried into March, and what changes within it, in the order of time."""
    carried = draw(st.integers(0, 10**14))
    level, found = carried, []
    for at in sorted(draw(st.lists(st.integers(0, LENGTH - 1), max_size=6))):
        after = draw(st.integers(0, 10**14))
        found.append(Change(MONTH.start + timedelta(microseconds=at), after - level))
        level = after
    return carried, found


def stretches(carried: int, found: list[Change]) -> list[tuple[int, int]]:
    """Each level, and for how many microseconds it holds."""
    moments = [MONTH.start, *(change.at for change in found), MONTH.end]
    levels = [carried]
    for change in found:
        levels.append(levels[-1] + change.delta)
    lengths = [Period(*pair).microseconds for pair in pairwise(moments)]
    return list(zip(levels, lengths, strict=True))


@given(shared, changes())
def test_a_charge_is_the_tariff_over_time_rounded_once(
    tariff: Tariff, case: tuple[int, list[Change]]
) -> None:
    """The rule once more, stretch by stretch."""
    carried, found = case
    parts = stretches(carried, found)
    bare = replace(tariff, tiers=tuple(replace(tier, flat_micros=0) for tier in tariff.tiers))
    highest = max(level for level, _ in parts)
    flats = exact_charge(tariff, highest) - exact_charge(bare, highest)
    if tariff.kind is Kind.VOLUME:
        reached = billed_numerator(tariff, highest)
        rate = next(tier.rate for tier in tariff.tiers if tier.up_to is None or reached <= tier.up_to)
        bare = replace(bare, tiers=(Tier(None, rate),))
    exact = Fraction(sum(exact_charge(bare, level) * length for level, length in parts), LENGTH) + flats
    amount = div_half_even(exact.numerator, exact.denominator * NUMERATOR_PER_MTOK)
    if tariff.maximum_micros is not None:
        amount = min(amount, tariff.maximum_micros)
    assert reserved_charge(tariff, found, period=MONTH, carried=carried) == amount


@given(changes())
def test_the_average_lies_between_the_least_and_the_most(case: tuple[int, list[Change]]) -> None:
    carried, found = case
    parts = stretches(carried, found)
    average = reserved_on_average(found, period=MONTH, carried=carried)
    assert average == Fraction(sum(level * length for level, length in parts), LENGTH)
    levels = [level for level, _ in parts]
    assert min(levels) <= average <= max(levels)
    assert reserved_at_end(found, carried=carried) == levels[-1]


@given(shared, st.integers(0, 10**14))
def test_what_never_changes_costs_what_the_tariff_says(tariff: Tariff, level: int) -> None:
    assert reserved_charge(tariff, [], period=MONTH, carried=level) == charge(tariff, level)
    # Whether it was carried in or began with the period.
    begun = [Change(MONTH.start, level)]
    assert reserved_charge(tariff, begun, period=MONTH) == charge(tariff, level)


@given(tariffs((Kind.GRADUATED,)), changes(), st.integers(0, LENGTH - 1), st.integers(0, LENGTH - 1))
def test_a_later_addition_never_costs_more(
    tariff: Tariff, case: tuple[int, list[Change]], one: int, other: int
) -> None:
    carried, _ = case
    early, late = (
        reserved_charge(
            tariff,
            [Change(MONTH.start + timedelta(microseconds=at), 10**13)],
            period=MONTH,
            carried=carried,
        )
        for at in sorted((one, other))
    )
    assert late <= early


@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(available_timezones())),
    st.datetimes(datetime(2026, 3, 1), datetime(2026, 3, 31)),  # noqa: DTZ001
    st.integers(0, 10**14),
)
def test_the_zone_in_which_a_change_is_written_moves_nothing(
    rate: int, zone: str, at: datetime, delta: int
) -> None:
    moment = at.replace(tzinfo=UTC)
    there = [Change(moment.astimezone(ZoneInfo(zone)), delta)]
    seen = Period(*(edge.astimezone(ZoneInfo(zone)) for edge in MONTH))
    assert reserved_charge(per_unit(rate), there, period=seen) == reserved_charge(
        per_unit(rate), [Change(moment, delta)], period=MONTH
    )


@given(st.integers(0, 10**6), st.integers(0, LENGTH - 1), st.integers(0, 50))
def test_one_addition_is_its_price_for_the_time_that_is_left(rate: int, at: int, units: int) -> None:
    moment = MONTH.start + timedelta(microseconds=at)
    found = reserved_charge(per_unit(rate), [Change(moment, units * NUMERATOR_PER_MTOK)], period=MONTH)
    assert abs(found - prorated(rate * units, Period(moment, MONTH.end), whole=MONTH)) <= 1


def test_flat_fees_of_the_tiers_reached_are_whole_and_not_shared_by_time() -> None:
    tiers = [Tier(10**12, 0, 100), Tier(None, 0, 50)]
    last_moment = [Change(MONTH.end - timedelta(microseconds=1), 2 * 10**12)]
    assert reserved_charge(graduated(tiers), last_moment, period=MONTH) == 150
    assert reserved_charge(volume(tiers), last_moment, period=MONTH) == 50
    assert reserved_charge(graduated(tiers), [], period=MONTH) == 100


def test_nonsense_is_refused_by_field() -> None:
    for wrong in (
        [Change(MONTH.start, 5), Change(MONTH.start + DAY, -6)],
        [Change(MONTH.start - DAY, 5)],
        [Change(MONTH.end, 5)],
    ):
        with pytest.raises(ValueError, match=r"^changes:"):
            reserved_charge(per_unit(1), wrong, period=MONTH)
        with pytest.raises(ValueError, match=r"^changes:"):
            reserved_on_average(wrong, period=MONTH)
    with pytest.raises(ValueError, match=r"^tariff:"):
        reserved_charge(package(5, 1), [], period=MONTH)
