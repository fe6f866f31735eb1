"""What a delivery period came to: entitled, released, delivered, failed, unused; and the remedy for it (DESIGN 8).

Per contract, offering and period, in numerators (millionths of a standard token): `A = R + U + F + N`. A token is
delivered only when asked for, so a provider never pays N and a buyer never pays F. Every rule has an example in
docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Final

from pricing.rating import OfferingId
from pricing.units import (
    NUMERATOR_PER_MTOK,
    Micros,
    StandardNumerator,
    div_half_even,
    split_by_weight,
)

# 10% of the rate for what failed above 1% of what was owed.
PENALTY_DIVISOR: Final = 10
TOLERANCE_DIVISOR: Final = 100

Interval = tuple[datetime, datetime | None]
# Of what was owed, a volume (numerator) and how many milliseconds of the period it could not be had.
Part = tuple[int, int]
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One offering's part of one contract and delivery period, in numerators; `entitled` is the sum of the others."""

    entitled: int
    released: int
    delivered: int
    failed: int
    down_ms: int
    # The lots (numerators) that the host could not supply any more at some moment of the period.
    curtailed: int = 0
    # What more would have failed, had the buyer asked for the mix that the host was benched with.
    excused: int = 0

    @property
    def unused(self) -> int:
        """N: what the buyer could have had and did not ask for."""
        return self.entitled - self.released - self.delivered - self.failed

    @property
    def deliverable(self) -> int:
        """A - R - F: what the provider stood ready for."""
        return self.entitled - self.released - self.failed


def period_ms(start: datetime, end: datetime) -> int:
    """The length of `[start, end)` in whole milliseconds."""
    return (end - start) // _MILLISECOND


def down_ms(
    outages: Iterable[Interval], *, start: datetime, end: datetime, excused: Iterable[Interval] = ()
) -> int:
    """How long of `[start, end)` the outages cover together, whole milliseconds, rounded down.

    Outages are half-open, may overlap, and last on while their end is None. What lies in an `excused` interval (a
    planned outage announced in time) does not count.
    """
    forgiven = list(excused)
    total = _covered([*outages, *forgiven], start, end) - _covered(forgiven, start, end)
    return total // _MILLISECOND


def _covered(intervals: Iterable[Interval], start: datetime, end: datetime) -> timedelta:
    clipped = sorted(
        (max(start, began), end if ended is None else min(end, ended)) for began, ended in intervals
    )
    total, reached = timedelta(0), start
    for began, ended in clipped:
        if ended > max(began, reached):
            total += ended - max(began, reached)
            reached = ended
    return total


def attempt_outages(
    failures: Iterable[datetime], successes: Iterable[datetime], *, end: datetime
) -> list[tuple[datetime, datetime]]:
    """Down from the first refused or failed attempt to the next success, or to the period's `end` without one.

    A success at the very moment of a failure does not end it.
    """
    served = sorted(successes)
    intervals: list[tuple[datetime, datetime]] = []
    index = 0
    for failure in sorted(failures):
        if failure >= end or (intervals and failure < intervals[-1][1]):
            continue
        while index < len(served) and served[index] <= failure:
            index += 1
        intervals.append((failure, min(end, served[index]) if index < len(served) else end))
    return intervals


