"""The bids of coming books, locked, and whether their holds cover them: one statement a step however many bids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from marketplace.accounts.services import SYSTEM, Actor
from marketplace.contracts.refills import Refill, capped_organizations, count_refills, uncount_refills
from marketplace.ledger.models import Hold
from marketplace.ledger.services import MAX_AMOUNT_MICROS, raise_holds
from marketplace.orders.models import BidRevision
from marketplace.orders.services.budgets import NO_BUDGET, awarded_micros
from marketplace.packed import packed_cursor, packed_uuids

NO_FUNDS: Final = "The prepaid balance does not cover the bid's worst case."
NO_CAP: Final = "A spend cap does not leave enough for what its awards have taken of its hold."
HOLD_ENDED: Final = "The bid's hold has ended."

# A book's tables meet in memory; until the transaction ends.
ROOM: Final = "SET LOCAL work_mem = '64MB'"
# In the order of their accounts, as every transaction that touches several.
_LOCK: Final = """
SELECT bid.id::text FROM orders_bid AS bid JOIN ledger_hold AS hold ON hold.id = bid.ledger_hold_id
WHERE bid.grade_id = ANY(%(grades)s::uuid[]) AND bid.status = 'open' AND {which}
ORDER BY hold.account_id, bid.id FOR NO KEY UPDATE OF bid
"""
# A statement of its own: it sees what was committed while the first one waited for its locks, so that no hold is taken
# for whole which an award has just been carved out of. What a bid can cost is `terms.worst_case_with_tax`, in numeric,
# which cannot overflow: what is too much for the books is more than any balance.
_READ: Final = """
WITH named AS (
    SELECT bid_id, greatest(max(adjustment_micros_per_mtok), 0) AS dearest, count(*) AS more,
           '[["' || string_agg(grade_id || '",' || adjustment_micros_per_mtok, '],["' ORDER BY grade_id) || ']]'
               AS substitutes
    FROM orders_bidsubstitute WHERE bid_id = ANY(%(ids)s::uuid[]) AND withdrawn_at IS NULL GROUP BY bid_id
)
SELECT bid.id::text, bid.organization_id::text, (extract(epoch FROM bid.priority_at) * 1000000)::bigint AS priority_us,
       step.steps, bid.min_fill_lots, bid.all_or_none, bid.grade_id::text, bid.ledger_hold_id::text,
       hold.status = 'open' AND hold.amount_micros >= worst.micros AS whole, hold.status,
       least(worst.micros, %(most)s)::bigint, bid.max_total_micros_per_day, bid.skip_reason, locked.number,
       coalesce(named.substitutes, '')
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS locked (id, number)
JOIN orders_bid AS bid ON bid.id = locked.id
JOIN ledger_hold AS hold ON hold.id = bid.ledger_hold_id
JOIN accounts_organization AS buyer ON buyer.id = bid.organization_id
JOIN (
    SELECT bid_id, max((rate_micros_per_mtok + coalesce(dearest, 0)) * cumulative) AS numerator,
           '[[' || string_agg(rate_micros_per_mtok || ',' || lots, '],[' ORDER BY number) || ']]' AS steps
    FROM (
        SELECT bid_id, number, rate_micros_per_mtok, lots,
               sum(lots) OVER (PARTITION BY bid_id ORDER BY number) AS cumulative
        FROM orders_bidstep WHERE bid_id = ANY(%(ids)s::uuid[])
    ) AS step LEFT JOIN named USING (bid_id) GROUP BY bid_id
) AS step ON step.bid_id = bid.id
LEFT JOIN named ON named.bid_id = bid.id
CROSS JOIN LATERAL (SELECT coalesce(named.more, 0) AS more) AS each
CROSS JOIN LATERAL (
    SELECT div((div(step.numerator + 999, 1000) + each.more) * (1000000 + buyer.tax_ppm) + 999999, 1000000)
           + each.more AS micros
) AS worst
WHERE {wanted}
"""
# The others are in the next book as they are.
_IN_QUESTION: Final = """hold.status <> 'open' OR hold.amount_micros < worst.micros OR bid.skip_reason <> ''
   OR bid.max_total_micros_per_day IS NOT NULL"""
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
    """An open bid, its terms, and its hold as they were when it was locked. Ids are text, as the book has them."""

    id: str
    organization_id: str
    # Microseconds since 1970 (UTC).
    priority_us: int
    # JSON: [[rate, lots], ...].
    steps: str
    min_fill_lots: int
    all_or_none: bool
    grade_id: str
    hold_id: str
    # Whether the hold is open and covers `worst_micros`, what the bid can cost at most in one round, with tax.
    is_whole: bool
    hold_status: str
    worst_micros: int
    max_total_micros_per_day: int | None
    skip_reason: str
    # Its place among the locked ones, by their accounts.
    number: int
    # JSON: [[grade, adjustment], ...] by grade; empty where it names none.
    substitutes: str


def lock_standing_bids(grade_id: UUID, *, gate_at: datetime) -> list[LockedBid]:
    """Lock the standing bids of a grade that are good beyond this gate, by their accounts, also those that sat a book
    out. Returned are those that could not just enter the next one: the others need nothing. In no order.
    """
    places = {"grades": [grade_id], "gate": gate_at}
    return _locked(_STANDING, places, wanted=_IN_QUESTION)


def lock_bids_at_the_gate(
    grade_ids: Sequence[UUID], *, period_start: datetime, gate_at: datetime
) -> list[LockedBid]:
    """Every open bid of the grades that is for this period, came before its gate, is good beyond it, and did not say
    that it sits out; locked by their accounts, returned in no order.
    """
    places = {"grades": list(grade_ids), "start": period_start, "gate": gate_at}
    return _locked(_AT_THE_GATE, places, wanted="true")


def _locked(which: str, places: dict[str, Any], *, wanted: str) -> list[LockedBid]:
    with packed_cursor() as cursor:
        cursor.execute(ROOM)
        cursor.execute(_LOCK.format(which=which), places)
        ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            return []
        cursor.execute(_READ.format(wanted=wanted), {"ids": packed_uuids(ids), "most": MAX_AMOUNT_MICROS})
        return [LockedBid._make(row) for row in cursor.fetchall()]


def cover(bids: Sequence[LockedBid], *, now: datetime) -> set[str]:
    """Bring the holds of locked bids back to their worst case; the ids of those that are in the book.

    A bid whose account or daily budget does not cover it sits the book out, and its `skip_reason` says why. Bids of one
    account are covered in the order of their ids while its balance lasts.
    """
    bids = sorted(bids, key=attrgetter("number"))
    lacking = [bid for bid in bids if not bid.is_whole and bid.hold_status == Hold.Status.OPEN]
    raised = {bid.hold_id: bid.worst_micros for bid in lacking}
    organizations = {UUID(one) for one in {bid.organization_id for bid in lacking}}
    capped = {str(one) for one in capped_organizations(organizations)}
    # The counters of spend caps before the ledger, as everywhere.
    counted, over_cap = _count([bid for bid in lacking if bid.organization_id in capped], now)
    for hold_id in over_cap:
        raised.pop(str(hold_id))
    unpaid = raise_holds(raised, now=now)
    uncount_refills([counted[hold_id] for hold_id in unpaid if hold_id in counted])
    refused = {str(hold_id) for hold_id in unpaid}
    # Only of those that have a daily budget.
    limited = [UUID(bid.id) for bid in bids if bid.max_total_micros_per_day is not None]
    spent = {str(bid_id): micros for bid_id, micros in awarded_micros(limited, now=now).items()}
    no_cap = {str(hold_id) for hold_id in over_cap}
    reasons = {bid.id: NO_CAP if bid.hold_id in no_cap else _reason(bid, refused, spent) for bid in bids}
    changed = {bid.id: reasons[bid.id] for bid in bids if reasons[bid.id] != bid.skip_reason}
    if changed:
        with packed_cursor() as cursor:
            cursor.execute(_SKIP, {"ids": packed_uuids(changed), "reasons": list(changed.values())})
    return {bid_id for bid_id, reason in reasons.items() if not reason}


def _count(bids: Sequence[LockedBid], now: datetime) -> tuple[dict[UUID, UUID], set[UUID]]:
    """Count what raises the holds of these bids under the caps of their organizations, and of the keys that placed or
    last changed them. By hold what was counted; and the holds that do not fit.
    """
    if not bids:
        return {}, set()
    held = dict(
        Hold.objects.filter(pk__in=[UUID(bid.hold_id) for bid in bids]).values_list("id", "amount_micros")
    )
    ids = [UUID(bid.id) for bid in bids]
    latest = BidRevision.objects.filter(bid_id__in=ids).order_by("bid_id", "-number").distinct("bid_id")
    actors = {
        bid_id: Actor(kind, actor_id)
        for bid_id, kind, actor_id in latest.values_list("bid_id", "actor_kind", "actor_id")
    }
    return count_refills(
        [
            Refill(
                ledger_hold_id=UUID(bid.hold_id),
                organization_id=UUID(bid.organization_id),
                amount_micros=bid.worst_micros - held[UUID(bid.hold_id)],
                actor=actors.get(UUID(bid.id), SYSTEM),
            )
            for bid in bids
        ],
        now=now,
    )


def _reason(bid: LockedBid, refused: Set[str], spent: Mapping[str, int]) -> str:
    if bid.hold_status != Hold.Status.OPEN:
        return HOLD_ENDED
    if bid.hold_id in refused:
        return NO_FUNDS
    budget = bid.max_total_micros_per_day
    if budget is not None and spent.get(bid.id, 0) + bid.worst_micros > budget:
        return NO_BUDGET
    return ""
