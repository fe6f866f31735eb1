"""The canonical form of a large book and its digest, written line by line as the bids come from the database. Pure.

`Book.sealed()` makes some million objects of a hundred thousand bids. This makes the same of a piece of text a bid, and
the same digest of it (`test_a_book_written_as_text_is_the_book`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Final, NamedTuple

from marketplace.orders.book import EPOCH, Book, terms_of_book
from pricing.book import order_facts

_NO_BIDS: Final = '"bids":[]'
_BOOLEAN: Final = ("false", "true")
_MINUTE_US: Final = 60_000_000
_TO_THE_MINUTE: Final = len("2026-11-05T00:00:")


class BidLine(NamedTuple):
    """A bid in the form that the gate reads it: `steps` is JSON, `[[rate,lots],...]`; `priority_us` since 1970."""

    id: str
    organization_id: str
    priority_us: int
    steps: str
    min_fill_lots: int
    all_or_none: bool
    # (grade, adjustment), by grade: as `BookBid.substitutes`, those that count in this round.
    substitutes: Sequence[tuple[str, int]] = ()


class SealedText(NamedTuple):
    """`data` is the JSON that is stored, `digest` the hexadecimal SHA-256 of `SealedBook.digest`."""

    data: str
    digest: str


def sealed_text(book: Book, lines: Sequence[BidLine]) -> SealedText:
    """The book with these bids in place of its own, of which it has none; as `Book.sealed()` would give it."""
    assert not book.bids
    ordered = sorted(lines, key=attrgetter("id"))
    sealed = book.sealed()
    data = _between(json.dumps(sealed.data, separators=(",", ":")), _stored(ordered))
    facts = {
        "rule": sealed.rule,
        "terms": terms_of_book(
            sealed.data, {line.id: line.substitutes for line in ordered if line.substitutes}
        ),
        "bids": [],
        "asks": [order_facts(ask) for ask in sorted(sealed.asks, key=lambda ask: ask.id)],
    }
    digested = _between(json.dumps(facts, sort_keys=True, separators=(",", ":")), _digested(ordered))
    return SealedText(data, hashlib.sha256(digested.encode("ascii")).hexdigest())


def _between(text: str, bids: str) -> str:
    # Ids and numbers alone stand in a book, so the name of its bids stands in it once.
    before, after = text.split(_NO_BIDS)
    return f'{before}"bids":[{bids}]{after}'


def _stored(lines: Sequence[BidLine]) -> str:
    return ",".join(
        [
            f'{{"id":"{bid_id}","organization_id":"{organization_id}",'
            f'"placed_at":"{placed_at}","steps":{steps},'
            f'"min_fill_lots":{min_fill_lots},"all_or_none":{_BOOLEAN[all_or_none]}'
            f"{_named(substitutes) if substitutes else ''}}}"
            for (
                bid_id,
                organization_id,
                _,
                steps,
                min_fill_lots,
                all_or_none,
                substitutes,
            ), placed_at in zip(lines, _moments([line.priority_us for line in lines]), strict=True)
        ]
    )


def _moments(microseconds: Sequence[int]) -> list[str]:
    """As `datetime.isoformat` in UTC. Of many moments making the objects is most of the work; the minute is shared."""
    minutes: dict[int, str] = {}
    moments = []
    for since in microseconds:
        minute, rest = divmod(since, _MINUTE_US)
        begin = minutes.get(minute)
        if begin is None:
            begin = minutes[minute] = (EPOCH + timedelta(minutes=minute)).isoformat()[:_TO_THE_MINUTE]
        second, fraction = divmod(rest, 1_000_000)
        moments.append(f"{begin}{second:02}.{fraction:06}+00:00" if fraction else f"{begin}{second:02}+00:00")
    return moments


def _named(substitutes: Sequence[tuple[str, int]]) -> str:
    return f',"substitutes":{json.dumps(sorted(substitutes), separators=(",", ":"))}'


def _digested(lines: Sequence[BidLine]) -> str:
    """As `pricing.book.order_facts`: a bid has no reserve, and its substitutes are among the book's terms."""
    return ",".join(
        [
            f'["{bid_id}","{organization_id}",{priority_us},{steps},null,{min_fill_lots},'
            f"{_BOOLEAN[all_or_none]}]"
            for bid_id, organization_id, priority_us, steps, min_fill_lots, all_or_none, _ in lines
        ]
    )
