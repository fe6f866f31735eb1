"""What was metered in one settlement period of a contract, as records of an evidence file. No prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Exists, OuterRef, QuerySet, Sum

from marketplace.billing.models import DeliveryOutcome
from marketplace.billing.outcomes import latest_outcomes
from marketplace.contracts.models import Contract, ContractKind, Entitlement, Payment
from metering.models import DisputedUsage, MeterKind, UsageCorrection, UsageEvent, UsageRollup
from metering.packing import ESTIMATED_BITS
from metering.rollups import NO_KEY
from pricing.failures import remedy_micros
from pricing.models import GradeBucket, Rate, RateTariff
from pricing.rate_tariffs import tariff_of
from pricing.units import PPM, Bucket, div_ceil

Record = dict[str, Any]
_AT_ONCE: Final = 1_000
_COLUMNS: Final = tuple((bucket.value, f"{bucket.value}_tokens") for bucket in Bucket)


class Known:
    """Which weights and rates the file has stated: each once, before its first use."""

    def __init__(self) -> None:
        self._rates: set[UUID] = set()
        self._weights: set[tuple[UUID, str]] = set()

    def rates_of(self, rate_ids: Iterable[UUID]) -> Iterator[Record]:
        new = set(rate_ids) - self._rates
        self._rates |= new
        rates = Rate.objects.filter(id__in=new).select_related("tariff").prefetch_related("tariff__tiers")
        for rate in rates.order_by("id"):
            yield {
                "t": "rate",
                "rate_id": rate.id,
                "kind": rate.kind,
                "micros_per_mtok": rate.micros_per_mtok,
            }
            if hasattr(rate, "tariff"):
                yield _tariff(rate.tariff)

    def weights_of(self, used: Iterable[tuple[UUID, str]]) -> Iterator[Record]:
        """Standard tokens per native token in parts per million; what a grade does not price weighs nothing."""
        new = set(used) - self._weights
        self._weights |= new
        if not new:
            return
        rows = GradeBucket.objects.filter(grade_id__in={grade for grade, _ in new})
        ppm = {(grade, bucket): value for grade, bucket, value in
               rows.values_list("grade_id", "bucket", "standard_ppm")}  # fmt: skip
        for grade, bucket in sorted(new):
            yield {
                "t": "weight",
                "grade_id": grade,
                "bucket": bucket,
                "standard_ppm": ppm.get((grade, bucket), 0),
            }


def _tariff(row: RateTariff) -> Record:
    """What a rate of tiers, volume or packages is in truth."""
    tariff = tariff_of(row)
    return {
        "t": "tariff",
        "rate_id": row.pk,
        "kind": row.kind,
        "package_numerator": None if row.package_micros is None else row.unit_numerator,
        "package_micros": row.package_micros,
        "tiers": [{"up_to_numerator": tier.up_to, "micros_per_mtok": tier.rate} for tier in tariff.tiers],
    }


def cell_usage(contract: Contract, start: datetime, end: datetime, known: Known) -> Iterator[Record]:
    """Awards and what they came to, paid months, disputes, then the gateway's events and their roll-ups."""
    rollups = UsageRollup.objects.filter(
        contract_id=contract.id, meter=MeterKind.GATEWAY, period_start__gte=start, period_start__lt=end
    )
    if contract.kind == ContractKind.SPOT:
        yield from _awards(contract, start, end, known)
    elif contract.kind == ContractKind.COMMITTED:
        if contract.payment == Payment.PREPAID:
            yield from _months(contract, start, end, known)
        yield from _firm_outcomes(contract, start, end, known)
    yield from known.rates_of(rollups.values_list("rate_id", flat=True).distinct())
    used = rollups.filter(native_tokens__gt=0).values_list("grade_id", "bucket").distinct()
    yield from known.weights_of(used)
    yield from _withheld(contract, start, end)
    for event in _counted(contract, start, end).iterator(chunk_size=_AT_ONCE):
        yield _event(event)
    order = ("period_start", "rate_id", "offering_id", "api_key_id", "bucket")
    for rollup in rollups.order_by(*order).iterator(chunk_size=_AT_ONCE):
        yield {
            "t": "rollup",
            "rate_id": rollup.rate_id,
            "grade_id": rollup.grade_id,
            "offering_id": rollup.offering_id,
            "api_key_id": rollup.api_key_id,
            "period_start": rollup.period_start,
            "bucket": rollup.bucket,
            "events": rollup.events,
            "native_tokens": rollup.native_tokens,
            "numerator": rollup.numerator,
            "estimated_events": rollup.estimated_events,
            "estimated_numerator": rollup.estimated_numerator,
        }


def _counted(contract: Contract, start: datetime, end: datetime) -> QuerySet[UsageEvent]:
    """What the gateway carried and no correction has taken back, in order of period and id."""
    taken_back = UsageCorrection.objects.filter(
        target_id=OuterRef("id"), target_source_id=OuterRef("source_id")
    )
    return (
        UsageEvent.objects.filter(
            ~Exists(taken_back),
            contract_id=contract.id,
            source__kind=MeterKind.GATEWAY,
            period_start__gte=start,
            period_start__lt=end,
        )
        .order_by("period_start", "id", "source_id")
        .defer("bytes_in", "bytes_out", "first_byte_ms", "duration_ms", "finish")
    )


