"""A large book goes through text and SQL: what they make of it is what the plain rules make of it."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.ids import derived_hex, derived_hexes, derived_id, uuid7
from marketplace.orders.book import EPOCH, Book, BookAsk, BookBid, SealedBook
from marketplace.orders.book_text import BidLine, sealed_text
from marketplace.orders.models import Ask, Auction, Bid, Trade
from marketplace.orders.services.controls import halt_market
from marketplace.orders.services.rounds import advance_auctions, close_due_auctions, open_auctions
from marketplace.orders.services.topping_up import lock_bids_at_the_gate, lock_standing_bids
from marketplace.orders.terms import worst_case_with_tax
from tests.cast import Party, Plant, fund, make_grade
from tests.orders.world import PERIOD, beat, bid_of, revise, run_round

MOMENTS = st.integers(0, 2**52).map(lambda microseconds: EPOCH + timedelta(microseconds=microseconds))
STEPS = st.lists(st.tuples(st.integers(0, 2**63), st.integers(1, 2**40)), min_size=1, max_size=10)
BIDS = st.builds(
    BookBid,
    id=st.uuids(),
    organization_id=st.uuids(),
    placed_at=MOMENTS,
    steps=STEPS,
    min_fill_lots=st.integers(0, 2**40),
    all_or_none=st.booleans(),
    substitutes=st.lists(
        st.tuples(st.uuids(), st.integers(-(2**62), 2**62)), max_size=5, unique_by=lambda named: named[0]
    ).map(tuple),
)
ASKS = st.builds(
    BookAsk,
    id=st.uuids(),
    organization_id=st.uuids(),
    offering_id=st.uuids(),
    placed_at=MOMENTS,
    rate=st.integers(0, 2**63),
    lots=st.integers(1, 2**40),
)


@given(
    st.lists(BIDS, max_size=6, unique_by=lambda bid: bid.id),
    st.lists(ASKS, max_size=3, unique_by=lambda ask: ask.id),
    MOMENTS,
    st.booleans(),
    st.sampled_from(["", "operator"]),
)
def test_a_book_written_as_text_is_the_book(
    bids: list[BookBid], asks: list[BookAsk], start: datetime, missed: bool, halted: str
) -> None:
    plain = Book(uuid7(), start, 5_000_000, bids, asks, missed, halted)
    lines = [
        BidLine(
            str(bid.id),
            str(bid.organization_id),
            (bid.placed_at - EPOCH) // timedelta(microseconds=1),
            json.dumps(bid.steps, separators=(",", ":")),
            bid.min_fill_lots,
            bid.all_or_none,
            [(str(grade_id), adjustment) for grade_id, adjustment in bid.substitutes],
        )
        for bid in bids
    ]
    random.Random(len(lines)).shuffle(lines)
    text = sealed_text(Book(plain.grade_id, start, 5_000_000, [], asks, missed, halted), lines)
    assert json.loads(text.data) == plain.to_json()
    assert text.digest == plain.sealed().digest() == SealedBook(json.loads(text.data)).digest()


@given(st.uuids(), st.text())
def test_an_id_derived_as_text_is_the_derived_id(parent: UUID, code: str) -> None:
    code = code.encode("utf-8", "ignore").decode()
    assert derived_hex(str(parent), code) == derived_hex(parent.hex, code) == derived_id(parent, code).hex
    assert derived_hexes(str(parent), ["", code, code])[1:] == [derived_id(parent, code).hex] * 2


def test_the_gate_seals_what_the_bids_say(acme: Party, mallory: Party, plant: Plant, now: datetime) -> None:
    """The stored book against one that is made of the rows, one by one."""
    for party in (acme, mallory):
        fund(party, 10**9, now)
    bid_of(acme, now, client_id="two", steps=((450_000, 40), (300_000, 20)))
    bid_of(acme, now + timedelta(microseconds=7), client_id="whole", steps=((400_000, 5),), all_or_none=True)
    bid_of(mallory, now + timedelta(seconds=1), client_id="least", steps=((350_000, 9),), min_fill_lots=3)
    auction = run_round(plant, now)
    assert auction.book is not None
    read = Book.from_json(auction.book)
    assert read.bids == [
        BookBid(
            bid.id,
            bid.organization_id,
            bid.priority_at,
            [(step.rate_micros_per_mtok, step.lots) for step in bid.steps.all()],
            bid.min_fill_lots,
            bid.all_or_none,
        )
        for bid in Bid.objects.order_by("id")
    ]
    assert read.sealed().digest() == auction.book_digest


def test_the_gate_seals_the_substitutes_that_count(
    acme: Party, operator: Party, plant: Plant, now: datetime
) -> None:
    """Of two other grades one is halted; another bid takes what its revision left."""
    fund(acme, 10**9, now)
    near, late = make_grade(now, slug="near", model="near"), make_grade(now, slug="late", model="late")
    bid_of(acme, now, client_id="plain")
    both = bid_of(acme, now, client_id="both", substitutes=(("near", -7), ("late", 5)))
    left = bid_of(acme, now, client_id="left", substitutes=(("near", 9), ("late", 1)))
    revise(acme, left, now, substitutes=(("near", 3),))
    beyond = bid_of(acme, now, client_id="beyond", substitutes=(("late", 2),))
    halt_market(operator_id=operator.id, grade=late, reason="looks odd", now=now, actor=SYSTEM)
    for share in (0.0, 0.85, 0.92):
        beat(plant, now + PERIOD * share)
        advance_auctions(now=now + PERIOD * share)
    home, other, halted = (
        Auction.objects.get(grade_id=grade_id, period_start=now + PERIOD)
        for grade_id in (plant.offering.grade_id, near.id, late.id)
    )
    assert home.book is not None
    read = Book.from_json(home.book)
    named = {bid.id: bid.substitutes for bid in read.bids if bid.substitutes}
    assert named == {both.id: ((near.id, -7),), left.id: ((near.id, 3),)}
    assert beyond.id in {bid.id for bid in read.bids}
    assert read.sealed().digest() == home.book_digest
    assert (halted.halted, halted.joined) == ("operator", [])
    # Nobody offers the other grade, so the books that bids named together were cleared alone.
    assert home.joined == other.joined == []


@pytest.mark.parametrize("named", [(), ("near",), ("near", "far")])
def test_sql_and_rules_agree_about_what_a_bid_can_cost(
    acme: Party, plant: Plant, now: datetime, named: tuple[str, ...]
) -> None:
    Organization.objects.filter(pk=acme.id).update(tax_ppm=190_001)
    fund(acme, 10**9, now)
    for slug in named:
        make_grade(now, slug=slug, model=slug)
    draw = random.Random(20260310)
    more: dict[str, list[int]] = {}
    for number in range(12):
        rates = sorted((draw.randrange(1_000, 500_000) for _ in range(1 + number % 10)), reverse=True)
        substitutes = tuple((slug, draw.randrange(-999, 100_000)) for slug in named)
        steps = tuple((rate, draw.randrange(1, 9)) for rate in rates)
        placed = bid_of(acme, now, client_id=f"b{number}", steps=steps, substitutes=substitutes)
        more[str(placed.id)] = [adjustment for _, adjustment in substitutes]
        if number == 5 and named:
            # What is taken back counts no more.
            revise(acme, placed, now, substitutes=substitutes[1:])
            del more[str(placed.id)][0]
    with transaction.atomic():
        locked = lock_bids_at_the_gate(
            [plant.offering.grade_id], period_start=now + PERIOD, gate_at=now + PERIOD * 0.9
        )
        # Nothing is to be done for bids that are whole.
        assert lock_standing_bids(plant.offering.grade_id, gate_at=now + PERIOD * 0.9) == []
    assert len(locked) == 12
    assert all(bid.is_whole for bid in locked)
    for bid in locked:
        row = Bid.objects.select_related("ledger_hold").get(pk=bid.id)
        kept = [(step.rate_micros_per_mtok, step.lots) for step in row.steps.all()]
        assert json.loads(bid.steps) == [list(step) for step in kept]
        assert sorted(adjustment for _, adjustment in json.loads(bid.substitutes or "[]")) == sorted(
            more[bid.id]
        )
        assert row.ledger_hold is not None
        worst = worst_case_with_tax(kept, 190_001, more[bid.id])
        assert bid.worst_micros == worst == row.ledger_hold.amount_micros
    # A tax that rises leaves every hold short by what the rules say.
    Organization.objects.filter(pk=acme.id).update(tax_ppm=250_000)
    with transaction.atomic():
        short = lock_standing_bids(plant.offering.grade_id, gate_at=now + PERIOD * 0.9)
    assert {bid.id: bid.worst_micros for bid in short} == {
        bid.id: worst_case_with_tax(
            [(rate, lots) for rate, lots in json.loads(bid.steps)], 250_000, more[bid.id]
        )
        for bid in locked
    }


def test_a_trade_with_an_ask_of_another_auction_is_refused(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 10**9, now)
    bid_of(acme, now)
    first = run_round(plant, now)
    open_auctions(now=now + PERIOD)
    beat(plant, now + PERIOD * 1.92)
    close_due_auctions(now=now + PERIOD * 1.92)
    other = Auction.objects.exclude(pk=first.pk).get(status=Auction.Status.CLOSED)
    trade = Trade.objects.get(auction=first)
    assert Ask.objects.filter(pk=trade.ask_id, auction=first).exists()
    with pytest.raises(IntegrityError, match="orders_trade_ask_of_its_auction"):
        _move(trade, other)


def _move(trade: Trade, auction: Auction) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        Trade.objects.filter(pk=trade.pk).update(auction=auction)
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
