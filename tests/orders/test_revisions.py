"""An open bid changes atomically with its hold, its place and its record."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, connections, transaction
from django.db.utils import DatabaseError
from hypothesis import given
from hypothesis import strategies as st

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import Entitlement
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import InsufficientFunds
from marketplace.orders.models import Auction, Bid, BidRevision
from marketplace.orders.services.bids import MarketClosed, cancel_bid, terms_of
from marketplace.orders.services.revising import RevisionConflict
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.terms import BidTerms, asks_for_more, only_improves
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.orders.world import PERIOD, STEPS, available, beat, bid_of, held, revise, run_round


def test_a_revision_changes_steps_and_hold_together(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    assert held(acme) == 18_000
    revised = revise(acme, bid, now, steps=((500_000, 100),), min_fill_lots=10, all_or_none=True)
    assert (revised.revision, revised.min_fill_lots, revised.all_or_none) == (2, 10, True)
    assert held(acme) == 50_000
    less = revise(acme, revised, now, steps=((500_000, 10),), all_or_none=False)
    assert held(acme) == 5_000
    less.refresh_from_db()
    assert [(s.rate_micros_per_mtok, s.lots) for s in less.steps.all()] == [(500_000, 10)]
    assert less.contract.max_rate_micros_per_mtok == 500_000
    kept = BidRevision.objects.filter(bid=bid).order_by("number")
    assert [(one.number, one.event, one.held_micros) for one in kept] == [
        (1, "placed", 18_000),
        (2, "revised", 50_000),
        (3, "revised", 5_000),
    ]
    assert bytes(kept[2].terms_sha256) == terms_of(less).sha256()
    assert kept[0].terms["steps"] == [list(step) for step in STEPS]
    assert AuditEntry.objects.filter(action="bid.revise", object_id=bid.id).count() == 2
    assert not check_ledger()


def test_money_that_is_not_there_changes_nothing(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 20_000, now)
    bid = bid_of(acme, now)
    with pytest.raises(InsufficientFunds):
        revise(acme, bid, now, steps=((500_000, 100),), min_fill_lots=5)
    bid.refresh_from_db()
    assert (bid.revision, bid.min_fill_lots) == (1, 0)
    assert terms_of(bid).steps == STEPS
    assert (held(acme), available(acme)) == (18_000, 2_000)
    assert BidRevision.objects.count() == 1


def test_a_change_of_another_revision_is_a_conflict_and_the_same_again_is_not(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    revise(acme, bid, now, revision=1, min_fill_lots=5)
    assert revise(acme, bid, now, revision=1, min_fill_lots=5).revision == 2
    for revision, changes in (
        (1, {"min_fill_lots": 6}),
        (3, {"min_fill_lots": 5}),
        (1, {"all_or_none": True}),
    ):
        with pytest.raises(RevisionConflict) as refused:
            revise(acme, bid, now, revision=revision, **changes)
        assert refused.value.field == "revision"
    assert revise(acme, bid, now, revision=2, min_fill_lots=5).revision == 2, "no change is no revision"
    assert BidRevision.objects.count() == 2


def test_asking_for_more_goes_to_the_end_of_the_queue_and_less_keeps_its_place(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    later = [now + timedelta(seconds=second) for second in range(1, 5)]
    bid = revise(acme, bid, later[0], steps=((450_000, 30), (300_000, 20)))
    assert bid.priority_at == now
    bid = revise(acme, bid, later[1], min_fill_lots=3, valid_until=now + timedelta(days=1))
    assert bid.priority_at == now
    bid = revise(acme, bid, later[2], steps=((450_001, 30),))
    assert bid.priority_at == later[2]
    bid = revise(acme, bid, later[3], steps=((450_001, 31),))
    assert bid.priority_at == later[3]
    auction = run_round(plant, now)
    assert auction.book is not None
    assert datetime.fromisoformat(auction.book["bids"][0]["placed_at"]) == later[3]


def test_in_the_no_cancel_phase_a_bid_may_only_improve(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    end = now + timedelta(days=1)
    bid = bid_of(acme, now, min_fill_lots=10, max_total_micros_per_day=10**6, valid_until=end)
    advance_auctions(now=now)
    late = now + PERIOD * 0.85
    worse: tuple[tuple[str, Any], ...] = (
        ("steps", ((450_000, 39), (300_000, 21))),
        ("steps", ((449_999, 60),)),
        ("min_fill_lots", 11),
        ("all_or_none", True),
        ("max_total_micros_per_day", 10**6 - 1),
        ("valid_until", end - timedelta(seconds=1)),
    )
    for field, value in worse:
        with pytest.raises(MarketClosed) as refused:
            revise(acme, bid, late, **{field: value})
        assert refused.value.field == field
    # A budget that its greater worst case no longer fits would take it out of the book.
    with pytest.raises(MarketClosed) as refused:
        revise(acme, bid, late, steps=((900_000, 1_200),))
    assert refused.value.field == "max_total_micros_per_day"
    assert held(acme) == 18_000
    better = revise(acme, bid, late, steps=((450_001, 40), (300_000, 21)), min_fill_lots=9, valid_until=None)
    assert better.revision == 2
    with pytest.raises(MarketClosed):
        cancel_bid(organization_id=acme.id, bid_id=bid.id, now=late, actor=SYSTEM)


def test_from_the_gate_to_the_result_nothing_changes(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)
    gate = now + PERIOD * 0.9
    for at in (gate, now + PERIOD * 0.95):
        with pytest.raises(MarketClosed):
            revise(acme, bid, at, steps=((500_000, 100),))
    # Sealed, not cleared: only the row's state says so.
    Auction.objects.update(status=Auction.Status.CLOSED)
    with pytest.raises(MarketClosed):
        revise(acme, bid, now + PERIOD * 2, steps=((500_000, 100),))
    assert held(acme) == 18_000


def test_a_revision_after_an_award_makes_the_hold_whole_again(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    run_round(plant, now)
    # 60 lots at 200,000 were carved out of it.
    assert held(acme) == 18_000
    bid.refresh_from_db()
    revise(acme, bid, now + PERIOD * 0.95, steps=((450_000, 20),))
    assert held(acme) == 12_000 + 9_000
    assert Entitlement.objects.get(contract=bid.contract).entitled_numerator == 60 * 10**9
    assert not check_ledger()


def test_what_came_after_the_gate_is_not_in_its_book(acme: Party, plant: Plant, now: datetime) -> None:
    """However late the worker closes it."""
    fund(acme, 1_000_000, now)
    advance_auctions(now=now)
    late = now + PERIOD * 0.91
    bid = bid_of(acme, late)
    revise(acme, bid, late, steps=((450_000, 5),))
    beat(plant, late)
    advance_auctions(now=now + PERIOD * 0.92)
    auction = Auction.objects.get(period_start=now + PERIOD)
    assert auction.book is not None
    assert auction.book["bids"] == []


def test_a_bid_for_a_later_period_is_free_while_another_round_binds(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now, period_start=now + 3 * PERIOD)
    advance_auctions(now=now)
    late = now + PERIOD * 0.85
    bid = revise(acme, bid, late, steps=((450_000, 5),))
    assert cancel_bid(organization_id=acme.id, bid_id=bid.id, now=late, actor=SYSTEM).status == "cancelled"
    assert held(acme) == 0


def test_what_has_ended_is_not_revised(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    cancelled = cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now, actor=SYSTEM)
    assert cancelled.revision == 2
    with pytest.raises(Conflict):
        revise(acme, cancelled, now, min_fill_lots=1)
    assert held(acme) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": ()}, "steps"),
        ({"steps": tuple((100, 1) for _ in range(11))}, "steps"),
        ({"steps": ((100, 1), (101, 1))}, "steps.1.rate_micros_per_mtok"),
        ({"steps": ((5_000_001, 1),)}, "steps.0.rate_micros_per_mtok"),
        ({"steps": ((100, 0),)}, "steps.0.lots"),
        ({"min_fill_lots": 61}, "min_fill_lots"),
        ({"max_total_micros_per_day": 0}, "max_total_micros_per_day"),
        ({"valid_until": datetime.fromisoformat("2026-03-10T12:00:00+00:00")}, "valid_until"),
    ],
)
def test_bad_changes_are_refused_naming_the_field(
    acme: Party, plant: Plant, now: datetime, changes: dict[str, Any], field: str
) -> None:
    fund(acme, 10**12, now)
    bid = bid_of(acme, now)
    with pytest.raises(InvalidInput) as refused:
        revise(acme, bid, now, **changes)
    assert refused.value.field == field
    assert BidRevision.objects.count() == 1


def test_over_rest_a_change_names_the_revision_it_was_made_for(
    acme: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    address = f"/api/v1/bids/{bid.id}"
    with time_machine.travel(now, tick=False):
        read = acme.api.get(address)
        assert read["ETag"] == '"1"'
        api = acme.api
        unnamed = api.patch(address, {"min_fill_lots": 3}, format="json")
        assert (unnamed.status_code, unnamed.json()["field"]) == (422, "revision")
        wrong = api.patch(address, {"min_fill_lots": 3}, format="json", headers={"If-Match": "*"})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "If-Match")
        two = api.patch(
            address, {"revision": 2, "min_fill_lots": 3}, format="json", headers={"If-Match": read["ETag"]}
        )
        assert (two.status_code, two.json()["field"]) == (422, "revision")
        answer = api.patch(address, {"min_fill_lots": 3}, format="json", headers={"If-Match": read["ETag"]})
        assert (answer.status_code, answer["ETag"], answer.json()["revision"]) == (200, '"2"', 2)
        stale = api.patch(address, {"revision": 1, "min_fill_lots": 4}, format="json")
        assert (stale.status_code, stale.json()["code"]) == (409, "revision_conflict")
        dear = api.patch(
            address,
            {"revision": 2, "steps": [{"rate_micros_per_mtok": 5_000_000, "lots": 10**6}]},
            format="json",
        )
        assert (dear.status_code, dear.json()["code"]) == (402, "insufficient_funds")
        strange = mallory.api.patch(address, {"revision": 2, "min_fill_lots": 4}, format="json")
        assert strange.status_code == 404
    with pytest.raises(NotFound):
        revise(mallory, bid, now, revision=2, min_fill_lots=4)


def test_revisions_are_never_changed_or_deleted(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    for statement in ("UPDATE orders_bidrevision SET number = 7", "DELETE FROM orders_bidrevision"):
        with (
            pytest.raises(DatabaseError, match=r"permission denied|append-only"),
            transaction.atomic(),
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)


def test_of_two_changes_at_once_of_one_revision_one_is_done(
    committed_db: TestDatabase, now: datetime
) -> None:
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    make_plant(hyperion, make_grade(now), now)
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)

    def attempt(lots: int) -> Any:
        try:
            return revise(acme, bid, now, revision=1, steps=((400_000, lots),)).revision
        except RevisionConflict:
            return "conflict"
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(100, 108)))
    assert sorted(map(str, answers)) == ["2", *["conflict"] * 7]
    bid = Bid.objects.get()
    assert held(acme) == 400 * bid.steps.get().lots
    assert not check_ledger()


steps_strategy = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4).map(
    lambda steps: tuple(sorted(steps, reverse=True))
)


@given(steps_strategy, steps_strategy)
def test_more_and_less_are_those_of_the_demand_at_every_rate(
    new: tuple[tuple[int, int], ...], old: tuple[tuple[int, int], ...]
) -> None:
    def demand(steps: tuple[tuple[int, int], ...], rate: int) -> int:
        return sum(lots for limit, lots in steps if limit >= rate)

    rates = range(8)
    assert asks_for_more(new, old) is any(demand(new, rate) > demand(old, rate) for rate in rates)
    terms = BidTerms("g", "c", old)
    improves = all(demand(new, rate) >= demand(old, rate) for rate in rates)
    assert (only_improves(replace(terms, steps=new), terms) is None) is improves
