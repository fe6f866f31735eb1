"""The published price index: one value per window, from stored trades alone, and recomputable by anybody."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta

import pytest
from django.db import InternalError, ProgrammingError, connection, transaction
from django.db.models import F
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from marketplace.ids import uuid7
from marketplace.orders.market_api import MOST_RECOMPUTED
from marketplace.orders.models import PriceIndex, Trade
from marketplace.orders.services.indexing import MethodRetired, publish_index, recompute_index
from pricing.models import Grade
from tests.cast import Party, fund, make_party
from tests.orders.exchange import BID_LOTS, FLOOR, HOUR, PERIOD, Exchange, make_exchange

MINUTE = timedelta(minutes=1)
CAP = 5_000_000


@pytest.fixture
def exchange(grade: Grade, operator: Party, now: datetime) -> Exchange:
    return make_exchange(grade, now)


def hours() -> list[PriceIndex]:
    return list(PriceIndex.objects.filter(span="hour").order_by("window_start"))


def test_an_hour_of_trades_becomes_one_value_however_often_it_is_asked_for(
    exchange: Exchange, now: datetime
) -> None:
    exchange.run(now, rounds=6)
    # The window has not ended; then what was stamped in it may still be committing.
    assert publish_index(now=now + HOUR - MINUTE) == publish_index(now=now + HOUR + MINUTE / 2) == 0
    assert publish_index(now=now + HOUR + MINUTE) == 1
    assert publish_index(now=now + HOUR + 2 * MINUTE) == 0
    [value] = hours()
    assert (value.window_start, value.window_end) == (now, now + HOUR)
    assert (value.rate_micros_per_mtok, value.basis, value.method_version) == (FLOOR, "spot", "median-1")
    assert (value.auctions, value.groups, value.lots) == (6, 6, 6 * 3 * BID_LOTS)
    assert value.trades == Trade.objects.count()


def test_the_day_is_a_window_of_its_own(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + 12 * HOUR + MINUTE)
    day = PriceIndex.objects.get(span="day")
    assert (day.window_start, day.window_end) == (now - 12 * HOUR, now + 12 * HOUR)
    assert (day.rate_micros_per_mtok, day.basis) == (FLOOR, "spot")


def test_nobody_paints_the_index_with_volume(exchange: Exchange, now: datetime) -> None:
    """A buyer of more than half of all lots at the cap moves a plain median, and not this one."""
    painter = make_party("Painter", ["buyer"], now)
    fund(painter, 100_000_000, now)
    exchange.run(now, rounds=8)
    at = now + 8 * PERIOD
    exchange.bid(painter, at, steps=((CAP, 800),), period_start=at + PERIOD)
    painted = exchange.run(at)
    honest = 8 * 3 * BID_LOTS
    assert painted.clearing_rate_micros_per_mtok == CAP
    assert painted.quantity_lots is not None
    assert painted.quantity_lots > honest
    publish_index(now=now + HOUR + MINUTE)
    [value] = hours()
    assert (value.rate_micros_per_mtok, value.lots) == (FLOOR, honest + painted.quantity_lots)


def test_thin_windows_carry_the_last_value_and_say_so(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + 3 * HOUR + MINUTE)
    first, second, third = hours()
    assert [value.basis for value in (first, second, third)] == ["spot", "carried", "carried"]
    assert second.rate_micros_per_mtok == third.rate_micros_per_mtok == FLOOR
    assert (second.previous_id, third.previous_id) == (first.id, second.id)
    assert (third.trades, third.auctions, third.lots) == (0, 0, 0)
    assert all(recompute_index(index_id=value.id).matches for value in (first, second, third))


def test_without_anything_to_rest_on_there_is_no_value(exchange: Exchange, now: datetime) -> None:
    # Four auctions are one too few, and there is nothing to carry.
    exchange.run(now, rounds=4)
    publish_index(now=now + HOUR + MINUTE)
    [value] = hours()
    assert (value.rate_micros_per_mtok, value.basis, value.trades) == (None, "none", 0)


def test_downtime_is_caught_up_in_the_order_of_time(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    days = 3
    assert publish_index(now=now + days * 24 * HOUR + MINUTE) == days * 24 + days
    assert publish_index(now=now + days * 24 * HOUR + MINUTE) == 0
    starts = [value.window_start for value in hours()]
    assert starts == [now + number * HOUR for number in range(days * 24)]
    # Lists go by id.
    newest_first = PriceIndex.objects.filter(span="hour").order_by("-pk")
    assert [value.window_start for value in newest_first] == starts[::-1]


def test_an_unfinished_auction_holds_its_window_up_for_ten_minutes(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=5)
    late = exchange.run(now + 5 * PERIOD)
    type(late).objects.filter(pk=late.pk).update(status="cleared", published_at=None)
    assert publish_index(now=now + HOUR + 5 * MINUTE) == 0
    assert publish_index(now=now + HOUR + 10 * MINUTE) == 1
    [value] = hours()
    assert (value.auctions, value.basis) == (5, "spot")
    # Published after its window, it is in no window, and the value stays what it was.
    type(late).objects.filter(pk=late.pk).update(status="published", published_at=now + HOUR + 11 * MINUTE)
    assert recompute_index(index_id=value.id).matches


def test_only_a_changed_trade_makes_a_recomputation_differ(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + HOUR + MINUTE)
    [value] = hours()
    # What comes later, be it trades, values or another value of the same hour, changes nothing.
    exchange.run(now + HOUR, rounds=6)
    publish_index(now=now + 30 * HOUR)
    assert recompute_index(index_id=value.id).matches
    trade = Trade.objects.order_by("pk")[0]
    # One lot less moves no median, and shows.
    Trade.objects.filter(pk=trade.pk).update(lots=F("lots") - 1)
    again = recompute_index(index_id=value.id)
    assert not again.matches
    assert again.value.rate == FLOOR
    assert again.inputs_digest != value.inputs_digest
    Trade.objects.filter(pk=trade.pk).update(lots=F("lots") + 1)
    assert recompute_index(index_id=value.id).matches


def test_a_value_never_changes_and_a_second_one_is_refused(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + HOUR + MINUTE)
    for statement in ("UPDATE orders_priceindex SET lots = lots + 1", "DELETE FROM orders_priceindex"):
        with pytest.raises((ProgrammingError, InternalError)), transaction.atomic():
            connection.cursor().execute(statement)


def test_a_value_of_another_method_is_not_recomputed_by_this_one(exchange: Exchange, now: datetime) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + HOUR + MINUTE)
    [value] = hours()
    value.pk, value.method_version = exchange.grade.id, "median-0"
    value.save(force_insert=True)
    with pytest.raises(MethodRetired):
        recompute_index(index_id=value.pk)


def test_everybody_reads_and_recomputes_it(
    exchange: Exchange, now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    exchange.run(now, rounds=6)
    publish_index(now=now + 24 * HOUR + MINUTE)
    client = APIClient()
    latest = client.get("/api/v1/market/index/latest").json()
    assert [(one["grade"], one["span"]) for one in latest] == [("tiny-chat", "day"), ("tiny-chat", "hour")]
    with django_assert_max_num_queries(2):
        page = client.get("/api/v1/market/index?grade=tiny-chat&span=hour&page_size=20").json()
    more = client.get(f"/api/v1/market/index?grade=tiny-chat&span=hour&cursor={page['next']}").json()
    assert (len(page["items"]), len(more["items"]), more["next"]) == (20, 4, None)
    oldest = more["items"][-1]
    assert (oldest["rate_micros_per_mtok"], oldest["basis"]) == (FLOOR, "spot")
    again = client.get(f"/api/v1/market/index/{oldest['id']}/recompute").json()
    assert again["matches"] is True
    assert again["recomputed"] == {name: oldest[name] for name in again["recomputed"]}
    assert client.get(f"/api/v1/market/index/{exchange.grade.id}/recompute").status_code == 404
    answer = client.get("/api/v1/market/index?format=csv")
    rows = list(csv.DictReader(io.StringIO(answer.getvalue().decode())))
    assert len(rows) == PriceIndex.objects.count() == 25
    assert rows[-1]["rate_micros_per_mtok"] in (str(FLOOR), "")
    assert client.get("/api/v1/market/index?grade=other").json()["items"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("span=week", "span"), ("since=x", "since"), ("grade=%00", "grade"), ("surprise=1", "surprise"),
        ("cursor=x", "cursor"), ("format=xml", "format"),
        ("since=2026-03-10T12:00:00Z&until=2026-03-10T12:00:00Z", "since"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["market/index", "market/history"])
def test_bad_questions_name_the_parameter(db: None, route: str, query: str, field: str) -> None:
    answer = APIClient().get(f"/api/v1/{route}?{query}")
    assert answer.status_code == 422
    assert answer.json()["field"] == field


def test_without_a_cache_nothing_is_recomputed(db: None, settings: Settings) -> None:
    # Nobody listens on port 1.
    settings.CACHES = {"default": settings.CACHES["default"] | {"LOCATION": "redis://127.0.0.1:1/0"}}
    answer = APIClient().get(f"/api/v1/market/index/{uuid7()}/recompute")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer["Retry-After"] == "10"


def test_one_address_has_it_recomputed_thirty_times_a_minute(exchange: Exchange, now: datetime) -> None:
    client = APIClient(REMOTE_ADDR="192.0.2.6")
    nothing = f"/api/v1/market/index/{uuid7()}/recompute"
    answers = [client.get(nothing) for _ in range(MOST_RECOMPUTED + 1)]
    assert {answer.status_code for answer in answers[:-1]} == {404}
    assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, "too_many_requests")
    assert answers[-1]["Retry-After"] == "60"
    assert APIClient(REMOTE_ADDR="192.0.2.7").get(nothing).status_code == 404
