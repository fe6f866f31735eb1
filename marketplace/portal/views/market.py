"""What everybody may see: grades, prices, history, depth under the disclosure rule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.contracts.selectors import with_overage_rates
from marketplace.orders.controls_selectors import public_state_of
from marketplace.orders.models import Auction
from marketplace.orders.selectors import (
    DISCLOSURE_DELAY,
    Disclosure,
    Tape,
    disclosure_of,
    market_tapes,
    published_auctions,
)
from marketplace.portal import figures
from marketplace.portal.access import PortalRequest, public
from marketplace.portal.charts import Chart, Point, depth_chart, line_chart
from marketplace.portal.paging import page_of
from pricing.models import Grade
from pricing.rating import PlainPrice
from pricing.selectors import by_bucket, grades_in_force, levels_of, prices_per_bucket
from pricing.tariffs import DAY_S
from providers.list_rates import RateSpan
from providers.selectors import Supply, list_rate_schedules, month_tariffs_of, supply_of

WINDOW = timedelta(hours=24)
MOST_POINTS = 288


@dataclass(frozen=True)
class Board:
    """One grade's market, ready to be shown."""

    grade: Grade
    tape: Tape
    supply: Supply | None
    # Of the delivery period that runs: the published one, else the list rate.
    overage_rate: int | None
    # The cheapest list rate over the coming day.
    on_demand: list[RateSpan]
    chart: Chart
    depth: Chart | None
    disclosure: Disclosure | None
    disclosed_at: datetime | None
    rate: int | None
    rate_is: str
    prices: list[tuple[str, PlainPrice]]
    change: str | None
    change_is: str
    volume_lots: int

    @property
    def list_rate_until(self) -> datetime | None:
        """When the list rate of now ends, by time of use or by a version announced; None: not in the coming day."""
        if self.list_rate is None or not self.on_demand:
            return None
        first = self.on_demand[0]
        return first.end if first.end - first.start < timedelta(seconds=DAY_S) else None

    @property
    def list_rate(self) -> int | None:
        """None where nothing is on offer, or in packages alone."""
        return self.supply.list_rate_micros_per_mtok if self.supply else None

    @property
    def last(self) -> Auction | None:
        return self.tape.last

    @property
    def rises(self) -> bool:
        return self.change is not None and self.change.startswith("+")

    @property
    def falls(self) -> bool:
        return self.change is not None and self.change.startswith("\u2212")


@require_safe
@public
def market(request: PortalRequest) -> HttpResponse:
    now = clock.now()
    context = {"boards": boards_of(grades_in_force(now), now), "now": now, **_market_terms()}
    return render(request, "portal/market.html", context)


@require_safe
@public
def grade(request: PortalRequest, slug: str) -> HttpResponse:
    now = clock.now()
    boards = boards_of(grades_in_force(now).filter(family__slug=slug), now)
    if not boards:
        raise Http404("There is no such grade in force.")
    [board] = boards
    found = board.grade
    prices = dict(board.prices)
    buckets = [
        (bucket.value, row, prices.get(bucket.value))
        for bucket, row in by_bucket(found.buckets.all()).items()
    ]
    context = {
        "board": board,
        "buckets": buckets,
        "levels": levels_of(found),
        "control": public_state_of(found, now=now),
        "on_demand_chart": rate_chart(
            board.on_demand, f"List rate of {found.family.title} over the coming day"
        ),
        "month_tariffs": month_tariffs_of(found.id, now),
        "history": page_of(published_auctions([found.id]), request, by="period_start"),
        "now": now,
        **_market_terms(),
    }
    return render(request, "portal/grade.html", context)


def boards_of(grades: QuerySet[Grade], now: datetime) -> list[Board]:
    """The same few queries for any number of grades."""
    found = with_overage_rates(grades, at=now)
    ids = [grade.id for grade, _ in found]
    tapes = market_tapes(ids, now=now, window=WINDOW)
    supplies = supply_of(ids, now)
    schedules = list_rate_schedules(ids, now)
    return [
        _board(
            grade,
            tapes[grade.id],
            supplies.get(grade.id),
            now,
            overage=overage,
            on_demand=schedules.get(grade.id, []),
        )
        for grade, overage in found
    ]


