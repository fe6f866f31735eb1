"""The sealed book of one auction in canonical form, and its clearing. Pure: the same book gives the same result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pricing.book import RULE_VERSION
from pricing.clearing import Clearing, Order, clear, digest_book, digest_result
from pricing.clearing_reference import confirm

# No rate is negative: a token is never worth less than nothing here.
FLOOR = 0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BookBid:
    id: UUID
    organization_id: UUID
    placed_at: datetime
    steps: list[tuple[int, int]]
    min_fill_lots: int = 0
    all_or_none: bool = False


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
    """Orders of one grade and delivery period at gate closure. `missed`: the gate was closed too late to trade."""

    grade_id: UUID
    period_start: datetime
    cap: int
    bids: list[BookBid]
    asks: list[BookAsk]
    missed: bool = False

    def to_json(self) -> dict[str, Any]:
        """The canonical form that is stored and digested: orders by id, times in UTC ISO 8601."""
        return {
            "rule_version": RULE_VERSION,
            "grade_id": str(self.grade_id),
            "period_start": self.period_start.isoformat(),
            "cap": self.cap,
            "missed": self.missed,
            "bids": [
                {
                    "id": str(bid.id),
                    "organization_id": str(bid.organization_id),
                    "placed_at": bid.placed_at.isoformat(),
                    "steps": [list(step) for step in bid.steps],
                    "min_fill_lots": bid.min_fill_lots,
                    "all_or_none": bid.all_or_none,
                }
                for bid in sorted(self.bids, key=lambda bid: bid.id)
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
                for ask in sorted(self.asks, key=lambda ask: ask.id)
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Book:
        return Book(
            grade_id=UUID(data["grade_id"]),
            period_start=datetime.fromisoformat(data["period_start"]),
            cap=data["cap"],
            missed=data["missed"],
            bids=[
                BookBid(
                    id=UUID(bid["id"]),
                    organization_id=UUID(bid["organization_id"]),
                    placed_at=datetime.fromisoformat(bid["placed_at"]),
                    steps=[(rate, lots) for rate, lots in bid["steps"]],
                    min_fill_lots=bid["min_fill_lots"],
                    all_or_none=bid["all_or_none"],
                )
                for bid in data["bids"]
            ],
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

    def orders(self) -> tuple[list[Order], list[Order]]:
        """Bids and asks in the form that clearing takes; the time of acceptance, in microseconds, is the priority."""
        bids = [
            Order(
                id=str(bid.id),
                steps=tuple((rate, lots) for rate, lots in bid.steps),
                organization_id=str(bid.organization_id),
                priority=_microseconds(bid.placed_at),
                min_fill=bid.min_fill_lots,
                all_or_none=bid.all_or_none,
            )
            for bid in sorted(self.bids, key=lambda bid: bid.id)
        ]
        asks = [
            Order(
                id=str(ask.id),
                steps=((ask.rate, ask.lots),),
                organization_id=str(ask.organization_id),
                priority=_microseconds(ask.placed_at),
            )
            for ask in sorted(self.asks, key=lambda ask: ask.id)
        ]
        return bids, asks

    def digest(self) -> str:
        """SHA-256 over the orders and the terms they are cleared under (hex)."""
        bids, asks = self.orders()
        terms = {
            "grade_id": str(self.grade_id),
            "period_start": self.period_start.isoformat(),
            "cap": self.cap,
        }
        return digest_book(bids, asks, terms=terms)

    def clear(self) -> Clearing:
        """The result of this book, by the first engine."""
        bids, asks = self.orders()
        return clear(bids, asks, floor=FLOOR, cap=self.cap)

    def confirm(self, result: Clearing) -> None:
        """Raises EnginesDisagree unless the second, independent engine finds the same result."""
        bids, asks = self.orders()
        confirm(bids, asks, result, floor=FLOOR, cap=self.cap)

    def result_digest(self, result: Clearing) -> str:
        bids, asks = self.orders()
        return digest_result(bids, asks, result)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
