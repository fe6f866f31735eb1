"""Discounts, taxes and credit notes as pure arithmetic (peers' own numbers: tests/peers)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.billing.amounts import (
    DiscountTerm,
    TaxedLine,
    TaxTerm,
    credited_part,
    credited_total,
    spread,
    work_out,
)
from pricing.units import div_half_up

PERCENT = 10_000  # ppm


def test_shares_show_the_order_of_discounts() -> None:
    """20% of the line first, then 10% of what is left."""
    discounts = [DiscountTerm("a", ppm=10 * PERCENT), DiscountTerm("b", ppm=20 * PERCENT, kind="usage")]
    assert work_out({1: TaxedLine(100, kind="usage")}, discounts, []).discounts == {"b": 20, "a": 8}


def test_where_peers_disagree_coupon_then_tax_then_prepaid() -> None:
    """50 + 20, coupon 10, tax 10%, prepaid 30: one peer says 33, then 37. Ours is 36."""
    lines = {1: TaxedLine(50, taxes=("t",)), 2: TaxedLine(20, taxes=("t",))}
    worked = work_out(lines, [DiscountTerm("c", amount=10)], [TaxTerm("t", ppm=10 * PERCENT)])
    assert worked.net + worked.tax - 30 == 36


def test_levy_is_of_the_volume_from_abroad() -> None:
    lines = {
        1: TaxedLine(600_000, taxes=("v", "l"), foreign={"l": 400_000 * 10**6}),
        2: TaxedLine(10, taxes=("v", "l")),
    }
    worked = work_out(lines, [], [TaxTerm("v", ppm=200_000), TaxTerm("l", micros_per_mtok=25_000)])
    assert (worked.taxes, worked.bases["l"]) == ({"l": 10_000, "v": 120_002}, 400_000 * 10**6)
    assert worked.line_taxes[1] == {"l": 10_000, "v": 120_000}


AMOUNTS = st.integers(-(10**9), 10**12)


@given(
    amounts=st.lists(AMOUNTS, min_size=1, max_size=12),
    discounts=st.lists(
        st.tuples(st.booleans(), st.integers(0, 10**6), st.sampled_from([None, "usage", "spot"])), max_size=4
    ),
    rates=st.lists(st.integers(0, 400_000), max_size=4),
    seed=st.integers(0, 1_000),
)
def test_sums_close_and_the_order_of_lines_is_nothing(
    amounts: list[int], discounts: list[tuple[bool, int, str | None]], rates: list[int], seed: int
) -> None:
    taxes = [TaxTerm(f"t{n}", ppm=ppm) for n, ppm in enumerate(rates)]
    terms = [
        DiscountTerm(f"d{n}", ppm=value if share else None, amount=None if share else value, kind=kind)
        for n, (share, value, kind) in enumerate(discounts)
    ]
    lines = {
        n: TaxedLine(amount, kind=["usage", "spot"][n % 2], taxes=tuple(f"t{m}" for m in range(len(rates))))
        for n, amount in enumerate(amounts)
    }
    if sum(amounts) <= 0:
        return
    worked = work_out(lines, terms, taxes)
    assert sum(worked.line_discounts.values()) == worked.discount
    for key, line in lines.items():
        assert 0 <= worked.line_discounts[key] <= max(0, line.amount)
    for tax in taxes:
        assert sum(parts[tax.key] for parts in worked.line_taxes.values()) == worked.taxes[tax.key]
        assert worked.taxes[tax.key] == div_half_up(worked.net * tax.ppm, 10**6)
    shuffled = list(lines.items())
    random.Random(seed).shuffle(shuffled)
    again = work_out(dict(shuffled), terms[::-1], taxes[::-1])
    assert (again.line_taxes, again.line_discounts) == (worked.line_taxes, worked.line_discounts)


@given(st.integers(-(10**12), 10**12), st.dictionaries(st.integers(), AMOUNTS, min_size=1, max_size=9))
def test_what_is_spread_sums_to_the_whole(total: int, weights: dict[int, int]) -> None:
    whole = sum(weights.values())
    if whole == 0:
        assert set(spread(0, weights).values()) == {0}
        with pytest.raises(ValueError, match="nowhere"):
            spread(total or 1, weights)
        return
    parts = spread(total, weights)
    assert sum(parts.values()) == total
    # Nobody is more than one unit away from his exact share.
    assert all(abs(parts[key] * whole - total * weight) < abs(whole) for key, weight in weights.items())


@given(
    whole=st.integers(0, 10**12),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
    minor=st.sampled_from([1_000, 10_000, 10**6]),
)
def test_partial_credits_close_on_the_invoice(whole: int, cuts: list[int], minor: int) -> None:
    net = 10**6
    raw = net + whole
    total = raw // minor * minor
    steps = [*sorted(cuts), net]
    parts = [credited_part(whole, credited=step, of=net) for step in steps]
    assert parts == sorted(parts)
    assert parts[-1] == whole
    totals = [
        credited_total(step + part, total=total, minor=minor, is_whole=step == net)
        for step, part in zip(steps, parts, strict=True)
    ]
    assert totals == sorted(totals)
    assert totals[-1] == total
