"""The committed month: take, true-up, failed volume, rollover, early end (DESIGN 8). Pure, integers only.

Volumes are numerators (millionths of a standard token) unless a name says lots. Every rule has an example in
docs/contracts.md.
"""

from __future__ import annotations

from pricing.rating import lots_numerator
from pricing.units import (
    NUMERATOR_PER_LOT,
    NUMERATOR_PER_MTOK,
    PPM,
    Lots,
    Micros,
    StandardNumerator,
    div_half_even,
)


def take_lots(volume_lots: int, take_share_ppm: int) -> Lots:
    """`floor(take x V)`: what of a month's volume is paid even if nobody asks for it."""
    assert 0 <= take_share_ppm <= PPM
    return Lots(volume_lots * take_share_ppm // PPM)


def own_usage(delivered: int, rollover: int) -> StandardNumerator:
    """What of a month's delivery was its own volume: what rolled over into it is burned first."""
    return StandardNumerator(max(0, delivered - rollover))


def failed_of_month(*, volume: int, released: int, delivered: int, failed: int) -> StandardNumerator:
    """`min(sum of F, V - R - U)`: what failed in a period and was delivered later has not failed the month.

    `delivered` is the month's own usage, `failed` the sum of F over its delivery periods.
    """
    return StandardNumerator(max(0, min(failed, volume - released - delivered)))


def true_up(*, volume_lots: int, take_share_ppm: int, released: int, delivered: int, failed: int) -> int:
    """`T = max(0, floor(take x V) - U - R - F)`, in arrears: the volume that is charged without delivery."""
    take = lots_numerator(take_lots(volume_lots, take_share_ppm))
    return max(0, take - delivered - released - failed)


def rolled_over(*, unused: int, share_ppm: int, cap_lots: int) -> StandardNumerator:
    """`min(floor(share x paid unused), cap)`, whole lots: what a prepaid month leaves to the next one."""
    assert 0 <= share_ppm <= PPM
    lots = max(0, unused) * share_ppm // (PPM * NUMERATOR_PER_LOT)
    return lots_numerator(min(lots, cap_lots))


def prorated_lots(volume_lots: int, *, part_s: int, whole_s: int) -> Lots:
    """A month's volume when it ends early: pro rata by seconds, rounded down to whole lots."""
    assert 0 <= part_s <= whole_s
    assert whole_s > 0
    return Lots(volume_lots * part_s // whole_s)


def termination_fee(*, lots_left: int, take_share_ppm: int, fee_ppm: int, rate: int) -> Micros:
    """`fee x floor(take x V left) x rate`, rounded once, half to even: what ending early costs, of the take that will
    never be due.
    """
    assert 0 <= fee_ppm <= PPM
    owed = lots_numerator(take_lots(lots_left, take_share_ppm))
    return Micros(div_half_even(owed * rate * fee_ppm, NUMERATOR_PER_MTOK * PPM))
