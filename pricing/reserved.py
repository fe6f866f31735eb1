"""A volume reserved for a part of a period, or changed within it (docs/tariffs.md 10): shared by time, rounded once.

What is reserved is a volume a period, in standard numerators, by a tariff's rates. Method: the aggregation "weighted
sum" and the prorated graduated and volume charges of Lago's documentation, by microseconds instead of days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from pricing.months import Period
from pricing.tariffs import Kind, Tariff, billed_numerator, exact_charge
from pricing.units import NUMERATOR_PER_MTOK, Micros, div_half_even


class Change(NamedTuple):
    """From the aware moment `at` on, `delta` numerators a period more (or less)."""

    at: datetime
    delta: int


def reserved_at_end(changes: Sequence[Change], *, carried: int = 0) -> int:
    """What is reserved after the last change: what the next period begins with. Raises ValueError below zero."""
    return _levels(changes, carried)[-1]


def reserved_on_average(changes: Sequence[Change], *, period: Period, carried: int = 0) -> Fraction:
    """The volume that was reserved in a period, weighted by time: exact, in numerators.

    `carried` is what the period began with. Raises ValueError (`changes`) outside of the period or below zero.
    """
    _levels(changes, carried)
    return carried + Fraction(
        sum(change.delta * _left(change, period) for change in changes), period.microseconds
    )


def reserved_charge(tariff: Tariff, changes: Sequence[Change], *, period: Period, carried: int = 0) -> Micros:
    """What a period's reserved volume comes to, at most the tariff's maximum; half to even, once. `true_up` knows its
    minimum.

    A change is priced in the tiers that it lies in, for the time that is left: less comes out of the highest tier. Of a
    volume tariff the highest volume reserved at any time chooses the tier, and its rate applies to the average. Flat
    fees are not shared by time: they are due for each tier that was reached, the first one's in any case. Changes
    count in the order given, which is that of time. Packages are not shared.

    Raises ValueError (`tariff`, `changes`).
    """
    if tariff.kind is Kind.PACKAGE:
        raise ValueError("tariff: a package is whole, it is not reserved for a part of a period")
    levels = [billed_numerator(tariff, level) for level in _levels(changes, carried)]
    highest, length = max(levels), period.microseconds
    bare = replace(tariff, tiers=tuple(replace(tier, flat_micros=0) for tier in tariff.tiers))
    if tariff.kind is Kind.VOLUME:
        rate = next(tier.rate for tier in tariff.tiers if tier.up_to is None or highest <= tier.up_to)
        prices = [level * rate for level in levels]
    else:
        prices = [exact_charge(bare, level) for level in levels]
    flats = exact_charge(tariff, highest) - exact_charge(bare, highest)
    exact = (prices[0] + flats) * length
    for change, (before, after) in zip(changes, pairwise(prices), strict=True):
        exact += (after - before) * _left(change, period)
    amount = div_half_even(exact, NUMERATOR_PER_MTOK * length)
    return Micros(amount if tariff.maximum_micros is None else min(amount, tariff.maximum_micros))


def _levels(changes: Sequence[Change], carried: int) -> list[int]:
    levels = [carried]
    for change in changes:
        levels.append(levels[-1] + change.delta)
    if min(levels) < 0:
        raise ValueError("changes: less than nothing is reserved")
    return levels


def _left(change: Change, period: Period) -> int:
    if change.at not in period:
        raise ValueError("changes: one lies outside of the period")
    return Period(change.at, period.end).microseconds
