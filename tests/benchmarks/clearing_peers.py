"""How long one auction takes beside PyMarket's uniform price (`bench` extra), on the same book in the same run.

`python -m tests.benchmarks clearing_peers` prints one line per size; where PyMarket is not installed it says so on
stderr instead. The floor is the peer: its documentation's recipe for a uniform price, on its own functions, from a
frame of bids to one transaction for each order that trades. The value is ours, from orders to all fills.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, Final

from pricing.book import Order
from pricing.clearing import clear

SIZES: Final = (("clearing_beside_pymarket_1k", 1_000, 5), ("clearing_beside_pymarket_10k", 10_000, 3))


def run() -> Iterator[dict[str, Any]]:
    """One result for 1,000 and one for 10,000 orders, half bids, half asks; medians, in turns."""
    if importlib.util.find_spec("pymarket") is None:
        print("clearing_peers: pymarket is not installed; it comes with the extra `bench`", file=sys.stderr)
        return
    import pymarket

    for name, orders, repeats in SIZES:
        bids, asks = book(orders)
        peer = pymarket.BidManager()
        for number, (order, is_bid) in enumerate([*((o, True) for o in bids), *((o, False) for o in asks)]):
            ((price, lots),) = order.steps
            peer.add_bid(lots, price, number, is_bid)
        frame = peer.get_df()
        assert traded_lots(uniform_price(pymarket, frame)) == 2 * clear(bids, asks).quantity_lots
        values: list[float] = []
        floors: list[float] = []
        for _ in range(repeats):
            floors.append(_seconds(partial(uniform_price, pymarket, frame)))
            values.append(_seconds(partial(clear, bids, asks)))
        value, floor = median(values), median(floors)
        yield {"name": name, "value": value, "unit": "s", "floor": floor, "ratio": value / floor}


def book(orders: int) -> tuple[list[Order], list[Order]]:
    chance = random.Random(20260101)
    sides = [
        [
            Order(
                f"{name}{n:05}",
                ((chance.randrange(100_000, 2_000_000), chance.randrange(1, 1_000)),),
                priority=n,
            )
            for n in range(orders // 2)
        ]
        for name in "ba"
    ]
    return sides[0], sides[1]


def uniform_price(pymarket: Any, frame: Any) -> Any:
    """Crosses PyMarket's curves; who trades does so in full, but for the last order of the longer side."""
    demand, _ = pymarket.bids.demand_curve_from_bids(frame)
    supply, _ = pymarket.bids.supply_curve_from_bids(frame)
    quantity, last_bid, last_ask, price = pymarket.bids.intersect_stepwise(demand, supply)
    transactions = pymarket.TransactionManager()
    for is_bid, last in ((True, last_bid), (False, last_ask)):
        side = frame[frame["buying"] == is_bid].sort_values("price", ascending=not is_bid).iloc[: last + 1]
        left = quantity
        for order, lots in side["quantity"].items():
            transactions.add_transaction(order, min(lots, left), price, -1, lots > left)
            left -= min(lots, left)
    return transactions


def traded_lots(transactions: Any) -> int:
    return int(transactions.get_df()["quantity"].sum())


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
