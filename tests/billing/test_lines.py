"""The arithmetic of a settlement period, without a database. The examples are those of docs/rounding.md."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from marketplace.billing.lines import (
    Line,
    Share,
    Terms,
    corrections,
    delivery_shares,
    remainder_shares,
    spot_lines,
    total_by_offering,
    usage_line,
)
from pricing.rating import gross_up, price_ceil, price_of
from pricing.units import NUMERATOR_PER_LOT

A, B, C = (UUID(int=number) for number in (1, 2, 3))
FEE_PPM = 50_000
LOT = NUMERATOR_PER_LOT
START, END = datetime(2026, 3, 10, 12, tzinfo=UTC), datetime(2026, 3, 10, 13, tzinfo=UTC)


def terms(rate: int) -> Terms:
    return Terms(UUID(int=7), UUID(int=8), rate, START, END)


def test_usage_is_summed_first_and_rounded_once() -> None:
    line = usage_line("usage", terms(600_000), {A: 3 * 700_001_000}, FEE_PPM)
    assert line.amount_micros == 1_260
    assert line.shares == {A: Share(2_100_003_000, 1_260, 63)}


def test_fee_is_rounded_down_for_the_provider() -> None:
    line = usage_line("usage", terms(600_000), {A: 2_550_000_000}, FEE_PPM)
    assert (line.amount_micros, line.shares[A].fee_micros) == (1_530, 76)


def test_left_over_micros_go_to_the_largest_remainder_then_the_lower_offering() -> None:
    line = usage_line("usage", terms(1_000_000), {A: 10**8, B: 10**8, C: 10**8 + 10**6}, 0)
    assert line.amount_micros == 301
    assert sum(share.gross_micros for share in line.shares.values()) == 301
    even = usage_line("usage", terms(1_000_000), {C: LOT // 30 * 1, B: LOT // 30, A: LOT // 30}, 0)
    assert [even.shares[offering].gross_micros for offering in (A, B, C)] == [34, 33, 33]


def test_spot_minimum_take_is_the_rounded_sum_less_the_spot_line() -> None:
    lines = spot_lines(
        terms(300_001),
        {A: 2 * LOT},
        entitled_lots=10,
        failed=0,
        minimum_take_ppm=500_000,
        deliverable={A: 5, B: 5},
        fee_ppm=FEE_PPM,
    )
    assert [(line.kind, line.numerator, line.amount_micros) for line in lines] == [
        ("spot", 2 * LOT, 600),
        ("minimum_take", 3 * LOT, 900),
    ]
    assert lines[1].shares == {A: Share(3 * LOT // 2, 450, 22), B: Share(3 * LOT // 2, 450, 22)}


def test_spot_above_the_minimum_has_no_minimum_take_line() -> None:
    lines = spot_lines(
        terms(300_000),
        {A: 6 * LOT},
        entitled_lots=10,
        failed=0,
        minimum_take_ppm=500_000,
        deliverable={A: 10},
        fee_ppm=FEE_PPM,
    )
    assert [(line.kind, line.amount_micros) for line in lines] == [("spot", 1_800)]


def test_unused_spot_pays_the_minimum_take_only() -> None:
    lines = spot_lines(
        terms(300_000),
        {},
        entitled_lots=10,
        failed=0,
        minimum_take_ppm=500_000,
        deliverable={A: 10},
        fee_ppm=FEE_PPM,
    )
    assert [(line.kind, line.amount_micros) for line in lines] == [("minimum_take", 1_500)]


@given(
    used=st.integers(0, 10 * LOT),
    theta=st.integers(0, 1_000_000),
    rate=st.integers(0, 10**8),
    tax_ppm=st.integers(0, 300_000),
)
def test_a_spot_charge_never_exceeds_the_price_of_the_award(
    used: int, theta: int, rate: int, tax_ppm: int
) -> None:
    lines = spot_lines(
        terms(rate),
        {A: used},
        entitled_lots=10,
        failed=0,
        minimum_take_ppm=theta,
        deliverable={A: 3, B: 7},
        fee_ppm=FEE_PPM,
    )
    total = sum(line.amount_micros for line in lines)
    assert total <= price_ceil(10 * LOT, rate) <= gross_up(price_ceil(10 * LOT, rate), tax_ppm)
    assert sum(share.gross_micros for share in total_by_offering(lines).values()) == total
    assert sum(line.numerator for line in lines) == max(used, -(-theta * 10 * LOT // 10**6))


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=20), st.integers(0, 10**7))
def test_a_charge_never_exceeds_what_its_requests_captured(numerators: list[int], rate: int) -> None:
    line = usage_line("usage", terms(rate), {A: sum(numerators)}, FEE_PPM)
    assert line.amount_micros <= sum(price_ceil(numerator, rate) for numerator in numerators)


@given(
    st.lists(
        st.dictionaries(st.sampled_from([A, B]), st.integers(1, 10**11), min_size=1), min_size=1, max_size=8
    ),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_a_committed_month_pays_the_same_however_it_was_sliced(
    slices: list[dict[UUID, int]], rate_a: int, rate_b: int
) -> None:
    rates = {A: rate_a, B: rate_b}
    total: dict[UUID, Share] = {}
    for delta in slices:
        for offering, share in delivery_shares(
            delta, before=total, rates=rates, contract_rate=1, left_micros=10**15, fee_ppm=FEE_PPM
        ).items():
            total[offering] = total.get(offering, Share(0, 0, 0)) + share
    for offering, share in total.items():
        assert share.numerator == sum(delta.get(offering, 0) for delta in slices)
        assert share.gross_micros == price_of(share.numerator, rates[offering])
        assert share.fee_micros == share.gross_micros * FEE_PPM // 10**6


def test_half_micros_of_a_month_are_not_lost() -> None:
    first = delivery_shares(
        {A: 10**6}, before={}, rates={A: 500_000}, contract_rate=1, left_micros=100, fee_ppm=0
    )
    second = delivery_shares(
        {A: 10**6}, before=first, rates={A: 500_000}, contract_rate=1, left_micros=100, fee_ppm=0
    )
    assert (first[A].gross_micros, second[A].gross_micros) == (0, 1)


def test_deliveries_never_take_more_than_is_left_of_the_fee() -> None:
    shares = delivery_shares(
        {A: 10 * LOT, B: 30 * LOT},
        before={},
        rates={A: 1_000_000, B: 1_000_000},
        contract_rate=1,
        left_micros=20_000,
        fee_ppm=0,
    )
    assert (shares[A].gross_micros, shares[B].gross_micros) == (5_000, 15_000)


def test_the_remainder_of_a_month_goes_out_by_allocation() -> None:
    shares = remainder_shares(1_001, 2 * LOT, {A: 1, B: 1, C: 0}, FEE_PPM)
    assert shares == {A: Share(LOT, 501, 25), B: Share(LOT, 500, 25)}


def test_an_adjustment_is_the_difference_of_totals() -> None:
    before = usage_line("usage", terms(600_000), {A: 2_100_003_000}, FEE_PPM)
    after = usage_line("usage", terms(600_000), {A: 2_100_003_001}, FEE_PPM)
    (line,) = corrections([after], [before])
    assert (line.kind, line.numerator, line.amount_micros) == ("adjustment", 1, 0)
    assert corrections([after], [before, line]) == []


@given(st.lists(st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 10**12)), max_size=6))
def test_runs_add_up_to_the_last_one(runs: list[dict[UUID, int]]) -> None:
    recorded: list[Line] = []
    for numerators in runs:
        desired = usage_line("usage", terms(333_333), numerators, FEE_PPM)
        recorded += corrections([desired], recorded)
        assert sum(line.amount_micros for line in recorded) == desired.amount_micros
        shares = {offering: share for offering, share in total_by_offering(recorded).items() if share}
        assert shares == {offering: share for offering, share in desired.shares.items() if share}
