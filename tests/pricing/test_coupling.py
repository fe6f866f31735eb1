"""The auction of several grades with substitution: optimum, prices, ties, proof, and what is refused."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.book import Order, TieRule
from pricing.clearing import clear
from pricing.clearing_reference import EnginesDisagree
from pricing.coupling import CoupledAsk, CoupledBid, CoupledClearing, CoupledTerms, clear_coupled
from pricing.coupling_book import digest_coupled_book, digest_coupled_result
from pricing.coupling_checks import verify
from pricing.coupling_lp import linear_programs, solve

DOCS = Path(__file__).resolve().parents[2] / "docs/coupling.md"
GRADES = ("A", "B", "C", "D")


def bid(order_id: str, grade: str, *steps: tuple[int, int], other: Any = None, **facts: Any) -> CoupledBid:
    return CoupledBid(Order(order_id, steps, **facts), grade, other or {})


def ask(order_id: str, grade: str, *steps: tuple[int, int], **facts: Any) -> CoupledAsk:
    return CoupledAsk(Order(order_id, steps, **facts), grade)


def bought(bids: list[CoupledBid], result: CoupledClearing) -> dict[str, dict[str, int]]:
    return {
        each.order.id: {grade: sum(lots) for grade, lots in fills.items()}
        for each, fills in zip(bids, result.bid_fills, strict=True)
        if fills
    }


SUB_1_BIDS = [bid("B1", "A", (10, 10), other={"B": -1}), bid("B2", "A", (8, 10))]
SUB_1_ASKS = [ask("sA", "A", (2, 10)), ask("sB", "B", (3, 20))]


# ---- the published case


def test_moving_a_flexible_buyer_frees_the_scarce_grade() -> None:
    result = clear_coupled(SUB_1_BIDS, SUB_1_ASKS)
    assert result.welfare == 120
    assert bought(SUB_1_BIDS, result) == {"B1": {"B": 10}, "B2": {"A": 10}}
    assert result.ask_fills == ((10,), (10,))
    in_a, in_b = result.grades["A"], result.grades["B"]
    assert (in_a.price_low, in_a.price_high, in_a.price) == (4, 8, 6)
    assert (in_b.price_low, in_b.price_high, in_b.price) == (3, 3, 3)
    verify(SUB_1_BIDS, SUB_1_ASKS, result)


# ---- properties

prices = st.integers(-3, 8)


@st.composite
def books(
    draw: st.DrawFn, *, joined: bool = True, minima: bool = False
) -> tuple[list[CoupledBid], list[CoupledAsk]]:
    grades = GRADES[: draw(st.integers(2, 4))]

    def order(name: str, *, is_bid: bool) -> Order:
        steps = draw(st.lists(st.tuples(prices, st.integers(0, 6)), min_size=1, max_size=3))
        steps.sort(reverse=is_bid, key=lambda step: step[0])
        return Order(
            name,
            tuple(steps),
            organization_id=draw(st.sampled_from([None, "acme", "hyperion"])),
            priority=draw(st.integers(0, 2)),
            reserve=None if is_bid else draw(st.none() | prices),
            all_or_none=minima and draw(st.integers(0, 3)) == 0,
        )

    bids = []
    for index in range(draw(st.integers(0, 7))):
        home = draw(st.sampled_from(grades))
        others = draw(st.dictionaries(st.sampled_from(grades), st.integers(-3, 3))) if joined else {}
        others.pop(home, None)
        bids.append(CoupledBid(order(f"b{index}", is_bid=True), home, others))
    asks = [
        CoupledAsk(order(f"a{index}", is_bid=False), draw(st.sampled_from(grades)))
        for index in range(draw(st.integers(0, 7)))
    ]
    return bids, asks


bounds = st.dictionaries(st.sampled_from(GRADES), st.integers(0, 2))
terms = st.builds(
    CoupledTerms,
    floors=bounds,
    caps=st.dictionaries(st.sampled_from(GRADES), st.integers(2, 7)),
    reserve_prices=bounds,
    tick=st.integers(1, 3),
    net_self_trades=st.booleans(),
)


@settings(max_examples=250, deadline=None)
@given(books(), terms, st.sampled_from(TieRule))
def test_every_result_is_proved(
    book: tuple[list[CoupledBid], list[CoupledAsk]], under: CoupledTerms, tie_rule: TieRule
) -> None:
    bids, asks = book
    result = clear_coupled(bids, asks, terms=under, tie_rule=tie_rule)
    verify(bids, asks, result, terms=under, tie_rule=tie_rule)
    assert_nobody_loses(bids, asks, result)


def assert_nobody_loses(bids: list[CoupledBid], asks: list[CoupledAsk], result: CoupledClearing) -> None:
    """On the orders as they came in, without any of the engine's code."""
    traded = dict.fromkeys(result.grades, 0)
    for each, by_grade in zip(bids, result.bid_fills, strict=True):
        for grade, fill in by_grade.items():
            price = result.grades[grade].price
            for (limit, _), lots in zip(each.order.steps, fill, strict=True):
                if lots:
                    assert price is not None
                    assert limit + each.adjustments.get(grade, 0) >= price
            traded[grade] += sum(fill)
    for offer, fill in zip(asks, result.ask_fills, strict=True):
        price = result.grades[offer.grade].price
        for (limit, most), lots in zip(offer.order.steps, fill, strict=True):
            assert 0 <= lots <= most
            if lots:
                assert price is not None
                assert max(limit, limit if offer.order.reserve is None else offer.order.reserve) <= price
        traded[offer.grade] -= sum(fill)
    assert not any(traded.values())


