"""Writes the service levels of a grade version. Part of this room's services: `publish_grade` calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from marketplace.errors import InvalidInput
from pricing.models import ServiceLevel
from pricing.service_levels import LevelTerms, Metric
from pricing.units import PPM

MAX_LEVELS: Final = 8
MAX_MINIMUM_REQUESTS: Final = 1_000_000
MICROSECONDS: Final = 1_000_000


def check_levels(levels: Sequence[LevelTerms], *, most_us: int, most_input_tokens: int) -> None:
    """Raises InvalidInput naming the field: out of range, the same percentile twice, or more than all given back."""
    if len(levels) > MAX_LEVELS:
        raise InvalidInput(f"A grade has at most {MAX_LEVELS}.", field="service_levels")
    seen: set[tuple[str, int]] = set()
    for number, terms in enumerate(levels):
        place = f"service_levels.{number}"
        if terms.metric not in list(Metric):
            raise InvalidInput("It is not a metric.", field=f"{place}.metric")
        bounds = {
            "percentile": (terms.percentile, 99),
            "limit_us": (terms.limit_us, most_us),
            "credit_ppm": (terms.credit_ppm, PPM),
            "minimum_requests": (terms.minimum_requests, MAX_MINIMUM_REQUESTS),
            "max_input_tokens": (terms.max_input_tokens, most_input_tokens),
        }
        for name, (value, most) in bounds.items():
            if value is not None and not 1 <= value <= most:
                raise InvalidInput(f"It must be from 1 to {most}.", field=f"{place}.{name}")
        if (terms.metric, terms.percentile) in seen:
            raise InvalidInput("It was named before.", field=f"{place}.percentile")
        seen.add((terms.metric, terms.percentile))
    if sum(terms.credit_ppm for terms in levels) > PPM:
        raise InvalidInput("Together they give more back than was paid.", field="service_levels")


def record_levels(grade_id: UUID, levels: Sequence[LevelTerms]) -> None:
    """Keep the checked levels of a version that was just made."""
    ServiceLevel.objects.bulk_create(
        ServiceLevel(
            grade_id=grade_id,
            metric=terms.metric,
            percentile=terms.percentile,
            limit_us=terms.limit_us,
            credit_ppm=terms.credit_ppm,
            minimum_requests=terms.minimum_requests,
            max_input_tokens=terms.max_input_tokens,
        )
        for terms in levels
    )


def terms_of(level: ServiceLevel) -> LevelTerms:
    """The promise as pure code takes it."""
    return LevelTerms(
        metric=level.metric,
        percentile=level.percentile,
        limit_us=level.limit_us,
        credit_ppm=level.credit_ppm,
        minimum_requests=level.minimum_requests,
        max_input_tokens=level.max_input_tokens,
    )
