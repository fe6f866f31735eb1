"""The arithmetic of documents: discounts, stacked taxes, credit notes. Pure, on integers of any one unit.

The market's documents count micros; the rules are the same on minor units. Order: lines, then their discounts, then
the document's discounts, then tax. Every division is rounded once, and what is spread over lines sums to the whole
whatever the order of the lines: ties go to the smaller key. Examples: docs/rounding.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from pricing.units import NUMERATOR_PER_MTOK, PPM, div_half_up

Key = TypeVar("Key", int, str, UUID)


@dataclass(frozen=True, slots=True)
class DiscountTerm:
    """Either `ppm` of what it applies to, or a fixed `amount`; of the lines of one `kind`, or of the whole document."""

    key: str
    ppm: int | None = None
    amount: int | None = None
    kind: str | None = None

    def __post_init__(self) -> None:
        assert (self.ppm is None) != (self.amount is None), "a discount is a share or an amount"

    def of(self, base: int) -> int:
        """What it takes off `base`: half-up for a share, never more than the base, nothing off a credit."""
        if base <= 0:
            return 0
        off = div_half_up(base * self.ppm, PPM) if self.ppm is not None else self.amount or 0
        return min(off, base)


@dataclass(frozen=True, slots=True)
class TaxTerm:
    """A rate (`ppm` of the net amount) or a levy (`micros_per_mtok` of the volume that came from abroad)."""

    key: str
    ppm: int = 0
    micros_per_mtok: int = 0


@dataclass(frozen=True, slots=True)
class TaxedLine:
    """A line before discounts and tax. `taxes`: the terms that apply; `foreign`: volume from abroad, by levy."""

    amount: int
    kind: str = ""
    taxes: tuple[str, ...] = ()
    foreign: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Worked:
    """`discounts` and `taxes` by term; `line_discounts` and `line_taxes` are the same by line. All sums close."""

    subtotal: int
    discounts: dict[str, int] = field(default_factory=dict)
    line_discounts: dict[Any, int] = field(default_factory=dict)
    taxes: dict[str, int] = field(default_factory=dict)
    bases: dict[str, int] = field(default_factory=dict)
    line_taxes: dict[Any, dict[str, int]] = field(default_factory=dict)

    @property
    def discount(self) -> int:
        return sum(self.discounts.values())

    @property
    def net(self) -> int:
        return self.subtotal - self.discount

    @property
    def tax(self) -> int:
        return sum(self.taxes.values())


def spread(total: int, weights: Mapping[Key, int]) -> dict[Key, int]:
    """`total` over keys in proportion to their weights: largest remainder, ties to the smaller key.

    Weights may be of both signs (a credit among charges) as long as they do not sum to zero; where they do, only a
    total of zero can be spread. Raises ValueError otherwise.
    """
    whole = sum(weights.values())
    if whole == 0:
        if total:
            raise ValueError("weights: sum to zero, so the total has nowhere to go")
        return dict.fromkeys(weights, 0)
    if whole < 0:
        return spread(total, {key: -weight for key, weight in weights.items()})
    if total < 0:
        return {key: -part for key, part in spread(-total, weights).items()}
    parts, remainders = {}, []
    for key, weight in weights.items():
        parts[key], remainder = divmod(total * weight, whole)
        remainders.append((-remainder, key))
    left = total - sum(parts.values())
    for _, key in sorted(remainders)[:left]:
        parts[key] += 1
    return parts


def work_out(
    lines: Mapping[Key, TaxedLine], discounts: Sequence[DiscountTerm], taxes: Iterable[TaxTerm]
) -> Worked:
    """Discounts, then taxes, of a document's lines.

    Discounts of a kind of line come first, then the document's, each in order of its key and each on what the ones
    before it left. A rate is computed once, on the sum of its lines' net amounts, half-up; so is a levy, on the sum of
    their foreign volume. Rates stack: none is computed on another's tax.
    """
    result = Worked(subtotal=sum(line.amount for line in lines.values()))
    off: dict[Key, int] = dict.fromkeys(lines, 0)
    for term in sorted(discounts, key=lambda term: (term.kind is None, term.key)):
        left = {key: line.amount - off[key] for key, line in lines.items()}
        if term.kind is None:
            taken = term.of(sum(left.values()))
            parts = spread(taken, {key: amount for key, amount in left.items() if amount > 0})
        else:
            own = {key: amount for key, amount in left.items() if lines[key].kind == term.kind and amount > 0}
            # A credit on another line is not discounted away: the document never turns negative by a discount.
            taken = min(term.of(sum(own.values())), max(0, sum(left.values())))
            parts = spread(taken, own)
        for key, part in parts.items():
            off[key] += part
        result.discounts[term.key] = taken
    result.line_discounts = dict(off)
    result.line_taxes = {key: {} for key in lines}
    for tax in sorted(taxes, key=lambda tax: tax.key):
        mine = {key: line for key, line in lines.items() if tax.key in line.taxes}
        if tax.micros_per_mtok:
            bases = {key: line.foreign.get(tax.key, 0) for key, line in mine.items()}
            due = div_half_up(sum(bases.values()) * tax.micros_per_mtok, NUMERATOR_PER_MTOK)
        else:
            bases = {key: line.amount - off[key] for key, line in mine.items()}
            due = div_half_up(sum(bases.values()) * tax.ppm, PPM)
        result.bases[tax.key], result.taxes[tax.key] = sum(bases.values()), due
        for key, part in spread(due, bases).items():
            result.line_taxes[key][tax.key] = part
    return result


def credited_part(whole: int, *, credited: int, of: int) -> int:
    """What belongs to the first `credited` of `of`: half-up, exactly `whole` when all is credited.

    Credit notes take the difference of two such figures, so any number of partial notes closes on the invoice.
    """
    assert 0 <= credited <= of or of <= credited <= 0
    if credited == of:
        return whole
    return div_half_up(whole * credited, of)


def credited_total(raw: int, *, total: int, minor: int, is_whole: bool) -> int:
    """What notes that come to `raw` together give back, in whole minor units; `total` (the invoice's) for all of it."""
    return total if is_whole else min(total, raw // minor * minor)
