"""What a contract would have cost: the pure simulation against a slow model of its own, and at its edges."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.months import Period, contract_month, last_term_before
from pricing.simulating import (
    Cheapest,
    KnownRate,
    Overage,
    PeriodUsage,
    RateStep,
    Refusal,
    SimulatedMonth,
    Terms,
    check_volume,
    simulate,
)
from pricing.tariffs import Tier, graduated
from pricing.units import div_half_even

LOT = 10**9
START = datetime(2026, 1, 31, 6, tzinfo=UTC)
DELIVERY_S, SETTLEMENT_S = 300, 3_600
PERIOD = timedelta(seconds=DELIVERY_S)
LIST, SPOT = KnownRate("list", 600_000), KnownRate("spot", 450_001)
PLAIN = Terms(firm_lots=100, volume_lots=1_000, rate=500_000)


def months(count: int) -> list[Period]:
    return [contract_month(START, number) for number in range(count)]


def used(*lots: int, month: int = 0, at: int = 0) -> list[PeriodUsage]:
    """So many lots in delivery periods in a row of a month, from its `at`-th on."""
    start = contract_month(START, month).start + at * PERIOD
    return [PeriodUsage(start + number * PERIOD, each * LOT, LIST, SPOT) for number, each in enumerate(lots)]


def one(terms: Terms, usage: list[PeriodUsage]) -> SimulatedMonth:
    [month] = simulate(terms, months(1), usage, settlement_s=SETTLEMENT_S)
    return month


def test_a_prepaid_month_costs_its_fee_however_little_is_used() -> None:
    for usage in ([], used(100), used(*[100] * 10)):
        month = one(PLAIN, usage)
        assert (month.fee_micros, month.amount_micros) == (500_000, 500_000)
        assert month.delivered + month.unused == month.volume == 1_000 * LOT


def test_in_arrears_usage_is_charged_and_the_take_is_filled() -> None:
    terms = replace(PLAIN, is_prepaid=False, take_share_ppm=800_000)
    month = one(terms, used(100, 50))
    assert (month.fee_micros, month.usage_micros) == (0, 75_000)
    assert (month.true_up, month.true_up_micros) == (650 * LOT, 325_000)
    assert one(terms, used(*[100] * 9)).true_up == 0


def test_what_is_beyond_f_or_beyond_v_goes_the_way_of_the_policy() -> None:
    usage = used(150, *[100] * 10)  # 50 beyond f; and of 1,100 lots within f 100 beyond V
    stopped = one(PLAIN, usage)
    assert (stopped.delivered, stopped.beyond_firm) == (1_000 * LOT, 50 * LOT)
    assert stopped.refused == {Refusal.STOP: 150 * LOT}
    assert stopped.overage_micros == 0
    at_list = one(replace(PLAIN, overage=Overage.LIST), usage)
    assert (at_list.overage, at_list.overage_micros) == (150 * LOT, 90_000)
    at_spot = one(replace(PLAIN, overage=Overage.SPOT), usage)
    # 150 lots at 450,001 in one settlement period are one line: 67,500.15.
    assert (at_spot.overage, at_spot.overage_micros) == (150 * LOT, 67_500)
    assert at_spot.refused == {}


def test_overage_at_tiers_counts_in_calendar_months_whatever_the_contracts_are() -> None:
    """From 31 January 6:00: 150 lots beyond f before midnight, 100 in each of two settlement periods after it."""
    tariff = graduated([Tier(100 * LOT, 600_000), Tier(None, 300_000)])
    tiers = KnownRate("tiers", 600_000, tariff)
    midnight = datetime(2026, 2, 1, tzinfo=UTC)
    usage = [
        PeriodUsage(at, lots * LOT, tiers)
        for at, lots in ((START, 250), (midnight, 200), (midnight + timedelta(hours=1), 200))
    ]
    month = one(replace(PLAIN, overage=Overage.LIST), usage)
    assert month.overage == 350 * LOT
    assert month.overage_micros == (60_000 + 15_000) + (60_000 + 30_000)
    # The tariff's highest rate is what the buyer's own bounds.
    refused = one(replace(PLAIN, overage=Overage.LIST, max_rate=599_999), usage)
    assert refused.refused == {Refusal.MAX_RATE: 350 * LOT}


def test_the_highest_rate_and_a_missing_rate_refuse_and_say_which() -> None:
    usage = used(150)
    capped = one(replace(PLAIN, overage=Overage.SPOT, max_rate=450_000), usage)
    assert (capped.overage, capped.refused) == (0, {Refusal.MAX_RATE: 50 * LOT})
    assert one(replace(PLAIN, overage=Overage.SPOT, max_rate=450_001), usage).refused == {}
    unknown = [PeriodUsage(usage[0].start, 150 * LOT)]
    for policy in (Overage.LIST, Overage.SPOT):
        assert one(replace(PLAIN, overage=policy), unknown).refused == {Refusal.NO_RATE: 50 * LOT}


def test_where_the_spot_market_left_no_rate_overage_is_at_the_list_rate() -> None:
    terms = replace(PLAIN, overage=Overage.SPOT)
    [first, second] = used(150, 160)
    month = one(terms, [first, second._replace(overage_rate=None)])
    assert (month.overage, month.overage_at_list) == (110 * LOT, 60 * LOT)
    assert month.overage_micros == 22_500 + 36_000


def test_what_rolls_over_is_burned_first_raises_v_not_f_and_is_gone_with_the_month() -> None:
    terms = replace(PLAIN, rollover_share_ppm=500_000, rollover_cap_lots=300, overage=Overage.STOP)
    usage = [*used(100), *used(*[100] * 12, month=1), *used(90, month=2)]
    first, second, third = simulate(terms, months(3), usage, settlement_s=SETTLEMENT_S)
    assert (first.unused, first.rolled_out) == (900 * LOT, 300 * LOT)
    assert (second.rolled_in, second.rolled_in_used) == (300 * LOT, 300 * LOT)
    assert (second.delivered, second.unused, second.refused_in_all) == (1_200 * LOT, 100 * LOT, 0)
    assert (second.rolled_out, third.rolled_in_used) == (50 * LOT, 50 * LOT)
    # The last month leaves nothing to anybody, as a contract that ends.
    assert (third.unused, third.rolled_out) == (960 * LOT, 0)
    beyond = simulate(terms, months(2), [*used(1), *used(150, month=1)], settlement_s=SETTLEMENT_S)[1]
    assert beyond.refused == {Refusal.STOP: 50 * LOT}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"firm_lots": 0}, "firm_lots"),
        ({"volume_lots": 0}, "volume_lots"),
        ({"rate": -1}, "rate"),
        ({"take_share_ppm": 1_000_001}, "take_share_ppm"),
        ({"rollover_share_ppm": 1_000_001, "rollover_cap_lots": 1}, "rollover_share_ppm"),
        ({"rollover_share_ppm": 1}, "rollover_cap_lots"),
        ({"rollover_cap_lots": -1}, "rollover_cap_lots"),
        ({"rollover_share_ppm": 1, "rollover_cap_lots": 1, "is_prepaid": False}, "rollover_share_ppm"),
        ({"max_rate": 0, "overage": Overage.LIST}, "max_rate"),
        ({"max_rate": 1}, "max_rate"),
    ],
)
def test_bad_terms_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: "):
        replace(PLAIN, **changes)  # type: ignore[arg-type]


def test_the_volume_fits_the_shortest_month() -> None:
    # 28 February 06:00 to 31 March 06:00 has 31 days, 31 January to 28 February 28.
    most = 100 * 28 * 288
    check_volume(replace(PLAIN, volume_lots=most), months(2), delivery_s=DELIVERY_S)
    with pytest.raises(ValueError, match=r"^volume_lots: a month of 8064 delivery periods"):
        check_volume(replace(PLAIN, volume_lots=most + 1), months(2), delivery_s=DELIVERY_S)


def test_the_cheapest_rate_is_the_lowest_of_each_sellers_last() -> None:
    steps = [
        RateStep(START + hours * timedelta(hours=1), source, KnownRate(n, rate))
        for n, (hours, source, rate) in enumerate(
            [(0, "a", 600), (1, "b", 500), (2, "b", 700), (3, "a", 900)]
        )
    ]
    cheapest = Cheapest(steps)
    found = [cheapest.at(START + hours * timedelta(hours=1)) for hours in (-1, 0, 1, 1, 2, 3, 9)]
    assert [rate and rate.micros_per_mtok for rate in found] == [None, 600, 500, 500, 600, 700, 700]


@given(st.integers(0, 4_000), st.integers(1, 12))
def test_the_last_term_before_an_instant_is_over_by_then_and_hardly_sooner(days: int, count: int) -> None:
    end = START + timedelta(days=days)
    start = last_term_before(end, count)
    assert contract_month(start, count - 1).end <= end
    assert end - contract_month(start, count - 1).end < timedelta(days=4)


# A slow model: a numerator at a time is too slow, so volumes are small, and money is exact until it is rounded. ------

SIZES = st.integers(0, 12 * LOT // 10)
EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 30), SIZES, st.integers(1, 3), st.integers(0, 3)),
    max_size=40,
    unique_by=lambda event: event[:2],
)
TERMS = st.builds(
    lambda prepaid, overage, share, cap, top, firm, volume, rate, take: Terms(
        firm_lots=firm,
        volume_lots=volume,
        rate=rate,
        is_prepaid=prepaid,
        take_share_ppm=take,
        rollover_share_ppm=share if prepaid else 0,
        rollover_cap_lots=cap,
        overage=overage,
        max_rate=None if overage is Overage.STOP else top,
    ),
    st.booleans(),
    st.sampled_from(Overage),
    st.integers(0, 1_000_000),
    st.integers(1, 6),
    st.none() | st.integers(1, 3 * 10**8 + 1),
    st.integers(1, 2),
    st.integers(1, 12),
    st.integers(0, 10**9),
    st.integers(0, 1_000_000),
)


def model(terms: Terms, periods: list[Period], usage: list[PeriodUsage]) -> list[dict[str, object]]:
    """The rules again, from docs/contracts.md, by fractions of lots and with every line kept."""
    found: list[dict[str, object]] = []
    rolled = Fraction(0)
    for number, period in enumerate(periods):
        left = Fraction(terms.volume_lots) + rolled
        lines: dict[tuple[object, datetime], Fraction] = {}
        refused = Fraction(0)
        taken = Fraction(0)
        for each in usage:
            if each.start not in period:
                continue
            lots = Fraction(each.numerator, LOT)
            inside = min(lots, Fraction(terms.firm_lots), left)
            left, taken = left - inside, taken + inside
            hour = each.start.replace(minute=0)
            if not terms.is_prepaid:
                lines[terms.rate, hour] = lines.get((terms.rate, hour), Fraction(0)) + inside
            rate = each.list_rate if terms.overage is Overage.LIST else each.overage_rate or each.list_rate
            top = terms.max_rate
            if (
                terms.overage is Overage.STOP
                or rate is None
                or (top is not None and rate.micros_per_mtok > top)
            ):
                refused += lots - inside
            elif lots > inside:
                lines[rate, hour] = lines.get((rate, hour), Fraction(0)) + lots - inside
        own = max(Fraction(0), taken - rolled)
        unused = terms.volume_lots - own
        amount = terms.volume_lots * Fraction(terms.rate, 1_000) if terms.is_prepaid else Fraction(0)
        if not terms.is_prepaid:
            take = terms.volume_lots * terms.take_share_ppm // 1_000_000
            amount = max(Fraction(0), take - own) * Fraction(terms.rate, 1_000)
        total = round(amount)  # Python rounds an exact half to even.
        for (rate_of, _), lots in lines.items():
            micros = rate_of.micros_per_mtok if isinstance(rate_of, KnownRate) else terms.rate
            total += round(lots * Fraction(micros, 1_000))
        rolled = Fraction(
            min(int(unused * terms.rollover_share_ppm / 1_000_000), terms.rollover_cap_lots)
            if terms.is_prepaid and number < len(periods) - 1
            else 0
        )
        found.append({"amount": total, "refused": refused, "unused": unused, "rolled": rolled})
    return found


@given(TERMS, EVENTS)
def test_it_comes_to_what_the_rules_say_read_again(
    terms: Terms, events: list[tuple[int, int, int, int, int]]
) -> None:
    periods = months(3)
    usage = [
        PeriodUsage(
            periods[month].start + at * PERIOD,
            numerator,
            KnownRate(("list", of_list), of_list * 10**8),
            KnownRate(("spot", of_spot), of_spot * 10**8 + 1) if of_spot else None,
        )
        for month, at, numerator, of_list, of_spot in sorted(events)
    ]
    found = simulate(terms, periods, iter(usage), settlement_s=SETTLEMENT_S)
    assert [
        {
            "amount": month.amount_micros,
            "refused": Fraction(month.refused_in_all, LOT),
            "unused": Fraction(month.unused, LOT),
            "rolled": Fraction(month.rolled_out, LOT),
        }
        for month in found
    ] == model(terms, periods, usage)
    for month in found:
        assert month.used == month.delivered + month.overage + month.refused_in_all
        assert month.delivered - month.rolled_in_used + month.unused == month.volume
        assert 0 <= month.rolled_in_used <= month.rolled_in


@given(TERMS, EVENTS)
def test_a_contract_is_never_cheaper_than_its_fee_or_its_take(
    terms: Terms, events: list[tuple[int, int, int, int, int]]
) -> None:
    periods = months(3)
    usage = [
        PeriodUsage(periods[month].start + at * PERIOD, numerator, LIST, SPOT)
        for month, at, numerator, _, _ in sorted(events)
    ]
    for month in simulate(terms, periods, usage, settlement_s=SETTLEMENT_S):
        lots = terms.volume_lots
        if not terms.is_prepaid:
            lots = lots * terms.take_share_ppm // 1_000_000
        # Lines are rounded: half a micro each, of which a month of these has at most four.
        assert month.amount_micros >= div_half_even(lots * terms.rate, 1_000) - 4
