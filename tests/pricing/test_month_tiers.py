"""Tiers over a calendar month: however a month is settled, it comes to its tariff, and what was set aside covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.month_tiers import (
    MonthLine,
    admission,
    check_list_tariff,
    line_amount,
    month_charge,
    month_lines,
    set_aside,
)
from pricing.tariffs import Kind, Rounding, Tariff, Tier, charge, graduated, package, per_unit, volume
from pricing.units import NUMERATOR_PER_MTOK

MTOK = NUMERATOR_PER_MTOK
# Halves and thirds of a micro, where rounding shows, and volumes of any size.
numerators = st.one_of(
    st.integers(0, 3 * MTOK), st.integers(0, 6).map(lambda n: n * MTOK // 2), st.integers(0, 10**16)
)
rates = st.integers(0, 5) | st.integers(0, 10**9)


@st.composite
def list_tariffs(draw: st.DrawFn) -> Tariff:
    kind = draw(st.sampled_from(Kind))
    if kind is Kind.PACKAGE:
        return package(draw(st.integers(1, 3 * MTOK)), draw(st.integers(0, 5) | st.integers(0, 10**9)))
    bounds = sorted(draw(st.sets(numerators.filter(bool), max_size=4)))
    found = draw(
        st.lists(rates, min_size=len(bounds) + 1, max_size=len(bounds) + 1, unique=kind is Kind.VOLUME)
    )
    if kind is Kind.VOLUME:
        found.sort(reverse=True)
    tiers = [Tier(bound, rate) for bound, rate in zip([*bounds, None], found, strict=True)]
    return volume(tiers) if kind is Kind.VOLUME else graduated(tiers)


def total_of(lines: list[MonthLine]) -> tuple[int, int]:
    return sum(line.numerator for line in lines), sum(line.amount_micros for line in lines)


def assert_each_follows_the_last(tariff: Tariff, lines: list[MonthLine], before: int, after: int) -> None:
    for line in lines:
        assert line.since_numerator == before
        before += line.numerator
        assert line.amount_micros == line_amount(
            tariff, tier=line.tier, since=line.since_numerator, numerator=line.numerator
        )
    assert before == after or not lines


# A month: settlements, each of some requests.
months = st.lists(st.lists(numerators, max_size=4), max_size=6)


@given(list_tariffs(), months, st.randoms(use_true_random=False))
def test_a_month_comes_to_its_tariff_however_it_is_cut_and_each_settlement_is_covered(
    tariff: Tariff, month: list[list[int]], random: Any
) -> None:
    """Settlements in any order: a late request is only one that is settled later."""
    check_list_tariff(tariff)
    at = admission(tariff)
    random.shuffle(month)
    so_far = charged = 0
    for requests in month:
        after = so_far + sum(requests)
        lines = month_lines(tariff, before=so_far, after=after)
        numerator, amount = total_of(lines)
        assert numerator == sum(requests)
        assert amount == month_charge(tariff, before=so_far, after=after)
        assert amount <= sum(set_aside(at, request) for request in requests)
        # The same run again finds nothing to charge.
        assert month_lines(tariff, before=after, after=after) == []
        so_far, charged = after, charged + amount
    assert charged == charge(tariff, so_far)


@given(list_tariffs(), st.lists(numerators, min_size=1, max_size=8))
def test_corrections_in_both_directions_end_where_the_total_ends(tariff: Tariff, totals: list[int]) -> None:
    charged, before = 0, 0
    for after in [*totals, totals[0]]:
        lines = month_lines(tariff, before=before, after=after)
        numerator, amount = total_of(lines)
        assert numerator == after - before
        assert_each_follows_the_last(tariff, lines, before, after)
        charged, before = charged + amount, after
    assert charged == charge(tariff, totals[0])


@given(list_tariffs(), numerators, numerators)
def test_what_is_taken_off_is_what_was_put_on(tariff: Tariff, one: int, other: int) -> None:
    on = total_of(month_lines(tariff, before=one, after=other))
    off = total_of(month_lines(tariff, before=other, after=one))
    assert (on[0] + off[0], on[1] + off[1]) == (0, 0)


@given(list_tariffs(), st.lists(numerators, max_size=6))
def test_requests_set_aside_more_than_all_of_them_together(tariff: Tariff, requests: list[int]) -> None:
    at = admission(tariff)
    assert sum(set_aside(at, request) for request in requests) >= set_aside(at, sum(requests))


def test_rounding_up_alone_would_not_cover() -> None:
    tariff = per_unit(1)
    assert month_charge(tariff, before=MTOK // 2, after=3 * MTOK // 2) == 2
    assert set_aside(admission(tariff), MTOK) == 2
    assert set_aside(admission(tariff), 0) == 0


def test_graduated_lines_are_one_for_each_tier() -> None:
    tariff = graduated([Tier(5 * MTOK, 100), Tier(10 * MTOK, 50), Tier(None, 10)])
    assert month_lines(tariff, before=3 * MTOK, after=12 * MTOK) == [
        (0, 3 * MTOK, 2 * MTOK, 200), (1, 5 * MTOK, 5 * MTOK, 250), (2, 10 * MTOK, 2 * MTOK, 20)
    ]  # fmt: skip
    # A bound belongs to the tier below it.
    assert month_lines(tariff, before=4 * MTOK, after=5 * MTOK) == [(0, 4 * MTOK, MTOK, 100)]
    assert month_lines(tariff, before=5 * MTOK, after=5 * MTOK + 1) == [(1, 5 * MTOK, 1, 0)]
    assert month_lines(tariff, before=12 * MTOK, after=9 * MTOK) == [
        (2, 12 * MTOK, -2 * MTOK, -20), (1, 10 * MTOK, -MTOK, -50)
    ]  # fmt: skip


def test_a_volume_price_that_falls_gives_back_what_was_charged_above_it() -> None:
    tariff = volume([Tier(100 * MTOK, 20), Tier(None, 10)])
    assert month_lines(tariff, before=0, after=100 * MTOK) == [(0, 0, 100 * MTOK, 2_000)]
    # 150 at 10 are 1,500: 500 for the new 50, and 1,000 back of the 100 before.
    assert month_lines(tariff, before=100 * MTOK, after=150 * MTOK) == [
        (1, 100 * MTOK, 0, -1_000), (1, 100 * MTOK, 50 * MTOK, 500)
    ]  # fmt: skip
    # And back up, where usage was taken off.
    assert month_lines(tariff, before=150 * MTOK, after=90 * MTOK) == [
        (0, 150 * MTOK, 0, 1_500), (0, 150 * MTOK, -60 * MTOK, -1_200)
    ]  # fmt: skip


def test_a_begun_package_is_charged_once_in_a_month_and_set_aside_by_each_request() -> None:
    tariff = package(10 * MTOK, 7)
    at = admission(tariff)
    assert at == (1, 10 * MTOK)
    assert [month_lines(tariff, before=before * MTOK, after=(before + 4) * MTOK)[0].amount_micros
            for before in (0, 4, 8)] == [7, 0, 7]  # fmt: skip
    # Three requests of 4 are two packages; each of them might have begun one.
    assert set_aside(at, 4 * MTOK) == 11 > 7
    assert set_aside(at, 10 * MTOK + 1) == 21


@pytest.mark.parametrize(
    ("tariff", "field"),
    [
        (per_unit(1, minimum_micros=1), "minimum_micros"),
        (per_unit(1, maximum_micros=1), "maximum_micros"),
        (graduated([Tier(5, 2, 1), Tier(None, 1)]), "tiers"),
        (graduated([Tier(None, 1, 1)]), "tiers"),
        (graduated([Tier(5, 2), Tier(None, 1)], unit=2), "unit"),
        (volume([Tier(5, 1), Tier(None, 2)]), "tiers"),
        (volume([Tier(5, 2), Tier(None, 2)]), "tiers"),
        (package(5, 1, rounding=Rounding.DOWN), "rounding"),
        (package(5, 1, rounding=Rounding.HALF_UP), "rounding"),
        (package(5, 1, minimum_micros=1), "minimum_micros"),
    ],
)
def test_what_is_no_list_price_is_refused_by_its_field(tariff: Tariff, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        check_list_tariff(tariff)


def test_the_other_tariffs_may_be_list_prices() -> None:
    tiers = [Tier(5, 2), Tier(None, 1)]
    for tariff in (per_unit(1), graduated(tiers), volume(tiers), package(5, 1)):
        check_list_tariff(tariff)
    # Graduated rates may rise.
    check_list_tariff(replace(graduated(tiers), tiers=(Tier(5, 1), Tier(None, 2))))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"tier": 0, "since": 0, "numerator": 101 * MTOK}, "tier"),
        ({"tier": 2, "since": 0, "numerator": 0}, "tier"),
        ({"tier": None, "since": 0, "numerator": 1}, "tier"),
        ({"tier": 0, "since": 1, "numerator": -2}, "numerator"),
    ],
)
def test_a_line_that_no_month_has_is_refused(line: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        line_amount(volume([Tier(100 * MTOK, 20), Tier(None, 10)]), **line)
