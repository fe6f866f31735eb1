"""Screens for market power and manipulation: pure functions of lots, with exact integer results in ppm.

Residual supply and the three-pivotal-supplier test are those of PJM's market monitor, the Herfindahl-Hirschman index
that of competition authorities (ppm / 100 is their scale of 10,000). A group is whoever is owned together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PPM: Final = 10**6
# Round trips above this share of what both sides traded look like nobody wanted the good.
RECIPROCAL_THRESHOLD_PPM: Final = 500_000
# Withdrawn lots above this multiple of traded ones, or as many late withdrawals, look like orders made to be seen.
CANCEL_TO_TRADE_THRESHOLD_PPM: Final = 10 * PPM
LATE_CANCELS_THRESHOLD: Final = 3


@dataclass(frozen=True, slots=True)
class Residual:
    """What is left of the supply without one seller. `residual_supply_ppm` is of the demand; below 1e6 he is pivotal.

    `is_jointly_pivotal`: together with the two largest others.
    """

    group: str
    lots: int
    residual_lots: int
    residual_supply_ppm: int
    is_pivotal: bool
    is_jointly_pivotal: bool


def residual_supply(demand_lots: int, supply_lots: Mapping[str, int]) -> list[Residual]:
    """The test for every seller with lots, largest first; none where nothing is demanded."""
    if demand_lots <= 0:
        return []
    sellers = sorted(
        ((group, lots) for group, lots in supply_lots.items() if lots > 0),
        key=lambda seller: (-seller[1], seller[0]),
    )
    total = sum(lots for _, lots in sellers)
    found = []
    for group, lots in sellers:
        residual = total - lots
        two_others = sum([other for name, other in sellers if name != group][:2])
        found.append(
            Residual(
                group,
                lots,
                residual,
                PPM * residual // demand_lots,
                residual < demand_lots,
                residual - two_others < demand_lots,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Concentration:
    """How few groups hold one side: `hhi_ppm` is the sum of squared shares, 1e6 for a monopoly."""

    groups: int
    lots: int
    hhi_ppm: int
    largest: str
    largest_share_ppm: int


def concentration(lots_by_group: Mapping[str, int]) -> Concentration | None:
    """None where nothing was traded. Rounded down."""
    held = {group: lots for group, lots in lots_by_group.items() if lots > 0}
    total = sum(held.values())
    if not total:
        return None
    largest = min(held, key=lambda group: (-held[group], group))
    return Concentration(
        groups=len(held),
        lots=total,
        hhi_ppm=PPM * sum(lots * lots for lots in held.values()) // (total * total),
        largest=largest,
        largest_share_ppm=PPM * held[largest] // total,
    )


def self_crossing_lots(bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]) -> int:
    """Lots that one group would have traded with itself: its best bids against its best asks while they cross.

    Steps are (rate, lots), in any order.
    """
    waiting = [list(step) for step in sorted(asks)]
    crossed = 0
    for rate, wanted in sorted(bids, reverse=True):
        left = wanted
        while left and waiting and waiting[0][0] <= rate:
            lots = min(left, waiting[0][1])
            crossed += lots
            left -= lots
            waiting[0][1] -= lots
            if not waiting[0][1]:
                waiting.pop(0)
    return crossed


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Two groups that bought of each other. `round_trip_ppm`: of all that either traded, what went there and back."""

    first: str
    second: str
    first_bought_lots: int
    second_bought_lots: int
    round_trip_ppm: int
    is_suspicious: bool


def round_trips(
    lots_bought: Mapping[tuple[str, str], int], *, threshold_ppm: int = RECIPROCAL_THRESHOLD_PPM
) -> list[RoundTrip]:
    """Every pair that traded both ways, the greatest share first. `lots_bought` is by (buyer, seller)."""
    volume: dict[str, int] = {}
    for (buyer, seller), lots in lots_bought.items():
        for group in {buyer, seller}:
            volume[group] = volume.get(group, 0) + lots
    found = []
    for (buyer, seller), there in lots_bought.items():
        back = lots_bought.get((seller, buyer), 0)
        if buyer >= seller or there <= 0 or back <= 0:
            continue
        # Their trades with each other are in the volume of both: counted once.
        either = volume[buyer] + volume[seller] - there - back
        share = PPM * 2 * min(there, back) // either
        found.append(RoundTrip(buyer, seller, there, back, share, share >= threshold_ppm))
    return sorted(found, key=lambda pair: (-pair.round_trip_ppm, pair.first, pair.second))


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A bid that was cancelled; `is_late` when just before a no-cancel phase began."""

    group: str
    lots: int
    is_late: bool


@dataclass(frozen=True, slots=True)
class Withdrawals:
    """What a group withdrew against what it traded; `cancel_to_trade_ppm` is None when it traded nothing."""

    group: str
    cancels: int
    late_cancels: int
    cancelled_lots: int
    late_cancelled_lots: int
    traded_lots: int
    cancel_to_trade_ppm: int | None
    is_suspicious: bool


def withdrawals(cancelled: Iterable[Withdrawal], traded_lots: Mapping[str, int]) -> list[Withdrawals]:
    """Every group that cancelled, the most late cancels first.

    Flagged: several late ones, or any late one of a group that withdrew far more than it traded.
    """
    by_group: dict[str, list[Withdrawal]] = {}
    for one in cancelled:
        by_group.setdefault(one.group, []).append(one)
    found = []
    for group, own in by_group.items():
        late = [one for one in own if one.is_late]
        lots, traded = sum(one.lots for one in own), traded_lots.get(group, 0)
        ratio = PPM * lots // traded if traded else None
        above = ratio is None or ratio >= CANCEL_TO_TRADE_THRESHOLD_PPM
        found.append(
            Withdrawals(
                group=group,
                cancels=len(own),
                late_cancels=len(late),
                cancelled_lots=lots,
                late_cancelled_lots=sum(one.lots for one in late),
                traded_lots=traded,
                cancel_to_trade_ppm=ratio,
                is_suspicious=len(late) >= LATE_CANCELS_THRESHOLD or bool(late and above),
            )
        )
    return sorted(found, key=lambda one: (-one.late_cancels, -one.cancelled_lots, one.group))
