"""From tokens to money. Sum first, in integers; round once per charge line (DESIGN 4 and 8).

Because a numerator is exact and adds up, a result never depends on how the usage was cut into events,
hours or workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self, TypeVar

from pricing.units import (
    NUMERATOR_PER_LOT,
    NUMERATOR_PER_MTOK,
    PPM,
    Bucket,
    Lots,
    Micros,
    Ppm,
    StandardNumerator,
    decimal_string,
    div_ceil,
    div_half_even,
    split_by_weight,
)

TEXT_INPUT_BUCKETS: Final = (Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.CACHE_WRITE)
TEXT_OUTPUT_BUCKETS: Final = (Bucket.OUTPUT, Bucket.REASONING)


class UnpricedBucket(Exception):
    """Tokens were counted in a bucket the grade has no weight for: a refusal, never a price of zero."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(f"{bucket.value}: the grade has no weight for this bucket")
        self.bucket = bucket


class _Sortable(Protocol):
    def __lt__(self, other: Self, /) -> bool: ...
    def __hash__(self) -> int: ...


OfferingId = TypeVar("OfferingId", bound=_Sortable)


@dataclass(frozen=True, slots=True)
class PlainPrice:
    """What one bucket costs in native tokens, as exact decimals of the currency unit."""

    per_mtok: str
    per_token: str


@dataclass(frozen=True, slots=True)
class SpotCharge:
    """What a spot buyer pays for in one period: the volume used, and what lifts it to the minimum take."""

    used: StandardNumerator
    minimum_take: StandardNumerator

    @property
    def total(self) -> StandardNumerator:
        return StandardNumerator(self.used + self.minimum_take)


def standard_ppm(weight_ppm: int, kappa_ppm: int) -> Ppm:
    """Standard tokens per native token of one bucket, in parts per million, as the grade version publishes
    it.
    """
    return Ppm(div_half_even(weight_ppm * kappa_ppm, PPM))


def standard_numerator(
    tokens_by_bucket: Mapping[Bucket, int], standard_ppm_by_bucket: Mapping[Bucket, int]
) -> StandardNumerator:
    """Native tokens in millionths of a standard token: exact. Raises UnpricedBucket."""
    numerator = 0
    for bucket, tokens in tokens_by_bucket.items():
        if tokens == 0:
            continue
        assert tokens > 0
        ppm = standard_ppm_by_bucket.get(bucket)
        if ppm is None:
            raise UnpricedBucket(bucket)
        numerator += tokens * ppm
    return StandardNumerator(numerator)


def lots_numerator(lots: int) -> StandardNumerator:
    """A quantity of lots in the unit of usage."""
    return StandardNumerator(lots * NUMERATOR_PER_LOT)


