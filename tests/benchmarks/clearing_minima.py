"""How long an auction takes in which one order in twenty has a minimum, beside the same book without minima.

`python -m tests.benchmarks clearing_minima` prints one line. The value is the whole clearing, from orders to fills,
and its choice is proved to be the best; the second engine confirms it once, outside the time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, Final

from pricing.book import Order
from pricing.clearing import clear
from pricing.clearing_reference import confirm

ORDERS: Final = 100_000
REPEATS: Final = 3


def run() -> Iterator[dict[str, Any]]:
    """One result for 100,000 orders, half bids, half asks; medians, in turns."""
    bids, asks = book(ORDERS)
    plain_bids, plain_asks = (
        [order._replace(all_or_none=False, min_fill=0) for order in side] for side in (bids, asks)
    )
    result = clear(bids, asks)
    assert result.search_complete
    confirm(bids, asks, result)
    values: list[float] = []
    floors: list[float] = []
    for _ in range(REPEATS):
        floors.append(_seconds(partial(clear, plain_bids, plain_asks)))
        values.append(_seconds(partial(clear, bids, asks)))
    value, floor = median(values), median(floors)
    yield {
        "name": "clearing_minima_100k",
        "value": value,
        "unit": "s",
        "floor": floor,
        "ratio": value / floor,
    }


def book(orders: int) -> tuple[list[Order], list[Order]]:
    chance = random.Random(20260101)

    def order(name: str, number: int) -> Order:
        price, lots = chance.randrange(100_000, 2_000_000), chance.randrange(1, 1_000)
        whole, minimum = False, 0
        if chance.random() < 0.05:
            whole = chance.random() < 0.5
            minimum = 0 if whole else chance.randint(1, lots)
        steps = ((price, lots),)
        return Order(name, steps, priority=number, all_or_none=whole, min_fill=minimum)

    half = range(orders // 2)
    return [order(f"b{n:05}", n) for n in half], [order(f"a{n:05}", n) for n in half]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
