"""The book of one auction over several grades with substitution, and what comes out of it: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pricing.book import Order, check_order, digest_facts, order_facts

COUPLED_RULE_VERSION: Final = "coupled-2"  # A lone grade goes by `uniform-2`.


@dataclass(frozen=True, slots=True)
class CoupledBid:
    """A bid for its home `grade` that also takes others: a step is worth `price + adjustments[g]` in grade g.

    The home grade is not among the adjustments; its adjustment is 0. A bid with a minimum (`min_fill`,
    `all_or_none`) names no other grade.
    """

    order: Order
    grade: str
    adjustments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoupledAsk:
    order: Order
    grade: str


@dataclass(frozen=True, slots=True)
class GradeClearing:
    """What one grade traded. `price` is None without a trade.

    `[price_low, price_high]` are the prices of this grade that support the trades, those of the other
    grades being free; None where nothing bounds it. `supporting_price` is the price that proves the
    optimum: `price` where there is one. It is None where nobody offers or nobody asks.
    """

    grade: str
    quantity_lots: int
    price: int | None
    price_low: int | None
    price_high: int | None
    supporting_price: int | None = None


@dataclass(frozen=True, slots=True)
class ComponentClearing:
    """Grades that bids join, cleared together, by name; see `pricing.book.Clearing` for the facts of one grade."""

    grades: tuple[GradeClearing, ...]
    welfare: int
    netted_lots: int = 0
    rejected_paradoxically: tuple[str, ...] = ()
    search_complete: bool = True


@dataclass(frozen=True, slots=True)
class CoupledClearing:
    """The result of one auction over several grades. Fills follow the orders of the input.

    A bid's fills are lots per step by grade, without grades in which it got nothing; an ask's are lots per
    step. `welfare` is in lots x price, exact.
    """

    components: tuple[ComponentClearing, ...]
    bid_fills: tuple[Mapping[str, tuple[int, ...]], ...]
    ask_fills: tuple[tuple[int, ...], ...]
    grades: Mapping[str, GradeClearing] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        grades = {grade.grade: grade for component in self.components for grade in component.grades}
        object.__setattr__(self, "grades", grades)

    @property
    def welfare(self) -> int:
        return sum(component.welfare for component in self.components)

    @property
    def netted_lots(self) -> int:
        return sum(component.netted_lots for component in self.components)

    @property
    def rejected_paradoxically(self) -> tuple[str, ...]:
        return tuple(sorted(name for part in self.components for name in part.rejected_paradoxically))

    @property
    def search_complete(self) -> bool:
        return all(component.search_complete for component in self.components)


@dataclass(frozen=True, slots=True)
class CoupledTerms:
    """What an auction is cleared under. A grade without an entry has no floor, cap or reserve price."""

    floors: Mapping[str, int] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    reserve_prices: Mapping[str, int] = field(default_factory=dict)
    tick: int = 1
    net_self_trades: bool = True

    def __post_init__(self) -> None:
        for name in ("floors", "caps", "reserve_prices"):
            for grade, price in getattr(self, name).items():
                if type(price) is not int:
                    raise ValueError(f"{name}: the one of grade {grade} is not an integer")
        if type(self.tick) is not int or self.tick < 1:
            raise ValueError("tick: must be at least 1")
        for grade, floor in self.floors.items():
            if floor > self.caps.get(grade, floor):
                raise ValueError(f"floors: the one of grade {grade} is above its cap")


def check_coupled(bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk]) -> None:
    """Raises ValueError naming the field when a book cannot be cleared."""
    for side in (bids, asks):
        if len({entry.order.id for entry in side}) != len(side):
            raise ValueError("id: occurs twice on one side of the book")
    for ask in asks:
        check_order(ask.order, is_bid=False)
    for bid in bids:
        check_order(bid.order, is_bid=True)
        if not bid.adjustments:
            continue
        if bid.grade in bid.adjustments:
            raise ValueError(f"adjustments: bid {bid.order.id} has one for its home grade")
        if not all(type(adjustment) is int for adjustment in bid.adjustments.values()):
            raise ValueError(f"adjustments: bid {bid.order.id} has one that is not an integer")
        if minimum_field(bid.order):
            raise ValueError(f"{minimum_field(bid.order)}: bid {bid.order.id} also takes other grades")


def minimum_field(order: Order) -> str:
    """The name of the field that gives an order a minimum, empty without one."""
    if order.all_or_none:
        return "all_or_none"
    return "min_fill" if order.min_fill else ""


def digest_coupled_book(
    bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], *, terms: CoupledTerms
) -> str:
    """SHA-256 (hex) of the book and the terms it is cleared under, whatever order they are given in."""
    return digest_facts(
        {
            "rule": COUPLED_RULE_VERSION,
            "terms": {
                "floors": dict(terms.floors),
                "caps": dict(terms.caps),
                "reserve_prices": dict(terms.reserve_prices),
                "tick": terms.tick,
                "net_self_trades": terms.net_self_trades,
            },
            "bids": sorted(
                [*order_facts(bid.order), bid.grade, sorted(bid.adjustments.items())] for bid in bids
            ),
            "asks": sorted([*order_facts(ask.order), ask.grade] for ask in asks),
        }
    )


def digest_coupled_result(
    bids: Sequence[CoupledBid], asks: Sequence[CoupledAsk], result: CoupledClearing
) -> str:
    """SHA-256 (hex) of an auction's result, whatever order the book was given in."""
    return digest_facts(
        {
            "rule": COUPLED_RULE_VERSION,
            "components": [
                [
                    [
                        [each.grade, each.quantity_lots, each.price, each.price_low, each.price_high]
                        for each in part.grades
                    ],
                    part.welfare,
                    part.netted_lots,
                    sorted(part.rejected_paradoxically),
                ]
                for part in sorted(result.components, key=lambda part: part.grades[0].grade)
            ],
            "bids": sorted(
                [bid.order.id, sorted((grade, list(lots)) for grade, lots in fills.items())]
                for bid, fills in zip(bids, result.bid_fills, strict=True)
                if fills
            ),
            "asks": sorted(
                [ask.order.id, list(fill)]
                for ask, fill in zip(asks, result.ask_fills, strict=True)
                if any(fill)
            ),
        }
    )
