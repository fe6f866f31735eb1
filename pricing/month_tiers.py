"""Tiers, volume prices and packages of a list price, counted over one calendar month (docs/tariffs.md, 10).

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
    """A tier's part of a charge. `tier` is its place, None for a package.

    A line without volume charges again, at the rate of the tier that is reached, what was charged at another one's.
    """

    tier: int | None
    numerator: int
    amount_micros: int


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
    """`month_charge` tier by tier: amounts and volumes add up to the difference. Empty where nothing changed.

    Where a volume price falls by another tier, what was charged so far is charged again at its rate: a line without
    volume that gives back.
    """
    if before == after:
        return []
    match tariff.kind:
        case Kind.PACKAGE:
            return [MonthLine(None, after - before, month_charge(tariff, before=before, after=after))]
        case Kind.VOLUME:
            return _volume_lines(tariff, before, after)
        case Kind.GRADUATED:
            return _graduated_lines(tariff, before, after)


def _graduated_lines(tariff: Tariff, before: int, after: int) -> list[MonthLine]:
    lines: list[MonthLine] = []
    sign, start, end = (1, before, after) if before < after else (-1, after, before)
    lower = 0
    for place, tier in enumerate(tariff.tiers):
        upper = end if tier.up_to is None else min(end, tier.up_to)
        since = max(start, lower)
        if upper > since:
            amount = month_charge(tariff, before=since, after=upper)
            lines.append(MonthLine(place, sign * (upper - since), sign * amount))
        lower = upper
    return lines


def _volume_lines(tariff: Tariff, before: int, after: int) -> list[MonthLine]:
    place = _reached(tariff, after)
    rate = tariff.tiers[place].rate
    # The month so far, were its rate the one that is reached now.
    again = div_half_even(before * rate, NUMERATOR_PER_MTOK)
    lines = [MonthLine(place, after - before, charge(tariff, after) - again)]
    if again != charge(tariff, before):
        lines.append(MonthLine(place, 0, again - charge(tariff, before)))
    return lines


def _reached(tariff: Tariff, total: int) -> int:
    return next(place for place, tier in enumerate(tariff.tiers) if tier.up_to is None or total <= tier.up_to)
