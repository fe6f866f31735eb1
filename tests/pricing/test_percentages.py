"""Shares of amounts: an allowance never costs more, limits hold, and tiers of shares are tariffs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.percentages import ShareFee, free_of, share_fee, share_volume
from pricing.tariffs import Tier, charge, graduated
from pricing.units import PPM, div_half_even

amounts = st.lists(st.integers(0, 10**9), max_size=8)
limits = st.none() | st.integers(0, 3 * 10**9)
fees = st.builds(
    ShareFee,
    st.integers(0, PPM),
    fixed_micros=st.integers(0, 10**6),
    free_count=st.none() | st.integers(0, 8),
    free_micros=limits,
)


def exact_fee(fee: ShareFee, came: list[int]) -> Fraction:
    """The rule once more, amount by amount, in fractions."""
    total, so_far, free = Fraction(0), 0, fee.free_count is not None or fee.free_micros is not None
    for place, amount in enumerate(came):
        paid = amount
        if free and fee.free_count is not None and place >= fee.free_count:
            free = False
        if free and fee.free_micros is not None and so_far + amount > fee.free_micros:
            paid, free = so_far + amount - fee.free_micros, False
        elif free:
            paid = -1
        so_far += amount
        if paid >= 0:
            one = max(Fraction(paid * fee.ppm, PPM) + fee.fixed_micros, Fraction(fee.least_micros))
            total += one if fee.most_micros is None else min(one, Fraction(fee.most_micros))
    return total


@given(fees, amounts, st.integers(0, 10**7), st.none() | st.integers(0, 10**8))
def test_a_fee_is_the_sum_of_its_amounts_rounded_once(
    fee: ShareFee, came: list[int], least: int, above: int | None
) -> None:
    fee = replace(fee, least_micros=least, most_micros=None if above is None else least + above)
    exact = exact_fee(fee, came)
    assert share_fee(fee, came) == div_half_even(exact.numerator, exact.denominator)


@given(fees, amounts)
def test_an_allowance_never_costs_more_and_stays_within_its_limits(fee: ShareFee, came: list[int]) -> None:
    assert share_fee(fee, came) <= share_fee(replace(fee, free_count=None, free_micros=None), came)
    free = free_of(fee, came)
    assert 0 <= free.whole <= len(came)
    assert 0 <= free.micros <= sum(came)
    assert fee.free_count is None or free.whole <= fee.free_count
    assert fee.free_micros is None or free.micros <= fee.free_micros
    assert sum(came[: free.whole]) <= free.micros


@given(fees, amounts, st.integers(0, 10**9))
def test_another_amount_never_makes_it_cheaper(fee: ShareFee, came: list[int], more: int) -> None:
    assert share_fee(fee, came) <= share_fee(fee, [*came, more])


@given(fees, amounts, st.integers(0, 10**7), st.integers(0, 10**7))
def test_each_paid_amount_pays_between_its_least_and_its_most(
    fee: ShareFee, came: list[int], least: int, above: int
) -> None:
    paid = len(came) - free_of(fee, came).whole
    found = share_fee(replace(fee, least_micros=least, most_micros=least + above), came)
    assert paid * least <= found <= paid * (least + above)


@given(st.integers(0, PPM), st.integers(0, 10**15))
def test_a_share_without_conditions_is_a_tariff_of_one_tier(ppm: int, amount: int) -> None:
    tariff = graduated([Tier(None, ppm)])
    assert charge(tariff, share_volume(amount)) == share_fee(ShareFee(ppm), [amount])


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"ppm": -1}, "ppm"),
        ({"ppm": 1, "fixed_micros": -1}, "fixed_micros"),
        ({"ppm": 1, "free_count": -1}, "free_count"),
        ({"ppm": 1, "free_micros": -1}, "free_micros"),
        ({"ppm": 1, "least_micros": -1}, "least_micros"),
        ({"ppm": 1, "least_micros": 5, "most_micros": 4}, "most_micros"),
    ],
)
def test_nonsense_is_refused_by_field(terms: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}:"):
        ShareFee(**terms)
