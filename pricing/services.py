"""What writes grades and rates. Both are immutable: a change is a new row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction

from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.errors import Conflict, InvalidInput, NotFound
from pricing.calibrating import MAX_WEIGHT, ClassCounts, kappa_of, spread_of
from pricing.models import (
    CalibrationClass,
    Grade,
    GradeBucket,
    GradeFamily,
    Rate,
    RateTariff,
    RateTier,
    TokenizerCalibration,
)
from pricing.month_tiers import admission, check_list_tariff
from pricing.promising import MICROSECONDS, check_levels, record_levels
from pricing.rate_tariffs import invalid_tariff
from pricing.rating import TEXT_INPUT_BUCKETS, TEXT_OUTPUT_BUCKETS, standard_ppm
from pricing.service_levels import LevelTerms
from pricing.tariffs import Kind, Tariff
from pricing.units import CURRENCY_EXPONENTS, PPM, Bucket

# Micros per Mtok: a million currency units for a million standard tokens is beyond any price, and a rate at this
# bound times a day of the largest host still fits a bigint of micros.
MAX_RATE_MICROS_PER_MTOK: Final = 10**12
MAX_WEIGHT_PPM: Final = 1_000 * PPM
# `/market/<slug>` is a grade's page and address; these are the market's own.
RESERVED_SLUGS: Final = frozenset({"history", "index", "leaderboard", "stream"})
MAX_KAPPA_PPM: Final = 100 * PPM
MAX_CONTEXT_TOKENS: Final = 10**8
MAX_REQUEST_S: Final = 3_600
MIN_SLUG_LENGTH: Final = 2
MAX_CALIBRATION_NAME_LENGTH: Final = 64
MAX_CALIBRATION_COUNT: Final = 10**12
# What `calibrate --dry-run` printed for each tokenizer on the public mix (docs/tokenizers.md).
KNOWN_CALIBRATIONS: Final = Path(__file__).with_name("known_calibrations.jsonl")
_CALIBRATION_NAMES: Final = ("tokenizer", "tokenizer_digest", "made_by", "corpus", "corpus_digest")
_SHA256_HEX: Final = re.compile("[0-9a-f]{64}")

_TEXT_LENGTHS: Final = {
    "slug": 64,
    "title": 120,
    "model": 120,
    "precision_floor": 16,
    "region": 32,
    "service_class": 32,
    "tokenizer_digest": 80,
}


@dataclass(frozen=True, slots=True)
class _FamilyTerms:
    """What names the good; the same for all versions of a grade, or it would be another grade."""

    title: str
    model: str
    precision_floor: str
    context_tokens: int
    region: str
    service_class: str


@transaction.atomic
def publish_grade(
    *,
    slug: str,
    title: str,
    model: str,
    precision_floor: str,
    context_tokens: int,
    region: str,
    service_class: str,
    currency: str,
    tokenizer_digest: str,
    weights_ppm: Mapping[Bucket, int],
    kappa_ppm: Mapping[Bucket, int] = MappingProxyType({}),
    max_request_s: int,
    max_output_tokens: int,
    template_overhead_tokens: int,
    spot_minimum_take_ppm: int,
    reference_rate_micros_per_mtok: int,
    now: datetime,
    calibration_id: UUID | None = None,
    service_levels: Sequence[LevelTerms] = (),
    actor: Actor = SYSTEM,
    organization_id: UUID | None = None,
) -> Grade:
    """Put a grade, or a new version of it, in force from `now` on; the version before ends at `now`.

    A bucket is priced when it has a weight; a missing kappa is 1.0. With `calibration_id`, a measurement of this very
    tokenizer, the text buckets have its kappa and `kappa_ppm` names none of them. Without `service_levels` the version
    has none, whatever the one before had. Contracts on older versions keep theirs.
    `organization_id` is the operator's, for the audit trail. Raises InvalidInput naming the field, or Conflict: the
    slug stands for another good, the model name is taken, or a version begins at this moment or later.
    """
    family_terms = _FamilyTerms(title, model, precision_floor, context_tokens, region, service_class)
    _check_texts(
        slug=slug,
        title=title,
        model=model,
        precision_floor=precision_floor,
        region=region,
        service_class=service_class,
        tokenizer_digest=tokenizer_digest,
    )
    if currency not in CURRENCY_EXPONENTS:
        raise InvalidInput("It must be an ISO 4217 code.", field="currency")
    _check_range("context_tokens", context_tokens, 1, MAX_CONTEXT_TOKENS)
    _check_range("max_request_s", max_request_s, 1, MAX_REQUEST_S)
    _check_range("max_output_tokens", max_output_tokens, 1, context_tokens)
    _check_range("template_overhead_tokens", template_overhead_tokens, 0, context_tokens)
    _check_range("spot_minimum_take_ppm", spot_minimum_take_ppm, 0, PPM)
    _check_range(
        "reference_rate_micros_per_mtok", reference_rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK
    )
    _check_buckets(weights_ppm, kappa_ppm)
    check_levels(service_levels, most_us=max_request_s * MICROSECONDS, most_input_tokens=context_tokens)
    if calibration_id is not None:
        kappa_ppm = {
            **kappa_ppm,
            **_calibrated_kappa(calibration_id, tokenizer_digest, weights_ppm, kappa_ppm),
        }

    family = _family(slug=slug, terms=family_terms, now=now)
    latest = family.versions.order_by("-version").first()
    if latest is not None:
        _end_version(latest, now)
    grade = Grade.objects.create(
        family=family,
        version=latest.version + 1 if latest is not None else 1,
        currency=currency,
        tokenizer_digest=tokenizer_digest,
        calibration_id=calibration_id,
        max_request_s=max_request_s,
        max_output_tokens=max_output_tokens,
        template_overhead_tokens=template_overhead_tokens,
        spot_minimum_take_ppm=spot_minimum_take_ppm,
        reference_rate_micros_per_mtok=reference_rate_micros_per_mtok,
        valid_during=(now, None),
        created_at=now,
    )
    GradeBucket.objects.bulk_create(
        GradeBucket(
            grade=grade,
            bucket=bucket.value,
            weight_ppm=weight_ppm,
            kappa_ppm=kappa_ppm.get(bucket, PPM),
            standard_ppm=standard_ppm(weight_ppm, kappa_ppm.get(bucket, PPM)),
        )
        for bucket, weight_ppm in sorted(weights_ppm.items())
    )
    record_levels(grade.pk, service_levels)
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="grade.published",
        object_kind="grade",
        object_id=grade.pk,
        detail={"slug": slug, "version": grade.version},
        now=now,
    )
    return grade


def _calibrated_kappa(
    calibration_id: UUID,
    tokenizer_digest: str,
    weights_ppm: Mapping[Bucket, int],
    kappa_ppm: Mapping[Bucket, int],
) -> dict[Bucket, int]:
    """Kappa of every text bucket that has a weight, as it was measured for the tokenizer of this digest."""
    calibration = TokenizerCalibration.objects.filter(pk=calibration_id).first()
    if calibration is None:
        raise NotFound("There is no such calibration.", field="calibration_id")
    if calibration.tokenizer_digest != tokenizer_digest.removeprefix("sha256:"):
        raise InvalidInput(
            f"The calibration is of another tokenizer: sha256:{calibration.tokenizer_digest}.",
            field="tokenizer_digest",
        )
    text: dict[Bucket, int] = {
        bucket: calibration.kappa_ppm
        for bucket in (*TEXT_INPUT_BUCKETS, *TEXT_OUTPUT_BUCKETS)
        if bucket in weights_ppm
    }
    for bucket in kappa_ppm:
        if bucket in text:
            raise InvalidInput("The calibration says it.", field=f"kappa_ppm.{bucket.value}")
    return text


@transaction.atomic
def record_calibration(
    *,
    tokenizer: str,
    tokenizer_digest: str,
    made_by: str,
    corpus: str,
    corpus_digest: str,
    classes: Sequence[ClassCounts],
    now: datetime,
) -> tuple[TokenizerCalibration, bool]:
    """Keep a measurement as the tokenizer's next version, and whether it is new.

    The same vocabulary measured on the same corpus is the version that stands already. Digests are SHA-256 in hex.
    Raises InvalidInput naming the field, or Conflict: another version was recorded at the same moment.
    """
    for field, text in {"tokenizer": tokenizer, "corpus": corpus, "made_by": made_by}.items():
        if not text.strip() or not text.isprintable() or len(text) > MAX_CALIBRATION_NAME_LENGTH:
            raise InvalidInput(
                f"It must be 1 to {MAX_CALIBRATION_NAME_LENGTH} printable characters.", field=field
            )
    for field, digest in {"tokenizer_digest": tokenizer_digest, "corpus_digest": corpus_digest}.items():
        if not _SHA256_HEX.fullmatch(digest):
            raise InvalidInput("It must be a SHA-256 in hex.", field=field)
    if not classes:
        raise InvalidInput("There must be one at least.", field="classes")
    for one in classes:
        _check_range(f"classes.{one.name}.weight", one.weight, 1, MAX_WEIGHT)
        _check_range(f"classes.{one.name}.native_tokens", one.native_tokens, 1, MAX_CALIBRATION_COUNT)
        _check_range(f"classes.{one.name}.o200k_tokens", one.o200k_tokens, 1, MAX_CALIBRATION_COUNT)
        _check_range(f"classes.{one.name}.kappa_ppm", one.kappa_ppm, 1, MAX_KAPPA_PPM)
    known = TokenizerCalibration.objects.filter(
        tokenizer=tokenizer, tokenizer_digest=tokenizer_digest, corpus_digest=corpus_digest
    ).first()
    if known is not None:
        return known, False
    latest = TokenizerCalibration.objects.filter(tokenizer=tokenizer).order_by("-version").first()
    spread = spread_of(classes)
    try:
        with transaction.atomic():
            made = TokenizerCalibration.objects.create(
                tokenizer=tokenizer,
                version=latest.version + 1 if latest is not None else 1,
                tokenizer_digest=tokenizer_digest,
                corpus=corpus,
                corpus_digest=corpus_digest,
                made_by=made_by,
                kappa_ppm=kappa_of(classes),
                least_ppm=spread.least_ppm,
                p10_ppm=spread.p10_ppm,
                median_ppm=spread.median_ppm,
                p90_ppm=spread.p90_ppm,
                most_ppm=spread.most_ppm,
                created_at=now,
            )
    except IntegrityError as error:
        raise Conflict(
            "Another version was recorded at this moment; try again.", field="tokenizer"
        ) from error
    CalibrationClass.objects.bulk_create(
        CalibrationClass(
            calibration=made,
            name=one.name,
            weight=one.weight,
            texts=one.texts,
            utf8_bytes=one.utf8_bytes,
            native_tokens=one.native_tokens,
            o200k_tokens=one.o200k_tokens,
            kappa_ppm=one.kappa_ppm,
        )
        for one in classes
    )
    return made, True


def publish_known_calibrations(*, now: datetime) -> list[TokenizerCalibration]:
    """Record the measurements that come with this software. Doing it again changes nothing."""
    made = []
    for line in KNOWN_CALIBRATIONS.read_text().splitlines():
        shipped = json.loads(line)
        # What follows from the counts is computed again, not believed.
        counts = [
            ClassCounts(**{name: one[name] for name in ClassCounts.__slots__}) for one in shipped["classes"]
        ]
        terms = {name: shipped[name] for name in _CALIBRATION_NAMES}
        made.append(record_calibration(**terms, classes=counts, now=now)[0])
    return made


@transaction.atomic
def publish_rate(
    *,
    grade_id: UUID,
    kind: str,
    micros_per_mtok: int,
    source_id: UUID,
    now: datetime,
    valid_from: datetime | None = None,
) -> Rate:
    """A new unit price of the offering, contract or auction `source_id`, in force from `now` unless said otherwise.

    Raises InvalidInput.
    """
    if kind not in Rate.Kind.values:
        raise InvalidInput("It is not a kind of rate.", field="kind")
    _check_range("micros_per_mtok", micros_per_mtok, 0, MAX_RATE_MICROS_PER_MTOK)
    if not Grade.objects.filter(pk=grade_id).exists():
        raise NotFound("There is no such grade.", field="grade_id")
    return Rate.objects.create(
        grade_id=grade_id,
        kind=kind,
        micros_per_mtok=micros_per_mtok,
        source_id=source_id,
        valid_from=valid_from or now,
        created_at=now,
    )


@transaction.atomic
def publish_tariff_rate(
    tariff: Tariff, *, grade_id: UUID, source_id: UUID, valid_from: datetime, now: datetime
) -> Rate:
    """A list rate whose price is this tariff of a month's volume, in force from `valid_from`.

    Its rate per Mtok is the highest that any token can come to. Raises InvalidInput naming the field.
    """
    try:
        check_list_tariff(tariff)
    except ValueError as error:
        raise invalid_tariff(error) from error
    at = admission(tariff)
    rate = publish_rate(
        grade_id=grade_id,
        kind=Rate.Kind.LIST,
        micros_per_mtok=at.rate,
        source_id=source_id,
        valid_from=valid_from,
        now=now,
    )
    row = RateTariff.objects.create(
        rate=rate,
        kind=tariff.kind.value,
        unit_numerator=tariff.unit,
        package_micros=tariff.package_micros if tariff.kind is Kind.PACKAGE else None,
    )
    RateTier.objects.bulk_create(
        RateTier(tariff=row, place=place, up_to_numerator=tier.up_to, micros_per_mtok=tier.rate)
        for place, tier in enumerate(tariff.tiers)
    )
    return rate


def _family(*, slug: str, terms: _FamilyTerms, now: datetime) -> GradeFamily:
    """The family of this slug, locked: publishing is serial per family."""
    try:
        with transaction.atomic():
            GradeFamily.objects.get_or_create(
                slug=slug,
                defaults={
                    "title": terms.title,
                    "model": terms.model,
                    "precision_floor": terms.precision_floor,
                    "context_tokens": terms.context_tokens,
                    "region": terms.region,
                    "service_class": terms.service_class,
                    "created_at": now,
                },
            )
    except IntegrityError as error:
        raise Conflict("Another grade answers to this model name.", field="model") from error
    family = GradeFamily.objects.select_for_update(no_key=True).get(slug=slug)
    for field in _FamilyTerms.__slots__:
        if getattr(family, field) != getattr(terms, field):
            raise Conflict(
                "A grade of this slug exists with another value; it would be another good.", field=field
            )
    return family


def _end_version(grade: Grade, now: datetime) -> None:
    lower = grade.valid_during.lower
    if lower >= now:
        raise Conflict("A version of this grade begins at this moment or later.", field="slug")
    if grade.valid_during.upper is None:
        Grade.objects.filter(pk=grade.pk).update(valid_during=(lower, now))


def _check_texts(**texts: str) -> None:
    for field, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput("It must not be empty.", field=field)
        if len(text) > _TEXT_LENGTHS[field]:
            raise InvalidInput(f"It must not be longer than {_TEXT_LENGTHS[field]} characters.", field=field)
        if not text.isprintable():
            raise InvalidInput("It must be printable text.", field=field)
    slug = texts["slug"]
    if slug in RESERVED_SLUGS:
        raise InvalidInput("This name stands for a part of the market's data.", field="slug")
    if len(slug) < MIN_SLUG_LENGTH or not all(
        character.isascii() and (character.isalnum() or character in "-_") for character in slug
    ):
        raise InvalidInput("It must be ASCII letters, digits, hyphens and underscores.", field="slug")


def _check_range(field: str, value: int, least: int, most: int) -> None:
    if type(value) is not int:
        raise InvalidInput("It must be an integer.", field=field)
    if not least <= value <= most:
        raise InvalidInput(f"It must be from {least} to {most}.", field=field)


def _check_buckets(weights_ppm: Mapping[Bucket, int], kappa_ppm: Mapping[Bucket, int]) -> None:
    for field, values in (("weights_ppm", weights_ppm), ("kappa_ppm", kappa_ppm)):
        for bucket in values:
            if bucket not in Bucket.__members__.values():
                raise InvalidInput(f"{bucket!r} is not a bucket.", field=field)
    for bucket in (Bucket.UNCACHED_INPUT, Bucket.OUTPUT):
        if weights_ppm.get(bucket, 0) == 0:
            raise InvalidInput(f"{bucket.value} needs a weight above zero.", field="weights_ppm")
    for bucket, weight_ppm in weights_ppm.items():
        _check_range(f"weights_ppm.{bucket.value}", weight_ppm, 0, MAX_WEIGHT_PPM)
    for bucket, value in kappa_ppm.items():
        if bucket not in weights_ppm:
            raise InvalidInput(f"{bucket.value} has a kappa but no weight.", field="kappa_ppm")
        _check_range(f"kappa_ppm.{bucket.value}", value, 1, MAX_KAPPA_PPM)
