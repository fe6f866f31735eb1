"""Reads of grades, their buckets and plain prices."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet

from pricing.models import Grade, GradeBucket, Rate, ServiceLevel, TokenizerCalibration
from pricing.rating import PlainPrice, plain_prices
from pricing.units import Bucket


def grades_in_force(at: datetime) -> QuerySet[Grade]:
    """The version in force of every grade at `at`, with family and buckets, by slug."""
    return (
        Grade.objects.filter(valid_during__contains=at)
        .select_related("family", "calibration")
        .prefetch_related("buckets", "service_levels")
        .order_by("family__slug")
    )


def grade_in_force(*, slug: str | None = None, model: str | None = None, at: datetime) -> Grade | None:
    """The version in force at `at` of the grade with this slug, or with this model name; None when there is none."""
    assert (slug is None) != (model is None), "name the grade by slug or by model"
    name = {"family__slug": slug} if slug is not None else {"family__model": model}
    if "\0" in (slug or model or ""):
        return None  # PostgreSQL has no such text.
    return grades_in_force(at).filter(**name).first()


def find_grade(grade_id: UUID) -> Grade | None:
    """One grade version, in force or not, with family and buckets."""
    return (
        Grade.objects.select_related("family", "calibration")
        .prefetch_related("buckets", "service_levels")
        .filter(pk=grade_id)
        .first()
    )


def buckets_of(grade_id: UUID) -> dict[Bucket, GradeBucket]:
    """The priced buckets of a grade version."""
    return by_bucket(GradeBucket.objects.filter(grade_id=grade_id))


def by_bucket(rows: Iterable[GradeBucket]) -> dict[Bucket, GradeBucket]:
    """Rows of one grade version by bucket, in the order of the buckets' definition."""
    found = {Bucket(row.bucket): row for row in rows}
    return {bucket: found[bucket] for bucket in Bucket if bucket in found}


def standard_ppm_of(grade_id: UUID) -> dict[Bucket, int]:
    """Standard tokens per native token of each priced bucket, in ppm: what `pricing.rating` takes."""
    return {bucket: row.standard_ppm for bucket, row in buckets_of(grade_id).items()}


def prices_per_bucket(grade: Grade, rate: Rate | int) -> dict[Bucket, PlainPrice]:
    """The plain price of each bucket at a rate (a row, or micros per Mtok): rate x weight x kappa, exact decimals."""
    micros_per_mtok = rate if isinstance(rate, int) else rate.micros_per_mtok
    return plain_prices(
        micros_per_mtok, {bucket: row.standard_ppm for bucket, row in by_bucket(grade.buckets.all()).items()}
    )


def rate_of(*, source_id: UUID, kind: str, at: datetime) -> Rate | None:
    """The rate of this kind that the source asked or got at `at`."""
    return (
        Rate.objects.filter(source_id=source_id, kind=kind, valid_from__lte=at)
        .order_by("-valid_from", "-pk")
        .first()
    )


def calibrations() -> QuerySet[TokenizerCalibration]:
    """Every measurement that was ever kept, with its classes, newest first."""
    return TokenizerCalibration.objects.prefetch_related("classes").order_by("-pk")


def calibrations_in_force() -> QuerySet[TokenizerCalibration]:
    """The last version of every tokenizer, with its classes, by name."""
    return (
        TokenizerCalibration.objects.order_by("tokenizer", "-version")
        .distinct("tokenizer")
        .prefetch_related("classes")
    )


def levels_of(grade: Grade) -> list[ServiceLevel]:
    """What a grade version promises of speed: by metric and percentile."""
    # Sorted here: ordering in the database would undo a prefetch.
    return sorted(grade.service_levels.all(), key=lambda level: (level.metric, level.percentile))