def _event(event: UsageEvent) -> Record:
    counts = ((bucket, getattr(event, column)) for bucket, column in _COLUMNS)
    return {
        "t": "event",
        "id": event.id,
        "source_id": event.source_id,
        "request_id": event.request_id,
        "attempt": event.attempt,
        "part": event.part,
        "rate_id": event.rate_id,
        "grade_id": event.grade_id,
        "offering_id": event.offering_id,
        "api_key_id": event.api_key_id or NO_KEY,
        "period_start": event.period_start,
        "occurred_at": event.occurred_at,
        "tokens": {bucket: count for bucket, count in counts if count is not None},
        "numerator": event.numerator,
        "estimated": bool(event.flags & ESTIMATED_BITS),
    }


def _awards(contract: Contract, start: datetime, end: datetime, known: Known) -> Iterator[Record]:
    awards = list(
        Entitlement.objects.filter(contract=contract, period_start__gte=start, period_start__lt=end)
        .select_related("rate__grade")
        .order_by("period_start")
    )
    yield from known.rates_of(award.rate_id for award in awards)
    outcomes = defaultdict(list)
    rows = latest_outcomes().filter(contract=contract, period_start__gte=start, period_start__lt=end)
    for outcome in rows.order_by("period_start", "offering_id"):
        outcomes[outcome.period_start].append(outcome)
    for award in awards:
        parts = outcomes[award.period_start]
        failed = sum(part.failed_numerator for part in parts)
        left = max(0, award.entitled_numerator - award.released_numerator - failed)
        take_ppm = award.rate.grade.spot_minimum_take_ppm
        yield {
            "t": "award",
            "rate_id": award.rate_id,
            "period_start": award.period_start,
            "period_end": award.period_end,
            "entitled_numerator": award.entitled_numerator,
            "released_numerator": award.released_numerator,
            "failed_numerator": failed,
            "deliverable_numerator": left,
            "outcomes": len(parts),
            "minimum_take_ppm": take_ppm,
            "minimum_numerator": div_ceil(take_ppm * left, PPM),
        }
        for part in parts:
            yield _outcome(part, award.rate_id)


def _firm_outcomes(contract: Contract, start: datetime, end: datetime, known: Known) -> Iterator[Record]:
    """Of a committed contract: the delivery periods in which something was down, and what was owed in them."""
    rows = latest_outcomes().filter(contract=contract, period_start__gte=start, period_start__lt=end)
    parts = list(rows.order_by("period_start", "offering_id"))
    assert contract.rate_id is not None
    if parts:
        yield from known.rates_of([contract.rate_id])
    for part in parts:
        yield _outcome(part, contract.rate_id)


def _outcome(part: DeliveryOutcome, rate_id: UUID) -> Record:
    owed = remedy_micros(
        entitled=part.entitled_numerator,
        failed=part.failed_numerator,
        rate=part.rate_micros_per_mtok,
        replaced=part.replaced_numerator,
        replacement_rate=part.replacement_micros_per_mtok,
    )
    return {
        "t": "outcome",
        "rate_id": rate_id,
        "period_start": part.period_start,
        "offering_id": part.offering_id,
        "entitled_numerator": part.entitled_numerator,
        "released_numerator": part.released_numerator,
        "delivered_numerator": part.delivered_numerator,
        "failed_numerator": part.failed_numerator,
        "unused_numerator": part.unused_numerator,
        "replaced_numerator": part.replaced_numerator,
        "replacement_micros_per_mtok": part.replaced_numerator and part.replacement_micros_per_mtok,
        "owed_micros": owed,
        "remedy_micros": part.remedy_micros,
    }


def _months(contract: Contract, start: datetime, end: datetime, known: Known) -> Iterator[Record]:
    months = list(
        Entitlement.objects.filter(contract=contract, period_start__lt=end, period_end__gt=start).order_by(
            "period_start"
        )
    )
    yield from known.rates_of(month.rate_id for month in months)
    for month in months:
        yield {
            "t": "month",
            "rate_id": month.rate_id,
            "start": month.period_start,
            "end": month.period_end,
        }


def _withheld(contract: Contract, start: datetime, end: datetime) -> Iterator[Record]:
    """What is not billed, for now or for good, because meters disagree: the sum over the disputes of one place."""
    rows = (
        DisputedUsage.objects.filter(contract_id=contract.id, period_start__gte=start, period_start__lt=end)
        .values("rate_id", "period_start", "offering_id")
        .annotate(withheld=Sum("withheld_numerator"))
        .order_by("period_start", "rate_id", "offering_id")
    )
    for row in rows:
        same = DisputedUsage.objects.filter(
            contract_id=contract.id,
            rate_id=row["rate_id"],
            period_start=row["period_start"],
            offering_id=row["offering_id"],
        )
        yield {
            "t": "withheld",
            "rate_id": row["rate_id"],
            "period_start": row["period_start"],
            "offering_id": row["offering_id"],
            "withheld_numerator": int(row["withheld"]),
            "disputed_of_numerator": max(same.values_list("gateway_numerator", flat=True)),
        }
