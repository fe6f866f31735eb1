"""Tiers, volume prices and packages of a list price, counted over one calendar month (docs/tariffs.md, 12).

Pure. What a settlement charges is the difference of two rounded totals of the month so far, whichever period the usage
lies in; what a request sets aside at its admission is strictly above its exact amount, so that every settlement finds
its charge, however the rounding of the two totals falls.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from pricing.tariffs import Kind, Rounding, Tariff, charge
from pricing.units import NUMERATOR_PER_MTOK, Micros, MicrosPerMtok, div_ceil, div_half_even


class Admission(NamedTuple):
    """What a request is admitted at: micros per Mtok of its volume, rounded up to whole units of `unit_numerator`."""

    rate: MicrosPerMtok
    unit_numerator: int


class MonthLine(NamedTuple):
    """A tier's part of a charge. `tier` is its place, None for a package; `since_numerator` is what was counted before.

    A line without volume charges again, at the rate of the tier that is reached, what was charged at another one's.
    """

    tier: int | None
    since_numerator: int
    numerator: int
    amount_micros: int


# Tier, what was counted before, and volume.
_Step = tuple[int | None, int, int]


def check_list_tariff(tariff: Tariff) -> None:
    """Whether a list price may be this. Raises ValueError that names the field.

    Nobody agrees to a contract on demand, so nothing is due for having it: no flat fees and no minimum. Tiers are of
    volume as it is metered, and a price for the whole volume falls as it grows.
    """
    if tariff.minimum_micros:
        raise ValueError("minimum_micros: a list price has no minimum")
    if tariff.maximum_micros is not None:
        raise ValueError("maximum_micros: a list price has no maximum")
    if tariff.rounding is not Rounding.UP:
        raise ValueError("rounding: a begun package counts")
    if tariff.kind is Kind.PACKAGE:
        return
    if tariff.unit != 1:
        raise ValueError("unit: tiers bill every numerator")
    if any(tier.flat_micros for tier in tariff.tiers):
        raise ValueError("tiers: a list price has no flat fees")
    if tariff.kind is Kind.VOLUME and any(later.rate >= tier.rate for tier, later in pairwise(tariff.tiers)):
        raise ValueError("tiers: the rates of a volume price must fall")


def admission(tariff: Tariff) -> Admission:
    """The highest rate that any request of the month can come to, whatever was used before it."""
    if tariff.kind is Kind.PACKAGE:
        rate = div_ceil(tariff.package_micros * NUMERATOR_PER_MTOK, tariff.unit)
        return Admission(MicrosPerMtok(rate), tariff.unit)
    return Admission(MicrosPerMtok(max(tier.rate for tier in tariff.tiers)), 1)


def set_aside(at: Admission, numerator: int) -> Micros:
    """What to hold and to capture for a request: whole units at the highest rate, and strictly more than they cost.

    Rounded up would be too little: of exact totals of 0.5 and 1.5 micros, half to even, the difference is 2, and 1 is
    what was used in between.
    """
    billed = div_ceil(numerator, at.unit_numerator) * at.unit_numerator
    return Micros(billed * at.rate // NUMERATOR_PER_MTOK + 1 if billed else 0)


def month_charge(tariff: Tariff, *, before: int, after: int) -> Micros:
    """What leads from a month's charges so far to those of another total, be it smaller (usage was taken off)."""
    return Micros(charge(tariff, after) - charge(tariff, before))


def month_lines(tariff: Tariff, *, before: int, after: int) -> list[MonthLine]:
    """`month_charge` tier by tier, each line from where the one before it ends. Empty where nothing changed.

    Where a volume price falls by another tier, what was charged so far is charged again at its rate: a line without
    volume that gives back.
    """
    if before == after:
        return []
    match tariff.kind:
        case Kind.PACKAGE:
            steps: list[_Step] = [(None, before, after - before)]
        case Kind.VOLUME:
            place = _reached(tariff, after)
            steps = [(place, before, 0), (place, before, after - before)]
        case Kind.GRADUATED:
            steps = _steps(tariff, before, after)
    lines = [
        MonthLine(tier, since, numerator, line_amount(tariff, tier=tier, since=since, numerator=numerator))
        for tier, since, numerator in steps
    ]
    return [line for line in lines if line.numerator or line.amount_micros]


def line_amount(tariff: Tariff, *, tier: int | None, since: int, numerator: int) -> Micros:
    """What one line of a month comes to, from its own figures alone: how whoever doubts it works it out again.

    Raises ValueError for a line that no month of this tariff has.
    """
    after = since + numerator
    if since < 0 or after < 0:
        raise ValueError("numerator: a month's volume is not negative")
    if tier is None and not numerator:
        return Micros(0)  # An estimate came true: nothing moved.
    if tariff.kind is not Kind.VOLUME:
        return month_charge(tariff, before=since, after=after)
    if tier != _reached(tariff, after) and numerator:
        raise ValueError("tier: the month's volume reaches another one")
    if tier is None or tier >= len(tariff.tiers):
        raise ValueError("tier: the tariff has no such tier")
    # The month so far, were its rate the one that is reached now.
    again = div_half_even(since * tariff.tiers[tier].rate, NUMERATOR_PER_MTOK)
    return Micros(charge(tariff, after) - again if numerator else again - charge(tariff, since))


def _steps(tariff: Tariff, before: int, after: int) -> list[_Step]:
    """Each piece of the way from one total of a graduated tariff to another."""
    low, high = sorted((before, after))
    steps: list[_Step] = []
    lower = 0
    for place, tier in enumerate(tariff.tiers):
        upper = high if tier.up_to is None else min(high, tier.up_to)
        start = max(low, lower)
        if upper > start:
            steps.append((place, start, upper - start))
        lower = upper
    if before < after:
        return steps
    return [(place, start + amount, -amount) for place, start, amount in reversed(steps)]


def _reached(tariff: Tariff, total: int) -> int:
    return next(place for place, tier in enumerate(tariff.tiers) if tier.up_to is None or total <= tier.up_to)
