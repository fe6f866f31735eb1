"""How long one auction takes, beside a bare `np.argsort` of the same prices in the same run.

`python -m tests.benchmarks clear` prints one line per size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from pricing.clearing import clear_arrays

REPEATS = 5


def run() -> Iterator[dict[str, Any]]:
    """One result for 100,000 and one for 1,000,000 orders, half bids, half asks, fills included; medians of 5."""
    for name, orders in (("clear_100k", 100_000), ("clear_1m", 1_000_000)):
        chance = np.random.default_rng(20260101)
        half = orders // 2
        bid_prices = chance.integers(100_000, 2_000_000, half)
        ask_prices = chance.integers(100_000, 2_000_000, half)
        bid_lots, ask_lots = chance.integers(1, 1_000, half), chance.integers(1, 1_000, half)
        prices = np.concatenate([bid_prices, ask_prices])
        floors: list[float] = []
        values: list[float] = []
        # Taken in turns, so that a busy machine slows both alike.
        for _ in range(REPEATS):
            floors.append(_seconds(partial(np.argsort, prices)))
            values.append(_seconds(partial(clear_arrays, bid_prices, bid_lots, ask_prices, ask_lots)))
        value, floor = median(values), median(floors)
        yield {"name": name, "value": value, "unit": "s", "floor": floor, "ratio": value / floor}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
