"""Service levels of a grade: what it promises of speed, how a settlement period is measured, and the credit.

Percentiles are exact, by nearest rank: the p-th of n values in ascending order is the one at place `ceil(n x p / 100)`
(the smallest value that at least p percent of all do not exceed; ISO 3534-1, "nearest rank"). Times are whole
microseconds, money whole micros. Every rule has an example in docs/service-levels.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pricing.units import NUMERATOR_PER_MTOK, PPM, div_ceil, div_half_even


class Metric(StrEnum):
    """What is measured of a request, in microseconds."""

    FIRST_TOKEN = "first_token"  # noqa: S105  From admission to the first output.
    OUTPUT_TOKEN = "output_token"  # noqa: S105  From the first output to the end, per further output token.


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTerms:
    """One promise: the percentile of the metric is at most `limit_us`, or the buyer gets `credit_ppm` of his gross.

    Fewer than `minimum_requests` say nothing; requests of more than `max_input_tokens` (None: of any length) are not
    counted.
    """

    metric: str
    percentile: int
    limit_us: int
    credit_ppm: int
    minimum_requests: int
    max_input_tokens: int | None = None


def rank(count: int, percentile: int) -> int:
    """The place, from 1, of the percentile among `count` values in ascending order."""
    assert count > 0
    assert 0 < percentile < 100
    return div_ceil(count * percentile, 100)


def nearest_rank(values: Iterable[int], percentile: int) -> int:
    """The percentile of at least one value; always one of them."""
    ordered = sorted(values)
    return ordered[rank(len(ordered), percentile) - 1]


def output_token_us(*, first_token_ms: int, duration_ms: int, output_tokens: int) -> int | None:
    """Microseconds per output token after the first, rounded down; None where there was no second one."""
    if output_tokens < 2:
        return None
    return max(0, duration_ms - first_token_ms) * 1_000 // (output_tokens - 1)


def is_broken(terms: LevelTerms, *, requests: int, measured_us: int | None) -> bool:
    """Whether a period that was measured so owes the level's credit."""
    return measured_us is not None and requests >= terms.minimum_requests and measured_us > terms.limit_us


def gross_micros(volumes: Iterable[tuple[int, int]]) -> int:
    """What delivered volume comes to at the buyer's rates, from pairs (micros per Mtok, numerator): rounded once."""
    total = sum(rate * numerator for rate, numerator in volumes)
    return div_half_even(total, NUMERATOR_PER_MTOK)


def credit_micros(gross: int, broken_ppm: Sequence[int], *, remedy: int = 0) -> int:
    """The service credit of one contract, offering and settlement period, in micros: never more than the gross.

    The shares of all broken levels, at most the whole, of the buyer's gross, rounded down; less the remedies for F
    (`pricing.failures`) of the same contract, offering and period: the buyer gets the larger of both, never the sum.
    """
    assert gross >= 0
    assert remedy >= 0
    share = min(PPM, sum(broken_ppm))
    return max(0, gross * share // PPM - remedy)
