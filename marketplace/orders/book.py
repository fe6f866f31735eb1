"""The sealed book of one auction in canonical form, and its clearing. Pure: the same book gives the same result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pricing.book import RULE_VERSION
from pricing.clearing import Clearing, Order, clear, digest_book, digest_result
from pricing.clearing_check import verify

# No rate is negative: a token is never worth less than nothing here.
FLOOR = 0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BookBid:
    id: UUID
    organization_id: UUID
    placed_at: datetime
    steps: list[tuple[int, int]]
    min_fill_lots: int = 0
    all_or_none: bool = False
    # (grade, adjustment): a step is worth its rate + adjustment in that grade.
    substitutes: tuple[tuple[UUID, int], ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> BookBid:
        return BookBid(
            id=UUID(data["id"]),
            organization_id=UUID(data["organization_id"]),
            placed_at=datetime.fromisoformat(data["placed_at"]),
            steps=[(rate, lots) for rate, lots in data["steps"]],
            min_fill_lots=data["min_fill_lots"],
            all_or_none=data["all_or_none"],
            substitutes=tuple([(UUID(grade), more) for grade, more in data.get("substitutes", ())]),
        )


@dataclass(frozen=True, slots=True)
class BookAsk:
    id: UUID
    organization_id: UUID
    offering_id: UUID
    placed_at: datetime
    rate: int
    lots: int


@dataclass(frozen=True, slots=True)
class Book:
    """Orders of one grade and delivery period at gate closure. `missed`: the gate was closed too late to trade.

    `halted` says why the market of the grade was halted: then nothing is traded, whatever orders were sealed before.
    A book without a halt has no such name in its canonical form, nor in its digest, and neither has a bid without
    substitutes.
    """

    grade_id: UUID
    period_start: datetime
    cap: int
    bids: list[BookBid]
    asks: list[BookAsk]
    missed: bool = False
    halted: str = ""

    def to_json(self) -> dict[str, Any]:
        """The canonical form that is stored and digested: orders by id, times in UTC ISO 8601."""
        return {
            "rule_version": RULE_VERSION,
            "grade_id": str(self.grade_id),
            "period_start": self.period_start.isoformat(),
            "cap": self.cap,
            "missed": self.missed,
            **({"halted": self.halted} if self.halted else {}),
            "bids": [
                {
                    "id": str(bid.id),
                    "organization_id": str(bid.organization_id),
                    "placed_at": bid.placed_at.isoformat(),
                    "steps": [list(step) for step in bid.steps],
                    "min_fill_lots": bid.min_fill_lots,
                    "all_or_none": bid.all_or_none,
                    **({"substitutes": _named(bid)} if bid.substitutes else {}),
                }
                for bid in sorted(self.bids, key=_by_id)
            ],
            "asks": [
                {
                    "id": str(ask.id),
                    "organization_id": str(ask.organization_id),
                    "offering_id": str(ask.offering_id),
                    "placed_at": ask.placed_at.isoformat(),
                    "rate": ask.rate,
                    "lots": ask.lots,
                }
                for ask in sorted(self.asks, key=_by_id)
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Book:
        return Book(
            grade_id=UUID(data["grade_id"]),
            period_start=datetime.fromisoformat(data["period_start"]),
            cap=data["cap"],
            missed=data["missed"],
            halted=data.get("halted", ""),
            bids=[BookBid.from_json(bid) for bid in data["bids"]],
            asks=[
                BookAsk(
                    id=UUID(ask["id"]),
                    organization_id=UUID(ask["organization_id"]),
                    offering_id=UUID(ask["offering_id"]),
                    placed_at=datetime.fromisoformat(ask["placed_at"]),
                    rate=ask["rate"],
                    lots=ask["lots"],
                )
                for ask in data["asks"]
            ],
        )

    def sealed(self) -> SealedBook:
        return SealedBook(self.to_json())


class SealedBook:
    """A book in its canonical form, as it is stored; what follows from it follows from that form alone."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        # A book is digested and cleared by the rule that it was sealed under, also once there is a newer one.
        self.rule: str = data["rule_version"]
        # Made once for the digests and both engines.
        self.bids, self.asks = _orders_of(data)
        # (grade, adjustment) by the bid's id, of the bids that take other grades.
        self.substitutes: dict[str, list[tuple[str, int]]] = {
            bid["id"]: [(str(UUID(grade)), int(more)) for grade, more in bid["substitutes"]]
            for bid in data["bids"]
            if "substitutes" in bid
        }
        self._tradable: tuple[list[Order], list[Order]] = (
            ([], []) if data.get("halted") else (self.bids, self.asks)
        )

    def digest(self) -> str:
        """SHA-256 over the orders and the terms they are cleared under (hex)."""
        terms = terms_of_book(self.data, self.substitutes)
        return digest_book(self.bids, self.asks, terms=terms, rule=self.rule)

    def clear(self) -> Clearing:
        """The result of this book, by the first engine."""
        return clear(*self._tradable, floor=FLOOR, cap=self.data["cap"], rule=self.rule)

    def confirm(self, result: Clearing) -> None:
        """Raises EnginesDisagree unless the result is right by another method than the one it was found by."""
        verify(*self._tradable, result, floor=FLOOR, cap=self.data["cap"])

    def result_digest(self, result: Clearing) -> str:
        return digest_result(*self._tradable, result, rule=self.rule)

    @property
    def lowest_ask(self) -> int | None:
        """The lowest rate that somebody may sell at; None where nobody may."""
        rates = (max(ask.steps[0][0], FLOOR) for ask in self._tradable[1])
        return min((rate for rate in rates if rate <= self.data["cap"]), default=None)

    def offerings(self) -> dict[str, UUID]:
        """The offering behind each ask, by the ask's id."""
        return {ask["id"]: UUID(ask["offering_id"]) for ask in self.data["asks"]}


