"""The foot of an invoice, without a database. The examples are those of docs/rounding.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.billing.documents import invoice_totals, tax_of, tax_share, whole_minor_units


def test_below_a_minor_unit_everything_goes_back() -> None:
    totals = invoice_totals(prepaid_subtotal=1_530, arrears_subtotal=0, tax_ppm=0, currency="USD")
    assert (totals.total, totals.prepaid, totals.amount_due, totals.rounding) == (0, 0, 0, 1_530)


def test_tax_then_whole_cents() -> None:
    totals = invoice_totals(prepaid_subtotal=12_345_678, arrears_subtotal=0, tax_ppm=100_000, currency="USD")
    assert (totals.tax, totals.total, totals.rounding) == (1_234_568, 13_580_000, 246)
    assert (totals.prepaid, totals.amount_due) == (13_580_000, 0)


def test_arrears_are_due() -> None:
    totals = invoice_totals(prepaid_subtotal=0, arrears_subtotal=12_345_678, tax_ppm=0, currency="USD")
    assert (totals.total, totals.amount_due, totals.rounding_arrears) == (12_340_000, 12_340_000, 5_678)


def test_tax_is_half_up() -> None:
    assert (tax_of(5, 100_000), tax_of(4, 100_000), tax_of(-5, 100_000)) == (1, 0, -1)
    assert tax_of(2_003, 200_000) == 401
    assert (tax_share(1_001, 200_000), tax_share(1_002, 200_000), tax_share(-7, 200_000)) == (201, 201, 0)


@pytest.mark.parametrize(
    ("currency", "whole"), [("JPY", 12_000_000), ("USD", 12_340_000), ("KWD", 12_345_000)]
)
def test_minor_units_of_each_currency(currency: str, whole: int) -> None:
    assert whole_minor_units(12_345_678, currency) == whole


@given(st.lists(st.integers(0, 10**9), min_size=1), st.integers(0, 1_000_000))
def test_what_was_set_aside_always_covers_the_tax(amounts: list[int], tax_ppm: int) -> None:
    assert tax_of(sum(amounts), tax_ppm) <= sum(tax_share(amount, tax_ppm) for amount in amounts)


@given(
    prepaid=st.integers(0, 10**12),
    arrears=st.integers(0, 10**12),
    tax_ppm=st.integers(0, 1_000_000),
    currency=st.sampled_from(["USD", "JPY", "KWD"]),
)
def test_the_foot_adds_up(prepaid: int, arrears: int, tax_ppm: int, currency: str) -> None:
    totals = invoice_totals(
        prepaid_subtotal=prepaid, arrears_subtotal=arrears, tax_ppm=tax_ppm, currency=currency
    )
    assert totals.total == totals.subtotal + totals.tax - totals.rounding
    assert totals.amount_due == totals.total - totals.prepaid
    assert totals.rounding_prepaid >= 0
    assert totals.rounding_arrears >= 0
    assert whole_minor_units(totals.total, currency) == totals.total
    assert whole_minor_units(totals.amount_due, currency) == totals.amount_due
