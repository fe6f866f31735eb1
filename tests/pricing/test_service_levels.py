"""Percentiles by nearest rank and the credit of a period: exact, bounded, rounded once."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from marketplace.errors import InvalidInput
from pricing.models import Grade
from pricing.promising import MAX_LEVELS, terms_of
from pricing.selectors import find_grade, levels_of
from pricing.service_levels import (
    LevelTerms,
    credit_micros,
    gross_micros,
    is_broken,
    nearest_rank,
    output_token_us,
    rank,
)
from pricing.services import publish_grade
from pricing.units import PPM
from tests.cast import Party
from tests.pricing.test_services import TERMS

LEVEL = LevelTerms(
    metric="first_token", percentile=95, limit_us=500_000, credit_ppm=100_000, minimum_requests=20
)
percentiles = st.integers(1, 99)
amounts = st.integers(0, 10**15)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300), percentiles)
def test_the_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[int], percentile: int
) -> None:
    found = nearest_rank(values, percentile)
    assert found in values
    enough = Fraction(percentile, 100) * len(values)
    assert sum(value <= found for value in values) >= enough
    assert sum(value < found for value in values) < enough


@given(st.integers(1, 10**9), percentiles)
def test_a_rank_is_a_place_among_the_values(count: int, percentile: int) -> None:
    assert 1 <= rank(count, percentile) <= count


@given(amounts, st.lists(st.integers(1, PPM), max_size=8), st.integers(0, 10**15))
def test_credit_and_remedy_together_are_the_larger_of_both(
    gross: int, broken: list[int], remedy: int
) -> None:
    alone = credit_micros(gross, broken)
    assert 0 <= alone <= gross
    assert credit_micros(gross, broken, remedy=remedy) + remedy == max(alone, remedy)
    exact = Fraction(gross * min(PPM, sum(broken)), PPM)
    assert 0 <= exact - alone < 1


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**15)), max_size=10))
def test_the_gross_does_not_depend_on_how_the_volume_was_cut(volumes: list[tuple[int, int]]) -> None:
    halves = [(rate, part) for rate, whole in volumes for part in (whole // 2, whole - whole // 2)]
    assert gross_micros(halves) == gross_micros(volumes)


def test_time_per_token_is_of_the_tokens_after_the_first() -> None:
    assert output_token_us(first_token_ms=100, duration_ms=200, output_tokens=2) == 100_000
    assert output_token_us(first_token_ms=100, duration_ms=200, output_tokens=4) == 33_333
    # Clocks of one process do not run backwards, but a meter's word is not a proof.
    assert output_token_us(first_token_ms=300, duration_ms=200, output_tokens=4) == 0


@pytest.mark.parametrize(
    ("requests", "measured_us", "broken"),
    [(20, 500_001, True), (20, 500_000, False), (19, 900_000, False), (0, None, False)],
)
def test_a_level_is_broken_by_enough_requests_above_its_limit(
    requests: int, measured_us: int | None, broken: bool
) -> None:
    assert is_broken(LEVEL, requests=requests, measured_us=measured_us) is broken


@pytest.mark.django_db
def test_levels_are_a_versions_own(now: datetime) -> None:
    other = LevelTerms(
        metric="output_token",
        percentile=50,
        limit_us=20_000,
        credit_ppm=900_000,
        minimum_requests=1,
        max_input_tokens=512,
    )
    first = publish_grade(**TERMS, service_levels=[other, LEVEL], now=now)
    assert [terms_of(level) for level in levels_of(first)] == [LEVEL, other]
    second = publish_grade(**TERMS, now=now + timedelta(days=1))
    assert levels_of(second) == []
    old = find_grade(first.pk)
    assert old is not None
    assert len(levels_of(old)) == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("levels", "field"),
    [
        ([{"metric": "tokens"}], "service_levels.0.metric"),
        ([{}, {"percentile": 100}], "service_levels.1.percentile"),
        ([{"limit_us": 0}], "service_levels.0.limit_us"),
        ([{"limit_us": 15_000_001}], "service_levels.0.limit_us"),
        ([{"credit_ppm": 1_000_001}], "service_levels.0.credit_ppm"),
        ([{"minimum_requests": 0}], "service_levels.0.minimum_requests"),
        ([{"max_input_tokens": 10**9}], "service_levels.0.max_input_tokens"),
        ([{}, {}], "service_levels.1.percentile"),
        ([{"credit_ppm": 600_000}, {"percentile": 50, "credit_ppm": 600_000}], "service_levels"),
        (
            [{"percentile": 50 + number, "credit_ppm": 1} for number in range(MAX_LEVELS + 1)],
            "service_levels",
        ),
    ],
)
def test_bad_levels_name_their_field_and_publish_nothing(
    levels: list[dict[str, Any]], field: str, now: datetime
) -> None:

    with pytest.raises(InvalidInput) as caught:
        publish_grade(
            **TERMS | {"max_request_s": 15},
            service_levels=[replace(LEVEL, **changes) for changes in levels],
            now=now,
        )
    assert caught.value.field == field
    assert not Grade.objects.exists()


def test_the_operator_publishes_levels_and_everybody_reads_them(operator: Party, now: datetime) -> None:
    level = {
        "metric": "first_token",
        "percentile": 95,
        "limit_us": 500_000,
        "credit_ppm": 100_000,
        "minimum_requests": 20,
    }
    body = TERMS | {"service_levels": [level]}
    for name in ("weights_ppm", "kappa_ppm"):
        body[name] = {bucket.value: ppm for bucket, ppm in body.get(name, {}).items()}
    answer = operator.api.post("/api/v1/grades", body, format="json")
    assert answer.status_code == 201, answer.json()
    read = Client().get(f"/api/v1/grades/{answer.json()['id']}").json()["service_levels"]
    assert [{name: one[name] for name in level} for one in read] == [level]
    assert read[0]["max_input_tokens"] is None
    bad = body | {"slug": "x-2", "model": "x-2", "service_levels": [level | {"percentile": 0}]}
    refused = operator.api.post("/api/v1/grades", bad, format="json")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"].startswith("service_levels.0.percentile")
