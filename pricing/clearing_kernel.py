"""The crossing of one divisible book, without names: arrays of prices and lots in, fills out.

Both kernels find the marginal price `m`: the smallest price at which the asks at or below it cover the
bids above it. Everything strictly better than `m` trades in full, what lies at `m` shares the rest by the
tie rule. Neither sorts the book: the numpy kernel narrows `m` down by histograms over 16 bits of the
price at a time, so that its cost is linear in the orders and independent of the price range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pricing.book import TieRule

Ints = npt.NDArray[np.int64]
# By row, or who is asked for the ranks of some rows.
Ranks = Ints | Callable[[Ints], Ints]

_MAX_PRICE: Final = 2**61  # Differences of two prices stay inside int64.
_MAX_TOTAL: Final = 2**53  # Histograms add in float64, exact below this.
_HISTOGRAM_BITS: Final = 16


@dataclass(frozen=True, slots=True)
class Crossing:
    """Price interval, volume and welfare of a book; with no volume, the best bid and the best ask."""

    quantity: int
    price_low: int | None
    price_high: int | None
    welfare: int


@dataclass(frozen=True, slots=True)
class ArrayClearing:
    """A `Crossing` with its price and with lots filled per row, in the order of the input arrays."""

    quantity: int
    price: int | None
    price_low: int | None
    price_high: int | None
    welfare: int
    bid_fills: Ints
    ask_fills: Ints


def price_inside(low: int, high: int, tick: int) -> int:
    """The midpoint floored to a tick inside the interval; the plain floored midpoint when no tick lies
    inside.
    """
    middle = (low + high) // 2
    floored = middle // tick * tick
    if floored >= low:
        return floored
    return floored + tick if floored + tick <= high else middle


def share_lots(
    open_lots: Sequence[int], available: int, ranks: Sequence[int], tie_rule: TieRule
) -> list[int]:
    """`available` lots over rows at one price; `ranks` order the rows, lowest first."""
    total = sum(open_lots)
    if available == total:
        return list(open_lots)
    in_rank = sorted(range(len(open_lots)), key=ranks.__getitem__)
    if tie_rule is TieRule.TIME_PRIORITY:
        shares = [0] * len(open_lots)
        for row in in_rank:
            shares[row] = min(open_lots[row], available)
            available -= shares[row]
        return shares
    shares = [lots * available // total for lots in open_lots]
    left = available - sum(shares)
    in_rank.sort(key=lambda row: -(open_lots[row] * available % total))
    for row in in_rank[:left]:
        shares[row] += 1
    return shares


# ---- plain integers, of any size


def cross_levels(bids: dict[int, int], asks: dict[int, int]) -> tuple[Crossing, int | None, int, int]:
    """Crossing of lots aggregated by price (no zero entries).

    Returns it with the marginal price (None without trade) and how many lots trade at it on each side.
    """
    if not bids or not asks or max(bids) < min(asks):
        return Crossing(0, max(bids, default=None), min(asks, default=None), 0), None, 0, 0
    above = sum(bids.values())  # bids above the price being looked at
    below = 0  # asks below it
    welfare = 0
    margin = 0
    levels = sorted(bids.keys() | asks.keys())
    for margin in levels:
        above -= bids.get(margin, 0)
        if below + asks.get(margin, 0) >= above:
            break
        below += asks.get(margin, 0)
    bids_at, asks_at = bids.get(margin, 0), asks.get(margin, 0)
    quantity = min(above + bids_at, below + asks_at)
    for price, lots in bids.items():
        if price > margin:
            welfare += (price - margin) * lots
    for price, lots in asks.items():
        if price < margin:
            welfare += (margin - price) * lots
    bids_taken, asks_taken = quantity - above, quantity - below
    low, high = _interval(
        margin,
        (bids_at, bids_taken, asks_at, asks_taken),
        lowest_bid_above=min((price for price in bids if price > margin), default=None),
        highest_bid_below=max((price for price in bids if price < margin), default=None),
        highest_ask_below=max((price for price in asks if price < margin), default=None),
        lowest_ask_above=min((price for price in asks if price > margin), default=None),
    )
    return Crossing(quantity, low, high, welfare), margin, bids_taken, asks_taken


def _interval(
    margin: int,
    at_margin: tuple[int, int, int, int],
    *,
    lowest_bid_above: int | None,
    highest_bid_below: int | None,
    highest_ask_below: int | None,
    lowest_ask_above: int | None,
) -> tuple[int, int]:
    """Last accepted and first rejected orders of both sides bind; a partly filled one is both."""
    bids_at, bids_taken, asks_at, asks_taken = at_margin
    last_bid = margin if bids_taken else lowest_bid_above
    last_ask = margin if asks_taken else highest_ask_below
    next_bid = margin if bids_taken < bids_at else highest_bid_below
    next_ask = margin if asks_taken < asks_at else lowest_ask_above
    assert last_bid is not None
    assert last_ask is not None
    low = last_ask if next_bid is None else max(last_ask, next_bid)
    high = last_bid if next_ask is None else min(last_bid, next_ask)
    assert low <= high
    return low, high


def clear_integers(
    sides: tuple[tuple[list[int], list[int], Sequence[int]], tuple[list[int], list[int], Sequence[int]]],
    tie_rule: TieRule,
) -> tuple[Crossing, list[list[int]]]:
    levels: list[dict[int, int]] = []
    for prices, lots, _ in sides:
        by_price: dict[int, int] = {}
        for price, quantity in zip(prices, lots, strict=True):
            if quantity:
                by_price[price] = by_price.get(price, 0) + quantity
        levels.append(by_price)
    crossing, margin, *taken = cross_levels(levels[0], levels[1])
    fills = [[0] * len(prices) for prices, _, _ in sides]
    if margin is None:
        return crossing, fills
    for side, (prices, lots, ranks) in enumerate(sides):
        marginal = [row for row, price in enumerate(prices) if price == margin and lots[row]]
        for row, price in enumerate(prices):
            if (price > margin) if side == 0 else (price < margin):
                fills[side][row] = lots[row]
        shares = share_lots(
            [lots[row] for row in marginal], taken[side], [ranks[row] for row in marginal], tie_rule
        )
        for row, share in zip(marginal, shares, strict=True):
            fills[side][row] = share
    return crossing, fills


# ---- numpy


def clear_arrays(
    bid_prices: Ints,
    bid_lots: Ints,
    ask_prices: Ints,
    ask_lots: Ints,
    *,
    bid_ranks: Ranks | None = None,
    ask_ranks: Ranks | None = None,
    tie_rule: TieRule = TieRule.PRO_RATA,
    tick: int = 1,
) -> ArrayClearing:
    """Clears rows of (price, lots) exactly. Ranks break ties, lowest first; without them the row number does.

    The arrays must have an integer dtype. Totals of 2**53 lots and more, and prices beyond +-2**61, take
    the plain integer kernel.
    """
    bid_prices, bid_lots = _integers(bid_prices, "bid_prices"), _integers(bid_lots, "bid_lots")
    ask_prices, ask_lots = _integers(ask_prices, "ask_prices"), _integers(ask_lots, "ask_lots")
    if not (_fits(bid_prices, bid_lots) and _fits(ask_prices, ask_lots)):
        rows = tuple(
            (prices.tolist(), lots.tolist(), _ranks_of(ranks, np.arange(len(prices))).tolist())
            for prices, lots, ranks in (
                (bid_prices, bid_lots, bid_ranks),
                (ask_prices, ask_lots, ask_ranks),
            )
        )
        crossing, fills = clear_integers((rows[0], rows[1]), tie_rule)
        return _priced(crossing, np.array(fills[0], np.int64), np.array(fills[1], np.int64), tick)

    bids_open, asks_open = bid_lots.all(), ask_lots.all()
    live_bids, live_bid_lots = (
        (bid_prices, bid_lots) if bids_open else (bid_prices[bid_lots > 0], bid_lots[bid_lots > 0])
    )
    live_asks, live_ask_lots = (
        (ask_prices, ask_lots) if asks_open else (ask_prices[ask_lots > 0], ask_lots[ask_lots > 0])
    )
    best_bid = int(live_bids.max()) if live_bids.size else None
    best_ask = int(live_asks.min()) if live_asks.size else None
    if best_bid is None or best_ask is None or best_bid < best_ask:
        nothing = Crossing(0, best_bid, best_ask, 0)
        return _priced(nothing, np.zeros_like(bid_lots), np.zeros_like(ask_lots), tick)

    margin, above, bids_at, below, asks_at = _find_margin(live_bids, live_bid_lots, live_asks, live_ask_lots)
    quantity = min(above + bids_at, below + asks_at)
    bids_taken, asks_taken = quantity - above, quantity - below
    low, high = _interval(
        margin,
        (bids_at, bids_taken, asks_at, asks_taken),
        lowest_bid_above=_least(live_bids, live_bids > margin),
        highest_bid_below=_greatest(live_bids, live_bids < margin),
        highest_ask_below=_greatest(live_asks, live_asks < margin),
        lowest_ask_above=_least(live_asks, live_asks > margin),
    )
    bid_fills = bid_lots * (bid_prices > margin)
    ask_fills = ask_lots * (ask_prices < margin)
    welfare = _dot(bid_prices - margin, bid_fills, above) + _dot(margin - ask_prices, ask_fills, below)
    _fill_margin(bid_fills, bid_prices, bid_lots, margin, bids_taken, bid_ranks, tie_rule)
    _fill_margin(ask_fills, ask_prices, ask_lots, margin, asks_taken, ask_ranks, tie_rule)
    return _priced(Crossing(quantity, low, high, welfare), bid_fills, ask_fills, tick)


def _priced(crossing: Crossing, bid_fills: Ints, ask_fills: Ints, tick: int) -> ArrayClearing:
    price = None
    if crossing.quantity:
        assert crossing.price_low is not None
        assert crossing.price_high is not None
        price = price_inside(crossing.price_low, crossing.price_high, tick)
    return ArrayClearing(
        crossing.quantity,
        price,
        crossing.price_low,
        crossing.price_high,
        crossing.welfare,
        bid_fills,
        ask_fills,
    )


def _integers(values: Ints, field: str) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{field}: must be a one-dimensional array of integers")
    return array.astype(np.int64, copy=False)


def _fits(prices: Ints, lots: Ints) -> bool:
    assert prices.size == lots.size
    if not prices.size:
        return True
    assert int(lots.min()) >= 0
    # In float64, which cannot wrap round; the margin of 2 covers its own rounding.
    return (
        float(lots.sum(dtype=np.float64)) < _MAX_TOTAL / 2
        and int(prices.max()) < _MAX_PRICE
        and int(prices.min()) > -_MAX_PRICE
    )


def _find_margin(bids: Ints, bid_lots: Ints, asks: Ints, ask_lots: Ints) -> tuple[int, int, int, int, int]:
    """`(margin, bid lots above, bid lots at, ask lots below, ask lots at)`.

    In each round bucket j ends at the price e; the margin is in the first bucket for which asks up to e
    cover the bids beyond e. That bucket becomes the next round's range.
    """
    low = min(int(bids.min()), int(asks.min()))
    high = max(int(bids.max()), int(asks.max()))
    above = below = 0
    while True:
        shift = max(0, (high - low).bit_length() - _HISTOGRAM_BITS)
        size = ((high - low) >> shift) + 1
        bid_buckets, ask_buckets = (
            np.bincount((prices - low) >> shift, weights=lots, minlength=size).astype(np.int64)
            for prices, lots in ((bids, bid_lots), (asks, ask_lots))
        )
        asks_up_to = np.cumsum(ask_buckets) + below
        bids_beyond = above + int(bid_buckets.sum()) - np.cumsum(bid_buckets)
        bucket = int(np.argmax(asks_up_to >= bids_beyond))
        above = int(bids_beyond[bucket])
        below = int(asks_up_to[bucket] - ask_buckets[bucket])
        low += bucket << shift
        if shift == 0:
            return low, above, int(bid_buckets[bucket]), below, int(ask_buckets[bucket])
        high = min(high, low + (1 << shift) - 1)
        bids_inside = (bids >= low) & (bids <= high)
        asks_inside = (asks >= low) & (asks <= high)
        bids, bid_lots = bids[bids_inside], bid_lots[bids_inside]
        asks, ask_lots = asks[asks_inside], ask_lots[asks_inside]


def _ranks_of(ranks: Ranks | None, rows: Ints) -> Ints:
    """Of these rows; without ranks the row numbers, which rise already."""
    if ranks is None:
        return rows
    return ranks(rows) if callable(ranks) else np.asarray(ranks)[rows]


def _least(prices: Ints, where: npt.NDArray[np.bool_]) -> int | None:
    found = int(prices.min(where=where, initial=_MAX_PRICE))
    return None if found == _MAX_PRICE else found


def _greatest(prices: Ints, where: npt.NDArray[np.bool_]) -> int | None:
    found = int(prices.max(where=where, initial=-_MAX_PRICE))
    return None if found == -_MAX_PRICE else found


def _dot(differences: Ints, fills: Ints, filled: int) -> int:
    """The exact sum of products over filled rows, where differences are not negative, in chunks that fit
    int64.
    """
    if not filled:
        return 0
    filled_differences = differences * (fills > 0)
    largest = int(filled_differences.max())
    if largest * filled < 2**63:
        return int(np.dot(filled_differences, fills))
    bits = 62 - filled.bit_length()  # At least 9, because totals stay below 2**53.
    total = 0
    position = 0
    while largest >> position:
        chunk = (filled_differences >> position) & ((1 << bits) - 1)
        total += int(np.dot(chunk, fills)) << position
        position += bits
    return total


def _fill_margin(
    fills: Ints,
    prices: Ints,
    lots: Ints,
    margin: int,
    taken: int,
    ranks: Ranks | None,
    tie_rule: TieRule,
) -> None:
    """Writes the shares of the rows at the marginal price into `fills`."""
    if not taken:
        return
    rows = np.flatnonzero((prices == margin) & (lots > 0))
    open_lots = lots[rows]
    total = int(open_lots.sum())
    if taken == total:
        fills[rows] = open_lots
        return
    row_ranks = _ranks_of(ranks, rows)
    order = np.argsort(row_ranks, kind="stable")
    if tie_rule is TieRule.TIME_PRIORITY:
        queue = rows[order]
        before = np.cumsum(lots[queue]) - lots[queue]
        fills[queue] = np.clip(taken - before, 0, lots[queue])
        return
    if int(open_lots.max()) * taken >= 2**63:
        fills[rows] = share_lots(open_lots.tolist(), taken, row_ranks.tolist(), tie_rule)
        return
    shares, remainders = np.divmod(open_lots * taken, total)
    left = taken - int(shares.sum())
    if left:
        # Select, not sort: the `left` largest remainders, of equal ones those of lowest rank.
        threshold = np.partition(remainders, len(rows) - left)[len(rows) - left]
        winners = remainders > threshold
        shares[winners] += 1
        equal = order[remainders[order] == threshold]
        shares[equal[: left - int(np.count_nonzero(winners))]] += 1
    fills[rows] = shares
