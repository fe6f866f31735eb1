"""What was measured of a host, and what of it can be depended on. `providers.services` exports `record_bench`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.errors import Conflict, InvalidInput, NotFound
from pricing.failures import Benched
from pricing.models import Grade
from pricing.rating import standard_numerator
from pricing.selectors import standard_ppm_of
from pricing.units import Bucket
from providers.claims import MAX_DEPENDABLE_NUMERATOR_PER_S, BenchFigures, check_document
from providers.models import Bench, Host, Offering


@transaction.atomic
def record_bench(
    *,
    host_id: UUID,
    figures: BenchFigures | Mapping[str, int],
    now: datetime,
    conditions: Mapping[str, object] | None = None,
) -> Bench:
    """What a bench of the host counted. It counts for offerings listed from now on. Raises InvalidInput."""
    counted = BenchFigures.of(figures)
    if not Host.objects.filter(pk=host_id, public_key__isnull=False).exists():
        raise NotFound("There is no such enrolled host.")
    return Bench.objects.create(
        host_id=host_id,
        duration_ms=counted.duration_ms,
        requests=counted.requests,
        concurrency=counted.concurrency,
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
        first_byte_p50_ms=counted.first_byte_p50_ms,
        first_byte_p95_ms=counted.first_byte_p95_ms,
        conditions=check_document("conditions", dict(conditions or {})),
        measured_at=now,
    )


def dependable_numerator_per_s(bench: Bench, grade: Grade) -> int:
    """Standard tokens a second, x 1e6, that the bench shows at the grade's weights. Raises Conflict, InvalidInput."""
    numerator = standard_numerator(
        {Bucket.UNCACHED_INPUT: bench.input_tokens, Bucket.OUTPUT: bench.output_tokens},
        standard_ppm_of(grade.pk),
    )
    per_s = numerator * 1_000 // bench.duration_ms
    if per_s < 1:
        raise Conflict("The bench shows no dependable capacity in this grade.", field="grade")
    if per_s > MAX_DEPENDABLE_NUMERATOR_PER_S:
        raise InvalidInput("The bench shows more than any host can make.", field="output_tokens")
    return int(per_s)


def benches_in_force(places: Iterable[tuple[UUID, datetime]]) -> dict[tuple[UUID, datetime], Benched]:
    """By (offering, period start) the newest bench of its host when the period began, in the offering's grade.

    Benches are never changed, and one that comes later speaks for later periods: a re-run finds the same.
    """
    wanted = sorted(set(places))
    offerings = Offering.objects.in_bulk({offering for offering, _ in wanted})
    benches: dict[UUID, list[Bench]] = defaultdict(list)
    hosts = {offering.host_id for offering in offerings.values()}
    for bench in Bench.objects.filter(host_id__in=hosts).order_by("-measured_at", "-pk"):
        benches[bench.host_id].append(bench)
    weights = {grade: standard_ppm_of(grade) for grade in {one.grade_id for one in offerings.values()}}
    found = {}
    for offering_id, start in wanted:
        offering = offerings[offering_id]
        newest = next((one for one in benches[offering.host_id] if one.measured_at <= start), None)
        if newest is not None:
            ppm = weights[offering.grade_id]
            found[offering_id, start] = Benched.of(
                input_numerator=standard_numerator({Bucket.UNCACHED_INPUT: newest.input_tokens}, ppm),
                output_numerator=standard_numerator({Bucket.OUTPUT: newest.output_tokens}, ppm),
                duration_ms=newest.duration_ms,
                requests=newest.requests,
                concurrency=newest.concurrency,
                first_byte_p50_ms=newest.first_byte_p50_ms,
            )
    return found
