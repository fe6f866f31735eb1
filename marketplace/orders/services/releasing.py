"""Released volume on its way through a round: placed before the gate, asked into the book, closed at publication.

A release is backed by the hosts of its contract, whose share stays sold as firm: it is asked without taking any share
again. The lots leave the buyer's rights when he releases them and come back, as far as nobody bought them, when the
round is published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q

from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.models import Allocation, Contract
from marketplace.contracts.services import release_volume, resolve_nominations
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.orders.book import BookAsk
from marketplace.orders.controls import FEW_SELLERS
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Ask, Auction, Release
from marketplace.orders.services.missed import auction_times
from marketplace.orders.services.phases import TAKING, MarketClosed
from marketplace.periods import Period, delivery_period
from pricing.selectors import grades_in_force
from providers.models import Offering
from providers.selectors import listed_offerings

# A day of five-minute periods in one request.
MOST_PERIODS: Final = 288

SUSPENDED: Final = "The contract was suspended at the gate."
NOT_LISTED: Final = "No host of the contract was up at the gate."
FEW: Final = "With fewer than three sellers nothing is asked above the host's firm list rate."
NO_ROUND: Final = "The round of this period traded nothing."


@transaction.atomic
def release(
    *,
    organization_id: UUID,
    contract_id: UUID,
    period_start: datetime,
    periods: int,
    lots: int,
    floor_micros_per_mtok: int,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> list[Release]:
    """Release `lots` of each of `periods` delivery periods from `period_start` on into spot, at least at the floor.

    All of them or none; the same operation again gives the same releases. Irrevocable. Raises NotFound (the contract),
    MarketClosed (a gate has passed; `period_start`), NotCommitted, ContractSuspended, Conflict (the operation with
    other terms) or InvalidInput naming the field.
    """
    contract = (
        Contract.objects.select_related("grade")
        .filter(pk=contract_id, organization_id=organization_id)
        .first()
    )
    if contract is None:
        raise NotFound("There is no such contract.")
    wanted = _periods(period_start, periods)
    ids = {one.start: derived_id(operation_id, f"release:{one.start.isoformat()}") for one in wanted}
    earlier = list(Release.objects.filter(pk=derived_id(operation_id, f"release:{period_start.isoformat()}")))
    if earlier:
        return _same_again(earlier[0], list(ids.values()), contract_id, lots, floor_micros_per_mtok)
    _check_terms(contract, lots, floor_micros_per_mtok, now)
    _hold_gates_open(contract, wanted, now)
    release_volume(
        organization_id=organization_id, contract_id=contract_id, periods=wanted, lots=lots, now=now
    )
    made = Release.objects.bulk_create(
        Release(
            id=ids[period.start],
            organization_id=organization_id,
            contract=contract,
            grade_id=contract.grade_id,
            period_start=period.start,
            period_end=period.end,
            lots=lots,
            floor_micros_per_mtok=floor_micros_per_mtok,
            created_at=now,
        )
        for period in wanted
    )
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="contract.release",
        object_kind="contract",
        object_id=contract_id,
        detail={
            "period_start": period_start.isoformat(),
            "periods": periods,
            "lots": lots,
            "floor_micros_per_mtok": floor_micros_per_mtok,
        },
        now=now,
    )
    return made


def ask_released(
    auctions: Sequence[Auction], by_providers: Mapping[UUID, Sequence[BookAsk]], *, now: datetime
) -> dict[UUID, list[BookAsk]]:
    """At the gate of locked auctions of one period: the asks of what was released into them, by auction.

    `by_providers` are the asks for what is unsold. Who releases is bound by the rule of few sellers, but is none of
    those whom it counts: his lots are of a host whose provider has sold them already.
    Of each contract the releases are laid over its listed allocations in order of floor, then id, so that no allocation
    is asked for more than its firm lots. What finds no host stays out of the book and says why.
    """
    asks: dict[UUID, list[BookAsk]] = defaultdict(list)
    for auction in auctions:
        releases = list(
            Release.objects.select_for_update(of=("self",))
            .select_related("contract")
            .filter(
                grade_id=auction.grade_id, period_start=auction.period_start, status=Release.Status.PLACED
            )
            .order_by("floor_micros_per_mtok", "pk")
        )
        if releases:
            sellers = {ask.organization_id for ask in by_providers.get(auction.id, ())}
            asks[auction.id] = _asks_of(auction, releases, now, few_sellers=len(sellers) < FEW_SELLERS)
    return asks


def close_releases(auction: Auction, *, now: datetime) -> int:
    """At the publication of a locked auction: what was awarded stays sold, the rest goes back; how many were closed."""
    return _close(
        Q(grade_id=auction.grade_id, period_start=auction.period_start),
        rate=auction.clearing_rate_micros_per_mtok,
        now=now,
    )


def close_stranded_releases(*, now: datetime) -> int:
    """Give back what was released for periods whose book was never opened, or was published without it."""
    published = Auction.objects.filter(
        grade_id=OuterRef("grade_id"), period_start=OuterRef("period_start"), published_at__isnull=False
    )
    held = Auction.objects.filter(grade_id=OuterRef("grade_id"), period_start=OuterRef("period_start"))
    stranded = Release.objects.exclude(status=Release.Status.CLOSED).filter(
        Exists(published) | (~Exists(held) & Q(period_end__lte=now))
    )
    closed = 0
    for grade_id, start in sorted(set(stranded.values_list("grade_id", "period_start"))):
        with transaction.atomic():
            closed += _close(Q(grade_id=grade_id, period_start=start), rate=None, now=now)
    return closed


def _periods(period_start: datetime, periods: int) -> list[Period]:
    if period_start.tzinfo is None:
        raise InvalidInput("It must carry a time zone.", field="period_start")
    first = delivery_period(period_start)
    if first.start != period_start:
        raise InvalidInput("It must be the start of a delivery period (UTC).", field="period_start")
    if type(periods) is not int or not 1 <= periods <= MOST_PERIODS:
        raise InvalidInput(f"It must be from 1 to {MOST_PERIODS}.", field="periods")
    length = first.end - first.start
    try:
        edges = [period_start + number * length for number in range(periods + 1)]
    except OverflowError:
        raise InvalidInput("It lies beyond the end of time.", field="period_start") from None
    return [Period(start, end) for start, end in pairwise(edges)]


def _same_again(
    first: Release, ids: Sequence[UUID], contract_id: UUID, lots: int, floor: int
) -> list[Release]:
    found = list(Release.objects.filter(pk__in=ids).order_by("period_start"))
    terms = (first.contract_id, first.lots, first.floor_micros_per_mtok)
    if len(found) != len(ids) or terms != (contract_id, lots, floor):
        raise Conflict("This operation released something else.")
    return found


def _check_terms(contract: Contract, lots: int, floor: int, now: datetime) -> None:
    if type(lots) is not int or lots < 1:
        raise InvalidInput("It must be a positive number of lots.", field="lots")
    if type(floor) is not int or floor < 0:
        raise InvalidInput("It must not be negative.", field="floor_micros_per_mtok")
    if not any(grade.id == contract.grade_id for grade in grades_in_force(at=now)):
        raise MarketClosed("This version of the grade is not traded any more.")
    cap = cap_of(contract.grade, at=now)
    if floor > cap:
        raise InvalidInput(f"Nothing trades above the cap of {cap}.", field="floor_micros_per_mtok")


def _hold_gates_open(contract: Contract, periods: Sequence[Period], now: datetime) -> None:
    """Lock the books of the periods that are open: none of their gates closes before the caller commits.

    As a change of a bid does, it waits for no placement.
    """
    starts = [period.start for period in periods]
    books = Auction.objects.select_for_update(of=("self",), no_key=True).filter(
        grade_id=contract.grade_id, period_start__in=starts
    )
    known = {book.period_start: book for book in books.defer("book").order_by("pk")}
    for start in starts:
        book = known.get(start)
        gate_at = book.gate_at if book is not None else auction_times(start)["gate_at"]
        if now >= gate_at or (book is not None and book.status not in TAKING):
            raise MarketClosed("The gate of that delivery period has closed.", field="period_start")


def _asks_of(
    auction: Auction, releases: Sequence[Release], now: datetime, *, few_sellers: bool
) -> list[BookAsk]:
    listed = {offering.id: offering for offering in listed_offerings(auction.grade_id, now)}
    left = _firm_lots_of({one.contract_id for one in releases}, listed)
    rows: list[Ask] = []
    for one in releases:
        if one.contract.status != Contract.Status.ACTIVE:
            one.reason = SUSPENDED
            continue
        mine = left.get(one.contract_id, {})
        floor = one.floor_micros_per_mtok
        allowed = [
            offering_id
            for offering_id in sorted(mine)
            if not few_sellers or floor <= listed[offering_id].firm_rate.micros_per_mtok
        ]
        wanted = one.lots
        for offering_id in allowed:
            lots = min(wanted, mine[offering_id])
            if lots:
                rows.append(_ask(auction, one, offering_id, lots, now))
                mine[offering_id] -= lots
                wanted -= lots
        if wanted:
            one.reason = FEW if mine and not allowed else NOT_LISTED
        if wanted < one.lots:
            one.status = Release.Status.ASKED
    Ask.objects.bulk_create(rows)
    Release.objects.bulk_update(releases, ["status", "reason"])
    sellers = {one.id: one for one in releases}
    return [_book_ask(row, sellers[row.release_id]) for row in rows if row.release_id is not None]


def _firm_lots_of(contract_ids: set[UUID], listed: dict[UUID, Offering]) -> dict[UUID, dict[UUID, int]]:
    """By contract and listed offering, the firm lots of a period."""
    allocations = Allocation.objects.filter(
        contract_id__in=contract_ids, period_start__isnull=True, offering_id__in=list(listed)
    )
    found: dict[UUID, dict[UUID, int]] = defaultdict(dict)
    for contract_id, offering_id, lots in allocations.values_list("contract_id", "offering_id", "firm_lots"):
        found[contract_id][offering_id] = lots
    return found


def _ask(auction: Auction, one: Release, offering_id: UUID, lots: int, now: datetime) -> Ask:
    return Ask(
        id=derived_id(auction.id, f"ask:{offering_id}:release:{one.id}"),
        auction=auction,
        offering_id=offering_id,
        release=one,
        rate_micros_per_mtok=one.floor_micros_per_mtok,
        lots=lots,
        share_ppm=0,
        created_at=now,
    )


def _book_ask(row: Ask, one: Release) -> BookAsk:
    """It stands in the book in the name of the buyer who released it: his own bids do not trade with it."""
    return BookAsk(
        id=row.id,
        organization_id=one.organization_id,
        offering_id=row.offering_id,
        placed_at=one.created_at,
        rate=row.rate_micros_per_mtok,
        lots=row.lots,
    )


def _close(which: Q, *, rate: int | None, now: datetime) -> int:
    releases = list(
        Release.objects.select_for_update(of=("self",))
        .filter(which)
        .exclude(status=Release.Status.CLOSED)
        .order_by("pk")
    )
    if not releases:
        return 0
    awarded: dict[UUID, dict[UUID, int]] = {one.id: {} for one in releases}
    asks = Ask.objects.filter(release__in=releases, awarded_lots__gt=0)
    for release_id, offering_id, lots in asks.values_list("release_id", "offering_id", "awarded_lots"):
        assert release_id is not None
        awarded[release_id][offering_id] = lots
    resold: dict[UUID, dict[UUID, int]] = defaultdict(lambda: defaultdict(int))
    for one in releases:
        by_offering = resold[one.contract_id]
        for offering_id, lots in awarded[one.id].items():
            by_offering[offering_id] += lots
        one.resold_lots = sum(awarded[one.id].values())
        one.rate_micros_per_mtok = rate if one.resold_lots else None
        if one.status == Release.Status.PLACED and not one.reason:
            one.reason = NO_ROUND
        one.status = Release.Status.CLOSED
        one.closed_at = now
    Release.objects.bulk_update(
        releases, ["resold_lots", "rate_micros_per_mtok", "reason", "status", "closed_at"]
    )
    for start in sorted({one.period_start for one in releases}):
        resolve_nominations(period_start=start, resold=resold)
    return len(releases)
