"""History, depth and live prices: everything at once, but for what would tell one organization's orders."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.test import APIClient

from marketplace.orders.market_data import market_history
from marketplace.orders.models import Auction
from marketplace.orders.selectors import disclosure_of
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.streaming import PriceStream, TooManyStreams
from pricing.models import Grade
from tests.cast import Party
from tests.orders.exchange import FLOOR, PERIOD, Exchange, make_exchange

DAY = timedelta(hours=24)


@pytest.fixture
def exchange(grade: Grade, operator: Party, now: datetime) -> Exchange:
    return make_exchange(grade, now, standing=False)


def history(at: datetime, query: str = "") -> list[dict[str, Any]]:
    with time_machine.travel(at, tick=False):
        items: list[dict[str, Any]] = APIClient().get(f"/api/v1/market/history?{query}").json()["items"]
    return items


def test_the_price_interval_is_disclosed_as_depth_is(exchange: Exchange, now: datetime) -> None:
    for buyer in exchange.buyers[:2]:
        exchange.bid(buyer, now, steps=((450_000, 5),))
    two = exchange.run(now)
    exchange.bid(exchange.buyers[2], now + PERIOD, steps=((450_000, 5),))
    three = exchange.run(now + PERIOD)
    assert two.published_at is not None
    for at in (now + 2 * PERIOD, two.published_at + DAY, two.published_at + DAY - timedelta(seconds=1)):
        for auction in market_history(now=at):
            book = Auction.objects.get(pk=auction.pk)
            assert auction.is_disclosed is (disclosure_of(book, at) is not None)  # type: ignore[attr-defined]
    newest, older = history(now + 2 * PERIOD)
    assert (newest["id"], newest["rate_low_micros_per_mtok"]) == (str(three.id), FLOOR)
    assert (older["is_disclosed"], older["rate_low_micros_per_mtok"]) == (False, None)
    # Rate, volume and digests are public at once.
    assert (older["clearing_rate_micros_per_mtok"], older["quantity_lots"]) == (FLOOR, 10)
    assert older["result_digest"] == two.result_digest
    assert history(now + 2 * PERIOD + DAY)[1]["rate_low_micros_per_mtok"] == FLOOR
    for auction, at, is_open in ((two, now + PERIOD, False), (two, now + 2 * DAY, True), (three, now, True)):
        with time_machine.travel(at, tick=False):
            shown = APIClient().get(f"/api/v1/auctions/{auction.id}/depth").json()
        assert (shown["depth"] is not None, shown["disclosed_at"] is None) == (is_open, is_open)


def test_missed_and_empty_periods_are_told_apart(exchange: Exchange, now: datetime) -> None:
    exchange.run(now)
    exchange.bid(exchange.buyers[0], now + PERIOD, steps=((450_000, 5),))
    exchange.run(now + PERIOD)
    advance_auctions(now=now + 2 * PERIOD)
    # Nobody worked until the period had run for a while.
    advance_auctions(now=now + 4 * PERIOD)
    outcomes = {row["period_start"]: row["outcome"] for row in history(now + 5 * PERIOD)}
    assert [outcomes[start] for start in sorted(outcomes)][:3] == ["no_trade", "traded", "missed"]


def test_history_is_paged_filtered_and_exported(
    exchange: Exchange, now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    exchange.bid(exchange.buyers[0], now, steps=((450_000, 5),))
    exchange.run(now, rounds=5)
    client = APIClient()
    with time_machine.travel(now + 5 * PERIOD, tick=False):
        with django_assert_max_num_queries(2):
            page = client.get("/api/v1/market/history?page_size=3").json()
        rest = client.get(f"/api/v1/market/history?page_size=3&cursor={page['next']}").json()
        answer = client.get("/api/v1/market/history", HTTP_ACCEPT="text/csv")
        lines = client.get("/api/v1/market/history?format=ndjson").getvalue().decode().splitlines()
    starts = [row["period_start"] for row in page["items"] + rest["items"]]
    assert starts == sorted(starts, reverse=True)
    assert len(starts) == 5
    rows = list(csv.DictReader(io.StringIO(answer.getvalue().decode())))
    assert [row["period_start"] for row in rows] == starts
    assert {row["rate_low_micros_per_mtok"] for row in rows} == {""}
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]
    between = f"since={starts[3]}&until={starts[1]}&grade=tiny-chat"
    assert [row["period_start"] for row in history(now + 5 * PERIOD, between)] == starts[2:4]
    assert history(now, "grade=other") == []


# Live -------------------------------------------------------------------------------------------------------------


def events_of(stream: Iterator[bytes]) -> list[tuple[str, dict[str, Any]]]:
    """(id, data) of everything the stream sends until it ends."""
    found = []
    for block in b"".join(stream).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            assert fields["event"] == "price"
            found.append((fields["id"], json.loads(fields["data"])))
    return found


def stream_from(last_event_id: str | None, now: datetime) -> PriceStream:
    return PriceStream(grade=None, last_event_id=last_event_id, now=now)


def test_a_stream_begins_with_the_newest_price_and_goes_on_where_it_was_left(
    exchange: Exchange, now: datetime
) -> None:
    exchange.bid(exchange.buyers[0], now, steps=((450_000, 5),))
    exchange.run(now)
    second = exchange.run(now + PERIOD)
    [(name, shown)] = events_of(stream_from(None, now + 2 * PERIOD))
    assert shown["auction_id"] == str(second.id)
    assert (shown["clearing_rate_micros_per_mtok"], shown["quantity_lots"]) == (FLOOR, 5)
    assert events_of(stream_from(name, now + 2 * PERIOD)) == []
    later = [exchange.run(now + number * PERIOD) for number in (2, 3, 4)]
    resumed = events_of(stream_from(name, now + 5 * PERIOD))
    assert [data["auction_id"] for _, data in resumed] == [str(auction.id) for auction in later]
    # Who was away for more than a day reads the history instead.
    [(_, newest)] = events_of(stream_from(name, now + 5 * PERIOD + DAY))[-1:] or [("", {})]
    assert newest in ({}, resumed[-1][1])


def test_what_is_published_while_it_runs_is_sent(
    exchange: Exchange, now: datetime, settings: Settings
) -> None:
    settings.MARKET_STREAM_S = 3
    stream = iter(stream_from(None, now))
    assert next(stream).startswith(b"retry: ")
    auction = exchange.run(now)
    assert [data["auction_id"] for _, data in events_of(stream)] == [str(auction.id)]


def test_one_seen_late_is_not_lost(exchange: Exchange, now: datetime) -> None:
    """Two auctions of one round are stamped alike and committed one after the other."""
    first = exchange.run(now)
    [(name, _)] = events_of(stream_from(None, now + PERIOD))
    second = exchange.run(now + PERIOD)
    Auction.objects.filter(pk=second.pk).update(published_at=first.published_at)
    late = events_of(stream_from(name, now + 2 * PERIOD))
    assert [data["auction_id"] for _, data in late] == [str(second.id)]


def test_streams_are_few_and_their_places_come_back(db: None, now: datetime, settings: Settings) -> None:
    settings.MARKET_STREAMS_MAX = 2
    # One never begun, one abandoned in the middle, one that ran to its end.
    unread, abandoned = stream_from(None, now), stream_from(None, now)
    next(abandoned)
    with pytest.raises(TooManyStreams):
        stream_from(None, now)
    refused = APIClient().get("/api/v1/market/stream")
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
    assert int(refused["Retry-After"]) == settings.MARKET_STREAM_S
    unread.close()
    abandoned.close()
    abandoned.close()
    whole = [stream_from(None, now), stream_from(None, now)]
    for stream in whole:
        list(stream)
    assert APIClient().head("/api/v1/market/stream").status_code == 200
    for _ in range(3):
        answer = APIClient().get("/api/v1/market/stream", HTTP_ACCEPT="text/event-stream")
        assert answer["Content-Type"] == "text/event-stream"
        assert answer.getvalue().startswith(b"retry: ")


@pytest.mark.parametrize(
    "event_id", ["x", "1-2", "9" * 18 + "-" + "0" * 32, "1-" + "g" * 32, "\u0663-" + "0" * 32]
)
def test_an_id_that_is_none_is_named(db: None, event_id: str) -> None:
    answer = APIClient().get("/api/v1/market/stream", headers={"Last-Event-ID": event_id})
    assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")
