"""How long an auction of 20 grades with substitution takes, beside HiGHS on the same linear program.

`python -m tests.benchmarks clearing_grades` prints one line per size. The value is the whole clearing, from orders
to fills; the floor is the solver alone, tuned (presolve off; interior point from 10,000 orders on), without building
the program.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, Final

from pricing.book import Order
from pricing.coupling import CoupledAsk, CoupledBid, clear_coupled
from pricing.coupling_checks import verify
from pricing.coupling_lp import linear_programs, solve

GRADES: Final = tuple(f"grade-{number:02}" for number in range(20))
SIZES: Final = (("clearing_grades_10k", 10_000, 5), ("clearing_grades_100k", 100_000, 3))
_UNTUNED_UP_TO: Final = 10_000


def run() -> Iterator[dict[str, Any]]:
    """One result for 10,000 and one for 100,000 orders, half bids of three grades each; medians, in turns."""
    for name, orders, repeats in SIZES:
        bids, asks = book(orders)
        (program,) = linear_programs(bids, asks)
        result = clear_coupled(bids, asks)
        verify(bids, asks, result)
        # The solver's tolerances are relative to such a sum.
        tolerance = 1e-9 * result.welfare
        assert abs(solve(program) - result.welfare) <= tolerance
        if orders <= _UNTUNED_UP_TO:
            assert abs(solve(program, tuned=False) - result.welfare) <= tolerance
        values: list[float] = []
        floors: list[float] = []
        for _ in range(repeats):
            floors.append(_seconds(partial(solve, program)))
            values.append(_seconds(partial(clear_coupled, bids, asks)))
        value, floor = median(values), median(floors)
        yield {"name": name, "value": value, "unit": "s", "floor": floor, "ratio": value / floor}


def book(orders: int) -> tuple[list[CoupledBid], list[CoupledAsk]]:
    chance = random.Random(20260101)

    def order(name: str, number: int) -> Order:
        steps = ((chance.randrange(100_000, 2_000_000), chance.randrange(1, 1_000)),)
        return Order(name, steps, priority=number)

    bids, asks = [], []
    for number in range(orders // 2):
        home, *others = chance.sample(GRADES, 3)
        adjustments = {grade: chance.randint(-200_000, 200_000) for grade in others}
        bids.append(CoupledBid(order(f"b{number:06}", number), home, adjustments))
        asks.append(CoupledAsk(order(f"a{number:06}", number), chance.choice(GRADES)))
    return bids, asks


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
