"""The auction: published cases, both engines against each other, and what may never happen."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import clearing_kernel
from pricing.book import RULE_VERSION
from pricing.clearing import (
    Clearing,
    Order,
    TieRule,
    clear,
    clear_arrays,
    digest_book,
    digest_result,
    filled_lots,
)
from pricing.clearing_blocks import Block, choose_blocks
from pricing.clearing_reference import EnginesDisagree, confirm, reference_clear

CASES = json.loads(
    (Path(__file__).parent / "data" / "clearing.json").read_text(), parse_float=Fraction, parse_int=Fraction
)
TIE_RULES = {"pro_rata_lr": TieRule.PRO_RATA, "time_priority": TieRule.TIME_PRIORITY}


def bid(order_id: str, *steps: tuple[int, int], **facts: Any) -> Order:
    return Order(order_id, steps, **facts)


ask = bid


def scaled_case(case: dict[str, Any]) -> tuple[list[Order], list[Order], dict[str, Any], int, int]:
    """A case in whole ticks and lots; prices doubled so that every midpoint is whole."""
    offers = case.get("raw_offers", case["offers"])
    rows = [*case["bids"], *offers, *case["offers"]]
    reserve = case.get("reserve_price")
    price_scale = 2 * lcm(*(Fraction(p).denominator for p, _ in rows), Fraction(reserve or 1).denominator)
    lot_scale = lcm(*(Fraction(q).denominator for _, q in rows))
    flagged = case.get("all_or_none", {"bids": [], "offers": []})
    sides = [
        [
            Order(
                f"{letter}{index}",
                ((int(price * price_scale), int(quantity * lot_scale)),),
                priority=index,
                all_or_none=index in flagged[side],
            )
            for index, (price, quantity) in enumerate(entries)
        ]
        for side, letter, entries in (("bids", "b", case["bids"]), ("offers", "o", offers))
    ]
    terms = {} if reserve is None else {"reserve_price": int(reserve * price_scale)}
    return sides[0], sides[1], terms, price_scale, lot_scale


@pytest.mark.parametrize("engine", [clear, reference_clear])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_published_case_clears_exactly(case: dict[str, Any], engine: Any) -> None:
    bids, asks, terms, price_scale, lot_scale = scaled_case(case)
    expected = case["expected"]
    result = engine(bids, asks, **terms)
    assert Fraction(result.quantity_lots, lot_scale) == expected["quantity"]
    for name in ("price_low", "price_high"):
        found = getattr(result, name)
        assert (None if found is None else Fraction(found, price_scale)) == expected[name]
    assert Fraction(result.welfare, price_scale * lot_scale) == expected["welfare"]
    if "price_mid" in expected:
        assert Fraction(result.price, price_scale) == expected["price_mid"]
    else:
        assert result.price is None
    assert list(result.rejected_paradoxically) == expected.get("paradoxically_rejected", [])
    assert sum(map(sum, result.bid_fills)) == sum(map(sum, result.ask_fills)) == result.quantity_lots


@pytest.mark.parametrize("engine", [clear, reference_clear])
@pytest.mark.parametrize(
    ("case", "rule"),
    [(case, rule) for case in CASES for rule in case.get("allocations", {})],
    ids=lambda value: value if isinstance(value, str) else value["id"],
)
def test_published_allocation_is_met_to_the_lot(case: dict[str, Any], rule: str, engine: Any) -> None:
    bids, asks, terms, _, lot_scale = scaled_case(case)
    result = engine(bids, asks, tie_rule=TIE_RULES[rule], **terms)
    for side, fills in (("bids", result.bid_fills), ("offers", result.ask_fills)):
        assert [Fraction(sum(fill), lot_scale) for fill in fills] == case["allocations"][rule][side]


# ---- properties

prices = st.integers(-4, 8)
huge_prices = st.integers(-(2**70), 2**70)


@st.composite
def orders(draw: st.DrawFn, *, is_bid: bool, minima: bool = False, price: Any = prices) -> list[Order]:
    book = []
    for index in range(draw(st.integers(0, 5))):
        steps = draw(st.lists(st.tuples(price, st.integers(0, 6)), min_size=1, max_size=3))
        steps.sort(reverse=is_bid, key=lambda step: step[0])
        book.append(
            Order(
                f"{'b' if is_bid else 'a'}{index}",
                tuple(steps),
                organization_id=draw(st.sampled_from([None, "acme", "hyperion", "mallory"])),
                priority=draw(st.integers(0, 2)),
                reserve=None if is_bid else draw(st.none() | prices),
                all_or_none=minima and draw(st.booleans()) and draw(st.booleans()),
                min_fill=draw(st.integers(0, 5)) if minima and draw(st.booleans()) else 0,
            )
        )
    return book


terms = st.fixed_dictionaries(
    {
        "floor": st.none() | st.integers(-3, 1),
        "cap": st.none() | st.integers(2, 7),
        "reserve_price": st.none() | prices,
        "tie_rule": st.sampled_from(TieRule),
        "tick": st.integers(1, 3),
    }
)


@settings(max_examples=250, deadline=None)
@given(orders(is_bid=True), orders(is_bid=False), terms)
def test_engines_agree_on_every_divisible_book(
    bids: list[Order], asks: list[Order], under: dict[str, Any]
) -> None:
    result = clear(bids, asks, **under)
    assert result == reference_clear(bids, asks, **under)
    assert_sound(bids, asks, result)
    confirm(bids, asks, result, **under)


@settings(max_examples=200, deadline=None)
@given(orders(is_bid=True, minima=True), orders(is_bid=False, minima=True), terms)
def test_engines_agree_on_books_with_minima(
    bids: list[Order], asks: list[Order], under: dict[str, Any]
) -> None:
    result = clear(bids, asks, **under)
    assert result.search_complete
    assert result == reference_clear(bids, asks, **under)
    assert_sound(bids, asks, result)
    confirm(bids, asks, result, **under)


@settings(max_examples=60, deadline=None)
@given(orders(is_bid=True, price=huge_prices), orders(is_bid=False, price=huge_prices))
def test_engines_agree_beyond_64_bits(bids: list[Order], asks: list[Order]) -> None:
    assert clear(bids, asks) == reference_clear(bids, asks)


@settings(max_examples=60, deadline=None)
@given(orders(is_bid=True, minima=True), orders(is_bid=False, minima=True), st.randoms(use_true_random=False))
def test_result_does_not_depend_on_the_order_of_the_book(
    bids: list[Order], asks: list[Order], shuffle: random.Random
) -> None:
    mixed_bids, mixed_asks = shuffle.sample(bids, len(bids)), shuffle.sample(asks, len(asks))
    assert digest_book(bids, asks, terms={}) == digest_book(mixed_bids, mixed_asks, terms={})
    first, second = clear(bids, asks), clear(mixed_bids, mixed_asks)
    assert digest_result(bids, asks, first) == digest_result(mixed_bids, mixed_asks, second)
    assert filled_lots(bids, first.bid_fills) == filled_lots(mixed_bids, second.bid_fills)


def assert_sound(bids: list[Order], asks: list[Order], result: Clearing) -> None:
    """Balanced, nobody at a loss, no minimum broken."""
    assert sum(map(sum, result.bid_fills)) == sum(map(sum, result.ask_fills)) == result.quantity_lots
    for side, fills, is_bid in ((bids, result.bid_fills, True), (asks, result.ask_fills, False)):
        for order, fill in zip(side, fills, strict=True):
            needed = order.lots if order.all_or_none else order.min_fill
            assert sum(fill) == 0 or sum(fill) >= needed
            for (limit, lots), filled in zip(order.steps, fill, strict=True):
                assert 0 <= filled <= lots
                if filled:
                    assert result.price is not None
                    assert limit >= result.price if is_bid else limit <= result.price
    if result.quantity_lots:
        assert result.price_low is not None
        assert result.price_high is not None
        assert result.price is not None
        assert result.price_low <= result.price <= result.price_high


@pytest.mark.parametrize("tie_rule", TieRule)
@pytest.mark.parametrize("span", [3, 100, 10**6, 2**50])
def test_array_kernel_equals_integer_kernel(span: int, tie_rule: TieRule) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        largest = int(rng.choice([3, 50, 2**48, 2**53]))
        sides = []
        for _ in range(2):
            size = int(rng.integers(0, 30))
            sides.append(
                (
                    rng.integers(0, span, size) - span // 2,
                    rng.integers(0, largest, size),
                    rng.permutation(size),
                )
            )
        (bid_prices, bid_lots, bid_ranks), (ask_prices, ask_lots, ask_ranks) = sides
        result = clear_arrays(
            bid_prices,
            bid_lots,
            ask_prices,
            ask_lots,
            bid_ranks=bid_ranks,
            ask_ranks=ask_ranks,
            tie_rule=tie_rule,
        )
        lists = [tuple(array.tolist() for array in side) for side in sides]
        crossing, fills = clearing_kernel.clear_integers((lists[0], lists[1]), tie_rule)
        assert (result.quantity, result.price_low, result.price_high, result.welfare) == (
            crossing.quantity,
            crossing.price_low,
            crossing.price_high,
            crossing.welfare,
        )
        assert [result.bid_fills.tolist(), result.ask_fills.tolist()] == fills


def test_large_book_through_the_orders_equals_the_reference() -> None:
    chance = random.Random(7)
    bids = [
        bid(
            f"b{i}",
            *sorted(((chance.randrange(10**6), chance.randrange(50)) for _ in range(2)), reverse=True),
        )
        for i in range(1500)
    ]
    asks = [
        ask(f"a{i}", *sorted((chance.randrange(10**6), chance.randrange(50)) for _ in range(2)))
        for i in range(1500)
    ]
    result = clear(bids, asks)
    assert result == reference_clear(bids, asks)
    confirm(bids, asks, result)


def test_optimum_equals_the_linear_program() -> None:
    highspy = pytest.importorskip("highspy")
    for seed in range(15):
        chance = random.Random(seed)
        bids = [bid(f"b{i}", (chance.randrange(20), chance.randrange(1, 9))) for i in range(12)]
        asks = [ask(f"a{i}", (chance.randrange(20), chance.randrange(1, 9))) for i in range(12)]
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("presolve", "off")
        wants = [(order.steps[0], 1) for order in bids] + [(order.steps[0], -1) for order in asks]
        for (_, lots), _ in wants:
            solver.addVar(0, lots)
        for column, ((price, _), sign) in enumerate(wants):
            solver.changeColCost(column, -sign * price)
        solver.addRow(
            0, 0, len(wants), np.arange(len(wants), dtype=np.int32), np.array([float(s) for _, s in wants])
        )
        solver.run()
        assert round(-solver.getInfo().objective_function_value) == clear(bids, asks).welfare


# ---- rules one by one


def test_first_rejected_orders_bind_the_interval() -> None:
    result = clear([bid("b0", (10, 5), (7, 5))], [ask("a0", (1, 5), (8, 5))])
    assert (result.price_low, result.price_high, result.price) == (7, 8, 7)


def test_no_trade_reports_best_bid_and_best_ask() -> None:
    result = clear([bid("b0", (3, 5))], [ask("a0", (4, 5))])
    assert (result.quantity_lots, result.price, result.price_low, result.price_high) == (0, None, 3, 4)
    empty = clear([], [])
    assert (empty.quantity_lots, empty.price_low, empty.price_high) == (0, None, None)


def test_price_is_a_tick_inside_the_interval() -> None:
    def price(low: int, high: int, tick: int) -> int | None:
        return clear([bid("b", (high, 1))], [ask("a", (low, 1))], tick=tick).price

    assert price(10, 29, 10) == 10  # midpoint 19.5 floored
    assert price(11, 20, 10) == 20  # the floored midpoint would lie below the interval
    assert price(11, 19, 10) == 15  # no tick inside: the floored midpoint
    assert price(-9, -2, 5) == -5  # negative prices floor downwards: -6 -> -10 is outside
    assert price(-3, 0, 1) == -2


def test_cap_and_floor_never_make_an_order_trade_at_a_loss() -> None:
    result = clear([bid("b", (100, 5))], [ask("a", (1, 5))], floor=10, cap=20)
    assert (result.price_low, result.price_high, result.price) == (10, 20, 15)
    assert clear([bid("b", (5, 5))], [ask("a", (1, 5))], floor=10).quantity_lots == 0
    assert clear([bid("b", (50, 5))], [ask("a", (30, 5))], cap=20).quantity_lots == 0


def test_published_floor_of_a_provider_lifts_his_ask() -> None:
    result = clear([bid("b", (10, 5))], [ask("a", (2, 5), reserve=6)])
    assert (result.price_low, result.price_high, result.welfare) == (6, 10, 20)


def test_an_organization_never_trades_with_itself() -> None:
    bids = [bid("b0", (10, 5), organization_id="acme"), bid("b1", (9, 3), organization_id="hyperion")]
    asks = [ask("a0", (1, 8), organization_id="acme")]
    result = clear(bids, asks)
    assert result.netted_lots == 5
    assert filled_lots(bids, result.bid_fills) == {"b1": 3}
    assert clear(bids, asks, net_self_trades=False).quantity_lots == 8


def test_a_minimum_that_crosses_its_own_organization_is_left_out() -> None:
    bids = [bid("b0", (10, 5), organization_id="acme", all_or_none=True)]
    asks = [ask("a0", (1, 8), organization_id="acme")]
    result = clear(bids, asks)
    assert result.quantity_lots == 0
    assert result.rejected_paradoxically == ()


def test_splitting_an_order_into_equal_steps_gains_no_lot() -> None:
    whole = clear([bid("b0", (3, 3)), bid("b1", (3, 3))], [ask("a", (1, 3))])
    split = clear([bid("b0", (3, 1), (3, 1), (3, 1)), bid("b1", (3, 3))], [ask("a", (1, 3))])
    assert [sum(fill) for fill in whole.bid_fills] == [sum(fill) for fill in split.bid_fills] == [2, 1]


def test_min_fill_takes_its_minimum_before_others_share_the_tie() -> None:
    bids = [bid("b0", (5, 6)), bid("b1", (6, 2), (5, 4), min_fill=4)]
    result = clear(bids, [ask("a0", (1, 6))])
    assert filled_lots(bids, result.bid_fills) == {"b0": 2, "b1": 4}  # 2 lots over 6 and 2 are 1.5 and 0.5


def test_nobody_is_accepted_at_a_loss_though_welfare_would_be_greater() -> None:
    # Taking the ask of 10 as a whole would be worth 10 x 5 - 10 x 3 = 20, but no price above 3 has demand for it.
    bids = [bid("b0", (9, 4)), bid("b1", (2, 6))]
    asks = [ask("a0", (3, 10), all_or_none=True), ask("a1", (8, 2))]
    result = clear(bids, asks)
    assert result.quantity_lots == 2
    assert result.price is not None
    assert result.rejected_paradoxically == ("a0",)
    assert result.price_low == result.price_high == 9


def test_rejected_minimum_binds_when_it_would_not_gain() -> None:
    bids = [bid("b0", (10, 5)), bid("b1", (4, 7), all_or_none=True)]
    result = clear(bids, [ask("a0", (1, 5)), ask("a1", (12, 5))])
    assert (result.price_low, result.price_high, result.price) == (4, 10, 7)
    assert result.rejected_paradoxically == ()


def test_equal_choices_of_minima_go_to_the_smallest_ids() -> None:
    bids = [bid(name, (10, 5), all_or_none=True) for name in ("b2", "b0", "b1")]
    result = clear(bids, [ask("a0", (1, 10))])
    assert filled_lots(bids, result.bid_fills) == {"b0": 5, "b1": 5}
    assert result.rejected_paradoxically == ("b2",)


def test_search_beyond_its_bound_falls_back_to_a_sound_choice() -> None:
    chance = random.Random(3)
    bids = [
        bid(f"b{i:02}", (chance.randrange(5, 30), chance.randrange(1, 40)), all_or_none=True)
        for i in range(25)
    ]
    asks = [
        ask(f"a{i:02}", (chance.randrange(0, 25), chance.randrange(1, 40)), all_or_none=True)
        for i in range(25)
    ]
    bids.append(bid("x", (18, 20)))
    asks.append(ask("y", (9, 20)))
    result = clear(bids, asks, search_limit=50)
    assert not result.search_complete
    assert result.quantity_lots > 0
    assert_sound(bids, asks, result)
    confirm(bids, asks, result)
    assert clear(bids, asks, search_limit=50) == result


def test_no_block_is_chosen_when_none_helps() -> None:
    chosen, outcome, complete = choose_blocks(
        {}, {}, [Block(("b", True), True, ((5, 1),), 1)], search_limit=10
    )
    assert (chosen, outcome.value, complete) == ([], (0, 0), True)


def test_second_engine_refuses_an_altered_result() -> None:
    bids, asks = [bid("b0", (10, 5))], [ask("a0", (1, 5))]
    honest = clear(bids, asks)
    altered = Clearing(**{**{name: getattr(honest, name) for name in honest.__slots__}, "price": 6})
    with pytest.raises(EnginesDisagree):
        confirm(bids, asks, altered)


def test_digest_changes_with_the_terms_and_is_stable() -> None:
    bids, asks = [bid("b0", (10, 5))], [ask("a0", (1, 5))]
    assert digest_book(bids, asks, terms={"tick": 1}) != digest_book(bids, asks, terms={"tick": 2})
    assert len(digest_book(bids, asks, terms={})) == 64
    assert RULE_VERSION == "uniform-2"


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (bid("b", (1, 5), (2, 5)), "steps"),
        (bid("b"), "steps"),
        (bid("b", *[(5, 1)] * 11), "steps"),
        (bid("b", (5, -1)), "steps"),
        (bid("b", (5.0, 1)), "steps"),  # type: ignore[arg-type]
        (bid("b", (True, 1)), "steps"),
        (bid("b", (5, 1), min_fill=-1), "min_fill"),
    ],
)
def test_malformed_order_is_refused_by_field(order: Order, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        clear([order], [])


def test_nonsense_terms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^floor:"):
        clear([], [], floor=5, cap=4)
    with pytest.raises(ValueError, match=r"^tick:"):
        clear([], [], tick=0)
    with pytest.raises(ValueError, match=r"^id:"):
        clear([bid("b", (1, 1)), bid("b", (2, 1))], [])
    halves, ones = np.array([0.5]), np.array([1])
    with pytest.raises(ValueError, match="integers"):
        clear_arrays(halves, ones, ones, ones)
    many = [bid(f"b{i:02}", (1, 1), all_or_none=True) for i in range(13)]
    with pytest.raises(ValueError, match="minimum"):
        reference_clear(many, [])
