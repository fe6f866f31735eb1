"""The choice among minima: proved against every set and against the first rule, and bounded by a count."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.book import FIRST_RULE, Clearing, Order, digest_book, digest_result
from pricing.clearing import clear
from pricing.clearing_blocks import Block, choose_blocks, evaluate
from pricing.clearing_curves import Curves
from pricing.clearing_minima import choose_minima
from pricing.clearing_reference import confirm, reference_clear
from tests.pricing.test_clearing import ask, assert_sound, bid

levels = st.dictionaries(st.integers(-3, 9), st.integers(1, 9), max_size=6)


@st.composite
def some_blocks(draw: st.DrawFn, *, most: int = 8) -> list[Block]:
    blocks = []
    for number in range(draw(st.integers(1, most))):
        is_bid = draw(st.booleans())
        prices = sorted(draw(st.sets(st.integers(-3, 9), min_size=1, max_size=3)), reverse=is_bid)
        rows = tuple((price, draw(st.integers(1, 9))) for price in prices)
        total = sum(lots for _, lots in rows)
        name = f"{draw(st.integers(0, 9))}-{number}"
        # One lot more than it has: such an order can never be filled.
        minimum = draw(st.just(total) | st.integers(1, total + 1))
        blocks.append(Block((name, is_bid), is_bid, rows, minimum))
    return blocks


@settings(max_examples=200, deadline=None)
@given(levels, levels, some_blocks())
def test_both_rules_make_the_same_choice_where_both_prove_it(
    bids: dict[int, int], asks: dict[int, int], blocks: list[Block]
) -> None:
    first = choose_blocks(bids, asks, blocks, search_limit=10**6)
    second = choose_minima(bids, asks, blocks, search_limit=10**6)
    assert first[2]
    assert second == first


@settings(max_examples=120, deadline=None)
@given(levels, levels, some_blocks(), st.integers(0, 6), st.randoms(use_true_random=False))
def test_a_choice_cut_short_is_sound_flagged_and_independent_of_the_order(
    bids: dict[int, int], asks: dict[int, int], blocks: list[Block], limit: int, shuffle: random.Random
) -> None:
    chosen, outcome, complete = choose_minima(bids, asks, blocks, search_limit=limit)
    assert evaluate(bids, asks, chosen) == (outcome, [])
    best = choose_minima(bids, asks, blocks, search_limit=10**6)
    assert (chosen, outcome) == best[:2] or not complete
    assert evaluate(bids, asks, [])[0].value <= outcome.value <= best[1].value
    mixed = shuffle.sample(blocks, len(blocks))
    assert choose_minima(bids, asks, mixed, search_limit=limit) == (chosen, outcome, complete)


@pytest.mark.parametrize("seed", range(12))
def test_every_set_of_ten_minima_tried_gives_the_same(seed: int) -> None:
    chance = random.Random(seed)
    span = chance.choice([4, 20, 1_000])

    def order(name: str, *, is_bid: bool, minimum: bool) -> Order:
        prices = sorted((chance.randrange(span) for _ in range(chance.randint(1, 3))), reverse=is_bid)
        steps = tuple((price, chance.randint(1, 30)) for price in prices)
        lots = sum(some for _, some in steps)
        return Order(
            name, steps, priority=chance.randrange(3), min_fill=chance.randint(1, lots) if minimum else 0
        )

    bids = [order(f"b{n}", is_bid=True, minimum=n < 5) for n in range(12)]
    asks = [order(f"a{n}", is_bid=False, minimum=n < 5) for n in range(12)]
    result = clear(bids, asks)
    assert result.search_complete
    assert result == reference_clear(bids, asks)


def large_book(orders: int, *, span: int = 1_900_000, size: int = 1) -> tuple[list[Order], list[Order]]:
    """Half bids, half asks; one in twenty has a minimum and is `size` times as large."""
    chance = random.Random(11)

    def order(name: str, number: int) -> Order:
        price, lots = 100_000 + chance.randrange(span), chance.randrange(1, 1_000)
        if chance.random() >= 0.05:
            return Order(name, ((price, lots),), priority=number)
        lots *= size
        whole = chance.random() < 0.5
        minimum = 0 if whole else chance.randint(1, lots)
        return Order(name, ((price, lots),), priority=number, all_or_none=whole, min_fill=minimum)

    half = range(orders // 2)
    return [order(f"b{n:05}", n) for n in half], [order(f"a{n:05}", n) for n in half]


@pytest.mark.parametrize("terms", [{}, {"span": 40}, {"size": 100}], ids=["fine", "coarse", "large minima"])
def test_a_large_book_is_proved_best_and_confirmed(terms: dict[str, int]) -> None:
    bids, asks = large_book(10_000, **terms)
    results: list[Clearing] = []
    crossings = crossings_of(lambda: results.append(clear(bids, asks)))
    (result,) = results
    assert result.search_complete
    assert crossings < 3_000
    assert_sound(bids, asks, result)
    confirm(bids, asks, result)
    for side, is_bid in ((bids, True), (asks, False)):
        for order in side:
            if order.id in result.rejected_paradoxically:
                assert order.all_or_none or order.min_fill
                limit = order.steps[0][0]
                assert result.price is not None
                assert limit > result.price if is_bid else limit < result.price


def crossings_of(work: Callable[[], object]) -> int:
    """How often a piece of work crosses the curves of a book."""
    counted = 0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code is Curves.cross.__code__

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return counted


def knapsack() -> tuple[list[Order], list[Order]]:
    chance = random.Random(1)
    sizes = [10**6 + chance.randrange(10**6) for _ in range(60)]
    bids = [
        bid(f"b{n:02}", (1_000 + chance.randrange(9), size), all_or_none=True) for n, size in enumerate(sizes)
    ]
    return bids, [ask("a", (1, 30 * 10**6 + 1))]


def both_sides_whole() -> tuple[list[Order], list[Order]]:
    chance = random.Random(2)
    sides = [
        [
            Order(f"{name}{n}", ((chance.randrange(50), chance.randrange(1, 10**6)),), all_or_none=True)
            for n in range(300)
        ]
        for name in "ba"
    ]
    return sides[0], sides[1]


def one_that_crowds_out_all() -> tuple[list[Order], list[Order]]:
    small = [bid(f"b{n:03}", (20 + n % 50, 10), all_or_none=True) for n in range(400)]
    return [*small, bid("huge", (90, 10**6), all_or_none=True)], [
        ask(f"a{n}", (n % 60, 9)) for n in range(400)
    ]


def one_buyer_who_would_stall_it() -> tuple[list[Order], list[Order]]:
    """A thousand of his bids at one price, all for all or none, whose sums hardly ever meet the one supply."""
    chance = random.Random(4)
    sizes = [2 * (10**5 + chance.randrange(10**5)) for _ in range(1_000)]
    bids = [Order(f"b{n:03}", ((1_000, size),), "mallory", all_or_none=True) for n, size in enumerate(sizes)]
    return bids, [ask("a", (1_000, sum(sizes) // 2 | 1), all_or_none=True)]


@pytest.mark.parametrize("limit", [1, 40, 500])
@pytest.mark.parametrize(
    "book", [knapsack, both_sides_whole, one_that_crowds_out_all, one_buyer_who_would_stall_it]
)
def test_the_work_is_bounded_by_a_count(
    book: Callable[[], tuple[list[Order], list[Order]]], limit: int
) -> None:
    bids, asks = book()
    results: list[Clearing] = []
    crossings = crossings_of(lambda: results.append(clear(bids, asks, search_limit=limit)))
    # Rejections by two orders of going, insertions, two searches; up to two crossings a step.
    assert crossings <= 3 * (len(bids) + len(asks)) + 8 * limit + 20
    (result,) = results
    assert_sound(bids, asks, result)
    confirm(bids, asks, result)
    assert clear(bids, asks, search_limit=limit) == result


def test_a_search_that_ends_early_says_so() -> None:
    assert not clear(*knapsack(), search_limit=500).search_complete


def test_an_order_that_can_never_fill_takes_nobody_with_it() -> None:
    bids, asks = one_that_crowds_out_all()
    result = clear(bids, asks)
    assert result.search_complete
    assert result.rejected_paradoxically == ("huge",)
    without = clear(bids[:-1], asks)
    assert result.bid_fills[:-1] == without.bid_fills
    assert result.price == without.price


def test_what_just_fits_and_crowds_out_others_is_compared_with_them() -> None:
    """Taken, it is worth 90 x 200; the 20 small ones, which it drives out of the supply, are worth 9 x 10 each."""
    small = [bid(f"b{n:02}", (10, 10), all_or_none=True) for n in range(20)]
    asks = [ask("a", (1, 200))]
    large = clear([*small, bid("large", (91, 200), all_or_none=True)], asks)
    assert (large.welfare, len(large.rejected_paradoxically)) == (18_000, 0)  # at 50 no small bid gains
    cheap = clear([*small, bid("large", (9, 200), all_or_none=True)], asks)
    assert (cheap.welfare, cheap.price, cheap.rejected_paradoxically) == (1_800, 5, ("large",))
    assert cheap.search_complete
    assert large.search_complete


def fifty_minima() -> tuple[list[Order], list[Order]]:
    chance = random.Random(3)
    bids = [
        bid(f"b{n:02}", (chance.randrange(5, 30), chance.randrange(1, 40)), all_or_none=True)
        for n in range(25)
    ]
    asks = [
        ask(f"a{n:02}", (chance.randrange(0, 25), chance.randrange(1, 40)), all_or_none=True)
        for n in range(25)
    ]
    return [*bids, bid("x", (18, 20))], [*asks, ask("y", (9, 20))]


def test_the_first_rule_replays_to_its_old_digests() -> None:
    """Also where its search was cut short; the digests are those that it gave before there was a second rule."""
    bids, asks = fifty_minima()
    result = clear(bids, asks, search_limit=50, rule=FIRST_RULE)
    assert not result.search_complete
    assert digest_result(bids, asks, result, rule=FIRST_RULE) == (
        "51508f9efb468810dc24ffb9b10e39aefefbbc088eca227c133b613b3cb3e10d"
    )
    assert digest_book(bids, asks, terms={}, rule=FIRST_RULE) == (
        "2ae5f75a2fe0b6ccb425780291d94c732f40a227ee4e3202f670bc003d5f695d"
    )
    better = clear(bids, asks)
    assert better.search_complete
    assert (result.welfare, better.welfare) == (3_815, 4_173)


def test_a_book_without_minima_comes_out_as_it_did_under_the_first_rule() -> None:
    chance = random.Random(7)

    def order(name: str, of: int, *, is_bid: bool) -> Order:
        steps = sorted(((chance.randrange(10**6), chance.randrange(50)) for _ in range(2)), reverse=is_bid)
        return Order(name, tuple(steps), organization_id=f"o{of}")

    bids = [order(f"b{n}", n % 40, is_bid=True) for n in range(900)]
    asks = [order(f"a{n}", n % 70, is_bid=False) for n in range(900)]
    result = clear(bids, asks, floor=10, cap=900_000)
    assert result == clear(bids, asks, floor=10, cap=900_000, rule=FIRST_RULE)
    assert digest_result(bids, asks, result, rule=FIRST_RULE) == (
        "e478b737978e0863a974cc080abc42d4f1bc9855438911ceabcdbb098adfbaab"
    )


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rule:"):
        clear([], [], rule="uniform-3")
