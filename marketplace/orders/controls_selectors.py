"""Reads of the market's controls: the cap in force, the figures of the rules, what is published of a grade's state."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from uuid import UUID

from django.conf import settings
from django.db.models import Aggregate, BigIntegerField, Count, Q, QuerySet, Sum

from marketplace.errors import NotFound
from marketplace.orders import controls
from marketplace.orders.models import Auction, CapReview, MarketControl, MarketControlChange
from marketplace.periods import delivery_period
from pricing.models import Grade
from pricing.selectors import grade_in_force

_PUBLISHED = (Auction.Status.PUBLISHED, Auction.Status.DELIVERED, Auction.Status.SETTLED)


class _LowerMedian(Aggregate):
    """`controls.lower_median`, where the rows are."""

    function = "percentile_disc"
    template = "%(function)s(0.5) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = BigIntegerField()


@dataclass(frozen=True, slots=True)
class Figures:
    """What the rules look at before a delivery period: `rolling_sum` of the seven days before it, `traded_periods` in
    them, and the `median` rate of the thirty days before it (None when nothing traded)."""

    rolling_sum: int = 0
    traded_periods: int = 0
    median: int | None = None


@dataclass(frozen=True, slots=True)
class ControlState:
    """A grade's control with what follows from it at one moment. Rates in micros per Mtok.

    `cap` is the grade's own; `book_cap` what a book sealed now is cleared under; `threshold` what the rolling sum has
    to pass to trip the breaker; `administered_rate` what a halted period settles at, None where nothing has traded.
    """

    control: MarketControl
    grade: Grade
    cap: int
    book_cap: int
    figures: Figures
    threshold: int
    administered_rate: int | None


def cap_of(grade: Grade, *, at: datetime) -> int:
    """The cap of a grade at `at`, in micros per Mtok: the last review in force, else 10 x the reference rate."""
    return caps_of([grade], at=at)[grade.id]


def caps_of(grades: Iterable[Grade], *, at: datetime) -> dict[UUID, int]:
    """`cap_of` for any number of grades, in one query."""
    caps = {grade.id: controls.CAP_MULTIPLE * grade.reference_rate_micros_per_mtok for grade in grades}
    reviewed = (
        CapReview.objects.filter(grade_id__in=caps, status=CapReview.Status.SCHEDULED, effective_from__lte=at)
        .order_by("grade_id", "-effective_from")
        .distinct("grade_id")
    )
    return caps | dict(reviewed.values_list("grade_id", "cap_micros_per_mtok"))


def figures_of(grade_ids: Collection[UUID], *, before: datetime) -> dict[UUID, Figures]:
    """The figures of the rules for the delivery period that starts at `before`; one query for any number of grades."""
    week = Q(period_start__gte=before - controls.BREAKER_WINDOW)
    rows = (
        _traded(before - controls.MEDIAN_WINDOW, before)
        .filter(grade_id__in=grade_ids)
        .values("grade_id")
        .annotate(
            rolling=Sum("clearing_rate_micros_per_mtok", filter=week),
            traded=Count("pk", filter=week),
            median=_LowerMedian("clearing_rate_micros_per_mtok"),
        )
        .values_list("grade_id", "rolling", "traded", "median")
    )
    # Sum of bigint is numeric in PostgreSQL.
    found = {
        grade_id: Figures(int(rolling or 0), traded, median) for grade_id, rolling, traded, median in rows
    }
    return {grade_id: found.get(grade_id, Figures()) for grade_id in grade_ids}


def rolling_sums(grade_ids: Collection[UUID], *, before: datetime) -> dict[UUID, int]:
    """Per grade the sum of the clearing rates of the seven days before a delivery period; one query."""
    week = _traded(before - controls.BREAKER_WINDOW, before).filter(grade_id__in=grade_ids)
    sums = week.values("grade_id").annotate(total=Sum("clearing_rate_micros_per_mtok"))
    found = {grade_id: int(total) for grade_id, total in sums.values_list("grade_id", "total")}
    return {grade_id: found.get(grade_id, 0) for grade_id in grade_ids}


def days_near_cap(grade_id: UUID, *, cap: int, before: datetime) -> list[date]:
    """UTC days of the review's window on which a clearing rate came near the cap, oldest first."""
    # The smallest integer rate with 100 x rate >= 70 x cap.
    least = -(-controls.REVIEW_NEAR_CAP_PERCENT * cap // 100)
    near = _traded(before - controls.REVIEW_WINDOW, before).filter(
        grade_id=grade_id, clearing_rate_micros_per_mtok__gte=least
    )
    return sorted({at.astimezone(UTC).date() for at in near.values_list("period_start", flat=True)})


def administered_rate(grade_id: UUID, *, before: datetime) -> int | None:
    """What a halted period that starts at `before` settles at: the operator's figure, else the 30-day median."""
    own = MarketControl.objects.filter(grade_id=grade_id).values_list(
        "administered_rate_micros_per_mtok", flat=True
    )
    figure = own.first()
    return figure if figure is not None else figures_of([grade_id], before=before)[grade_id].median


def is_halted(grade_id: UUID) -> bool:
    return MarketControl.objects.filter(grade_id=grade_id, status=MarketControl.Status.HALTED).exists()


@dataclass(frozen=True, slots=True)
class PublicState:
    """What everybody may know of a grade's market; `cap_micros_per_mtok` is that of a book sealed now."""

    status: str
    status_since: datetime
    halted_because: str
    cap_micros_per_mtok: int
    administered_rate_micros_per_mtok: int | None


def public_state_of(grade: Grade, *, now: datetime) -> PublicState:
    """The administered rate is told while it matters: as long as the market is halted."""
    control = MarketControl.objects.filter(grade=grade).first() or _untouched(grade, now)
    halted = control.status == MarketControl.Status.HALTED
    return PublicState(
        status=control.status,
        status_since=control.status_since,
        halted_because=control.halted_because,
        cap_micros_per_mtok=controls.book_cap(
            cap=cap_of(grade, at=now), administered=control.administered_cap_micros_per_mtok
        ),
        administered_rate_micros_per_mtok=(
            administered_rate(grade.id, before=delivery_period(now).end) if halted else None
        ),
    )


def _untouched(grade: Grade, now: datetime) -> MarketControl:
    """The control of a grade that no book was opened for yet. Not stored."""
    return MarketControl(grade=grade, status_since=grade.created_at, created_at=now)


def state_of(grade: Grade, *, now: datetime) -> ControlState:
    """The state of one grade's market; `normal` for a grade that no book was ever opened for."""
    return states_of([grade], now=now)[0]


def states_of(grades: Collection[Grade], *, now: datetime) -> list[ControlState]:
    """The state of each grade's market, in the given order; three queries for any number of grades."""
    caps = caps_of(grades, at=now)
    figures = figures_of(list(caps), before=delivery_period(now).end)
    known = {control.grade_id: control for control in MarketControl.objects.filter(grade_id__in=caps)}
    states = []
    for grade in grades:
        control = known.get(grade.id) or _untouched(grade, now)
        cap, own = caps[grade.id], control.administered_rate_micros_per_mtok
        states.append(
            ControlState(
                control=control,
                grade=grade,
                cap=cap,
                book_cap=controls.book_cap(cap=cap, administered=control.administered_cap_micros_per_mtok),
                figures=figures[grade.id],
                threshold=controls.threshold(cap=cap, period_s=settings.DELIVERY_PERIOD_S),
                administered_rate=own if own is not None else figures[grade.id].median,
            )
        )
    return states


def changes_of(grade: Grade) -> QuerySet[MarketControlChange]:
    """Every move of a grade's control, newest first."""
    return MarketControlChange.objects.filter(control__grade=grade).order_by("-pk")


def cap_reviews_of(grade: Grade) -> QuerySet[CapReview]:
    """Every cap review of a grade, newest first."""
    return CapReview.objects.filter(grade=grade).order_by("-pk")


def grade_named(slug: str, *, at: datetime) -> Grade:
    """The version in force of the grade with this slug. Raises NotFound."""
    grade = grade_in_force(slug=slug, at=at)
    if grade is None:
        raise NotFound("There is no such grade in force.", field="grade")
    return grade


def grades_by_status() -> dict[str, int]:
    """How many grades' markets are in which state, for the operator's alarms."""
    counted = MarketControl.objects.values("status").annotate(grades=Count("pk"))
    return dict.fromkeys(MarketControl.Status.values, 0) | dict(counted.values_list("status", "grades"))


def grades_halted_by_rule() -> int:
    return (
        MarketControl.objects.filter(status=MarketControl.Status.HALTED)
        .exclude(halted_because=MarketControl.Because.OPERATOR)
        .count()
    )


def _traded(since: datetime, before: datetime) -> QuerySet[Auction]:
    return Auction.objects.filter(
        status__in=_PUBLISHED,
        period_start__gte=since,
        period_start__lt=before,
        clearing_rate_micros_per_mtok__isnull=False,
    )
