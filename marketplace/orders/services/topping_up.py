"""The bids of coming books, locked, and whether their holds cover them: one statement a step however many bids."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import connection

from marketplace.arrays import uuid_array
from marketplace.ledger.models import Hold
from marketplace.ledger.services import raise_holds
from marketplace.orders.services.bids import worst_case_with_tax
from marketplace.orders.services.budgets import NO_BUDGET, awarded_micros
from marketplace.orders.services.substituting import adjustments_of, substitutes_of_open_bids

NO_FUNDS: Final = "The prepaid balance does not cover the bid's worst case."
HOLD_ENDED: Final = "The bid's hold has ended."

# In the order of their accounts, as every transaction that touches several.
_LOCK: Final = """
SELECT bid.id, bid.grade_id, bid.organization_id, bid.priority_at, bid.min_fill_lots, bid.all_or_none,
       bid.max_total_micros_per_day, bid.skip_reason, bid.ledger_hold_id
FROM orders_bid AS bid JOIN ledger_hold AS hold ON hold.id = bid.ledger_hold_id
WHERE bid.grade_id = ANY(%(grades)s::uuid[]) AND bid.status = 'open' AND {which}
ORDER BY hold.account_id, bid.id FOR NO KEY UPDATE OF bid
"""
# A statement of its own: it sees what was committed while the first one waited for its locks, so that no hold is taken
# for whole which an award has just been carved out of.
_COVER: Final = """
SELECT bid.id, hold.amount_micros, hold.status, buyer.tax_ppm, step.rates, step.lots
FROM orders_bid AS bid
JOIN ledger_hold AS hold ON hold.id = bid.ledger_hold_id
JOIN accounts_organization AS buyer ON buyer.id = bid.organization_id
JOIN (
    SELECT step.bid_id, array_agg(step.rate_micros_per_mtok ORDER BY step.number) AS rates,
           array_agg(step.lots ORDER BY step.number) AS lots
    FROM orders_bidstep AS step JOIN orders_bid AS bid ON bid.id = step.bid_id
    WHERE bid.grade_id = ANY(%(grades)s::uuid[]) AND bid.status = 'open' AND {which}
    GROUP BY step.bid_id
) AS step ON step.bid_id = bid.id
"""
_OUTLIVES: Final = "(bid.valid_until IS NULL OR bid.valid_until > %(gate)s)"
_STANDING: Final = f"bid.standing AND {_OUTLIVES}"
# However late the gate is closed, the book is that of its moment.
_AT_THE_GATE: Final = f"""bid.skip_reason = '' AND bid.created_at < %(gate)s AND {_OUTLIVES}
   AND (bid.standing OR bid.period_start = %(start)s)"""
_SKIP: Final = """
UPDATE orders_bid AS bid SET skip_reason = n.reason
FROM unnest(%(ids)s::uuid[], %(reasons)s::text[]) AS n (id, reason) WHERE bid.id = n.id
"""


class LockedBid(NamedTuple):
    """An open bid, its terms, and its hold as they were when it was locked."""

    id: UUID
    grade_id: UUID
    organization_id: UUID
    placed_at: datetime
    min_fill_lots: int
    all_or_none: bool
    max_total_micros_per_day: int | None
    skip_reason: str
    hold_id: UUID
    held_micros: int
    hold_status: str
    steps: list[tuple[int, int]]
    # What the bid can cost at most in one round, with tax.
    worst_micros: int

    @property
    def is_whole(self) -> bool:
        return self.held_micros >= self.worst_micros


def lock_standing_bids(grade_id: UUID, *, gate_at: datetime) -> list[LockedBid]:
    """The standing bids of a grade that are good beyond this gate, by their accounts; those that sat a book out too."""
    return _locked(_STANDING, {"grades": [grade_id], "gate": gate_at})


def lock_bids_at_the_gate(
    grade_ids: Sequence[UUID], *, period_start: datetime, gate_at: datetime
) -> list[LockedBid]:
    """Every open bid of the grades that is for this period, came before its gate, is good beyond it, and did not say
    that it sits out; by their accounts.
    """
    places = {"grades": list(grade_ids), "start": period_start, "gate": gate_at}
    return _locked(_AT_THE_GATE, places)


def _locked(which: str, places: dict[str, Any]) -> list[LockedBid]:
    with connection.cursor() as cursor:
        cursor.execute(_LOCK.format(which=which), places)
        locked = cursor.fetchall()
        cursor.execute(_COVER.format(which=which), places)
        covers = {row[0]: row[1:] for row in cursor.fetchall()}
    named = substitutes_of_open_bids(places["grades"])
    bids = []
    for row in locked:
        held_micros, hold_status, tax_ppm, rates, lots = covers[row[0]]
        steps = list(zip(rates, lots, strict=True))
        worst_micros = worst_case_with_tax(steps, tax_ppm, adjustments_of(named.get(row[0], ())))
        bids.append(LockedBid._make((*row, held_micros, hold_status, steps, worst_micros)))
    return bids


def cover(bids: Sequence[LockedBid], *, now: datetime) -> set[UUID]:
    """Bring the holds of locked bids back to their worst case; the ids of those that are in the book.

    A bid whose account or daily budget does not cover it sits the book out, and its `skip_reason` says why. Bids of one
    account are covered in the order given while its balance lasts.
    """
    raised = {
        bid.hold_id: bid.worst_micros
        for bid in bids
        if not bid.is_whole and bid.hold_status == Hold.Status.OPEN
    }
    refused = raise_holds(raised, now=now)
    # Only of those that have a daily budget.
    spent = awarded_micros([bid.id for bid in bids if bid.max_total_micros_per_day is not None], now=now)
    reasons = {bid.id: _reason(bid, refused, spent) for bid in bids}
    changed = {bid.id: reasons[bid.id] for bid in bids if reasons[bid.id] != bid.skip_reason}
    if changed:
        with connection.cursor() as cursor:
            cursor.execute(_SKIP, {"ids": uuid_array(changed), "reasons": list(changed.values())})
    return {bid_id for bid_id, reason in reasons.items() if not reason}


def _reason(bid: LockedBid, refused: set[UUID], spent: dict[UUID, int]) -> str:
    if bid.hold_status != Hold.Status.OPEN:
        return HOLD_ENDED
    if bid.hold_id in refused:
        return NO_FUNDS
    budget = bid.max_total_micros_per_day
    if budget is not None and spent.get(bid.id, 0) + bid.worst_micros > budget:
        return NO_BUDGET
    return ""
