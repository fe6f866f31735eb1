"""Published prices as server-sent events: a bounded answer that a thread of the web server can afford.

A stream polls the published auctions, ends by itself after `MARKET_STREAM_S`, and the browser comes back with the
`Last-Event-ID` where it left off. Each process serves at most `MARKET_STREAMS_MAX` at once: a thread is held by each.
Delivery is at least once; `auction_id` tells a repetition.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings

from marketplace.api.exporting import instant
from marketplace.errors import DomainError, InvalidInput
from marketplace.orders.market_data import Place, newest_published, published_since
from marketplace.orders.models import Auction

POLL_S: Final = 1.0
HEARTBEAT_S: Final = 10.0
RETRY_MS: Final = 3_000
# How far a stream may go back; who was away longer reads the history.
MOST_BACK: Final = timedelta(hours=24)
# Longer than a publication takes from its stamp to its commit.
OVERLAP: Final = timedelta(seconds=10)
_EVENT_ID: Final = re.compile(r"([0-9]{1,17})-([0-9a-f]{32})", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class TooManyStreams(DomainError):
    """This process serves as many streams as it may."""

    code = "too_many_streams"
    http_status = 503
    title = "Too many streams"


class _Slots:
    """How many streams this process serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def take(self) -> None:
        with self._lock:
            if self._taken >= settings.MARKET_STREAMS_MAX:
                raise TooManyStreams(
                    "All streams are taken. Try again, or read /api/v1/market/history.",
                    retry_after_s=settings.MARKET_STREAM_S,
                )
            self._taken += 1

    def give_back(self) -> None:
        with self._lock:
            assert self._taken > 0
            self._taken -= 1


slots = _Slots()


class PriceStream:
    """The bytes of one stream. Raises TooManyStreams when made; `close` gives its slot back, once, from wherever."""

    def __init__(self, *, grade: str | None, last_event_id: str | None, now: datetime) -> None:
        place = _place_of(last_event_id)
        slots.take()
        self._is_open = True
        self._events = self._run(grade, place, now)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._events)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            slots.give_back()

    def _run(self, grade: str | None, place: Place | None, now: datetime) -> Iterator[bytes]:
        ends_at = time.monotonic() + settings.MARKET_STREAM_S
        yield f"retry: {RETRY_MS}\n\n".encode()
        seen: dict[UUID, datetime] = {}
        if place is None or place.published_at < now - MOST_BACK:
            found = newest_published(since=now - MOST_BACK, grade=grade)
            place = Place(now, UUID(int=0))
        else:
            seen[place.auction_id] = place.published_at
            found = published_since(place, overlap=OVERLAP, seen=seen, grade=grade)
        quiet_since = time.monotonic()
        while True:
            for auction in found:
                at = auction.published_at
                assert at is not None
                seen[auction.pk] = at
                place = max(place, Place(at, auction.pk))
                yield _event(auction, at)
                quiet_since = time.monotonic()
            seen = {pk: at for pk, at in seen.items() if at > place.published_at - OVERLAP}
            if time.monotonic() + POLL_S > ends_at:
                return
            if time.monotonic() - quiet_since >= HEARTBEAT_S:
                yield b": still here\n\n"
                quiet_since = time.monotonic()
            time.sleep(POLL_S)
            found = published_since(place, overlap=OVERLAP, seen=seen, grade=grade)


def _event(auction: Auction, at: datetime) -> bytes:
    data = {
        "auction_id": str(auction.pk),
        "grade": auction.grade.family.slug,
        "grade_version": auction.grade.version,
        "period_start": instant(auction.period_start),
        "period_end": instant(auction.period_end),
        "clearing_rate_micros_per_mtok": auction.clearing_rate_micros_per_mtok,
        "quantity_lots": auction.quantity_lots,
        "result_digest": auction.result_digest,
        "published_at": instant(at),
    }
    name = f"{(at - _EPOCH) // _MICROSECOND}-{auction.pk.hex}"
    return f"id: {name}\nevent: price\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _place_of(event_id: str | None) -> Place | None:
    """Raises InvalidInput naming the header when it is no id of this stream."""
    if not event_id:
        return None
    found = _EVENT_ID.fullmatch(event_id)
    if found is None:
        raise InvalidInput("It is not the id of an event of this stream.", field="Last-Event-ID")
    return Place(_EPOCH + int(found[1]) * _MICROSECOND, UUID(hex=found[2]))
