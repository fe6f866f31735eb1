"""What everybody may see of the market's data: the price index with its method, and how well offerings deliver."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.orders import leaderboard
from marketplace.orders.market_data import index_values, latest_index_values
from marketplace.orders.models import PriceIndex
from marketplace.portal import figures
from marketplace.portal.access import PortalRequest, public
from marketplace.portal.charts import Chart, Point, line_chart
from marketplace.portal.paging import page_of
from pricing.index import GROUP_CAP, METHOD_VERSION, MIN_AUCTIONS, MIN_GROUPS_PER_SIDE
from pricing.models import GradeFamily
from pricing.units import PPM

CHARTED = timedelta(days=7)
# In plain words, where a reader sees them.
BASES = {
    PriceIndex.Basis.SPOT: "spot trades",
    PriceIndex.Basis.COMMITTED: "committed contracts, for want of spot trades",
    PriceIndex.Basis.CARRIED: "carried from the window before",
    PriceIndex.Basis.NONE: "nothing to rest on",
}


@dataclass(frozen=True)
class IndexBoard:
    """The index of one grade: its newest values, and the hours behind them."""

    family: GradeFamily
    day: PriceIndex | None
    hour: PriceIndex | None
    chart: Chart


@require_safe
@public
def price_index(request: PortalRequest) -> HttpResponse:
    now = clock.now()
    context = {
        "boards": _index_boards(now),
        "page": page_of(index_values(), request),
        "bases": BASES,
        "method_version": METHOD_VERSION,
        "group_cap_ppm": int(GROUP_CAP * PPM),
        "min_auctions": MIN_AUCTIONS,
        "min_groups": MIN_GROUPS_PER_SIDE,
        "currency": settings.MARKET_CURRENCY,
        "now": now,
    }
    return render(request, "portal/price_index.html", context)


def _index_boards(now: datetime) -> list[IndexBoard]:
    """Two queries for any number of grades."""
    newest: dict[UUID, dict[str, PriceIndex]] = {}
    for value in latest_index_values():
        newest.setdefault(value.family_id, {})[value.span] = value
    since = now - CHARTED
    hours: dict[UUID, list[PriceIndex]] = {family_id: [] for family_id in newest}
    for value in index_values(span=PriceIndex.Span.HOUR, since=since).order_by("window_start", "pk"):
        if value.method_version == METHOD_VERSION and value.family_id in hours:
            hours[value.family_id].append(value)
    return [
        _index_board(next(iter(found.values())).family, found, hours[family_id], since)
        for family_id, found in newest.items()
    ]


def _index_board(
    family: GradeFamily, newest: dict[str, PriceIndex], hours: list[PriceIndex], since: datetime
) -> IndexBoard:
    # A carried value is no price of its own: the chart draws it dotted, as a gap.
    points = [
        Point(
            int(value.window_start.timestamp()),
            None if value.basis == PriceIndex.Basis.CARRIED else value.rate_micros_per_mtok,
        )
        for value in hours
    ]
    first = hours[0].window_start if hours else since
    chart = line_chart(
        points,
        title=f"Price index of {family.title}, hour by hour",
        y_label=figures.axis_money,
        x_labels=(figures.day_time(first), figures.day_time(hours[-1].window_end)) if hours else (),
    )
    return IndexBoard(family, newest.get(PriceIndex.Span.DAY), newest.get(PriceIndex.Span.HOUR), chart)


@require_safe
@public
def standings(request: PortalRequest) -> HttpResponse:
    now = clock.now()
    context = {
        "standings": leaderboard.standings(now=now),
        "window": leaderboard.window_of(now),
        "currency": settings.MARKET_CURRENCY,
        "now": now,
    }
    return render(request, "portal/leaderboard.html", context)