def failed_numerator(
    *,
    entitled: int,
    released: int,
    delivered: int,
    down_ms: int,
    period_ms: int,
    curtailed: Sequence[Part] = (),
    worked: int = 0,
) -> StandardNumerator:
    """`F = min(A - R - max(U, W), floor(sum over parts of part x its down time / period))`, never negative.

    The parts of `A - R` are what was curtailed, each with its own down time (milliseconds, from its moment on), and the
    rest with `down_ms`. `worked` (W) is what was delivered, as volume of the mix that the host was benched with: an
    award obliges its lots or its host-seconds, whichever comes first.
    """
    assert 0 <= down_ms <= period_ms
    assert period_ms > 0
    owed = entitled - released
    assert owed >= 0
    left, by_time = owed, 0
    for numerator, part_down_ms in curtailed:
        assert down_ms <= part_down_ms <= period_ms
        part = min(left, numerator)
        left -= part
        by_time += part * part_down_ms
    by_time += left * down_ms
    return StandardNumerator(max(0, min(owed - max(delivered, worked), by_time // period_ms)))


def outcomes_of(
    entitled: Mapping[OfferingId, int],
    delivered: Mapping[OfferingId, int],
    down_ms: Mapping[OfferingId, int],
    *,
    period_ms: int,
    released: Mapping[OfferingId, int] | None = None,
    curtailed: Mapping[OfferingId, Sequence[Part]] | None = None,
    worked: Mapping[OfferingId, int] | None = None,
) -> dict[OfferingId, Outcome]:
    """The outcome of every allocated offering of one contract and delivery period.

    What an offering delivered beyond its own part stood in for the others: it counts as theirs, in proportion to what
    they have not delivered (largest remainder, then offering), so that nobody has failed what the buyer did get.
    Volume beyond all that was owed counts for nobody. `curtailed` and `worked` as for `failed_numerator`, the latter of
    what each delivered itself.
    """
    gone = released or {}
    owed = {offering: entitled[offering] - gone.get(offering, 0) for offering in sorted(entitled)}
    own = {offering: min(owed[offering], delivered.get(offering, 0)) for offering in owed}
    missing = [owed[offering] - own[offering] for offering in owed]
    beyond = sum(delivered.values()) - sum(own.values())
    stood_in = split_by_weight(min(beyond, sum(missing)), missing)
    outcomes = {}
    for offering, part in zip(owed, stood_in, strict=True):
        volume = own[offering] + part
        down = down_ms.get(offering, 0)
        cut = (curtailed or {}).get(offering, ())
        without, failed = (
            failed_numerator(
                entitled=entitled[offering],
                released=gone.get(offering, 0),
                delivered=volume,
                down_ms=down,
                period_ms=period_ms,
                curtailed=cut,
                worked=work,
            )
            for work in (0, (worked or {}).get(offering, 0) + part)
        )
        outcomes[offering] = Outcome(
            entitled=entitled[offering],
            released=gone.get(offering, 0),
            delivered=volume,
            failed=failed,
            down_ms=down,
            curtailed=min(owed[offering], sum(numerator for numerator, _ in cut)),
            excused=without - failed,
        )
    return outcomes


@dataclass(frozen=True, slots=True)
class Benched:
    """One bench in a grade: what it made of input and of output (numerators), how long in all and for input.

    `input_ms` is the host's time for input: the first byte's median, as long as a request waits for its input to be
    read, times the requests, over those that ran at once.
    """

    input_numerator: int
    output_numerator: int
    duration_ms: int
    input_ms: int

    @staticmethod
    def of(
        *,
        input_numerator: int,
        output_numerator: int,
        duration_ms: int,
        requests: int,
        concurrency: int,
        first_byte_p50_ms: int,
    ) -> Benched:
        """From the figures that a bench counts; never more time for input than it took in all."""
        assert duration_ms > 0
        spent = first_byte_p50_ms * requests // max(1, concurrency)
        return Benched(input_numerator, output_numerator, duration_ms, min(duration_ms, max(0, spent)))


def worked_numerator(*, input_numerator: int, output_numerator: int, bench: Benched) -> StandardNumerator:
    """Delivered volume as the host's time: W = host-milliseconds x dependable rate, both by its bench, rounded down.

    A standard token of input takes `input_ms / input` of the bench, one of output the rest over the output; what the
    mix of the bench takes is its own volume. A side that the bench did not measure counts as it is priced.
    """
    whole = bench.input_numerator + bench.output_numerator
    exact = Fraction(0)
    for numerator, made, spent_ms in (
        (input_numerator, bench.input_numerator, bench.input_ms),
        (output_numerator, bench.output_numerator, bench.duration_ms - bench.input_ms),
    ):
        exact += Fraction(numerator * spent_ms * whole, made * bench.duration_ms) if made else numerator
    return StandardNumerator(floor(exact))


def replaced_numerators(bought: int, failed: Mapping[OfferingId, int]) -> dict[OfferingId, StandardNumerator]:
    """What the buyer bought elsewhere in the period, over the offerings that failed him: at most F each."""
    offerings = sorted(failed)
    weights = [failed[offering] for offering in offerings]
    parts = split_by_weight(min(bought, sum(weights)), weights)
    return {offering: StandardNumerator(part) for offering, part in zip(offerings, parts, strict=True)}


def remedy_micros(
    *, entitled: int, failed: int, rate: int, replaced: int = 0, replacement_rate: int = 0
) -> Micros:
    """`replaced x max(0, replacement rate - rate) + 10% x rate x max(0, F - 1% x A)`, rounded once, half to even.

    Volumes are numerators, rates micros per Mtok.
    """
    assert 0 <= replaced <= failed <= entitled
    dearer = replaced * max(0, replacement_rate - rate)
    penalty = rate * max(0, TOLERANCE_DIVISOR * failed - entitled)
    scale = PENALTY_DIVISOR * TOLERANCE_DIVISOR
    return Micros(div_half_even(scale * dearer + penalty, scale * NUMERATOR_PER_MTOK))


def remedies_within(remedies: Sequence[int], limit_micros: int) -> list[int]:
    """Remedies in order, each cut to what the limit has left: together never above it."""
    left, paid = max(0, limit_micros), []
    for remedy in remedies:
        paid.append(min(remedy, left))
        left -= paid[-1]
    return paid