def terms_of_book(
    data: Mapping[str, Any], substitutes: Mapping[str, Sequence[tuple[str, int]]]
) -> dict[str, Any]:
    """What a book's digest covers beside its orders; `substitutes` are by the bid's id, of those bids that have any."""
    terms = {name: data[name] for name in ("grade_id", "period_start", "cap", "halted") if name in data}
    if substitutes:
        terms["substitutes"] = sorted([bid_id, sorted(named)] for bid_id, named in substitutes.items())
    return terms


def sound_book(data: Mapping[str, Any] | None, digest: str) -> SealedBook | None:
    """The stored book, if it can be read and still has the digest that it was sealed with."""
    try:
        book = SealedBook(data or {})
        return book if book.digest() == digest else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _orders_of(data: Mapping[str, Any]) -> tuple[list[Order], list[Order]]:
    """Bids and asks in the form that clearing takes; the time of acceptance, in microseconds, is the priority."""
    bids = [
        # By place, of which there may be a hundred thousand.
        Order(
            bid["id"],
            tuple([(rate, lots) for rate, lots in bid["steps"]]),
            bid["organization_id"],
            _microseconds(datetime.fromisoformat(bid["placed_at"])),
            None,
            bid["min_fill_lots"],
            bid["all_or_none"],
        )
        for bid in data["bids"]
    ]
    asks = [
        Order(
            id=ask["id"],
            steps=((ask["rate"], ask["lots"]),),
            organization_id=ask["organization_id"],
            priority=_microseconds(datetime.fromisoformat(ask["placed_at"])),
        )
        for ask in data["asks"]
    ]
    return bids, asks


def _named(bid: BookBid) -> list[list[Any]]:
    return [[str(grade), more] for grade, more in sorted(bid.substitutes)]


def _by_id(order: BookBid | BookAsk) -> int:
    return order.id.int


def _microseconds(at: datetime) -> int:
    since = at - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
