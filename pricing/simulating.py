"""What a committed contract would have cost on usage that was (docs/simulator.md). Pure, integers only.

The formulas are those of real months, `pricing.commitments` and `pricing.rating`, and each charge line is rounded once,
as a real one is. Volumes are numerators unless a name says lots. Nothing fails and nothing is released: F = R = 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from pricing.commitments import own_usage, rolled_over, true_up
from pricing.month_tiers import month_charge
from pricing.months import Period, calendar_month, period_at
from pricing.rating import lots_numerator, price_of
from pricing.tariffs import Tariff
from pricing.units import PPM


class Overage(StrEnum):
    """What becomes of usage beyond the contract."""

    STOP = "stop"  # refused
    LIST = "list"  # at the list rate of its period
    SPOT = "spot"  # at the overage rate of its period; at the list rate where the spot market left none


class Refusal(StrEnum):
    """Why usage would not have been served."""

    STOP = "stop"  # the policy
    MAX_RATE = "max_rate"  # the rate of its period was above the buyer's highest
    NO_RATE = "no_rate"  # no rate of its period is known


class KnownRate(NamedTuple):
    """A unit price; volume at one `id` in a settlement period is one charge line.

    With a `tariff` it is the highest that a token can come to, and a calendar month's volume decides what is charged.
    """

    id: Hashable
    micros_per_mtok: int
    tariff: Tariff | None = None


class PeriodUsage(NamedTuple):
    """What was used in the delivery period that begins then, and what volume beyond a contract cost in it."""

    start: datetime
    numerator: int
    list_rate: KnownRate | None = None
    overage_rate: KnownRate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The contract that is tried: `rate` and `max_rate` are micros per Mtok. Raises ValueError that names the field."""

    firm_lots: int
    volume_lots: int
    rate: int
    is_prepaid: bool = True
    take_share_ppm: int = PPM
    rollover_share_ppm: int = 0
    rollover_cap_lots: int = 0
    overage: Overage = Overage.STOP
    max_rate: int | None = None

    def __post_init__(self) -> None:
        if self.firm_lots < 1 or self.volume_lots < 1:
            raise ValueError(f"{'firm' if self.firm_lots < 1 else 'volume'}_lots: must be at least 1")
        if self.rate < 0:
            raise ValueError("rate: must not be negative")
        if not 0 <= self.take_share_ppm <= PPM:
            raise ValueError(f"take_share_ppm: must be from 0 to {PPM}")
        if not 0 <= self.rollover_share_ppm <= PPM:
            raise ValueError(f"rollover_share_ppm: must be from 0 to {PPM}")
        if self.rollover_cap_lots < 0:
            raise ValueError("rollover_cap_lots: must not be negative")
        if self.rollover_share_ppm and not self.is_prepaid:
            raise ValueError("rollover_share_ppm: only volume that is paid ahead can roll over")
        if self.rollover_share_ppm and not self.rollover_cap_lots:
            raise ValueError("rollover_cap_lots: a share that rolls over needs a cap above zero")
        if self.max_rate is not None and self.max_rate < 1:
            raise ValueError("max_rate: must be at least 1")
        if self.max_rate is not None and self.overage is Overage.STOP:
            raise ValueError("max_rate: bounds overage, and this policy has none")


@dataclass(frozen=True, slots=True)
class SimulatedMonth:
    """One month of a contract that was tried. `used` is all usage: `delivered` inside the contract, `overage`, refused.

    Of what was delivered `rolled_in_used` was burned first, the rest is the month's own; own and `unused` are V.
    `beyond_firm` is the part of the usage that lay above f in its delivery period, volume left or not;
    `overage_at_list` the part of the overage that had no rate of its own, and so cost the list rate.
    """

    period: Period
    volume: int
    used: int
    delivered: int
    rolled_in: int
    rolled_in_used: int
    unused: int
    rolled_out: int
    true_up: int
    beyond_firm: int
    overage: int
    overage_at_list: int
    refused: Mapping[Refusal, int]
    fee_micros: int
    usage_micros: int
    true_up_micros: int
    overage_micros: int

    @property
    def refused_in_all(self) -> int:
        return sum(self.refused.values())

    @property
    def amount_micros(self) -> int:
        return self.fee_micros + self.usage_micros + self.true_up_micros + self.overage_micros


def check_volume(terms: Terms, months: Sequence[Period], *, delivery_s: int) -> None:
    """V is at most f times the delivery periods of the shortest month. Raises ValueError naming volume_lots."""
    periods = min(month.seconds for month in months) // delivery_s
    if terms.volume_lots > terms.firm_lots * periods:
        raise ValueError(
            f"volume_lots: a month of {periods} delivery periods of {terms.firm_lots} lots holds "
            f"{terms.firm_lots * periods} lots"
        )


def simulate(
    terms: Terms, months: Sequence[Period], usage: Iterable[PeriodUsage], *, settlement_s: int
) -> list[SimulatedMonth]:
    """The months of a contract of these terms, had all of `usage` (in order, inside the months) been asked of it.

    In a delivery period at most f lots are of the contract, and in a month at most V and what rolled over into it;
    what is more is overage. The months tile their term, and each begins and ends with a settlement period. Reads
    `usage` once and keeps none of it.
    """
    assert months
    assert all(before.end == after.start for before, after in pairwise(months))
    done: list[SimulatedMonth] = []
    rolled_in = 0
    counted: dict[tuple[KnownRate, datetime], int] = defaultdict(int)
    pending = iter(usage)
    ahead = next(pending, None)
    for number, period in enumerate(months):
        assert ahead is None or ahead.start >= period.start, "usage lies inside the months, in order"
        month = _Month(terms, period, rolled_in, counted)
        settlement: Period | None = None
        while ahead is not None and ahead.start < period.end:
            if settlement is None or ahead.start not in settlement:
                assert settlement is None or ahead.start >= settlement.end, "usage is in order"
                month.close_lines()
                settlement = period_at(ahead.start, settlement_s)
            month.add(ahead)
            ahead = next(pending, None)
        done.append(month.end(is_last=number == len(months) - 1))
        rolled_in = done[-1].rolled_out
    assert ahead is None, "usage lies inside the months"
    return done


