"""Tariffs: what a volume comes to, exactly, and rounded once (docs/tariffs.md).

A tariff gives the amount of everything used in a billing period so far. A charge is the difference of two such
amounts, so what a period costs does not depend on how it was cut. Volumes are standard numerators, rates micros per
Mtok, amounts micros; in between, amounts are exact in millionths of a millionth of a micro (numerator x rate).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from pricing.rating import price_ceil
from pricing.units import NUMERATOR_PER_MTOK, Micros, MicrosPerMtok, div_ceil, div_half_even, div_half_up

MAX_TIERS: Final = 20
DAY_S: Final = 86_400


class Kind(StrEnum):
    """How tiers are read."""

    GRADUATED = "graduated"  # each tier's own lots at its own rate; one tier alone is a price per unit
    VOLUME = "volume"  # everything at the rate of the tier that the period's total reaches
    PACKAGE = "package"  # whole packages at one price each


class Rounding(StrEnum):
    """What becomes of a fraction of a billed unit, or of a package."""

    UP = "up"
    DOWN = "down"
    HALF_UP = "half_up"


@dataclass(frozen=True, slots=True)
class Tier:
    """`up_to` is the last volume that is inside, counted from the period's start; None has no end. `flat_micros` is due
    once when the tier is entered, the first tier's with the period's first charge, used or not.
    """

    up_to: int | None
    rate: int
    flat_micros: int = 0


@dataclass(frozen=True, slots=True)
class Tariff:
    """Made by `per_unit`, `graduated`, `volume` and `package`, which check it.

    `unit` is what is billed in whole, rounded by `rounding`; 1 bills every numerator. The maximum caps what the period
    comes to; the minimum is made up for when the period ends.
    """

    kind: Kind
    tiers: tuple[Tier, ...]
    unit: int = 1
    rounding: Rounding = Rounding.UP
    package_micros: int = 0
    minimum_micros: int = 0
    maximum_micros: int | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def settles_at_end(self) -> bool:
        """Whether a period's charges may only be made at its end: a volume price can fall as volume grows."""
        return self.kind is Kind.VOLUME


class Line(NamedTuple):
    """One tier's part of a charge, of which the maximum takes `discount_micros` off."""

    tier: int
    numerator: int
    amount_micros: int
    discount_micros: int


class Settlement(NamedTuple):
    """A whole period: its usage, what the maximum takes off, what the minimum adds, and the sum."""

    usage_micros: Micros
    discount_micros: Micros
    true_up_micros: Micros
    total_micros: Micros


def per_unit(rate: int, *, minimum_micros: int = 0, maximum_micros: int | None = None) -> Tariff:
    """One rate for everything."""
    return graduated([Tier(None, rate)], minimum_micros=minimum_micros, maximum_micros=maximum_micros)


def graduated(
    tiers: Sequence[Tier],
    *,
    unit: int = 1,
    rounding: Rounding = Rounding.UP,
    minimum_micros: int = 0,
    maximum_micros: int | None = None,
) -> Tariff:
    """Each tier's own volume at its own rate. Raises ValueError that names the field."""
    return Tariff(Kind.GRADUATED, tuple(tiers), unit, rounding, 0, minimum_micros, maximum_micros)


def volume(
    tiers: Sequence[Tier],
    *,
    unit: int = 1,
    rounding: Rounding = Rounding.UP,
    minimum_micros: int = 0,
    maximum_micros: int | None = None,
) -> Tariff:
    """The whole volume at the rate of the tier it reaches. Raises ValueError that names the field."""
    return Tariff(Kind.VOLUME, tuple(tiers), unit, rounding, 0, minimum_micros, maximum_micros)


def package(
    size: int,
    price_micros: int,
    *,
    rounding: Rounding = Rounding.UP,
    minimum_micros: int = 0,
    maximum_micros: int | None = None,
) -> Tariff:
    """Packages of `size` numerators, begun ones counted (or, rounded down, only full ones). Raises ValueError."""
    if size < 1:
        raise ValueError("size: must be at least 1")
    return Tariff(Kind.PACKAGE, (), size, rounding, price_micros, minimum_micros, maximum_micros)


