"""Books as documents: the published cases in their own units, exactly, and what is no book."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.clearing_json import MAX_DIGITS, DocumentError, clear_document

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = json.loads((Path(__file__).parent / "data" / "clearing.json").read_text(), parse_float=Decimal)
TIE_RULES = {"pro_rata_lr": "pro_rata", "time_priority": "time_priority"}


def document_of(case: dict[str, Any], *, strings: bool, tie_rule: str | None = None) -> str:
    flagged = case.get("all_or_none", {"bids": [], "offers": []})

    def order(side: str, place: int, price: Any, quantity: Any) -> Any:
        spelled = [str(price), str(quantity)] if strings else [price, quantity]
        if place not in flagged[side]:
            return spelled
        names = {"id": f"{side[0]}{place}", "price": spelled[0], "quantity": spelled[1]}
        return names | {"all_or_none": True}

    sides = {"bids": case["bids"], "offers": case.get("raw_offers", case["offers"])}
    document: dict[str, Any] = {
        side: [order(side, place, *entry) for place, entry in enumerate(entries)]
        for side, entries in sides.items()
    }
    document |= {"reserve_price": case.get("reserve_price"), "floor": None}
    if tie_rule is not None:
        document["tie_rule"] = tie_rule
    return json.dumps(document, default=float)


@pytest.mark.parametrize("strings", [False, True], ids=["numbers", "strings"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_case_comes_out_in_its_own_units(case: dict[str, Any], strings: bool) -> None:
    expected = case["expected"]
    result = clear_document(document_of(case, strings=strings))
    for name in ("quantity", "price_low", "price_high", "welfare"):
        assert result[name] == expected[name], name
    assert result["price"] == expected.get("price_mid")
    assert result["rejected_paradoxically"] == expected.get("paradoxically_rejected", [])
    assert sum(result["fills"]["bids"]) == sum(result["fills"]["offers"]) == result["quantity"]


@pytest.mark.parametrize(
    ("case", "rule"),
    [(case, rule) for case in CASES for rule in case.get("allocations", {})],
    ids=lambda value: value if isinstance(value, str) else value["id"],
)
def test_published_allocation_is_met_under_both_tie_rules(case: dict[str, Any], rule: str) -> None:
    result = clear_document(document_of(case, strings=False, tie_rule=TIE_RULES[rule]))
    assert result["fills"] == case["allocations"][rule]


def test_the_command_reads_stdin_and_prints_exact_numbers() -> None:
    book = {
        "bids": [["0.3", 10], [0.1, 5]],
        "offers": [["0.2", "2.5"], {"id": "x", "price": 0.25, "quantity": 3}],
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "clearbook"],
        input=json.dumps(book),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout, parse_float=str) == {
        "quantity": "5.5",
        "price": "0.3",
        "price_low": "0.3",
        "price_high": "0.3",
        "welfare": "0.4",
        "fills": {"bids": ["5.5", 0], "offers": ["2.5", 3]},
        "rejected_paradoxically": [],
    }
    refused = subprocess.run(
        [sys.executable, "manage.py", "clearbook"], input='{"bids":[[1,-1]],"offers":[]}', capture_output=True,
        text=True, cwd=ROOT,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "bids.0.quantity: must not be negative" in refused.stderr


def test_a_midpoint_needs_no_tick() -> None:
    result = clear_document('{"bids": [[2, 1]], "offers": [[1.999, 1]]}')
    assert (result["price_low"], result["price"], result["price_high"]) == (
        Decimal("1.999"),
        Decimal("1.9995"),
        2,
    )
    assert result["welfare"] == Decimal("0.001")


def test_round_quantities_are_still_shared_by_the_unit() -> None:
    book = {"bids": [[9, 100], [9, 50]], "offers": [[1, 40]]}
    assert clear_document(json.dumps(book))["fills"] == {"bids": [27, 13], "offers": [40]}
    finer = {"bids": [[9, "100.00"], [9, "50"]], "offers": [[1, "40.5"]]}
    assert clear_document(json.dumps(finer))["fills"]["bids"] == [27, Decimal("13.5")]


def test_floor_cap_and_reserve_bound_what_is_asked_and_bid() -> None:
    book = {"bids": [[100, 5]], "offers": [[-5, 5]], "floor": 0, "cap": "40"}
    assert clear_document(json.dumps(book))["price"] == 20
    assert clear_document(json.dumps(book | {"reserve_price": 30}))["price"] == 35
    negative = clear_document('{"bids": [[-1, 5]], "offers": [[-5, 5]]}')
    assert negative["price"] == -3


def test_numbers_beyond_any_machine_word_stay_exact() -> None:
    price, lots = 10 ** (MAX_DIGITS - 1) + 1, 10**30 + 7
    result = clear_document(json.dumps({"bids": [[str(price), str(lots)]], "offers": [["1e-60", lots]]}))
    assert result["quantity"] == lots
    assert result["price_low"] == Decimal("1e-60")
    # Written out: Decimal's own arithmetic would round.
    assert str(result["price"]).startswith(f"{price // 2}.5")


@pytest.mark.parametrize(
    ("book", "field"),
    [
        ("", "document"),
        ("[]", "document"),
        ('{"bids": [], "offers": [], "tick": 1}', "tick"),
        ('{"offers": []}', "bids"),
        ('{"bids": {}, "offers": []}', "bids"),
        ('{"bids": [], "offers": [3]}', "offers.0"),
        ('{"bids": [[1, 2, 3]], "offers": []}', "bids.0"),
        ('{"bids": [{"price": 1}], "offers": []}', "bids.0.quantity"),
        ('{"bids": [{"price": 1, "quantity": 1, "lots": 2}], "offers": []}', "bids.0.lots"),
        ('{"bids": [{"id": null, "price": 1, "quantity": 1}], "offers": []}', "bids.0.id"),
        ('{"bids": [{"price": 1, "quantity": 1, "all_or_none": 1}], "offers": []}', "bids.0.all_or_none"),
        ('{"bids": [{"id": "a", "price": 1, "quantity": 1}, {"id": "a", "price": 1, "quantity": 1}], "offers": []}',
         "bids.1.id"),
        ('{"bids": [{"price": 1, "price": 2, "quantity": 1}], "offers": []}', "price"),
        ('{"bids": [[NaN, 1]], "offers": []}', "document"),
        ('{"bids": [[Infinity, 1]], "offers": []}', "document"),
        ('{"bids": [["NaN", 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [["-Infinity", 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [["1_0", 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[" 1", 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [["\u0663", 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[true, 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[null, 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[1e400, 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[1e-61, 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[1e999999999, 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [[' + "9" * 6000 + ', 1]], "offers": []}', "bids.0.price"),
        ('{"bids": [], "offers": [[1, -0.5]]}', "offers.0.quantity"),
        ('{"bids": [], "offers": [], "tie_rule": "random"}', "tie_rule"),
        ('{"bids": [], "offers": [], "floor": "low"}', "floor"),
        ('{"bids": [], "offers": [], "floor": 2, "cap": 1}', "floor"),
        ("[" * 100_000, "document"),
    ],
)  # fmt: skip
def test_what_is_no_book_is_refused_with_its_field(book: str, field: str) -> None:
    with pytest.raises(DocumentError) as refusal:
        clear_document(book)
    assert refusal.value.field == field
    assert refusal.value.reason


numbers = st.decimals(min_value=-9, max_value=9, places=2)
lots = st.decimals(min_value=0, max_value=9, places=1)
sides = st.lists(st.tuples(numbers, lots), max_size=5)


@given(sides, sides, st.integers(-3, 3))
def test_units_do_not_matter(
    bids: list[tuple[Decimal, Decimal]], offers: list[tuple[Decimal, Decimal]], shift: int
) -> None:
    """The same book in cents or in units, in tokens or in thousands, has the same result in those."""

    def told(scale: int) -> dict[str, Any]:
        book = {
            side: [[str(price.scaleb(scale)), str(quantity)] for price, quantity in entries]
            for side, entries in (("bids", bids), ("offers", offers))
        }
        return clear_document(json.dumps(book))

    plain, scaled = told(0), told(shift)
    assert scaled["fills"] == plain["fills"]
    for name in ("price", "price_low", "price_high", "welfare"):
        expected = plain[name]
        assert scaled[name] == (None if expected is None else Decimal(expected).scaleb(shift))