def _board(
    grade: Grade,
    tape: Tape,
    supply: Supply | None,
    now: datetime,
    *,
    overage: int | None,
    on_demand: list[RateSpan],
) -> Board:
    last = tape.last.clearing_rate_micros_per_mtok if tape.last else None
    list_rate = supply.list_rate_micros_per_mtok if supply else None
    shown = last if last is not None else list_rate
    prices = prices_per_bucket(grade, shown) if shown is not None else {}
    change, change_is = _change(tape, last)
    disclosure = disclosure_of(tape.last, now) if tape.last else None
    published_at = tape.last.published_at if tape.last else None
    return Board(
        grade=grade,
        tape=tape,
        supply=supply,
        overage_rate=overage if overage is not None else list_rate,
        on_demand=on_demand,
        chart=_history_chart(grade, tape, now),
        depth=_depth_chart(grade, disclosure),
        disclosure=disclosure,
        disclosed_at=published_at + DISCLOSURE_DELAY if published_at and disclosure is None else None,
        rate=shown,
        rate_is="last clearing rate" if last is not None else "list rate; nothing has cleared yet",
        prices=[(bucket.value, price) for bucket, price in prices.items()],
        change=change,
        change_is=change_is,
        volume_lots=sum(lots for _, _, lots in tape.periods),
    )


def _change(tape: Tape, last: int | None) -> tuple[str | None, str]:
    """The last rate against the one of 24 hours ago, or against the first one of a younger market."""
    base, named = tape.rate_before, "24 h change"
    if base is None:
        base = next((rate for _, rate, _ in tape.periods if rate is not None), None)
        named = "change since the first trade"
    if base is None or last is None or base == 0:
        return None, "24 h change"
    return figures.change_percent(base, last), named


def _history_chart(grade: Grade, tape: Tape, now: datetime) -> Chart:
    # Of a finely sliced day only every n-th period is drawn; the table has them all.
    thin = tape.periods[:: max(1, len(tape.periods) // MOST_POINTS)]
    points = [Point(int(start.timestamp()), rate) for start, rate, _ in thin]
    if points:
        points.append(Point(max(points[-1].x + 1, int(now.timestamp())), None))
    first = tape.periods[0][0] if tape.periods else now - WINDOW
    return line_chart(
        points,
        title=f"Clearing rate of {grade.family.title} over the last 24 hours",
        y_label=figures.axis_money,
        x_labels=(figures.clock_time(first.replace(second=0)), "now"),
    )


def rate_chart(spans: list[RateSpan], title: str) -> Chart | None:
    """Rates over a time to come, as steps; None where there is nothing to show."""
    if not spans:
        return None
    points = [Point(int(at.timestamp()), span.rate) for span in spans for at in (span.start, span.end)]
    labels = (
        figures.day_time(spans[0].start),
        figures.day_time(spans[-1].end),
    )
    return line_chart(points, title=title, y_label=figures.axis_money, x_labels=labels)


def _depth_chart(grade: Grade, disclosure: Disclosure | None) -> Chart | None:
    if disclosure is None or not (disclosure.demand or disclosure.supply):
        return None
    return depth_chart(
        [(point.rate_micros_per_mtok, point.lots) for point in disclosure.demand],
        [(point.rate_micros_per_mtok, point.lots) for point in disclosure.supply],
        title=f"Demand and supply of {grade.family.title} in the last auction that traded",
        x_label=lambda lots: f"{figures.short(lots)} lots" if lots else "0",
        y_label=figures.axis_money,
    )


def _market_terms() -> dict[str, Any]:
    return {
        "currency": settings.MARKET_CURRENCY,
        "delivery_period": figures.length(timedelta(seconds=settings.DELIVERY_PERIOD_S)),
        "settlement_period": figures.length(timedelta(seconds=settings.SETTLEMENT_PERIOD_S)),
        "gateway_url": settings.GATEWAY_URL,
    }