def _check(tariff: Tariff) -> None:
    if tariff.unit < 1:
        raise ValueError("unit: must be at least 1")
    if tariff.package_micros < 0:
        raise ValueError("price_micros: must not be negative")
    if tariff.minimum_micros < 0:
        raise ValueError("minimum_micros: must not be negative")
    if tariff.maximum_micros is not None and tariff.maximum_micros < tariff.minimum_micros:
        raise ValueError("maximum_micros: is below the minimum")
    if tariff.kind is Kind.PACKAGE:
        return
    if not 1 <= len(tariff.tiers) <= MAX_TIERS:
        raise ValueError(f"tiers: there must be 1 to {MAX_TIERS}")
    before = 0
    for tier in tariff.tiers[:-1]:
        if tier.up_to is None or tier.up_to <= before:
            raise ValueError("tiers: each must reach beyond the one before")
        before = tier.up_to
    if tariff.tiers[-1].up_to is not None:
        raise ValueError("tiers: the last must have no end")
    if any(tier.rate < 0 or tier.flat_micros < 0 for tier in tariff.tiers):
        raise ValueError("tiers: a rate or flat fee is negative")


# ---- amounts


def billed_numerator(tariff: Tariff, numerator: int) -> int:
    """The volume that is billed: whole units."""
    assert numerator >= 0
    return _units(tariff, numerator) * tariff.unit


def _units(tariff: Tariff, numerator: int) -> int:
    match tariff.rounding:
        case Rounding.UP:
            return div_ceil(numerator, tariff.unit)
        case Rounding.DOWN:
            return numerator // tariff.unit
        case Rounding.HALF_UP:
            return div_half_up(numerator, tariff.unit)


def exact_charge(tariff: Tariff, numerator: int) -> int:
    """What a period comes to after `numerator`, in 10**-12 micros, before maximum and minimum."""
    if tariff.kind is Kind.PACKAGE:
        return _units(tariff, numerator) * tariff.package_micros * NUMERATOR_PER_MTOK
    billed = billed_numerator(tariff, numerator)
    if tariff.kind is Kind.VOLUME:
        tier = _tier_of(tariff, billed)
        return billed * tier.rate + tier.flat_micros * NUMERATOR_PER_MTOK
    exact = lower = 0
    for place, tier in enumerate(tariff.tiers):
        if place and billed <= lower:
            break
        upper = billed if tier.up_to is None else min(billed, tier.up_to)
        exact += (upper - lower) * tier.rate + tier.flat_micros * NUMERATOR_PER_MTOK
        lower = upper
    return exact


def _tier_of(tariff: Tariff, billed: int) -> Tier:
    return next(tier for tier in tariff.tiers if tier.up_to is None or billed <= tier.up_to)


def usage_charge(tariff: Tariff, numerator: int) -> Micros:
    """What a period comes to after `numerator`, rounded half to even, before maximum and minimum."""
    return Micros(div_half_even(exact_charge(tariff, numerator), NUMERATOR_PER_MTOK))


def charge(tariff: Tariff, numerator: int) -> Micros:
    """What a period comes to after `numerator`, at most its maximum."""
    amount = usage_charge(tariff, numerator)
    return amount if tariff.maximum_micros is None else Micros(min(amount, tariff.maximum_micros))


def interval_charge(tariff: Tariff, *, before: int | None, after: int) -> Micros:
    """The charge of an interval: what the period comes to after it, less what it came to before.

    `before` is None for a period's first charge, which brings the first tier's flat fee. Negative only where a volume
    tariff's total gets cheaper by growing (then it is charged at the period's end, `settles_at_end`).
    """
    if before is None:
        return charge(tariff, after)
    assert before <= after
    return Micros(charge(tariff, after) - charge(tariff, before))


