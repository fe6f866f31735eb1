"""Fees that are a share of an amount (docs/tariffs.md 9). Amounts are micros, shares parts per million.

A share with tiers is a tariff: `share_volume` says an amount as the volume whose rate in micros per Mtok is a share in
parts per million, so tiers, flat fees, minimum, maximum, intervals and holds are those of `pricing/tariffs.py`.
Method: the charge models "percentage" and "graduated percentage" of Lago's documentation; rounding is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pricing.units import NUMERATOR_PER_MTOK, PPM, Micros, StandardNumerator, div_half_even

_VOLUME_PER_MICRO: Final = NUMERATOR_PER_MTOK // PPM


@dataclass(frozen=True, slots=True)
class ShareFee:
    """`ppm` of each amount and `fixed_micros` for it, at least `least_micros` and at most `most_micros` each.

    An amount is free while it is among the first `free_count` and the amounts so far come to no more than
    `free_micros`: the allowance ends with the limit that is met first, and None is no limit; without either nothing is
    free. An amount that goes beyond `free_micros` pays its fixed part, and its share of what lies beyond.
    """

    ppm: int
    fixed_micros: int = 0
    free_count: int | None = None
    free_micros: int | None = None
    least_micros: int = 0
    most_micros: int | None = None

    def __post_init__(self) -> None:
        for name in ("ppm", "fixed_micros", "free_count", "free_micros", "least_micros"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}: must not be negative")
        if self.most_micros is not None and self.most_micros < self.least_micros:
            raise ValueError("most_micros: is below the least")


class Free(NamedTuple):
    """What an allowance took: how many amounts as a whole, and how many micros in all."""

    whole: int
    micros: int


def free_of(fee: ShareFee, amounts: Sequence[int]) -> Free:
    """The free part of amounts, which are in the order in which they came and not negative."""
    if fee.free_count is None and fee.free_micros is None:
        return Free(0, 0)
    first = amounts if fee.free_count is None else amounts[: fee.free_count]
    if fee.free_micros is None:
        return Free(len(first), sum(first))
    count = so_far = 0
    for amount in first:
        if so_far + amount > fee.free_micros:
            return Free(count, fee.free_micros)
        so_far += amount
        count += 1
    return Free(count, so_far)


def share_fee(fee: ShareFee, amounts: Sequence[int]) -> Micros:
    """What all amounts of a period so far come to: summed exactly, rounded once, half to even.

    Amounts are in the order in which they came and not negative. A charge is the difference of two such fees.
    """
    assert all(amount >= 0 for amount in amounts)
    count, left = free_of(fee, amounts)
    left -= sum(amounts[:count])
    exact = 0
    for amount in amounts[count:]:
        one = (amount - left) * fee.ppm + fee.fixed_micros * PPM
        left = 0  # Only the amount at which the allowance ended has a free part.
        one = max(one, fee.least_micros * PPM)
        exact += one if fee.most_micros is None else min(one, fee.most_micros * PPM)
    return Micros(div_half_even(exact, PPM))


def share_volume(amount_micros: int) -> StandardNumerator:
    """An amount as a tariff's volume, so that a tier's rate is a share in parts per million."""
    assert amount_micros >= 0
    return StandardNumerator(amount_micros * _VOLUME_PER_MICRO)
