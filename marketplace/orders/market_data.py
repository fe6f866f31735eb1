"""Public market data across auctions: the price index, the history of each grade, what was published since."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db.models import BooleanField, Case, Model, Q, QuerySet, Value, When
from django.db.models.expressions import RawSQL

from marketplace.orders.models import Auction, PriceIndex
from marketplace.orders.selectors import DISCLOSURE_DELAY, DISCLOSURE_ORGANIZATIONS, PUBLISHED
from pricing.index import METHOD_VERSION

# What is read at once of a whole history: flat memory, short statements.
CHUNK_ROWS: Final = 200
_ORGANIZATIONS: Final = (
    "(SELECT count(DISTINCT item ->> 'organization_id') "
    "FROM jsonb_array_elements(orders_auction.book -> '{side}') AS item) >= %s"
)
_MISSED: Final = "coalesce((orders_auction.book ->> 'missed')::boolean, false)"
Row = TypeVar("Row", bound=Model)


def index_values(
    *,
    grade: str | None = None,
    span: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[PriceIndex]:
    """Published values whose window begins in `[since, until)`, newest window first; `grade` is a family's slug."""
    values = PriceIndex.objects.select_related("family").order_by("-pk")
    wanted = {
        "family__slug": grade,
        "span": span,
        "window_start__gte": since,
        "window_start__lt": until,
    }
    return values.filter(**{name: value for name, value in wanted.items() if value is not None})


def latest_index_values() -> list[PriceIndex]:
    """The newest value of every grade family and span by the method in force, by slug."""
    newest = (
        PriceIndex.objects.filter(method_version=METHOD_VERSION)
        .order_by("family_id", "span", "-window_start")
        .distinct("family_id", "span")
        .select_related("family")
    )
    return sorted(newest, key=lambda value: (value.family.slug, value.span))


def market_history(
    *,
    now: datetime,
    grade: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[Auction]:
    """Published auctions of delivery periods that begin in `[since, until)`, newest first, of every version of a grade.

    `is_disclosed` says whether the price interval may be shown: the rule of `selectors.disclosure_of`. `was_missed`:
    the gate was closed too late to trade. The books themselves stay in the database.
    """
    wanted = {"grade__family__slug": grade, "period_start__gte": since, "period_start__lt": until}
    is_old = Q(published_at__lte=now - DISCLOSURE_DELAY)
    return (
        Auction.objects.filter(status__in=PUBLISHED)
        .filter(**{name: value for name, value in wanted.items() if value is not None})
        .select_related("grade__family")
        .defer("book")
        .annotate(
            is_disclosed=Case(
                When(is_old, then=Value(True)),
                When(_are_many("bids") & _are_many("asks"), then=Value(True)),
                default=Value(False),
                output_field=BooleanField(),
            ),
            # A book that traded was not missed: the rows of a busy market are told without opening their books.
            was_missed=Case(
                When(quantity_lots__gt=0, then=Value(False)),
                default=RawSQL(_MISSED, [], output_field=BooleanField()),  # noqa: S611
                output_field=BooleanField(),
            ),
        )
        .order_by("-pk")
    )


def _are_many(side: str) -> Q:
    expression = RawSQL(  # noqa: S611  # No input: one of two words of this module.
        _ORGANIZATIONS.format(side=side), [DISCLOSURE_ORGANIZATIONS], output_field=BooleanField()
    )
    return Q(expression)


def in_chunks(rows: QuerySet[Row]) -> Iterator[Row]:
    """Every row by falling id, in short statements, so that a slow reader holds no transaction open."""
    rows = rows.order_by("-pk")
    below: Any = None
    while True:
        chunk = list((rows if below is None else rows.filter(pk__lt=below))[:CHUNK_ROWS])
        yield from chunk
        if len(chunk) < CHUNK_ROWS:
            return
        below = chunk[-1].pk


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the order of publication."""

    published_at: datetime
    auction_id: UUID


def published_since(
    place: Place, *, overlap: timedelta, seen: Collection[UUID], grade: str | None = None
) -> list[Auction]:
    """Auctions published after `place` less the `overlap`, without those seen, in order; at most `CHUNK_ROWS`.

    Auctions of one round are published in transactions of their own: one that is stamped earlier may be seen later.
    """
    rows = Auction.objects.filter(status__in=PUBLISHED, published_at__gt=place.published_at - overlap)
    return list(_of(rows.exclude(pk__in=seen), grade).order_by("published_at", "pk")[:CHUNK_ROWS])


def newest_published(*, since: datetime, grade: str | None = None) -> list[Auction]:
    """The newest published auction of each grade, of delivery periods from `since` on, in order of publication."""
    rows = Auction.objects.filter(status__in=PUBLISHED, period_start__gte=since)
    newest = _of(rows, grade).order_by("grade_id", "-period_start").distinct("grade_id")
    return sorted(newest, key=lambda auction: (auction.published_at or since, auction.pk))


def _of(rows: QuerySet[Auction], grade: str | None) -> QuerySet[Auction]:
    if grade is not None:
        rows = rows.filter(grade__family__slug=grade)
    return rows.select_related("grade__family").defer("book")