def interval_lines(tariff: Tariff, *, before: int | None, after: int) -> list[Line]:
    """`interval_charge` tier by tier; the lines' amounts less their discounts add up to it. Graduated tariffs only.

    Each is a difference of rounded totals. The maximum is used up in the order of the tiers.
    """
    assert tariff.kind is Kind.GRADUATED
    start, end = billed_numerator(tariff, before or 0), billed_numerator(tariff, after)
    assert start <= end
    lines: list[Line] = []
    lower = 0
    done = 0 if before is None else usage_charge(tariff, before)
    charged = 0 if before is None else charge(tariff, before)
    for place, tier in enumerate(tariff.tiers):
        upper = end if tier.up_to is None else min(end, tier.up_to)
        if (before is None and place == 0) or upper > max(lower, start):
            # Billed volumes are whole units, so they are billed as they are.
            total = div_half_even(_graduated_exact(tariff, upper), NUMERATOR_PER_MTOK)
            capped = total if tariff.maximum_micros is None else min(total, tariff.maximum_micros)
            amount = total - done
            lines.append(Line(place, upper - max(lower, start), amount, amount - (capped - charged)))
            done, charged = total, capped
        if tier.up_to is None or end <= tier.up_to:
            break
        lower = tier.up_to
    return lines


def _graduated_exact(tariff: Tariff, billed: int) -> int:
    whole = Tariff(Kind.GRADUATED, tariff.tiers)
    return exact_charge(whole, billed)


def true_up(*, charged_micros: int, minimum_micros: int, active_s: int = 1, period_s: int = 1) -> Micros:
    """What lifts a period's charges to its minimum, prorated by seconds when it was active for a part; rounded once."""
    assert 0 <= active_s <= period_s
    missing = minimum_micros * active_s - charged_micros * period_s
    return Micros(max(0, div_half_even(missing, period_s)))


def settle(tariff: Tariff, numerator: int, *, active_s: int = 1, period_s: int = 1) -> Settlement:
    """A whole period after `numerator`, with maximum and minimum."""
    usage, capped = usage_charge(tariff, numerator), charge(tariff, numerator)
    added = true_up(
        charged_micros=capped, minimum_micros=tariff.minimum_micros, active_s=active_s, period_s=period_s
    )
    return Settlement(usage, Micros(usage - capped), added, Micros(capped + added))


# ---- holds


def highest_reachable_rate(tariff: Tariff, *, used: int = 0) -> MicrosPerMtok:
    """The highest rate that usage from `used` on can still be charged at: what accrues per Mtok until settlement.

    Of a package, the price of a numerator that begins one is no rate: `accrual_ceiling` holds for it.
    """
    assert tariff.kind is not Kind.PACKAGE
    billed = billed_numerator(tariff, used)
    # A volume tier is reached by a total of just `used`, a graduated one only by what comes after it.
    reachable = [
        tier.rate
        for tier in tariff.tiers
        if tier.up_to is None or billed < tier.up_to or (tariff.settles_at_end and billed == tier.up_to)
    ]
    return MicrosPerMtok(max(reachable))


