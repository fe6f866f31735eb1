"""Prices that come with the usage, and amounts far below a cent."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

from pricing.rating import exact_price, plain_price, price_of, standard_numerator
from pricing.service_levels import gross_micros
from pricing.units import NUMERATOR_PER_MTOK, PPM, Bucket, decimal_string, div_half_even
from tests.peers.cases import expected, micros, mtok, ppm, runs

PER_TOKEN = {
    "in": Bucket.UNCACHED_INPUT,
    "cache_read": Bucket.CACHE_READ,
    "out": Bucket.OUTPUT,
    "reasoning": Bucket.REASONING,
}


@runs("dyn-01")
def test_prices_that_come_with_the_usage_are_summed_exactly(case: dict[str, Any]) -> None:
    """As on the spot market, where each period brings its price; the average price is derived."""
    # 20 units in two periods, whose prices make the case's sum of 40.2 cents.
    periods = [(15_000, mtok(12)), (27_750, mtok(8))]
    total = Fraction(case["input"]["events_precise_amount_cents_total"]) / 100
    assert sum(rate * numerator for rate, numerator in periods) == total * 10**6 * NUMERATOR_PER_MTOK
    amount = gross_micros(periods)
    assert amount == micros(case["expected"]["amount"])
    assert div_half_even(amount * NUMERATOR_PER_MTOK, mtok(case["input"]["units"])) == micros(
        case["expected"]["unit_amount"]
    )


@runs("dyn-03")
def test_charges_of_events_are_differences_of_rounded_totals(case: dict[str, Any]) -> None:
    """Cents stand for micros. One number is kept: the exact one is what the usage and its rate say."""
    exact = [Fraction(amount) for amount in case["input"]["events_precise_amount_cents"]]
    so_far = [gross_micros([(1, int(total * NUMERATOR_PER_MTOK))]) for total in accumulate(exact)]
    fees = [after - before for before, after in pairwise([0, *so_far])]
    assert fees == case["expected"]["fee_cents"]
    kept = [exact_price(int(amount * NUMERATOR_PER_MTOK), 10**6) for amount in exact]
    assert kept == case["expected"]["precise_kept"]


@runs("round-05")
def test_amounts_far_below_a_cent_are_exact(case: dict[str, Any]) -> None:
    rows, found = case["input"]["rows"], []
    for row in rows:
        priced = {**rows[row["same_as"]], **row} if "same_as" in row else row
        markup, exact = Fraction(priced.get("markup", 1)), 0
        for name, bucket in PER_TOKEN.items():
            if name not in priced:
                continue
            # Per token to micros per Mtok; a markup is a part of the rate, which is whole.
            rate = Fraction(priced[f"{name}_price"]) * 10**12 * markup
            whole = div_half_even(rate.numerator, rate.denominator)
            exact += standard_numerator({bucket: int(priced[name])}, {bucket: PPM}) * whole
        found.append(decimal_string(exact, 18))
    assert found == expected(case)["amounts"]
    assert found[:4] + found[5:] == case["expected"]["amounts"][:4] + case["expected"]["amounts"][5:]


@runs("tok-03")
def test_a_bill_over_several_models(case: dict[str, Any]) -> None:
    """Output that costs six times the input is a weight of six: one rate, and one line for each bucket."""
    for row in case["input"]["rows"]:
        rate, weight = micros(row["in"]), Fraction(row["out"]) / Fraction(row["in"])
        weights = {Bucket.UNCACHED_INPUT: PPM, Bucket.OUTPUT: ppm(str(weight)) * 100}
        assert plain_price(rate, weights[Bucket.OUTPUT]).per_mtok == row["out"]
        used = {Bucket.UNCACHED_INPUT: row["in_m"], Bucket.OUTPUT: row["out_m"]}
        amounts = [
            price_of(standard_numerator({bucket: int(Fraction(millions) * 10**6)}, weights), rate)
            for bucket, millions in used.items()
        ]
        assert amounts == [micros(amount) for amount in case["expected"][row["model"].lower()]]
