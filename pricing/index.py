"""The price index of a grade family: a volume-weighted median of arm's-length trades.

Method: each trade counts once for its buyer's group and once for its seller's, with its lots as weight;
trades inside one group do not count. No group weighs more than max(20%, 1/groups) of the whole: heavier
ones are scaled down to that share. The index is the rate at which half of the weight is reached. Too few
auctions or groups: the same over committed trades, else the last value carried; the basis says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final

from pricing.units import MicrosPerMtok, div_half_even

METHOD_VERSION: Final = "median-1"
GROUP_CAP: Final = Fraction(1, 5)
MIN_AUCTIONS: Final = 5
MIN_GROUPS_PER_SIDE: Final = 3


class Basis(StrEnum):
    """What an index value rests on; anything but SPOT is a fall-back and shown as such."""

    SPOT = "spot"
    COMMITTED = "committed"
    CARRIED = "carried"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class IndexTrade:
    """One trade: the rate in micros per Mtok, lots, and the groups (owners) on both sides.

    `auction_id` is the auction of a spot trade, or whatever one deal is for a committed one.
    """

    auction_id: str
    rate: int
    lots: int
    buyer_group: str
    seller_group: str


@dataclass(frozen=True, slots=True)
class IndexValue:
    """An index value with what a reader needs to judge it; counts are of the arm's-length trades it rests
    on.
    """

    rate: MicrosPerMtok | None
    basis: Basis
    trades: int
    auctions: int
    groups: int
    lots: int

    @property
    def is_fallback(self) -> bool:
        return self.basis is not Basis.SPOT


def price_index(
    spot: Iterable[IndexTrade],
    *,
    committed: Iterable[IndexTrade] = (),
    previous: int | None = None,
    min_auctions: int = MIN_AUCTIONS,
    min_groups_per_side: int = MIN_GROUPS_PER_SIDE,
) -> IndexValue:
    """The index over one window of trades. A pure function: the order of trades does not matter."""
    usable = arms_length(spot)
    if _is_broad(usable, min_auctions, min_groups_per_side):
        return _value(usable, Basis.SPOT)
    usable = arms_length(committed)
    if _is_broad(usable, 1, min_groups_per_side):
        return _value(usable, Basis.COMMITTED)
    if previous is not None:
        return IndexValue(MicrosPerMtok(previous), Basis.CARRIED, 0, 0, 0, 0)
    return IndexValue(None, Basis.NONE, 0, 0, 0, 0)


def arms_length(trades: Iterable[IndexTrade]) -> list[IndexTrade]:
    """Trades between different groups, with a quantity."""
    return [trade for trade in trades if trade.lots > 0 and trade.buyer_group != trade.seller_group]


def capped_weights(lots_by_group: dict[str, int]) -> dict[str, Fraction]:
    """The weight of each group: its lots, scaled down to the greatest share allowed of what then remains."""
    if not lots_by_group:
        return {}
    share = max(GROUP_CAP, Fraction(1, len(lots_by_group)))
    heaviest = sorted(lots_by_group.values(), reverse=True)
    rest = sum(heaviest)
    limit = Fraction(heaviest[0])
    for capped, lots in enumerate(heaviest):
        if capped * share >= 1:
            break
        # With `capped` groups at the limit, the limit is `share` of the total: limits and the rest together.
        limit = share * Fraction(rest) / (1 - capped * share)
        if lots <= limit:
            break
        rest -= lots
    return {group: min(Fraction(lots), limit) for group, lots in lots_by_group.items()}


def weighted_median(observations: Iterable[tuple[int, Fraction]]) -> MicrosPerMtok:
    """The rate at which half of the weight is reached; midway, half to even, when it is reached exactly."""
    ordered = sorted((rate, weight) for rate, weight in observations if weight > 0)
    assert ordered
    half = sum(weight for _, weight in ordered) / 2
    reached = Fraction(0)
    for position, (rate, weight) in enumerate(ordered):
        reached += weight
        if reached == half:
            return MicrosPerMtok(div_half_even(rate + ordered[position + 1][0], 2))
        if reached > half:
            return MicrosPerMtok(rate)
    raise AssertionError("half of the weight is never reached")


def _is_broad(trades: Sequence[IndexTrade], min_auctions: int, min_groups: int) -> bool:
    return (
        len({trade.auction_id for trade in trades}) >= min_auctions
        and len({trade.buyer_group for trade in trades}) >= min_groups
        and len({trade.seller_group for trade in trades}) >= min_groups
    )


def _value(trades: Sequence[IndexTrade], basis: Basis) -> IndexValue:
    lots_by_group: dict[str, int] = {}
    for trade in trades:
        for group in (trade.buyer_group, trade.seller_group):
            lots_by_group[group] = lots_by_group.get(group, 0) + trade.lots
    weights = capped_weights(lots_by_group)
    scale = {group: weights[group] / lots for group, lots in lots_by_group.items()}
    rate = weighted_median(
        (trade.rate, trade.lots * scale[group])
        for trade in trades
        for group in (trade.buyer_group, trade.seller_group)
    )
    return IndexValue(
        rate=rate,
        basis=basis,
        trades=len(trades),
        auctions=len({trade.auction_id for trade in trades}),
        groups=len(lots_by_group),
        lots=sum(trade.lots for trade in trades),
    )
