"""What other billing systems' own tests say, as data: `billing.json`, with where ours differs and why.

`@runs("pkg-02")` says which cases a test runs; a test that takes a `case` is run once for each. Every case is run by a
test or is named in the table of docs/rounding.md (`test_every_case.py`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pricing.tariffs import Tier
from pricing.units import NUMERATOR_PER_MTOK, div_half_up

CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((Path(__file__).parent / "billing.json").read_text())
}
CENT = 10_000


def runs(*ids: str) -> Callable[[Callable[..., None]], Any]:
    def mark(test: Callable[..., None]) -> Any:
        if "case" in inspect.signature(test).parameters:
            return pytest.mark.parametrize("case", [CASES[id_] for id_ in ids], ids=ids)(test)
        assert set(ids) <= set(CASES)
        return test

    return mark


def expected(case: dict[str, Any]) -> dict[str, Any]:
    """What we answer: the peer's answer, and ours where the case says that ours differs."""
    ours: dict[str, Any] = case.get("ours", {}).get("expected", {})
    return {**case["expected"], **ours}


def micros(amount: str | int) -> int:
    """A case's amount, in units of the currency."""
    scaled = Fraction(amount) * 10**6
    assert scaled.denominator == 1
    return int(scaled)


def cents(amount_micros: int) -> int:
    """As peers show it: half-up."""
    return div_half_up(amount_micros, CENT)


def ppm(percent: str) -> int:
    scaled = Fraction(percent) * 10_000
    assert scaled.denominator == 1
    return int(scaled)


def mtok(units: str | int) -> int:
    """A case's unit is a Mtok here, so that its unit price is the rate."""
    scaled = Fraction(units) * NUMERATOR_PER_MTOK
    assert scaled.denominator == 1
    return int(scaled)


def tiers_of(case: dict[str, Any]) -> list[Tier]:
    """The case's tiers, or those of the case that it names ("same as grad-03")."""
    rows = case["input"]["tiers"]
    if isinstance(rows, str):
        return tiers_of(CASES[rows.removeprefix("same as ")])
    return [
        Tier(
            None if row["up_to"] is None else mtok(row["up_to"]),
            micros(row["unit"]),
            micros(row.get("flat", 0)),
        )
        for row in rows
    ]
