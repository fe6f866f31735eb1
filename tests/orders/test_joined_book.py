"""Joined books, pure: which are joined, that nothing changes where nothing is substituted, and what a bid can cost."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.orders.book import Book, BookAsk, BookBid, SealedBook, sound_book
from marketplace.orders.joined_book import (
    MOST_GRADES,
    JoinedBook,
    connected,
    counted_substitutes,
    joined_groups,
)
from marketplace.orders.terms import worst_case_with_tax
from pricing.clearing_reference import EnginesDisagree
from pricing.rating import gross_up
from pricing.units import Micros, Ppm

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
CAP = 10_000


def bid(number: int, *steps: tuple[int, int], **more: object) -> BookBid:
    return BookBid(UUID(int=1000 + number), UUID(int=100 + number), NOW, list(steps), **more)  # type: ignore[arg-type]


def ask(number: int, rate: int, lots: int, owner: int | None = None) -> BookAsk:
    organization = UUID(int=500 + number if owner is None else owner)
    return BookAsk(UUID(int=2000 + number), organization, UUID(int=3000 + number), NOW, rate, lots)


def book(grade: UUID, bids: list[BookBid], asks: list[BookAsk], *, cap: int = CAP) -> SealedBook:
    return Book(grade, NOW, cap, bids, asks).sealed()


def groups_of(*books: SealedBook) -> list[list[str]]:
    groups, reasons = joined_groups(books)
    assert reasons == []
    return [[each.data["grade_id"] for each in group] for group in groups]


def test_a_bid_joins_its_grade_to_those_whose_lowest_ask_it_reaches() -> None:
    reaching = bid(1, (10, 5), substitutes=((B, -1), (C, -3)))
    a = book(A, [reaching], [ask(1, 2, 5)])
    assert groups_of(a, book(B, [], [ask(2, 9, 5)]), book(C, [], [ask(3, 8, 5)])) == [
        [str(A), str(B)],
        [str(C)],
    ]
    # Nobody offers B: nothing can be had there.
    assert groups_of(a, book(B, [], [])) == [[str(A)], [str(B)]]
    # An ask above the cap is none.
    assert groups_of(a, book(B, [], [ask(2, 9, 5)], cap=8)) == [[str(A)], [str(B)]]
    # A halted book sells nothing.
    halted = Book(B, NOW, CAP, [], [ask(2, 9, 5)], halted="operator").sealed()
    assert groups_of(a, halted) == [[str(A)], [str(B)]]
    # Where its own grade is sold by nobody it still takes the other.
    joined = JoinedBook([book(A, [reaching], []), book(B, [], [ask(2, 7, 9)])])
    result = joined.clear()
    joined.confirm(result)
    assert joined.results(result)[str(B)].facts.quantity_lots == 5


def test_a_bid_with_a_minimum_joins_nothing_and_is_left_out_where_others_join_its_grade() -> None:
    whole = bid(2, (10, 4), all_or_none=True)
    alone = book(A, [bid(1, (10, 5)), whole], [ask(1, 2, 20)])
    other = book(B, [bid(3, (9, 5), substitutes=((A, 0),))], [ask(2, 3, 1)])
    joined = JoinedBook([alone, other])
    result = joined.clear()
    joined.confirm(result)
    assert joined.left_out == {str(A): [str(whole.id)], str(B): []}
    assert str(whole.id) not in {order.id for order, _, _ in joined.results(result)[str(A)].bids}
    # Alone, its grade decides about it as ever.
    assert [sum(fill) for fill in alone.clear().bid_fills] == [5, 4]


def test_joined_grades_beyond_the_bounds_stand_alone_and_say_why() -> None:
    names = [UUID(int=number) for number in range(1, MOST_GRADES + 2)]
    books = [
        book(
            grade, [bid(number, (10, 1), substitutes=((names[0], 0),))] if number else [], [ask(number, 1, 1)]
        )
        for number, grade in enumerate(names)
    ]
    groups, reasons = joined_groups(books)
    assert len(groups) == len(names)
    assert reasons == [f"{len(names)} grades are joined; at most {MOST_GRADES} are cleared together"]
    groups, reasons = joined_groups(books[:-1])
    assert (len(groups), reasons) == (1, [])
    far = [book(A, [bid(1, (10, 1), substitutes=((B, 0),))], [], cap=2**60), book(B, [], [ask(1, 1, 1)])]
    assert joined_groups(far)[1] == ["a cap is beyond what joined clearing computes with"]


def test_the_digest_is_of_the_substitutes_too_and_a_book_without_has_the_one_it_always_had() -> None:
    plain = book(A, [bid(1, (10, 5))], [ask(1, 2, 5)])
    assert "substitutes" not in plain.data["bids"][0]
    named = book(A, [bid(1, (10, 5), substitutes=((B, -1),))], [ask(1, 2, 5)])
    other = book(A, [bid(1, (10, 5), substitutes=((B, -2),))], [ask(1, 2, 5)])
    assert len({plain.digest(), named.digest(), other.digest()}) == 3
    assert sound_book(other.data, named.digest()) is None
    assert Book.from_json(named.data).sealed().digest() == named.digest()


def test_nobody_trades_with_himself_in_another_grade() -> None:
    own = bid(1, (10, 5), substitutes=((B, 0),))
    a = book(A, [own], [ask(1, 9, 1)])
    b = book(B, [], [ask(2, 1, 3, owner=own.organization_id.int), ask(3, 2, 9)])
    joined = JoinedBook([a, b])
    result = joined.clear()
    joined.confirm(result)
    assert result.netted_lots == 3
    assert [(order.id, lots) for order, lots, _ in joined.results(result)[str(B)].asks] == [
        (str(ask(3, 2, 9).id), 2)
    ]


def test_what_counts_in_a_round_is_clipped_at_no_cap() -> None:
    steps, named = [(100, 5), (50, 5)], [(B, 20), (C, -50)]
    caps = {A: 200, B: 200, C: 200}
    assert counted_substitutes(steps, named, home_cap=200, caps=caps) == ((B, 20), (C, -50))
    assert counted_substitutes(steps, named, home_cap=99, caps=caps) == ()
    assert counted_substitutes(steps, named, home_cap=200, caps={**caps, B: 119}) == ((C, -50),)
    assert counted_substitutes(steps, named, home_cap=200, caps={A: 200, B: 120}) == ((B, 20),)
    assert counted_substitutes([(100, 1), (49, 1)], named, home_cap=200, caps=caps) == ((B, 20),)


def test_what_was_changed_in_a_result_is_found_out() -> None:
    joined = JoinedBook(
        [
            book(A, [bid(1, (10, 10), substitutes=((B, -1),)), bid(2, (8, 10))], [ask(1, 2, 10)]),
            book(B, [], [ask(2, 3, 20)]),
        ]
    )
    result = joined.clear()
    joined.confirm(result)
    # Moving nobody leaves welfare on the table.
    worse = replace(result, bid_fills=({str(A): (10,)}, {}))
    with pytest.raises(EnginesDisagree):
        joined.confirm(worse)


def test_connected_components_are_found_through_chains() -> None:
    names = dict.fromkeys("abcde")
    assert connected(names, {("a", "c"), ("c", "e"), ("d", "x")}) == [["a", "c", "e"], ["b"], ["d"]]


step = st.tuples(st.integers(1, 12), st.integers(1, 5))
curve = st.lists(step, min_size=1, max_size=3).map(lambda steps: sorted(steps, reverse=True))
side = st.lists(curve, max_size=4)
offers = st.lists(step, max_size=4)


@given(st.tuples(side, side), st.tuples(offers, offers))
def test_without_substitutes_every_grade_comes_to_what_it_comes_to_alone(
    bids: tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]],
    asks: tuple[list[tuple[int, int]], list[tuple[int, int]]],
) -> None:
    books = [
        book(
            grade,
            [bid(10 * place + number, *steps) for number, steps in enumerate(bids[place])],
            [ask(10 * place + number, *offer) for number, offer in enumerate(asks[place])],
        )
        for place, grade in enumerate((A, B))
    ]
    assert groups_of(*books) == [[str(A)], [str(B)]]
    joined = JoinedBook(books)
    result = joined.clear()
    joined.confirm(result)
    for each in books:
        alone, part = each.clear(), joined.results(result)[each.data["grade_id"]]
        facts = part.facts
        assert (facts.quantity_lots, facts.price) == (alone.quantity_lots, alone.price)
        if alone.price is not None:
            assert (facts.price_low, facts.price_high) == (alone.price_low, alone.price_high)
        mine = {order.id: lots for order, lots, _ in part.bids}
        assert mine == {
            order.id: sum(fill) for order, fill in zip(each.bids, alone.bid_fills, strict=True) if sum(fill)
        }


@given(
    st.lists(st.tuples(curve, st.dictionaries(st.sampled_from("BC"), st.integers(-3, 3))), max_size=4),
    st.tuples(offers, offers, offers),
    st.sampled_from([0, 190_000, 333_333]),
)
def test_a_bids_hold_covers_its_awards_in_all_grades_and_nobody_pays_more_than_a_grade_is_worth_to_him(
    wanted: list[tuple[list[tuple[int, int]], dict[str, int]]],
    asks: tuple[list[tuple[int, int]], ...],
    tax_ppm: int,
) -> None:
    grades, scale = {"A": A, "B": B, "C": C}, 1_001
    caps = dict.fromkeys((A, B, C), CAP * scale)
    bids = []
    for number, (steps, more) in enumerate(wanted):
        scaled = [(rate * scale, lots * 7) for rate, lots in steps]
        named = [(grades[name], adjustment * scale) for name, adjustment in more.items()]
        counted = counted_substitutes(scaled, named, home_cap=caps[A], caps=caps)
        bids.append(bid(number, *scaled, substitutes=counted))
    joined = JoinedBook(
        [
            book(
                grade,
                bids if grade == A else [],
                [ask(10 * place + n, rate * scale, lots * 5) for n, (rate, lots) in enumerate(asks[place])],
                cap=CAP * scale,
            )
            for place, grade in enumerate((A, B, C))
        ]
    )
    result = joined.clear()
    joined.confirm(result)
    parts = joined.results(result)
    for own in bids:
        cost = 0
        for part in parts.values():
            for order, lots, best in part.bids:
                if order.id == str(own.id):
                    assert part.facts.price is not None
                    assert part.facts.price <= best
                    award = -(-part.facts.price * lots // 1000)
                    cost += gross_up(Micros(award), Ppm(tax_ppm))
        assert cost <= worst_case_with_tax(own.steps, tax_ppm, [more for _, more in own.substitutes])
