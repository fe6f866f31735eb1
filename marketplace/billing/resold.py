"""Which part of an award's money goes to buyers who released the lots it was filled with. Pure.

Nobody can tell which lot a request used. So what an offering earns with an award, up to its part of it, goes to those
who sold these lots in proportion to lots; what it delivered beyond its part (it stood in for another) is its provider's
alone.
Examples in docs/market.md and docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from marketplace.billing.lines import Line, Share
from pricing.rating import fee_of, lots_numerator
from pricing.units import split_by_weight

# By offering, the lots that each ask of a release sold into one award.
Resold = Mapping[UUID, Mapping[UUID, int]]


def with_resellers(line: Line, allocated_lots: Mapping[UUID, int], resold: Resold, *, fee_ppm: int) -> Line:
    """The line with the shares of its offerings split over their sellers: the provider keeps the offering's key,
    a reseller's key is his ask. Grosses and volumes sum to what they were; each seller pays the fee of his own gross.
    """
    if not any(resold.values()):
        return line
    shares: dict[UUID, Share] = {}
    for offering, share in line.shares.items():
        sold = {ask: lots for ask, lots in sorted(resold.get(offering, {}).items()) if lots}
        if not sold or not share.numerator:
            shares[offering] = share
            continue
        weights = seller_weights(share.numerator, allocated_lots[offering], list(sold.values()))
        keys = [offering, *sold]
        grosses = split_by_weight(share.gross_micros, weights)
        volumes = split_by_weight(share.numerator, weights)
        for key, gross, volume in zip(keys, grosses, volumes, strict=True):
            if gross or volume:
                shares[key] = Share(volume, gross, fee_of(gross, fee_ppm))
    return replace(line, shares=shares)


def seller_weights(numerator: int, allocated_lots: int, resold_lots: list[int]) -> list[int]:
    """The provider's weight, then each reseller's, in what an offering earned with `numerator` of an award.

    `allocated_lots` is the offering's part of the award, `resold_lots` what of it each release sold.
    """
    assert 0 < sum(resold_lots) <= allocated_lots
    within = min(numerator, lots_numerator(allocated_lots))
    own = (allocated_lots - sum(resold_lots)) * within + (numerator - within) * allocated_lots
    return [own, *(lots * within for lots in resold_lots)]


def failed_by_ask(failed: int, allocated_lots: int, sold: Mapping[UUID, int]) -> dict[UUID, int]:
    """What of an offering's F in an award fell on released lots, by ask; numerators, in proportion to lots.

    Largest remainder, ties to the provider's own lots, then to the lower ask.
    """
    asks = sorted(ask for ask, lots in sold.items() if lots)
    weights = [allocated_lots - sum(sold.values()), *(sold[ask] for ask in asks)]
    assert weights[0] >= 0
    return dict(zip(asks, split_by_weight(failed, weights)[1:], strict=True))
