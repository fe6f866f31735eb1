"""The other grades that a bid takes: named at its placing and revisions, looked at from its gate to publication."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Q

from marketplace.arrays import uuid_array
from marketplace.contracts.services import close_spot_contract, set_spot_max_rate
from marketplace.contracts.spot import NewSpotContract, open_spot_contracts
from marketplace.ids import derived_id
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Auction, Bid, BidSubstitute
from marketplace.orders.terms import BidTerms, Substitutes, check_substitutes
from pricing.models import Grade
from pricing.selectors import grade_in_force

# Between the gate and the result nothing of a bid may change, in whichever of its grades that is.
_SEALED: Final = (Auction.Status.CLOSED, Auction.Status.CLEARED)
_LINK: Final = """
UPDATE orders_bidsubstitute AS named SET contract_id = n.contract_id
FROM unnest(%(bids)s::uuid[], %(contracts)s::uuid[]) AS n (bid_id, contract_id)
WHERE named.bid_id = n.bid_id AND named.grade_id = %(grade)s
"""
_WITHOUT_CONTRACT: Final = """
SELECT named.bid_id, bid.organization_id, step.rate_micros_per_mtok + named.adjustment_micros_per_mtok
FROM orders_bidsubstitute AS named
JOIN orders_bid AS bid ON bid.id = named.bid_id
JOIN orders_bidstep AS step ON step.bid_id = bid.id AND step.number = 0
WHERE named.grade_id = %s AND named.contract_id IS NULL
    AND named.bid_id IN (SELECT bid_id FROM orders_trade WHERE auction_id = %s)
ORDER BY named.bid_id
"""


def named_substitutes(bid: Bid) -> list[BidSubstitute]:
    """What the bid takes besides its own grade now, by the grades' names. One query."""
    rows = bid.substitutes.filter(withdrawn_at__isnull=True).select_related("grade__family")
    return sorted(rows, key=lambda row: row.grade.family.slug)


def resolve_substitutes(
    terms: BidTerms, *, currency: str, now: datetime, known: Mapping[str, Grade] | None = None
) -> dict[str, Grade]:
    """The version of each substitute's grade that the bid is about; `known` are those it has already.

    Raises InvalidInput naming the substitute: an unknown or retired grade, the bid's own, one named twice, too many, a
    value below 1 or above the grade's cap, a minimum beside them.
    """
    grades = {}
    for slug, _ in terms.substitutes:
        grade = (known or {}).get(slug) or grade_in_force(slug=slug, at=now)
        if grade is not None and grade.currency == currency:
            grades[slug] = grade
    caps = {slug: cap_of(grade, at=now) for slug, grade in grades.items()}
    check_substitutes(terms, caps_micros_per_mtok=caps)
    return grades


def write_substitutes(
    bid: Bid, substitutes: Substitutes, grades: Mapping[str, Grade], *, now: datetime
) -> None:
    """Make these the locked bid's substitutes. Inside the caller's transaction."""
    wanted = {grades[slug].id: adjustment for slug, adjustment in substitutes}
    kept = {row.grade_id: row for row in bid.substitutes.all()}
    for grade_id, row in kept.items():
        row.withdrawn_at = None if grade_id in wanted else (row.withdrawn_at or now)
        row.adjustment_micros_per_mtok = wanted.get(grade_id, row.adjustment_micros_per_mtok)
        row.save(update_fields=["withdrawn_at", "adjustment_micros_per_mtok"])
    BidSubstitute.objects.bulk_create(
        BidSubstitute(
            id=derived_id(bid.id, f"substitute:{grade_id}"),
            bid=bid,
            grade_id=grade_id,
            adjustment_micros_per_mtok=adjustment,
            created_at=now,
        )
        for grade_id, adjustment in wanted.items()
        if grade_id not in kept
    )


def set_substitute_max_rates(bid: Bid, rate_micros_per_mtok: int) -> None:
    """The bid's best step is at this rate now: what its contracts in other grades may cost at most follows it."""
    for row in bid.substitutes.filter(contract__isnull=False, withdrawn_at__isnull=True):
        most = rate_micros_per_mtok + row.adjustment_micros_per_mtok
        assert row.contract_id is not None
        set_spot_max_rate(contract_id=row.contract_id, max_rate_micros_per_mtok=most)


def close_substitute_contracts(bid: Bid, *, now: datetime) -> None:
    """The bid is over: no further awards in its other grades either."""
    for contract_id in bid.substitutes.filter(contract__isnull=False).values_list("contract_id", flat=True):
        close_spot_contract(contract_id=contract_id, now=now)


def open_award_contracts(auction: Auction, *, now: datetime) -> None:
    """A spot contract in this grade for each bid that first got something of it as a substitute.

    The bids are locked by the caller, which is about to record their awards.
    """
    with connection.cursor() as cursor:
        cursor.execute(_WITHOUT_CONTRACT, (auction.grade_id, auction.id))
        rows = cursor.fetchall()
        if not rows:
            return
        made = [
            NewSpotContract(derived_id(bid_id, f"contract:{auction.grade_id}"), organization_id, max_rate)
            for bid_id, organization_id, max_rate in rows
        ]
        open_spot_contracts(made, grade_id=auction.grade_id, now=now)
        cursor.execute(
            _LINK,
            {
                "bids": uuid_array(bid_id for bid_id, _, _ in rows),
                "contracts": uuid_array(contract.id for contract in made),
                "grade": auction.grade_id,
            },
        )


def substitute_contracts(auction: Auction) -> dict[str, UUID]:
    """The contract in the auction's grade of each bid, by its id as text, that traded in it as a substitute."""
    rows = BidSubstitute.objects.filter(
        grade_id=auction.grade_id, contract__isnull=False, bid__trades__auction=auction
    )
    found = rows.values_list("bid_id", "contract_id").distinct()
    return {str(bid_id): contract_id for bid_id, contract_id in found if contract_id is not None}


def awaits_a_result(bid: Bid) -> bool:
    """Whether the result of a sealed round of one of its other grades is still to come.

    Looked at under the locks of the bid's own rounds, without those of the others: all books of a period are sealed in
    one transaction, which waits for them, and from there a round only moves towards its publication.
    """
    sealed = Auction.objects.filter(
        grade_id__in=bid.substitutes.values("grade_id"),
        status__in=_SEALED,
        halted="",
        gate_at__gt=bid.created_at,
    )
    if bid.period_start is not None:
        sealed = sealed.filter(period_start=bid.period_start)
    return sealed.exists()


def awarded_contracts(auction: Auction) -> Q:
    """Which contracts the auction's trades are awards of: the bids' own, or those of their substitutes."""
    traded = {"trades__auction": auction}
    own = Bid.objects.filter(grade_id=auction.grade_id, **traded)
    others = BidSubstitute.objects.filter(grade_id=auction.grade_id, bid__trades__auction=auction)
    return Q(pk__in=own.values("contract_id")) | Q(pk__in=others.values("contract_id"))


def adjustments_of(substitutes: Iterable[tuple[object, int]]) -> Sequence[int]:
    return [adjustment for _, adjustment in substitutes]
