"""Grades and rates: published, superseded, never changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound
from marketplace.ids import uuid7
from pricing.models import Grade, GradeBucket, Rate
from pricing.selectors import (
    buckets_of,
    grade_in_force,
    grades_in_force,
    prices_per_bucket,
    rate_of,
    standard_ppm_of,
)
from pricing.services import MAX_RATE_MICROS_PER_MTOK, publish_grade, publish_rate
from pricing.units import Bucket

pytestmark = pytest.mark.django_db

TERMS: dict[str, Any] = {
    "slug": "small-chat-eu",
    "title": "Small chat",
    "model": "small-chat",
    "precision_floor": "fp8",
    "context_tokens": 8_192,
    "region": "eu",
    "service_class": "standard",
    "currency": "USD",
    "tokenizer_digest": "sha256:00",
    "weights_ppm": {Bucket.UNCACHED_INPUT: 1_000_000, Bucket.CACHE_READ: 100_000, Bucket.OUTPUT: 4_000_000},
    "kappa_ppm": {Bucket.UNCACHED_INPUT: 250_001, Bucket.OUTPUT: 250_001},
    "max_request_s": 900,
    "max_output_tokens": 4_096,
    "template_overhead_tokens": 32,
    "spot_minimum_take_ppm": 500_000,
    "reference_rate_micros_per_mtok": 500_000,
}


def test_a_published_grade_is_in_force_with_its_buckets(now: datetime) -> None:
    grade = publish_grade(**TERMS, now=now)
    assert grade_in_force(slug="small-chat-eu", at=now) == grade
    assert grade_in_force(model="small-chat", at=now + timedelta(days=400)) == grade
    assert grade_in_force(slug="small-chat-eu", at=now - timedelta(microseconds=1)) is None
    buckets = buckets_of(grade.id)
    assert list(buckets) == [Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.OUTPUT]
    assert standard_ppm_of(grade.id) == {
        Bucket.UNCACHED_INPUT: 250_001,
        Bucket.CACHE_READ: 100_000,  # No kappa given: 1.0.
        Bucket.OUTPUT: 1_000_004,
    }
    # 0.50 a million standard tokens; an output token is 1.000004 of one.
    assert prices_per_bucket(grade, 500_000)[Bucket.OUTPUT].per_mtok == "0.500002"


def test_a_new_version_ends_the_one_before_and_keeps_its_figures(now: datetime) -> None:
    first = publish_grade(**TERMS, now=now)
    later = now + timedelta(days=1)
    second = publish_grade(
        **TERMS | {"weights_ppm": TERMS["weights_ppm"] | {Bucket.OUTPUT: 5_000_000}}, now=later
    )
    assert (first.version, second.version) == (1, 2)
    assert grade_in_force(slug="small-chat-eu", at=later - timedelta(microseconds=1)) == first
    assert grade_in_force(slug="small-chat-eu", at=later) == second
    assert list(grades_in_force(later)) == [second]
    assert buckets_of(first.id)[Bucket.OUTPUT].weight_ppm == 4_000_000


def test_two_versions_cannot_begin_at_one_moment(now: datetime) -> None:
    publish_grade(**TERMS, now=now)
    with pytest.raises(Conflict):
        publish_grade(**TERMS, now=now)
    assert Grade.objects.count() == 1


def test_the_database_refuses_overlapping_versions(now: datetime) -> None:
    grade = publish_grade(**TERMS, now=now)
    twin = Grade(**{field.attname: getattr(grade, field.attname) for field in Grade._meta.concrete_fields})
    twin.id, twin.version, twin.valid_during = uuid7(), 2, (now + timedelta(days=3), None)
    with pytest.raises(DatabaseError, match="pricing_grade_one_version_at_a_time"), transaction.atomic():
        twin.save(force_insert=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "other"), ("region", "us"), ("context_tokens", 16_384), ("title", "Another")],
)
def test_a_version_cannot_be_another_good(now: datetime, field: str, value: object) -> None:
    publish_grade(**TERMS, now=now)
    with pytest.raises(Conflict) as refused:
        publish_grade(**TERMS | {field: value}, now=now + timedelta(days=1))
    assert refused.value.field == field


def test_a_model_name_answers_for_one_grade(now: datetime) -> None:
    publish_grade(**TERMS, now=now)
    with pytest.raises(Conflict) as refused:
        publish_grade(**TERMS | {"slug": "another"}, now=now + timedelta(days=1))
    assert refused.value.field == "model"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("slug", "", "slug"),
        ("slug", "with space", "slug"),
        ("slug", "s" * 65, "slug"),
        ("slug", "index", "slug"),
        ("title", "t" * 121, "title"),
        ("title", "bell\x07", "title"),
        ("model", "nul\x00", "model"),
        ("currency", "XYZ", "currency"),
        ("context_tokens", 0, "context_tokens"),
        ("context_tokens", True, "context_tokens"),
        ("max_request_s", 3_601, "max_request_s"),
        ("max_output_tokens", 8_193, "max_output_tokens"),
        ("template_overhead_tokens", -1, "template_overhead_tokens"),
        ("spot_minimum_take_ppm", 1_000_001, "spot_minimum_take_ppm"),
        ("reference_rate_micros_per_mtok", 0, "reference_rate_micros_per_mtok"),
        ("reference_rate_micros_per_mtok", 2**63, "reference_rate_micros_per_mtok"),
        ("weights_ppm", {}, "weights_ppm"),
        ("weights_ppm", {Bucket.UNCACHED_INPUT: 1, Bucket.OUTPUT: 0}, "weights_ppm"),
        ("weights_ppm", {Bucket.UNCACHED_INPUT: 1, Bucket.OUTPUT: -1}, "weights_ppm.output"),
        ("weights_ppm", {Bucket.UNCACHED_INPUT: 1, Bucket.OUTPUT: 10**9 + 1}, "weights_ppm.output"),
        ("kappa_ppm", {Bucket.REASONING: 1_000_000}, "kappa_ppm"),
        ("kappa_ppm", {Bucket.OUTPUT: 0}, "kappa_ppm.output"),
    ],
)
def test_bad_terms_are_named_and_change_nothing(now: datetime, field: str, value: object, named: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        publish_grade(**TERMS | {field: value}, now=now)
    assert refused.value.field == named
    assert not Grade.objects.exists()


def test_rates_are_found_by_source_and_time(now: datetime) -> None:
    grade, source = publish_grade(**TERMS, now=now), uuid7()
    old = publish_rate(grade_id=grade.id, kind=Rate.Kind.LIST, micros_per_mtok=5, source_id=source, now=now)
    later = now + timedelta(hours=1)
    new = publish_rate(grade_id=grade.id, kind=Rate.Kind.LIST, micros_per_mtok=6, source_id=source, now=later)
    assert rate_of(source_id=source, kind=Rate.Kind.LIST, at=now) == old
    assert rate_of(source_id=source, kind=Rate.Kind.LIST, at=later) == new
    assert rate_of(source_id=source, kind=Rate.Kind.CLEARING, at=later) is None


@pytest.mark.parametrize("micros", [-1, MAX_RATE_MICROS_PER_MTOK + 1, 1.5, True])
def test_a_rate_is_a_bounded_integer(now: datetime, micros: int) -> None:
    grade = publish_grade(**TERMS, now=now)
    with pytest.raises(InvalidInput) as refused:
        publish_rate(
            grade_id=grade.id, kind=Rate.Kind.LIST, micros_per_mtok=micros, source_id=uuid7(), now=now
        )
    assert refused.value.field == "micros_per_mtok"


def test_a_rate_needs_a_grade_and_a_kind(now: datetime) -> None:
    for kind, error in ((Rate.Kind.LIST, NotFound), ("favour", InvalidInput)):
        with pytest.raises(error):
            publish_rate(grade_id=uuid7(), kind=kind, micros_per_mtok=1, source_id=uuid7(), now=now)
    assert issubclass(NotFound, DomainError)


def _change_grade(grade: Grade) -> None:
    Grade.objects.filter(pk=grade.pk).update(max_request_s=1)


def _move_start(grade: Grade) -> None:
    Grade.objects.filter(pk=grade.pk).update(
        valid_during=(grade.created_at - timedelta(days=1), grade.created_at + timedelta(days=1))
    )


def _end_twice(grade: Grade) -> None:
    for days in (1, 2):
        Grade.objects.filter(pk=grade.pk).update(
            valid_during=(grade.created_at, grade.created_at + timedelta(days=days))
        )


def _delete_grade(grade: Grade) -> None:
    Grade.objects.filter(pk=grade.pk)._raw_delete("default")


def _change_bucket(grade: Grade) -> None:
    GradeBucket.objects.filter(grade=grade).update(weight_ppm=1)


def _change_rate(grade: Grade) -> None:
    Rate.objects.filter(grade=grade).update(micros_per_mtok=1)


@pytest.mark.parametrize(
    "change", [_change_grade, _move_start, _end_twice, _delete_grade, _change_bucket, _change_rate]
)
def test_grades_buckets_and_rates_never_change(now: datetime, change: Callable[[Grade], None]) -> None:
    grade = publish_grade(**TERMS, now=now)
    publish_rate(grade_id=grade.id, kind=Rate.Kind.LIST, micros_per_mtok=5, source_id=uuid7(), now=now)
    with pytest.raises(DatabaseError), transaction.atomic():
        change(grade)


def test_the_owner_is_held_by_triggers_too() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O' AND tgrelid = ANY("
            "ARRAY['pricing_grade', 'pricing_gradebucket', 'pricing_rate']::regclass[])"
        )
        assert cursor.fetchone() == (4,)
