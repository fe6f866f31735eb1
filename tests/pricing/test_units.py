"""Roundings, splits and exact text."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.units import (
    CURRENCY_EXPONENTS,
    currency_exponent,
    decimal_string,
    div_ceil,
    div_half_even,
    div_half_up,
    format_micros,
    largest_remainder,
    micros_per_minor_unit,
    parse_decimal,
    parse_decimal_to_micros,
    split_by_weight,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(1, 10**15) | st.sampled_from([2, 4, 10]))
def test_divisions_round_as_their_names_say(numerator: int, denominator: int) -> None:
    with localcontext() as context:
        context.prec = 80
        for divide, rounding in (
            (div_half_even, ROUND_HALF_EVEN),
            (div_half_up, ROUND_HALF_UP),
            (div_ceil, ROUND_CEILING),
        ):
            twice = 2 * Fraction(numerator, denominator)
            if twice.denominator == 1 or rounding is ROUND_CEILING:
                # Only exact halves and the ceiling depend on the mode; the rest is checked by distance.
                quotient = Decimal(numerator) / Decimal(denominator)
                if Fraction(quotient) == Fraction(numerator, denominator):
                    assert divide(numerator, denominator) == int(quotient.to_integral_value(rounding))
            distance = Fraction(divide(numerator, denominator)) - Fraction(numerator, denominator)
            assert abs(distance) <= Fraction(1, 2) or (rounding is ROUND_CEILING and 0 <= distance < 1)


def test_half_goes_to_the_even_neighbour() -> None:
    assert [div_half_even(n, 2) for n in (1, 3, 5, -1, -3, -5)] == [0, 2, 2, 0, -2, -2]
    assert [div_half_up(n, 2) for n in (1, 3, -1, -3)] == [1, 2, -1, -2]


@settings(max_examples=150, deadline=None)
@given(st.integers(-(10**20), 10**20), st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_parts_sum_to_the_whole_and_stay_within_one_of_their_share(total: int, weights: list[int]) -> None:
    if not any(weights):
        weights[0] = 1
    parts = split_by_weight(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1
    assert split_by_weight(-total, weights) == [-part for part in parts]


def test_largest_remainder_breaks_ties_by_position() -> None:
    assert largest_remainder(33, [50, 30, 21]) == [16, 10, 7]
    assert split_by_weight(2, [1, 1, 1]) == [1, 1, 0]
    assert split_by_weight(0, [0, 0]) == [0, 0]
    assert split_by_weight(0, []) == []
    with pytest.raises(ValueError, match="weights"):
        split_by_weight(1, [0, 0])
    with pytest.raises(ValueError, match="weights"):
        split_by_weight(1, [2, -1])


def test_money_is_written_exactly() -> None:
    assert format_micros(1_250_000, "USD") == "1.25"
    assert format_micros(1_500_000, "USD") == "1.50"
    assert format_micros(-1, "USD") == "-0.000001"
    assert format_micros(3_000_000, "JPY") == "3"
    assert format_micros(3_000_000, "KWD") == "3.000"
    assert decimal_string(1, 18) == "0.000000000000000001"
    assert decimal_string(10**18, 18) == "1"
    assert decimal_string(-150, 2) == "-1.5"
    assert decimal_string(7, 0) == "7"


def test_exponents_follow_iso_4217() -> None:
    assert (currency_exponent("JPY"), currency_exponent("USD"), currency_exponent("KWD")) == (0, 2, 3)
    assert (micros_per_minor_unit("JPY"), micros_per_minor_unit("KWD")) == (10**6, 1000)
    assert all(len(code) == 3 and code.isupper() for code in CURRENCY_EXPONENTS)
    with pytest.raises(ValueError, match="currency"):
        currency_exponent("usd")


@pytest.mark.parametrize(
    ("text", "micros"),
    [("1.25", 1_250_000), ("0", 0), ("-0.000001", -1), ("007", 7_000_000), ("1.2500000000", 1_250_000)],
)
def test_plain_decimals_are_read_exactly(text: str, micros: int) -> None:
    assert parse_decimal_to_micros(text) == micros


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "finite"),
        ("-Infinity", "finite"),
        ("inf", "finite"),
        ("1e3", "exponent"),
        ("1E-30", "exponent"),
        ("-1.5e+2", "exponent"),
        ("", "no digits"),
        ("-", "no digits"),
        (".", "no digits"),
        (".5", "both sides"),
        ("5.", "both sides"),
        ("+1", "plain"),
        ("--1", "plain"),
        ("1,000", "plain"),
        ("1_000", "plain"),
        (" 1", "plain"),
        ("1.2.3", "plain"),
        ("0x10", "plain"),
        ("\u0661", "plain"),
        ("1\x00", "plain"),
        ("e", "plain"),
        ("9" * 19, "18 digits"),
        ("1" * 400, "18 digits"),
        ("0.0000001", "6 decimals"),
        ("99999999999999", "too large"),
        (1.5, "float"),
        (None, "NoneType"),
        (True, "bool"),
    ],
)
def test_anything_else_is_refused_with_its_reason(text: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^rate: .*{reason}"):
        parse_decimal_to_micros(text, field="rate")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**17), 10**17))
def test_written_and_read_back_is_the_same(amount: int) -> None:
    assert parse_decimal(decimal_string(amount, 6), decimals=6) == amount
