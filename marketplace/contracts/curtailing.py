"""Who gets less when a host can supply less: firm contracts keep longest, then spot by the rate that was bid.

Part of this room's services. Providers says by how much a period is overcommitted and takes it out of sale; here it is
decided whose lots those are. What is unsold goes first (`providers.derating`), then spot from the lowest bid rate up,
then firm from the lowest contract rate up. Nothing that runs is cut: admission stops, what is delivered is billed, and
what was curtailed is the provider's failure (docs/failures.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction

from marketplace.accounts.services import Actor
from marketplace.contracts.models import Curtailment
from marketplace.ids import uuid7
from pricing.failures import period_ms
from pricing.rating import lots_numerator
from pricing.units import PPM
from providers.models import Derating
from providers.selectors import dependable_lots, offerings_by_id, share_ppm_of
from providers.services import (
    Overcommitted,
    derated_hosts,
    lift_derating,
    lock_overcommitted,
    lose_share,
    record_curtailed,
    record_derating,
)

# Spot first, from the lowest bid; then firm. Of equal rates the contract that came last.
_ALLOCATIONS: Final = """
SELECT allocation.id, allocation.offering_id, allocation.period_start IS NOT NULL AS is_spot,
       allocation.firm_lots - coalesce(cut.lots, 0) AS lots, coalesce(cut.firm_lots, 0) AS cut_firm_lots,
       allocation.served_numerator + coalesce(open.numerator, 0) AS taken
  FROM contracts_allocation AS allocation
  JOIN providers_offering AS offering ON offering.id = allocation.offering_id
  JOIN contracts_contract AS contract ON contract.id = allocation.contract_id
  LEFT JOIN pricing_rate AS rate ON rate.id = contract.rate_id
  LEFT JOIN LATERAL (
    SELECT sum(lots) AS lots, sum(lots) FILTER (WHERE allocation.period_start IS NULL) AS firm_lots
      FROM contracts_curtailment AS known
     WHERE known.allocation_id = allocation.id AND known.period_start = %(start)s
  ) AS cut ON true
  LEFT JOIN LATERAL (
    SELECT sum(amount_numerator) AS numerator FROM contracts_hold AS hold
     WHERE hold.contract_id = allocation.contract_id AND hold.offering_id = allocation.offering_id
       AND hold.status = 'open' AND hold.entitlement_id IS NOT NULL
  ) AS open ON true
 WHERE offering.host_id = %(host)s
   AND (allocation.period_start = %(start)s OR (
        allocation.period_start IS NULL AND contract.status = 'active'
        AND contract.starts_at <= %(start)s AND %(start)s < contract.ends_at))
 ORDER BY is_spot DESC, CASE WHEN allocation.period_start IS NULL THEN rate.micros_per_mtok
                             ELSE contract.max_rate_micros_per_mtok END, contract.id DESC, allocation.id
