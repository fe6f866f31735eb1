"""Numbers as people read them are still exact."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.portal import figures

SPACE, NARROW = "\u00a0", "\u202f"


@pytest.mark.parametrize(
    ("micros", "currency", "shown"),
    [
        (1_500_000, "USD", f"1.50{SPACE}USD"),
        (1, "USD", f"0.000001{SPACE}USD"),
        (-1_234_567_890_000, "USD", f"−1{NARROW}234{NARROW}567.89{SPACE}USD"),
        (5_000_000, "JPY", f"5{SPACE}JPY"),
        (0, "KWD", f"0.000{SPACE}KWD"),
    ],
)
def test_money_has_every_decimal_it_has(micros: int, currency: str, shown: str) -> None:
    assert figures.money(micros, currency) == shown


@given(st.integers(-(10**18), 10**18))
def test_grouping_loses_nothing(value: int) -> None:
    assert int(figures.grouped(str(value)).replace(NARROW, "").replace("−", "-")) == value


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (200, 210, "+5.00"),
        (200, 190, "−5.00"),
        (3, 3, "0.00"),
        (3, 4, "+33.33"),
        (1, 101, f"+10{NARROW}000.00"),
    ],
)
def test_change_in_per_cent(before: int, after: int, shown: str) -> None:
    assert figures.change_percent(before, after) == f"{shown}\u2009%"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, f"0{SPACE}s"),
        (59, f"59{SPACE}s"),
        (90, f"1{SPACE}min 30{SPACE}s"),
        (300, f"5{SPACE}min"),
        (5_400, f"1{SPACE}h 30{SPACE}min"),
    ],
)
def test_lengths_are_short(seconds: int, shown: str) -> None:
    assert figures.length(timedelta(seconds=seconds)) == shown