@settings(max_examples=100, deadline=None)
@given(books(), terms)
def test_welfare_is_the_optimum_of_the_linear_program(
    book: tuple[list[CoupledBid], list[CoupledAsk]], under: CoupledTerms
) -> None:
    under = replace(under, net_self_trades=False)
    optimum = sum(solve(program, tuned=False) for program in linear_programs(*book, terms=under))
    assert clear_coupled(*book, terms=under).welfare == pytest.approx(optimum, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(books(), st.randoms(use_true_random=False), st.sampled_from(TieRule))
def test_result_does_not_depend_on_the_order_of_the_book(
    book: tuple[list[CoupledBid], list[CoupledAsk]], shuffle: random.Random, tie_rule: TieRule
) -> None:
    bids, asks = book
    under = CoupledTerms()
    mixed_bids, mixed_asks = shuffle.sample(bids, len(bids)), shuffle.sample(asks, len(asks))
    assert digest_coupled_book(bids, asks, terms=under) == digest_coupled_book(
        mixed_bids, mixed_asks, terms=under
    )
    first = clear_coupled(bids, asks, tie_rule=tie_rule)
    second = clear_coupled(mixed_bids, mixed_asks, tie_rule=tie_rule)
    assert digest_coupled_result(bids, asks, first) == digest_coupled_result(mixed_bids, mixed_asks, second)


@settings(max_examples=150, deadline=None)
@given(books(joined=False, minima=True), terms, st.sampled_from(TieRule))
def test_without_substitution_each_grade_is_an_auction_of_its_own(
    book: tuple[list[CoupledBid], list[CoupledAsk]], under: CoupledTerms, tie_rule: TieRule
) -> None:
    bids, asks = book
    result = clear_coupled(bids, asks, terms=under, tie_rule=tie_rule)
    assert_equals_lone_grades(bids, asks, result, under, tie_rule)
    verify(bids, asks, result, terms=under, tie_rule=tie_rule)


@settings(max_examples=150, deadline=None)
@given(books(joined=False), terms, st.sampled_from(TieRule))
def test_a_joining_bid_that_is_too_low_changes_nothing(
    book: tuple[list[CoupledBid], list[CoupledAsk]], under: CoupledTerms, tie_rule: TieRule
) -> None:
    """So the engine of joined grades makes of lone ones what theirs makes of them, ranges and ties included."""
    bids, asks = book
    under = replace(under, floors={})
    low = bid("low", "A", (-100, 1), other=dict.fromkeys(GRADES[1:], 0))
    sellers = [ask(f"far{grade}", grade, (100, 1)) for grade in GRADES]
    # Where nobody bids, the low bid is the best bid; the others' auctions must not notice it.
    seen = {each.grade for each in bids}
    result = clear_coupled([*bids, low], [*asks, *sellers], terms=replace(under, caps={}), tie_rule=tie_rule)
    assert max(len(part.grades) for part in result.components) == len(GRADES)
    without = CoupledClearing(result.components, result.bid_fills[:-1], result.ask_fills)
    assert_equals_lone_grades(bids, [*asks, *sellers], without, replace(under, caps={}), tie_rule, seen)


def assert_equals_lone_grades(
    bids: list[CoupledBid],
    asks: list[CoupledAsk],
    result: CoupledClearing,
    under: CoupledTerms,
    tie_rule: TieRule,
    grades: set[str] | None = None,
) -> None:
    welfare = netted = 0
    for grade, facts in result.grades.items():
        if grades is not None and grade not in grades:
            continue
        buyers = [index for index, each in enumerate(bids) if each.grade == grade]
        sellers = [index for index, each in enumerate(asks) if each.grade == grade]
        alone = clear(
            [bids[index].order for index in buyers],
            [asks[index].order for index in sellers],
            floor=under.floors.get(grade),
            cap=under.caps.get(grade),
            reserve_price=under.reserve_prices.get(grade),
            tie_rule=tie_rule,
            tick=under.tick,
            net_self_trades=under.net_self_trades,
        )
        assert (facts.quantity_lots, facts.price) == (alone.quantity_lots, alone.price)
        assert facts.price_high == alone.price_high
        if grades is None or alone.price_low is not None:
            assert facts.price_low == alone.price_low
        for index, fill in zip(buyers, alone.bid_fills, strict=True):
            assert result.bid_fills[index] == ({grade: fill} if any(fill) else {})
        for index, fill in zip(sellers, alone.ask_fills, strict=True):
            assert result.ask_fills[index] == fill
        welfare += alone.welfare
        netted += alone.netted_lots
    assert (result.welfare, result.netted_lots) == (welfare, netted)


# ---- rules one by one


def test_grades_that_nobody_joins_are_cleared_apart() -> None:
    bids = [*SUB_1_BIDS, bid("x", "C", (9, 4)), bid("y", "E", (5, 1))]
    asks = [*SUB_1_ASKS, ask("sC", "C", (1, 4)), ask("sD", "D", (7, 3))]
    result = clear_coupled(bids, asks)
    assert [[each.grade for each in part.grades] for part in result.components] == [
        ["A", "B"],
        ["C"],
        ["D"],
        ["E"],
    ]
    assert [part.welfare for part in result.components] == [120, 32, 0, 0]
    assert result.grades["C"].price == 5
    assert (result.grades["D"].price_low, result.grades["D"].price_high) == (None, 7)
    assert (result.grades["E"].price_low, result.grades["E"].price_high) == (5, None)
    verify(bids, asks, result)


def test_empty_and_one_sided_books_trade_nothing() -> None:
    assert clear_coupled([], []) == CoupledClearing((), (), ())
    only_bids = clear_coupled(SUB_1_BIDS, [])
    assert (only_bids.grades["A"].price_low, only_bids.grades["B"].price_low) == (10, 9)
    only_asks = clear_coupled([], SUB_1_ASKS)
    assert (only_asks.grades["A"].price_high, only_asks.grades["B"].price_high) == (2, 3)
    for bids, asks, result in ((SUB_1_BIDS, [], only_bids), ([], SUB_1_ASKS, only_asks)):
        assert result.welfare == 0
        assert {each.price for each in result.grades.values()} == {None}
        verify(bids, asks, result)


def test_a_grade_without_an_ask_joins_nothing() -> None:
    bids = [
        bid("b", "A", (9, 5), other={"B": 0}),
        bid("c", "A", (6, 4), all_or_none=True),
        bid("d", "B", (7, 1)),
    ]
    result = clear_coupled(bids, [ask("a", "A", (1, 9))])
    assert bought(bids, result) == {"b": {"A": 5}, "c": {"A": 4}}
    assert result.grades["B"].price_low == 9
    verify(bids, [ask("a", "A", (1, 9))], result)


def test_a_substitute_that_alone_is_offered_is_bought_at_its_own_value() -> None:
    bids = [bid("b", "A", (9, 5), (4, 5), other={"B": -2})]
    asks = [ask("a", "B", (3, 9))]
    result = clear_coupled(bids, asks)
    assert result.bid_fills == ({"B": (5, 0)},)
    assert (result.grades["B"].price, result.welfare) == (3, 20)
    verify(bids, asks, result)


def test_cap_and_floor_are_each_grades_own() -> None:
    bids = [bid("b", "A", (50, 10), other={"B": -30})]
    asks = [ask("a", "A", (1, 4)), ask("c", "B", (1, 8))]
    under = CoupledTerms(floors={"A": 10}, caps={"A": 20, "B": 40})
    result = clear_coupled(bids, asks, terms=under)
    # Worth 20 in both; A's ask counts as 10, B's as 1, so B comes first.
    assert bought(bids, result) == {"b": {"A": 2, "B": 8}}
    assert (result.grades["A"].price, result.grades["B"].price) == (10, 10)
    verify(bids, asks, result, terms=under)
    assert clear_coupled(bids, asks, terms=CoupledTerms(floors={"B": 21})).grades["B"].quantity_lots == 0


def test_an_organization_never_trades_with_itself_in_any_grade() -> None:
    bids = [
        bid("b", "A", (10, 5), other={"B": 0}, organization_id="acme"),
        bid("c", "A", (9, 9), other={"B": 0}, organization_id="mallory"),
    ]
    asks = [
        ask("a", "A", (1, 3), organization_id="acme"),
        ask("d", "B", (1, 4), organization_id="acme"),
        ask("e", "B", (2, 1), organization_id="hyperion"),
    ]
    result = clear_coupled(bids, asks)
    assert result.netted_lots == 5
    assert bought(bids, result) == {"c": {"B": 3}}
    assert result.ask_fills == ((0,), (2,), (1,))
    verify(bids, asks, result)


def test_netting_may_leave_grades_with_one_side_only() -> None:
    bids = [bid("b", "A", (10, 5), other={"B": 0}, organization_id="acme"), bid("d", "B", (4, 2))]
    asks = [ask("a", "B", (1, 5), organization_id="acme"), ask("e", "A", (6, 3))]
    result = clear_coupled(bids, asks)
    assert (result.netted_lots, result.welfare) == (5, 0)
    assert (result.grades["A"].price_low, result.grades["A"].price_high) == (None, 6)
    assert (result.grades["B"].price_low, result.grades["B"].price_high) == (4, None)
    verify(bids, asks, result)


def test_ties_in_one_grade_go_pro_rata_also_when_grades_are_joined() -> None:
    bids = [bid("x", "A", (5, 50)), bid("y", "A", (5, 30)), bid("z", "A", (5, 21)), *SUB_1_BIDS[:1]]
    asks = [ask("a", "A", (5, 33)), ask("b", "B", (1, 10))]
    result = clear_coupled(bids, asks)
    assert bought(bids, result) == {"x": {"A": 16}, "y": {"A": 10}, "z": {"A": 7}, "B1": {"B": 10}}
    in_time = clear_coupled(bids, asks, tie_rule="time_priority")
    assert bought(bids, in_time) == {"x": {"A": 33}, "B1": {"B": 10}}
    with pytest.raises(EnginesDisagree, match="share of order"):
        verify(bids, asks, in_time)


def test_volume_comes_first_and_then_whoever_has_the_fewest_grades() -> None:
    bids = [bid("f", "A", (5, 10), other={"B": 0}, priority=-1), bid("a", "A", (5, 10))]
    both = clear_coupled(bids, [ask("sA", "A", (5, 10)), ask("sB", "B", (5, 4))])
    assert bought(bids, both) == {"f": {"B": 4}, "a": {"A": 10}}


def test_a_class_gets_what_moving_others_leaves_before_the_next_is_served() -> None:
    bids = [
        bid("c", "C", (5, 10)),
        bid("d", "D", (5, 10)),
        bid("ab", "A", (5, 10), other={"B": 0}),
        bid("ac", "A", (5, 10), other={"C": 0}),
        bid("bd", "B", (5, 10), other={"D": 0}),
    ]
    asks = [ask(f"s{grade}", grade, (5, 10)) for grade in GRADES]
    result = clear_coupled(bids, asks)
    assert bought(bids, result) == {"c": {"C": 10}, "d": {"D": 10}, "ab": {"B": 10}, "ac": {"A": 10}}
    verify(bids, asks, result)


def test_minima_of_a_lone_grade_are_reported() -> None:
    bids = [bid("b0", "C", (9, 4)), bid("b1", "C", (2, 6)), *SUB_1_BIDS]
    asks = [ask("a0", "C", (3, 10), all_or_none=True), ask("a1", "C", (8, 2)), *SUB_1_ASKS]
    result = clear_coupled(bids, asks)
    assert result.rejected_paradoxically == ("a0",)
    assert result.search_complete
    assert result.grades["C"].price == 9
    verify(bids, asks, result)


def test_a_program_without_an_optimum_is_no_result() -> None:
    (program,) = linear_programs(SUB_1_BIDS, SUB_1_ASKS)
    impossible = replace(program, row_lows=program.row_lows + 100, row_highs=program.row_highs + 100)
    with pytest.raises(RuntimeError, match="no optimum"):
        solve(impossible)


def test_steps_of_one_bid_share_a_tie_as_one() -> None:
    asks = [ask("a", "A", (5, 3)), ask("c", "B", (100, 1))]
    whole = [bid("x", "A", (5, 3), other={"B": 0}), bid("y", "A", (5, 3), other={"B": 0})]
    split = [bid("x", "A", (5, 1), (5, 1), (5, 1), other={"B": 0}), whole[1]]
    for bids in (whole, split):
        assert bought(bids, clear_coupled(bids, asks)) == {"x": {"A": 2}, "y": {"A": 1}}


def test_prices_are_ticks_where_ticks_support_the_trades() -> None:
    bids = [*SUB_1_BIDS, bid("z", "C", (29, 1), other={"A": -100})]
    asks = [*SUB_1_ASKS, ask("sC", "C", (10, 1))]
    result = clear_coupled(bids, asks, terms=CoupledTerms(tick=5))
    # A: 6 floors to 5; B is bound to 3; C: midpoint 19 floors to 15.
    assert [result.grades[grade].price for grade in "ABC"] == [5, 3, 15]
    verify(bids, asks, result, terms=CoupledTerms(tick=5))


def test_exact_with_large_numbers() -> None:
    scale = 2**55
    bids = [bid("B1", "A", (10 * scale, 2**58), other={"B": -1}), bid("B2", "A", (8 * scale, 2**58))]
    asks = [ask("sA", "A", (2 * scale, 2**58)), ask("sB", "B", (3 * scale, 2**59))]
    result = clear_coupled(bids, asks)
    assert result.welfare == 2**58 * (10 * scale - 1 - 3 * scale + 6 * scale)
    assert (result.grades["A"].price_low, result.grades["A"].price_high) == (3 * scale + 1, 8 * scale)
    verify(bids, asks, result)


def test_large_book_is_proved() -> None:
    chance = random.Random(11)
    bids = []
    for index in range(1_500):
        home, first, second = chance.sample([f"g{number:02}" for number in range(12)], 3)
        bids.append(
            bid(
                f"b{index}",
                home,
                *sorted(((chance.randrange(40), chance.randrange(60)) for _ in range(2)), reverse=True),
                other={first: chance.randint(-3, 3), second: chance.randint(-3, 3)},
            )
        )
    asks = [
        ask(f"a{index}", f"g{chance.randrange(12):02}", (chance.randrange(40), chance.randrange(90)))
        for index in range(1_500)
    ]
    result = clear_coupled(bids, asks)
    (program,) = linear_programs(bids, asks)
    assert result.welfare == round(solve(program))
    verify(bids, asks, result)


# ---- the proof refuses what is not the result


def altered_grade(result: CoupledClearing, grade: str, **changes: Any) -> CoupledClearing:
    (part,) = result.components
    grades = tuple(replace(each, **changes) if each.grade == grade else each for each in part.grades)
    return replace(result, components=(replace(part, grades=grades),))


SUB_1 = clear_coupled(SUB_1_BIDS, SUB_1_ASKS)


@pytest.mark.parametrize(
    "altered",
    [
        altered_grade(SUB_1, "A", price=7),
        altered_grade(SUB_1, "A", price=7, supporting_price=7),  # supports the trades, is not the midpoint
        altered_grade(SUB_1, "A", price=9, supporting_price=9),  # B2 would lose
        altered_grade(SUB_1, "B", price=2, supporting_price=2),  # sB would lose
        altered_grade(SUB_1, "A", price=None, supporting_price=None),
        altered_grade(SUB_1, "A", price=6.0, supporting_price=6.0),
        altered_grade(SUB_1, "A", price_low=3),
        altered_grade(SUB_1, "A", price_high=9),
        altered_grade(SUB_1, "A", quantity_lots=9),
        replace(SUB_1, bid_fills=({"A": (10,)}, {})),  # the greedy trade, with too little sold in B
        replace(SUB_1, bid_fills=({"A": (10,)}, {}), ask_fills=((10,), (0,))),
        replace(SUB_1, bid_fills=({"B": (9,)}, {"A": (10,)}), ask_fills=((10,), (9,))),
        replace(SUB_1, bid_fills=({"B": (11,)}, {"A": (10,)}), ask_fills=((10,), (11,))),
        replace(SUB_1, bid_fills=({"B": (10,)}, {"B": (10,)}), ask_fills=((0,), (20,))),
        replace(SUB_1, bid_fills=({"B": (10,)}, {"A": (10,), "B": (-1,)})),
        replace(SUB_1, bid_fills=({"B": (10,)},)),
        replace(SUB_1, ask_fills=((9,), (11,))),
        replace(SUB_1, ask_fills=((10,), (10.0,))),  # type: ignore[arg-type]
        replace(SUB_1, components=(replace(SUB_1.components[0], welfare=121),)),
        replace(SUB_1, components=(replace(SUB_1.components[0], netted_lots=1),)),
        replace(SUB_1, components=(replace(SUB_1.components[0], search_complete=False),)),
        replace(SUB_1, components=()),
    ],
)
def test_an_altered_result_is_refused(altered: CoupledClearing) -> None:
    verify(SUB_1_BIDS, SUB_1_ASKS, SUB_1)
    with pytest.raises(EnginesDisagree):
        verify(SUB_1_BIDS, SUB_1_ASKS, altered)


def test_no_trade_at_no_price_is_refused_where_trades_gain() -> None:
    nothing = tuple(
        replace(each, quantity_lots=0, price=None, supporting_price=None)
        for each in SUB_1.components[0].grades
    )
    idle = CoupledClearing((replace(SUB_1.components[0], grades=nothing, welfare=0),), ({}, {}), ((0,), (0,)))
    with pytest.raises(EnginesDisagree):
        verify(SUB_1_BIDS, SUB_1_ASKS, idle)


def test_an_altered_result_of_a_lone_grade_is_refused() -> None:
    bids, asks = [bid("b", "A", (10, 5))], [ask("a", "A", (1, 5))]
    honest = clear_coupled(bids, asks)
    verify(bids, asks, honest)
    with pytest.raises(EnginesDisagree):
        verify(bids, asks, altered_grade(honest, "A", price=6, supporting_price=6))
    with pytest.raises(EnginesDisagree):
        verify(bids, asks, altered_grade(honest, "A", supporting_price=6))


# ---- refusals name the field


@pytest.mark.parametrize(
    ("bids", "asks", "field"),
    [
        ([bid("b", "A", (1, 5), other={"B": 0}, all_or_none=True)], [], "all_or_none"),
        ([bid("b", "A", (1, 5), other={"B": 0}, min_fill=2)], [], "min_fill"),
        ([*SUB_1_BIDS, bid("b", "A", (1, 5), min_fill=2)], SUB_1_ASKS, "min_fill"),
        (SUB_1_BIDS, [*SUB_1_ASKS, ask("a", "A", (1, 5), all_or_none=True)], "all_or_none"),
        ([bid("b", "A", (1, 5), other={"A": 0})], [], "adjustments"),
        ([bid("b", "A", (1, 5), other={"B": 0.5})], [], "adjustments"),
        ([bid("b", "A", (1, 5), (2, 5))], [], "steps"),
        ([], [ask("a", "A", (2, 5), (1, 5))], "steps"),
        ([bid("b", "A", (1, 5)), bid("b", "B", (1, 5))], [], "id"),
        ([bid("b", "A", (2**59, 5), other={"B": 0})], SUB_1_ASKS, "steps"),
        ([bid("b", "A", (1, 2**62), other={"B": 0})], SUB_1_ASKS, "steps"),
        (
            [bid("b", "g0", (1, 5), other={f"g{number}": 0 for number in range(1, 63)})],
            [ask(f"a{number}", f"g{number}", (1, 1)) for number in range(63)],
            "adjustments",
        ),
    ],
)
def test_what_cannot_be_cleared_is_refused_by_field(
    bids: list[CoupledBid], asks: list[CoupledAsk], field: str
) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        clear_coupled(bids, asks)


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"tick": 0}, "tick"),
        ({"floors": {"A": 3}, "caps": {"A": 2}}, "floors"),
        ({"caps": {"A": 2.5}}, "caps"),
    ],
)
def test_terms_without_sense_are_refused_by_field(facts: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        CoupledTerms(**facts)


def test_lone_grades_have_no_bounds() -> None:
    result = clear_coupled([bid("b", "A", (2**80, 2**70))], [ask("a", "A", (0, 2**70))])
    assert (result.grades["A"].price, result.welfare) == (2**79, 2**150)


def test_digest_covers_the_terms_and_the_adjustments() -> None:
    digests = {
        digest_coupled_book(SUB_1_BIDS, SUB_1_ASKS, terms=CoupledTerms()),
        digest_coupled_book(SUB_1_BIDS, SUB_1_ASKS, terms=CoupledTerms(caps={"A": 9})),
        digest_coupled_book(
            [replace(SUB_1_BIDS[0], adjustments={"B": -2}), SUB_1_BIDS[1]], SUB_1_ASKS, terms=CoupledTerms()
        ),
    }
    assert len(digests) == 3


def test_the_documented_example_is_true() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    exec(compile(example, str(DOCS), "exec"), {})  # noqa: S102