def whole_lots(numerator: int) -> Lots:
    """The lots that are completely contained in a numerator."""
    return Lots(numerator // NUMERATOR_PER_LOT)


def price_of(numerator: int, rate: int) -> Micros:
    """The amount of a charge line. Call it once per line, on the sum, never per event."""
    return Micros(div_half_even(numerator * rate, NUMERATOR_PER_MTOK))


def price_ceil(numerator: int, rate: int) -> Micros:
    """The amount a hold or a capture must cover: never below the exact cost."""
    return Micros(div_ceil(numerator * rate, NUMERATOR_PER_MTOK))


def exact_price(numerator: int, rate: int) -> str:
    """The unrounded cost, as an exact decimal of the currency unit (shown to the buyer; never summed)."""
    return decimal_string(numerator * rate, 18)


def exact_cost(parts: Iterable[tuple[int, int]]) -> str:
    """As `exact_price`, of (numerator, rate) at several rates together."""
    return decimal_string(sum(numerator * rate for numerator, rate in parts), 18)


def gross_up(amount: int, tax_ppm: int) -> Micros:
    """The amount with tax on top, rounded up so that a hold covers the later tax line."""
    return Micros(div_ceil(amount * (PPM + tax_ppm), PPM))


def plain_price(rate: int, standard_ppm_of_bucket: int) -> PlainPrice:
    """`rate x weight x kappa` of one bucket, per million native tokens and per native token."""
    product = rate * standard_ppm_of_bucket
    return PlainPrice(per_mtok=decimal_string(product, 12), per_token=decimal_string(product, 18))


def plain_prices(rate: int, standard_ppm_by_bucket: Mapping[Bucket, int]) -> dict[Bucket, PlainPrice]:
    """The plain prices that stand beside a rate, one for each bucket of the grade."""
    return {bucket: plain_price(rate, ppm) for bucket, ppm in standard_ppm_by_bucket.items()}


def spot_charge_numerator(
    used: int, entitled_lots: int, minimum_take_ppm: int, *, failed: int = 0
) -> SpotCharge:
    """`max(U, ceil(theta x (A - F)))` of DESIGN 8, with the minimum take as a part of its own.

    `used` and `failed` are numerators of this contract, offering and period; `entitled_lots` is A.
    """
    assert used >= 0
    assert entitled_lots >= 0
    assert failed >= 0
    deliverable = max(0, lots_numerator(entitled_lots) - failed)
    floor = div_ceil(minimum_take_ppm * deliverable, PPM)
    return SpotCharge(used=StandardNumerator(used), minimum_take=StandardNumerator(max(0, floor - used)))


def split_gross(gross: int, numerators_by_offering: Mapping[OfferingId, int]) -> dict[OfferingId, Micros]:
    """A buyer's rounded gross over the offerings that delivered it: largest remainder, then offering id."""
    offerings = sorted(numerators_by_offering)
    parts = split_by_weight(gross, [numerators_by_offering[offering] for offering in offerings])
    return {offering: Micros(part) for offering, part in zip(offerings, parts, strict=True)}


def fee_of(gross: int, fee_ppm: int) -> Micros:
    """The market's fee out of a provider's gross, rounded down; a refund gives back exactly what was taken."""
    if gross < 0:
        return Micros(-(-gross * fee_ppm // PPM))
    return Micros(gross * fee_ppm // PPM)


def worst_case_numerator(
    input_tokens_bound: int,
    output_tokens: int,
    standard_ppm_by_bucket: Mapping[Bucket, int],
    *,
    input_buckets: Iterable[Bucket] = TEXT_INPUT_BUCKETS,
    output_buckets: Iterable[Bucket] = TEXT_OUTPUT_BUCKETS,
) -> StandardNumerator:
    """The most that a request of at most so many tokens can come to, whichever buckets they turn out to be.

    Pass wider bucket sets for a request that carries or asks for images or audio. Raises UnpricedBucket
    when tokens are possible on a side for which the grade prices nothing.
    """
    numerator = 0
    for tokens, buckets in (
        (input_tokens_bound, tuple(input_buckets)),
        (output_tokens, tuple(output_buckets)),
    ):
        if tokens == 0:
            continue
        assert tokens > 0
        priced = [standard_ppm_by_bucket[bucket] for bucket in buckets if bucket in standard_ppm_by_bucket]
        if not priced:
            raise UnpricedBucket(buckets[0])
        numerator += tokens * max(priced)
    return StandardNumerator(numerator)


_OUTPUT_FIRST: Final = (Bucket.REASONING, Bucket.OUTPUT, Bucket.AUDIO_OUTPUT)


def cap_counts(
    counts: dict[Bucket, int], standard_ppm: dict[Bucket, int], amount_numerator: int
) -> dict[Bucket, int]:
    """The counts, cut so that they come to at most the hold: what is above it is flagged and never billed.

    Output is cut first: it is what grew beyond the bound.
    """
    excess = standard_numerator(counts, standard_ppm) - amount_numerator
    capped = dict(counts)
    for bucket in (*_OUTPUT_FIRST, *(bucket for bucket in counts if bucket not in _OUTPUT_FIRST)):
        ppm = standard_ppm.get(bucket, 0)
        if excess <= 0:
            break
        if ppm == 0 or not capped.get(bucket):
            continue
        cut = min(capped[bucket], -(-excess // ppm))
        capped[bucket] -= cut
        excess -= cut * ppm
    return capped