@dataclass(slots=True)
class _Month:
    """A month as it goes: what was taken of it, and the charge lines of the settlement period that runs."""

    terms: Terms
    period: Period
    rolled_in: int
    # Of rates with a tariff: volume so far by rate and calendar month, whatever the contract's months.
    counted: dict[tuple[KnownRate, datetime], int]
    used: int = 0
    delivered: int = 0
    beyond_firm: int = 0
    overage: int = 0
    overage_at_list: int = 0
    usage_micros: int = 0
    overage_micros: int = 0
    refused: dict[Refusal, int] = field(default_factory=lambda: defaultdict(int))
    line: int = 0
    overage_lines: dict[KnownRate, int] = field(default_factory=lambda: defaultdict(int))
    at: datetime | None = None

    def add(self, usage: PeriodUsage) -> None:
        assert usage.numerator >= 0
        self.at = usage.start
        firm = lots_numerator(self.terms.firm_lots)
        left = lots_numerator(self.terms.volume_lots) + self.rolled_in - self.delivered
        inside = min(usage.numerator, firm, left)
        self.used += usage.numerator
        self.delivered += inside
        self.line += inside
        self.beyond_firm += max(0, usage.numerator - firm)
        if usage.numerator > inside:
            self._go_beyond(usage, usage.numerator - inside)

    def _go_beyond(self, usage: PeriodUsage, numerator: int) -> None:
        if self.terms.overage is Overage.STOP:
            self.refused[Refusal.STOP] += numerator
            return
        is_listed = self.terms.overage is Overage.LIST or usage.overage_rate is None
        rate = usage.list_rate if is_listed else usage.overage_rate
        if rate is None:
            self.refused[Refusal.NO_RATE] += numerator
        elif self.terms.max_rate is not None and rate.micros_per_mtok > self.terms.max_rate:
            self.refused[Refusal.MAX_RATE] += numerator
        else:
            self.overage += numerator
            self.overage_at_list += numerator if is_listed else 0
            self.overage_lines[rate] += numerator

    def close_lines(self) -> None:
        """A settlement period is over: each of its lines is rounded, once."""
        if not self.terms.is_prepaid:
            self.usage_micros += price_of(self.line, self.terms.rate)
        self.line = 0
        self.overage_micros += sum(self._price(*line) for line in self.overage_lines.items())
        self.overage_lines.clear()

    def _price(self, rate: KnownRate, numerator: int) -> int:
        if rate.tariff is None:
            return price_of(numerator, rate.micros_per_mtok)
        assert self.at is not None, "what has a line was used at some time"
        month = rate, calendar_month(self.at).start
        before = self.counted[month]
        self.counted[month] += numerator
        return month_charge(rate.tariff, before=before, after=before + numerator)

    def end(self, *, is_last: bool) -> SimulatedMonth:
        """Square the month up. The term's last leaves nothing to a month after it."""
        self.close_lines()
        terms = self.terms
        volume = lots_numerator(terms.volume_lots)
        own = own_usage(self.delivered, self.rolled_in)
        owed = rolled = 0
        if not terms.is_prepaid:
            owed = true_up(
                volume_lots=terms.volume_lots,
                take_share_ppm=terms.take_share_ppm,
                released=0,
                delivered=own,
                failed=0,
            )
        elif not is_last:
            rolled = rolled_over(
                unused=volume - own, share_ppm=terms.rollover_share_ppm, cap_lots=terms.rollover_cap_lots
            )
        return SimulatedMonth(
            period=self.period,
            volume=volume,
            used=self.used,
            delivered=self.delivered,
            rolled_in=self.rolled_in,
            rolled_in_used=self.delivered - own,
            unused=volume - own,
            rolled_out=rolled,
            true_up=owed,
            beyond_firm=self.beyond_firm,
            overage=self.overage,
            overage_at_list=self.overage_at_list,
            refused=dict(self.refused),
            fee_micros=price_of(volume, terms.rate) if terms.is_prepaid else 0,
            usage_micros=self.usage_micros,
            true_up_micros=price_of(owed, terms.rate),
            overage_micros=self.overage_micros,
        )


class RateStep(NamedTuple):
    """From `since` on, the rate of the seller `source`; None where it has none that others compare with."""

    since: datetime
    source: Hashable
    rate: KnownRate | None


class Cheapest:
    """The lowest of all sources' rates in force, at moments that only go forwards; `steps` are ordered by `since`."""

    def __init__(self, steps: Iterable[RateStep]) -> None:
        self._steps = iter(steps)
        self._ahead = next(self._steps, None)
        self._in_force: dict[Hashable, KnownRate] = {}
        self._lowest: KnownRate | None = None

    def at(self, moment: datetime) -> KnownRate | None:
        """None before the first rate."""
        moved = False
        while self._ahead is not None and self._ahead.since <= moment:
            if self._ahead.rate is None:
                self._in_force.pop(self._ahead.source, None)
            else:
                self._in_force[self._ahead.source] = self._ahead.rate
            self._ahead, moved = next(self._steps, None), True
        if moved:
            rates = self._in_force.values()
            self._lowest = min(rates, key=lambda rate: rate.micros_per_mtok, default=None)
        return self._lowest
