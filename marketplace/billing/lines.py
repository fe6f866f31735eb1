"""What one settlement period of a contract comes to: pure functions from metered volume to lines (DESIGN 8).

A line is rounded once; its parts for the offerings sum to it exactly. Every rule has an example in docs/rounding.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pricing.rating import fee_of, price_of, split_gross, spot_charge_numerator
from pricing.units import split_by_weight


@dataclass(frozen=True, slots=True)
class Share:
    """One offering's part of a line: what it supplied, and what its provider earns before and to the market's fee."""

    numerator: int
    gross_micros: int
    fee_micros: int

    def __add__(self, other: Share) -> Share:
        return Share(
            self.numerator + other.numerator,
            self.gross_micros + other.gross_micros,
            self.fee_micros + other.fee_micros,
        )

    def __neg__(self) -> Share:
        return Share(-self.numerator, -self.gross_micros, -self.fee_micros)

    def __bool__(self) -> bool:
        return bool(self.numerator or self.gross_micros or self.fee_micros)


NOTHING = Share(0, 0, 0)
LineKey = tuple[UUID, datetime]


class TierPlace(NamedTuple):
    """Where a line stands in a month of tiers or packages: its tier (None of a package), what was counted before."""

    month_id: UUID
    tier: int | None
    since_numerator: int


@dataclass(frozen=True, slots=True)
class Line:
    """A charge before it has an id. The period is half-open; `shares` is by offering."""

    kind: str
    rate_id: UUID
    grade_id: UUID
    rate_micros_per_mtok: int
    period_start: datetime
    period_end: datetime
    numerator: int
    amount_micros: int
    shares: Mapping[UUID, Share]
    # The part of the numerator that no meter has reported yet.
    estimated_numerator: int = 0
    place: TierPlace | None = None

    @property
    def key(self) -> LineKey:
        """What a line is about, whatever its kind: its rate and the start of its period."""
        return (self.rate_id, self.period_start)


@dataclass(frozen=True, slots=True)
class Terms:
    """What all lines of one rate and period share."""

    rate_id: UUID
    grade_id: UUID
    rate_micros_per_mtok: int
    period_start: datetime
    period_end: datetime


def shares_of(
    amount: int, numerators: Mapping[UUID, int], fee_ppm: int, rates: Mapping[UUID, int] | None = None
) -> dict[UUID, Share]:
    """`amount` over the offerings by numerator, each with its fee; offerings of nothing get no share.

    With `rates` (each offering's own, micros per Mtok) by numerator x rate. Where no offering supplied anything
    there is nothing to pay, so `amount` must be 0.
    """
    supplying = {offering: numerator for offering, numerator in numerators.items() if numerator}
    if not supplying:
        assert amount == 0, "an amount without a supplier"
        return {}
    # A rate of 0 still earns a share of what the buyer pays when nobody else supplied.
    weights = {
        offering: numerator * max(1, rates[offering]) if rates else numerator
        for offering, numerator in supplying.items()
    }
    parts = split_gross(amount, weights)
    return {
        offering: Share(numerator, parts[offering], fee_of(parts[offering], fee_ppm))
        for offering, numerator in supplying.items()
    }


def usage_line(
    kind: str,
    terms: Terms,
    numerators: Mapping[UUID, int],
    fee_ppm: int,
    rates: Mapping[UUID, int] | None = None,
    *,
    estimated: int = 0,
) -> Line:
    """Metered volume at its rate: summed first, rounded once (half to even), then split over who delivered.

    `rates` by offering where each is paid in proportion to a rate of its own (committed, in arrears); `estimated` is
    the part of the volume that is only estimated.
    """
    numerator = sum(numerators.values())
    amount = price_of(numerator, terms.rate_micros_per_mtok)
    return _line(kind, terms, numerator, amount, shares_of(amount, numerators, fee_ppm, rates), estimated)


def spot_lines(
    terms: Terms,
    numerators: Mapping[UUID, int],
    *,
    entitled_lots: int,
    failed: int,
    minimum_take_ppm: int,
    deliverable: Mapping[UUID, int],
    fee_ppm: int,
    estimated: int = 0,
) -> list[Line]:
    """`rate x max(U, ceil(theta x (A - F)))` of one award, as a spot line and, above usage, a minimum take line.

    The sum is rounded once; the minimum take line is the sum less the spot line, so that both together never
    exceed the award's hold. What was used goes to who delivered, the rest to the allocated providers by what each stood
    ready for (`deliverable`, lots or numerators): A - F of each, so that nobody is paid for what he failed.
    """
    used = sum(numerators.values())
    charge = spot_charge_numerator(used, entitled_lots, minimum_take_ppm, failed=failed)
    lines = []
    if used:
        lines.append(usage_line("spot", terms, numerators, fee_ppm, estimated=estimated))
    if charge.minimum_take:
        amount = price_of(charge.total, terms.rate_micros_per_mtok) - price_of(
            used, terms.rate_micros_per_mtok
        )
        offerings = sorted(offering for offering, volume in deliverable.items() if volume)
        parts = split_by_weight(charge.minimum_take, [deliverable[offering] for offering in offerings])
        shares = shares_of(amount, dict(zip(offerings, parts, strict=True)), fee_ppm)
        lines.append(_line("minimum_take", terms, charge.minimum_take, amount, shares))
    return lines


def remedy_line(terms: Terms, remedies: Mapping[UUID, int]) -> Line:
    """What providers owe the buyer for what they failed, by offering, in micros: a credit, free of the market's fee."""
    shares = {offering: Share(0, -amount, 0) for offering, amount in sorted(remedies.items()) if amount}
    return _line("remedy", terms, 0, -sum(remedies.values()), shares)


def service_credit_line(terms: Terms, owed: Mapping[UUID, int]) -> Line:
    """What providers owe the buyer for how slowly they delivered: as a remedy, free of the market's fee."""
    return replace(remedy_line(terms, owed), kind="service_credit")


def delivery_shares(
    delta: Mapping[UUID, int],
    *,
    before: Mapping[UUID, Share],
    rates: Mapping[UUID, int],
    contract_rate: int,
    left_micros: int,
    fee_ppm: int,
) -> dict[UUID, Share]:
    """What providers earn out of a prepaid committed month as they deliver: each at his own rate, cumulatively.

    `delta` is newly delivered volume, `before` what the month has recorded so far. A provider has earned
    `price_of(all he delivered, his rate)` after every run, however the month was sliced. Never more than
    `left_micros` of the prepaid fee altogether: what is short is shared in proportion.
    """
    due: dict[UUID, int] = {}
    for offering, numerator in delta.items():
        past = before.get(offering, NOTHING)
        rate = rates.get(offering, contract_rate)
        due[offering] = price_of(past.numerator + numerator, rate) - past.gross_micros
    owed = {offering: amount for offering, amount in due.items() if amount > 0}
    returned = sum(amount for amount in due.values() if amount < 0)
    payable = min(sum(owed.values()), max(0, left_micros - returned))
    if owed:
        offerings = sorted(owed)
        parts = split_by_weight(payable, [owed[offering] for offering in offerings])
        due |= dict(zip(offerings, parts, strict=True))
    shares = {}
    for offering, numerator in delta.items():
        past = before.get(offering, NOTHING)
        # The fee is cumulative too: slicing a month into many periods must not round it down many times.
        fee = fee_of(past.gross_micros + due[offering], fee_ppm) - past.fee_micros
        share = Share(numerator, due[offering], fee)
        if share:
            shares[offering] = share
    return shares


def remainder_shares(
    rest_micros: int, unused_numerator: int, weights: Mapping[UUID, int], fee_ppm: int
) -> dict[UUID, Share]:
    """The end of a prepaid committed month: what nobody called for goes to the providers by allocation share."""
    assert rest_micros >= 0
    assert unused_numerator >= 0
    offerings = sorted(offering for offering, weight in weights.items() if weight)
    grosses = split_by_weight(rest_micros, [weights[offering] for offering in offerings])
    volumes = split_by_weight(unused_numerator, [weights[offering] for offering in offerings])
    shares = {
        offering: Share(volume, gross, fee_of(gross, fee_ppm))
        for offering, gross, volume in zip(offerings, grosses, volumes, strict=True)
    }
    return {offering: share for offering, share in shares.items() if share}


def total_by_offering(lines: Iterable[Line]) -> dict[UUID, Share]:
    totals: dict[UUID, Share] = defaultdict(lambda: NOTHING)
    for line in lines:
        for offering, share in line.shares.items():
            totals[offering] += share
    return dict(totals)


def corrections(desired: Iterable[Line], recorded: Iterable[Line], *, kind: str = "adjustment") -> list[Line]:
    """The lines that lead from what was charged to what should have been, in order of period and rate.

    Only differences: no line where nothing changed. Amounts and shares may be negative.
    """
    wanted, charged = _by_key(desired), _by_key(recorded)
    lines = []
    for key in sorted(wanted.keys() | charged.keys(), key=lambda key: (key[1], key[0])):
        after, already = wanted.get(key, []), charged.get(key, [])
        sample = (after or already)[0]
        shares = total_by_offering(after)
        for offering, share in total_by_offering(already).items():
            shares[offering] = shares.get(offering, NOTHING) + -share
        shares = {offering: share for offering, share in sorted(shares.items()) if share}
        numerator = sum(line.numerator for line in after) - sum(line.numerator for line in already)
        amount = sum(line.amount_micros for line in after) - sum(line.amount_micros for line in already)
        estimated = sum(line.estimated_numerator for line in after)
        estimated -= sum(line.estimated_numerator for line in already)
        # An estimate that came true moves nothing, and its charge is no longer an estimate.
        if numerator or amount or shares or estimated:
            terms = Terms(
                sample.rate_id,
                sample.grade_id,
                sample.rate_micros_per_mtok,
                sample.period_start,
                sample.period_end,
            )
            lines.append(_line(kind, terms, numerator, amount, shares, estimated))
    return lines


def _by_key(lines: Iterable[Line]) -> dict[LineKey, list[Line]]:
    grouped: dict[LineKey, list[Line]] = defaultdict(list)
    for line in lines:
        grouped[line.key].append(line)
    return grouped


def _line(
    kind: str, terms: Terms, numerator: int, amount: int, shares: Mapping[UUID, Share], estimated: int = 0
) -> Line:
    return Line(
        kind=kind,
        rate_id=terms.rate_id,
        grade_id=terms.grade_id,
        rate_micros_per_mtok=terms.rate_micros_per_mtok,
        period_start=terms.period_start,
        period_end=terms.period_end,
        numerator=numerator,
        amount_micros=amount,
        shares=shares,
        estimated_numerator=estimated,
    )
