"""Tariffs: what slicing, growing and holding must never change (peers' own numbers: tests/peers)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.tariffs import (
    DAY_S,
    Kind,
    Rounding,
    Tariff,
    Tier,
    TimeOfUse,
    Version,
    Window,
    accrual_ceiling,
    billed_numerator,
    charge,
    exact_charge,
    graduated,
    highest_reachable_rate,
    interval_charge,
    interval_lines,
    package,
    per_unit,
    settle,
    usage_charge,
    version_at,
    volume,
)
from pricing.units import NUMERATOR_PER_MTOK

# ---- properties

amounts = st.integers(0, 3 * 10**6)
volumes = st.integers(0, 10**14)


@st.composite
def tariffs(draw: st.DrawFn, kinds: tuple[Kind, ...] = tuple(Kind)) -> Tariff:
    kind = draw(st.sampled_from(kinds))
    maximum = draw(st.none() | st.integers(0, 10**8))
    minimum = draw(st.integers(0, 10**6 if maximum is None else min(maximum, 10**6)))
    rounding = draw(st.sampled_from(Rounding))
    unit = draw(st.sampled_from([1, 10**9, 7 * 10**11, 10**13]))
    if kind is Kind.PACKAGE:
        return package(unit, draw(amounts), rounding=rounding, minimum_micros=minimum, maximum_micros=maximum)
    bounds = sorted(draw(st.sets(st.integers(1, 8 * 10**13), max_size=4)))
    tiers = [Tier(bound, draw(amounts), draw(amounts)) for bound in [*bounds, None]]
    make = graduated if kind is Kind.GRADUATED else volume
    return make(tiers, unit=unit, rounding=rounding, minimum_micros=minimum, maximum_micros=maximum)


@given(tariffs(), st.lists(volumes, max_size=8))
def test_what_a_period_costs_does_not_depend_on_how_it_is_cut(tariff: Tariff, cuts: list[int]) -> None:
    ends = sorted(cuts) or [0]
    charges = [
        interval_charge(tariff, before=before, after=after)
        for before, after in zip([None, *ends], ends, strict=False)
    ]
    assert sum(charges) == charge(tariff, ends[-1])
    settled = settle(tariff, ends[-1])
    assert settled.total_micros == sum(charges) + settled.true_up_micros
    assert settled.total_micros == max(sum(charges), tariff.minimum_micros)
    assert tariff.maximum_micros is None or settled.total_micros <= tariff.maximum_micros


@given(tariffs((Kind.GRADUATED, Kind.PACKAGE)), volumes, volumes)
def test_more_never_costs_less(tariff: Tariff, some: int, more: int) -> None:
    assert charge(tariff, some) <= charge(tariff, some + more)
    assert interval_charge(tariff, before=some, after=some + more) >= 0


@given(tariffs((Kind.GRADUATED,)), st.lists(volumes, min_size=1, max_size=5))
def test_lines_add_up_to_the_charge_and_volumes_to_the_volume(tariff: Tariff, cuts: list[int]) -> None:
    ends = sorted(cuts)
    for before, after in zip([None, *ends], ends, strict=False):
        lines = interval_lines(tariff, before=before, after=after)
        net = sum(line.amount_micros - line.discount_micros for line in lines)
        assert net == interval_charge(tariff, before=before, after=after)
        billed = billed_numerator(tariff, after) - billed_numerator(tariff, before or 0)
        assert sum(line.numerator for line in lines) == billed
        assert all(0 <= line.discount_micros <= line.amount_micros for line in lines)
        assert [line.tier for line in lines] == sorted({line.tier for line in lines})


@given(tariffs(), st.lists(volumes, min_size=1, max_size=8))
def test_what_accrues_always_covers_the_settlement(tariff: Tariff, cuts: list[int]) -> None:
    held = 0
    ends = sorted(cuts)
    for before, after in zip([None, *ends], ends, strict=False):
        held += accrual_ceiling(tariff, before=before, after=after)
        assert held >= usage_charge(tariff, after) >= charge(tariff, after)


@given(tariffs((Kind.GRADUATED, Kind.VOLUME)), volumes, volumes)
def test_the_highest_reachable_rate_falls_as_tiers_are_left_behind(
    tariff: Tariff, used: int, more: int
) -> None:
    now, later = (highest_reachable_rate(tariff, used=volume_) for volume_ in (used, used + more))
    assert later <= now
    assert now in {tier.rate for tier in tariff.tiers}
    assert tariff.tiers[-1].rate <= later


@given(tariffs(), volumes)
def test_rounding_happens_once(tariff: Tariff, numerator: int) -> None:
    assert abs(
        usage_charge(tariff, numerator) * NUMERATOR_PER_MTOK - exact_charge(tariff, numerator)
    ) * 2 <= (NUMERATOR_PER_MTOK)


@given(st.integers(0, 3 * 10**6), st.integers(0, 10**15))
def test_one_tier_twice_is_one_tier(rate: int, used: int) -> None:
    split = graduated([Tier(10**12, rate), Tier(3 * 10**12, rate), Tier(None, rate)])
    assert charge(split, used) == charge(per_unit(rate), used) == charge(volume([Tier(None, rate)]), used)


# ---- time of use


OFF_PEAK = TimeOfUse(600_000, (Window(16 * 3_600 + 1_800, 1_800, 300_000),))  # 16:30 to 00:30


@pytest.mark.parametrize(
    ("at", "rate"),
    [
        ("2026-03-10T16:29:59.999999+00:00", 600_000),
        ("2026-03-10T16:30:00+00:00", 300_000),
        ("2026-03-10T23:59:59+00:00", 300_000),
        ("2026-03-11T00:00:00+00:00", 300_000),
        ("2026-03-11T00:29:59.999999+00:00", 300_000),
        ("2026-03-11T00:30:00+00:00", 600_000),
        ("2026-03-10T18:29:59+02:00", 600_000),
        ("2026-03-10T18:30:00+02:00", 300_000),
    ],
)
def test_off_peak_over_midnight_is_half_open_and_utc(at: str, rate: int) -> None:
    assert OFF_PEAK.rate_at(datetime.fromisoformat(at)) == rate


moments = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@st.composite
def times_of_use(draw: st.DrawFn) -> TimeOfUse:
    edges = sorted(draw(st.sets(st.integers(0, DAY_S - 1), max_size=6)))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    windows = [Window(start, end, draw(amounts)) for start, end in pairs]
    if len(edges) % 2 == 0 and pairs and draw(st.booleans()):
        # From the last edge over midnight to the first.
        windows.append(Window(edges[-1], edges[0], draw(amounts)))
    return TimeOfUse(draw(amounts), tuple(windows))


@given(times_of_use(), moments, st.integers(0, 3 * DAY_S), st.integers(-12, 14))
def test_slices_tile_an_interval_and_each_has_one_rate(
    tariff: TimeOfUse, start: datetime, seconds: int, offset: int
) -> None:
    start = start.astimezone(timezone(timedelta(hours=offset)))
    end = start + timedelta(seconds=seconds)
    at = start
    for first, last, rate in tariff.slices(start, end):
        assert first == at < last
        at = last
        for inside in (first, first + (last - first) / 2, last - timedelta(microseconds=1)):
            assert tariff.rate_at(inside) == rate <= tariff.highest_reachable_rate
    assert at == end


@pytest.mark.parametrize(
    ("windows", "field"),
    [
        ([Window(0, 10, 1), Window(9, 20, 1)], "windows"),
        ([Window(80_000, 10, 1), Window(5, 20, 1)], "windows"),
        ([Window(-1, 10, 1)], "windows"),
        ([Window(0, DAY_S + 1, 1)], "windows"),
        ([Window(0, 10, -1)], "rate"),
    ],
)
def test_nonsense_windows_are_refused_by_field(windows: list[Window], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}:"):
        TimeOfUse(5, tuple(windows))


def test_a_window_may_be_the_whole_day() -> None:
    assert TimeOfUse(5, (Window(0, 0, 7),)).rate_at(datetime(2026, 1, 1, 12, tzinfo=UTC)) == 7
    assert TimeOfUse(5, (Window(0, DAY_S, 7),)).rate_at(datetime(2026, 1, 1, tzinfo=UTC)) == 7


# ---- versions


def test_the_version_in_force_is_the_last_that_began() -> None:
    first, second = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 3))
    versions = [Version(second, per_unit(2)), Version(first, per_unit(1))]
    instant = timedelta(microseconds=1)
    assert version_at(versions, second - instant).tariff == per_unit(1)
    assert version_at(versions, second).tariff == per_unit(2)
    with pytest.raises(ValueError, match=r"^valid_from:"):
        version_at(versions, first - instant)
    with pytest.raises(ValueError, match=r"^valid_from:"):
        version_at([*versions, Version(first, per_unit(3))], second)


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"tiers": ()}, "tiers"),
        ({"tiers": (Tier(5, 1),)}, "tiers"),
        ({"tiers": (Tier(None, 1), Tier(None, 1))}, "tiers"),
        ({"tiers": (Tier(5, 1), Tier(5, 1), Tier(None, 1))}, "tiers"),
        ({"tiers": (Tier(0, 1), Tier(None, 1))}, "tiers"),
        ({"tiers": (Tier(None, -1),)}, "tiers"),
        ({"tiers": (Tier(None, 1, -1),)}, "tiers"),
        ({"tiers": (*tuple(Tier(n, 1) for n in range(1, 21)), Tier(None, 1))}, "tiers"),
        ({"unit": 0}, "unit"),
        ({"minimum_micros": -1}, "minimum_micros"),
        ({"minimum_micros": 5, "maximum_micros": 4}, "maximum_micros"),
        ({"package_micros": -1}, "price_micros"),
    ],
)
def test_nonsense_is_refused_by_field(facts: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}:"):
        Tariff(**{"kind": Kind.GRADUATED, "tiers": (Tier(None, 1),), **facts})
    with pytest.raises(ValueError, match=r"^size:"):
        package(0, 1)