def accrual_ceiling(tariff: Tariff, *, before: int | None, after: int) -> Micros:
    """What to hold for an interval. Over any intervals the sum is never below what the period comes to.

    The interval's volume at the highest reachable rate, rounded up, and the flat fees it may bring: those of the tiers
    it enters, or, of a volume tariff, the highest still reachable with the period's first.
    """
    if tariff.kind is Kind.PACKAGE:
        earlier = 0 if before is None else exact_charge(tariff, before)
        return Micros((exact_charge(tariff, after) - earlier) // NUMERATOR_PER_MTOK)
    start, end = billed_numerator(tariff, before or 0), billed_numerator(tariff, after)
    amount = price_ceil(end - start, highest_reachable_rate(tariff, used=before or 0))
    if tariff.settles_at_end:
        flats = [tier.flat_micros for tier in tariff.tiers]
        return Micros(amount + (max(flats) if before is None else 0))
    lower = 0
    for place, tier in enumerate(tariff.tiers):
        if (before is None and place == 0) or (place and start <= lower < end):
            amount = Micros(amount + tier.flat_micros)
        if tier.up_to is None:
            break
        lower = tier.up_to
    return amount


# ---- time of use


@dataclass(frozen=True, slots=True)
class Window:
    """Every day from `start_s` to `end_s`, seconds of the UTC day, half-open; over midnight when it ends at or before
    its start.
    """

    start_s: int
    end_s: int
    rate: int


@dataclass(frozen=True, slots=True)
class TimeOfUse:
    """Rates by the time of admission, UTC. Outside all windows `rate` holds. Raises ValueError that names the field."""

    rate: int
    windows: tuple[Window, ...]

    def __post_init__(self) -> None:
        if self.rate < 0 or any(window.rate < 0 for window in self.windows):
            raise ValueError("rate: must not be negative")
        taken: list[tuple[int, int]] = []
        for window in self.windows:
            if not (0 <= window.start_s < DAY_S and 0 <= window.end_s <= DAY_S):
                raise ValueError("windows: times are seconds of the day, 0 to 86400")
            taken += _parts(window)
        taken.sort()
        if any(later[0] < earlier[1] for earlier, later in pairwise(taken)):
            raise ValueError("windows: two of them overlap")

    @property
    def highest_reachable_rate(self) -> MicrosPerMtok:
        """What accrues until it is known when usage was admitted."""
        return MicrosPerMtok(max([self.rate, *(window.rate for window in self.windows)]))

    def rate_at(self, at: datetime) -> MicrosPerMtok:
        """The rate of usage admitted at an aware moment, whatever zone it is written in."""
        assert at.tzinfo is not None, "a rate needs an aware time"
        second = _second_of_day(at.astimezone(UTC))
        for window in self.windows:
            if any(start <= second < end for start, end in _parts(window)):
                return MicrosPerMtok(window.rate)
        return MicrosPerMtok(self.rate)

    def slices(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, MicrosPerMtok]]:
        """The interval `[start, end)` cut where the rate may change, in order and without a gap."""
        edges = sorted(
            {edge for window in self.windows for part in _parts(window) for edge in part} | {0, DAY_S}
        )
        at = start.astimezone(UTC)
        while at < end:
            midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
            # A part of a second belongs to its second.
            edge = edges[bisect_right(edges, _second_of_day(at))]
            until = min(midnight + timedelta(seconds=edge), end.astimezone(UTC))
            yield at, until, self.rate_at(at)
            at = until


def _parts(window: Window) -> list[tuple[int, int]]:
    """A window within one day: one part, or two over midnight."""
    if window.start_s < window.end_s:
        return [(window.start_s, window.end_s)]
    return [part for part in ((0, window.end_s), (window.start_s, DAY_S)) if part[0] < part[1]]


def _second_of_day(at: datetime) -> int:
    return at.hour * 3_600 + at.minute * 60 + at.second


# ---- versions


@dataclass(frozen=True, slots=True)
class Version:
    """A tariff from an instant on, until the next version's."""

    valid_from: datetime
    tariff: Tariff | TimeOfUse


def version_at(versions: Sequence[Version], at: datetime) -> Version:
    """The version in force at an instant.

    Tiers count from a period's start, so a tiered tariff is looked up at that start and holds for the whole period; a
    rate per unit or by time of use at admission. Raises ValueError when none is in force yet, or two begin together.
    """
    assert at.tzinfo is not None
    ordered = sorted(versions, key=lambda version: version.valid_from)
    starts = [version.valid_from for version in ordered]
    if len(set(starts)) != len(starts):
        raise ValueError("valid_from: two versions begin at the same instant")
    place = bisect_right(starts, at)
    if not place:
        raise ValueError("valid_from: no version is in force yet")
    return ordered[place - 1]
