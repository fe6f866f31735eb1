"""Money follows from sums, and from nothing about how they were cut."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.rating import (
    UnpricedBucket,
    exact_price,
    fee_of,
    gross_up,
    lots_numerator,
    plain_price,
    plain_prices,
    price_ceil,
    price_of,
    split_gross,
    spot_charge_numerator,
    standard_numerator,
    standard_ppm,
    whole_lots,
    worst_case_numerator,
)
from pricing.units import Bucket

PPM_BY_BUCKET = {
    Bucket.UNCACHED_INPUT: 1_040_000,
    Bucket.CACHE_READ: 104_000,
    Bucket.CACHE_WRITE: 1_300_000,
    Bucket.OUTPUT: 4_160_000,
    Bucket.REASONING: 4_160_000,
}


def test_standard_ppm_is_weight_times_kappa_half_even() -> None:
    assert standard_ppm(4_000_000, 1_040_000) == 4_160_000
    assert standard_ppm(1, 500_000) == 0
    assert standard_ppm(3, 500_000) == 2


def test_a_mtok_costs_its_rate() -> None:
    numerator = standard_numerator({Bucket.UNCACHED_INPUT: 1_000_000}, {Bucket.UNCACHED_INPUT: 1_000_000})
    assert numerator == 10**12
    assert price_of(numerator, 350_000) == 350_000


def test_price_is_half_even_and_holds_round_up() -> None:
    assert [price_of(n * 10**12 // 2, 1) for n in (1, 3, 5)] == [0, 2, 2]
    assert [price_ceil(n, 1) for n in (0, 1, 10**12, 10**12 + 1)] == [0, 1, 1, 2]
    assert exact_price(1, 1) == "0.000000000000000001"
    assert exact_price(10**12, 350_000) == "0.35"


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(PPM_BY_BUCKET)), st.integers(0, 10**7), min_size=1),
    st.integers(0, 10**9),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_slicing_changes_neither_tokens_nor_money(
    usage: dict[Bucket, int], rate: int, slices: int, chance: random.Random
) -> None:
    whole = standard_numerator(usage, PPM_BY_BUCKET)
    pieces: list[dict[Bucket, int]] = [{} for _ in range(slices)]
    for bucket, tokens in usage.items():
        cuts = sorted(chance.randint(0, tokens) for _ in range(slices - 1))
        for piece, start, end in zip(pieces, [0, *cuts], [*cuts, tokens], strict=True):
            piece[bucket] = end - start
    chance.shuffle(pieces)
    summed = sum(standard_numerator(piece, PPM_BY_BUCKET) for piece in pieces)
    assert summed == whole
    assert price_of(summed, rate) == price_of(whole, rate)
    assert sum(price_ceil(standard_numerator(piece, PPM_BY_BUCKET), rate) for piece in pieces) >= price_of(
        whole, rate
    )


def test_tokens_without_a_weight_are_refused_not_free() -> None:
    with pytest.raises(UnpricedBucket, match="audio_output"):
        standard_numerator({Bucket.AUDIO_OUTPUT: 1}, PPM_BY_BUCKET)
    assert standard_numerator({Bucket.AUDIO_OUTPUT: 0}, PPM_BY_BUCKET) == 0


def test_plain_prices_stand_beside_the_rate() -> None:
    price = plain_price(350_000, 4_160_000)
    assert (price.per_mtok, price.per_token) == ("1.456", "0.000001456")
    every = plain_prices(1, PPM_BY_BUCKET)
    assert every[Bucket.CACHE_READ].per_mtok == "0.000000104"
    assert Decimal(every[Bucket.OUTPUT].per_token) * 10**6 == Decimal(every[Bucket.OUTPUT].per_mtok)


def test_tax_on_top_is_rounded_up() -> None:
    assert gross_up(100, 190_000) == 119
    assert gross_up(1, 1) == 2
    assert gross_up(0, 190_000) == 0


def test_spot_charge_lifts_usage_to_the_minimum_take() -> None:
    # A = 10 lots, theta = 50%: 5 lots are paid for at least, and used lots count towards them.
    charge = spot_charge_numerator(2 * 10**9, 10, 500_000)
    assert (charge.used, charge.minimum_take, charge.total) == (2 * 10**9, 3 * 10**9, 5 * 10**9)
    assert spot_charge_numerator(7 * 10**9, 10, 500_000).minimum_take == 0
    assert spot_charge_numerator(0, 10, 500_000, failed=4 * 10**9).minimum_take == 3 * 10**9
    assert spot_charge_numerator(0, 1, 500_000, failed=2 * 10**9).total == 0
    assert spot_charge_numerator(0, 1, 1, failed=1).minimum_take == 1_000  # ceil(999.999999)


def test_gross_is_split_by_delivery_then_offering_id() -> None:
    assert split_gross(100, {"b": 1, "a": 1, "c": 1}) == {"a": 34, "b": 33, "c": 33}
    assert split_gross(-100, {"b": 1, "a": 1, "c": 1}) == {"a": -34, "b": -33, "c": -33}
    assert sum(split_gross(10**12 + 7, {"a": 3, "b": 10**15, "c": 17}).values()) == 10**12 + 7


def test_fee_is_floored_and_given_back_exactly() -> None:
    assert fee_of(1_000_019, 50_000) == 50_000
    assert fee_of(-1_000_019, 50_000) == -50_000


def test_worst_case_takes_the_dearest_bucket_of_each_side() -> None:
    assert worst_case_numerator(10, 5, PPM_BY_BUCKET) == 10 * 1_300_000 + 5 * 4_160_000
    assert worst_case_numerator(0, 0, {}) == 0
    with pytest.raises(UnpricedBucket):
        worst_case_numerator(1, 0, {Bucket.OUTPUT: 1})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_request_costs_more_than_its_worst_case(
    uncached: int, read: int, output: int, thought: int
) -> None:
    actual = standard_numerator(
        {
            Bucket.UNCACHED_INPUT: uncached,
            Bucket.CACHE_READ: read,
            Bucket.OUTPUT: output,
            Bucket.REASONING: thought,
        },
        PPM_BY_BUCKET,
    )
    bound = worst_case_numerator(uncached + read, output + thought, PPM_BY_BUCKET)
    assert actual <= bound
    assert price_ceil(actual, 350_000) <= price_ceil(bound, 350_000)


def test_lots_and_numerators_convert() -> None:
    assert lots_numerator(3) == 3 * 10**9
    assert whole_lots(3 * 10**9 - 1) == 2
    assert Fraction(price_of(lots_numerator(1), 10**6)) == 1000