"""


@dataclass(slots=True)
class _Owed:
    """What of an allocation is still to be delivered in the period at hand."""

    allocation_id: UUID
    offering_id: UUID
    is_spot: bool
    lots: int
    cut_firm_lots: int
    taken_numerator: int


def derate_host(
    *, organization_id: UUID, host_id: UUID, available_ppm: int, now: datetime, actor: Actor
) -> Derating:
    """A host supplies only `available_ppm` of its dependable capacity from `now` on, until that is lifted.

    What is unsold leaves the sale, then spot and at last firm is curtailed, all of it in one transaction. The same
    again changes nothing. Raises InvalidInput, NotFound for a host of another organization.
    """
    with transaction.atomic():
        derating = record_derating(
            organization_id=organization_id,
            host_id=host_id,
            available_ppm=available_ppm,
            now=now,
            actor=actor,
        )
        curtail_host(host_id=host_id, now=now)
    return derating


def end_derating(
    *, organization_id: UUID, host_id: UUID, derating_id: UUID, now: datetime, actor: Actor
) -> None:
    """The host supplies all again; what was curtailed in periods that are open already stays so. Raises NotFound."""
    lift_derating(
        organization_id=organization_id, host_id=host_id, derating_id=derating_id, now=now, actor=actor
    )


def curtail_derated(*, now: datetime) -> int:
    """Look after every host that lacks something: periods opened or awards published since. How many were curtailed.

    Any number of workers may do it at any time.
    """
    curtailed = 0
    for host_id in derated_hosts(now=now):
        with transaction.atomic():
            lose_share(host_id=host_id, now=now)
            curtailed += curtail_host(host_id=host_id, now=now)
    return curtailed


@transaction.atomic
def curtail_host(*, host_id: UUID, now: datetime) -> int:
    """Curtail what is sold of a host beyond what it can supply; how many allocations. Again changes nothing."""
    curtailed = 0
    for period in lock_overcommitted(host_id=host_id, now=now):
        curtailed += _curtail_period(host_id, period, now)
    return curtailed


def _curtail_period(host_id: UUID, period: Overcommitted, now: datetime) -> int:
    owed = _owed(host_id, period.period_start)
    offerings = offerings_by_id({one.offering_id for one in owed})
    seconds = period_ms(period.period_start, period.period_end) // 1_000

    def taken_ppm(lots: int, offering_id: UUID) -> int:
        """The share that so many lots are counted at in what is sold: what they took before a lower bench."""
        return share_ppm_of(lots, offerings[offering_id], seconds) * PPM // period.need_ppm

    # What firm contracts lack already is not sold to anybody else, and so is not taken off again.
    excess = period.excess_ppm - sum(taken_ppm(one.cut_firm_lots, one.offering_id) for one in owed)
    # Shares are rounded once for all that an offering sold.
    spot_lots: dict[UUID, int] = {}
    for one in owed:
        if one.is_spot:
            spot_lots[one.offering_id] = spot_lots.get(one.offering_id, 0) + one.lots
    rows, freed = [], 0
    for one in owed:
        if excess <= 0:
            break
        if one.lots <= 0:
            continue
        whole = dependable_lots(offerings[one.offering_id], seconds)
        cut = min(one.lots, -(-excess * period.need_ppm * whole // (PPM * PPM)))
        if one.is_spot:
            before = spot_lots[one.offering_id]
            spot_lots[one.offering_id] = before - cut
            gone = taken_ppm(before, one.offering_id) - taken_ppm(before - cut, one.offering_id)
            freed += gone
        else:
            gone = taken_ppm(one.lots, one.offering_id) - taken_ppm(one.lots - cut, one.offering_id)
        excess -= gone
        rows.append(_curtailment(one, cut, period, now))
    Curtailment.objects.bulk_create(rows)
    if freed:
        record_curtailed(period_id=period.id, freed_ppm=min(freed, period.sold_ppm))
    return len(rows)


def _owed(host_id: UUID, period_start: datetime) -> Sequence[_Owed]:
    places: dict[str, Any] = {"host": host_id, "start": period_start}
    with connection.cursor() as cursor:
        cursor.execute(_ALLOCATIONS, places)
        return [
            _Owed(allocation, offering, is_spot, int(lots), int(cut_firm), int(taken))
            for allocation, offering, is_spot, lots, cut_firm, taken in cursor.fetchall()
        ]


def _curtailment(one: _Owed, cut_lots: int, period: Overcommitted, now: datetime) -> Curtailment:
    since = max(now, period.period_start)
    left_ms, whole_ms = (
        period_ms(since, period.period_end),
        period_ms(period.period_start, period.period_end),
    )
    kept: int | None = None
    if one.is_spot:
        # What was served and what runs, and the kept lots' part of the time that is left.
        kept = one.taken_numerator + lots_numerator(one.lots - cut_lots) * left_ms // whole_ms
    elif cut_lots == one.lots:
        kept = 0
    return Curtailment(
        id=uuid7(now),
        allocation_id=one.allocation_id,
        period_start=period.period_start,
        period_end=period.period_end,
        lots=cut_lots,
        kept_numerator=kept,
        curtailed_at=since,
    )


def curtailed_parts(
    contract_id: UUID, starts: Iterable[datetime]
) -> dict[tuple[UUID, datetime], list[tuple[datetime, int]]]:
    """By (offering, delivery period) of a contract: since when how much of it (numerators) was curtailed, by time."""
    rows = Curtailment.objects.filter(
        allocation__contract_id=contract_id, period_start__in=list(starts)
    ).order_by("curtailed_at", "id")
    found: dict[tuple[UUID, datetime], list[tuple[datetime, int]]] = {}
    for offering, start, at, lots in rows.values_list(
        "allocation__offering_id", "period_start", "curtailed_at", "lots"
    ):
        found.setdefault((offering, start), []).append((at, lots_numerator(lots)))
    return found
