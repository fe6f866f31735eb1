"""Who supplies whom after a round. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from typing import Generic, NamedTuple, TypeVar

Id = TypeVar("Id", bound=Hashable)


class Filled(NamedTuple, Generic[Id]):
    """A filled order: `lots` awarded; `rate` its best (bid) or only (ask) rate; `rank` breaks ties: (time, id)."""

    id: Id
    lots: int
    rate: int
    rank: tuple[int, str]


def pair(
    bids: Sequence[Filled[Id]], asks: Sequence[Filled[Id]], previous: Set[tuple[Id, Id]] = frozenset()
) -> dict[tuple[Id, Id], int]:
    """Lots per (bid, ask). Last period's pairs are kept first, then the north-west corner rule.

    Bids go by rate descending, asks by rate ascending, then time, then id; so the result does not depend on input
    order. Both sides must sum to the same volume.
    """
    if sum(b.lots for b in bids) != sum(a.lots for a in asks):
        raise ValueError("bids and asks must be filled to the same volume")
    bid_order = sorted(bids, key=lambda b: (-b.rate, b.rank))
    ask_order = sorted(asks, key=lambda a: (a.rate, a.rank))
    open_bids = {b.id: b.lots for b in bid_order}
    open_asks = {a.id: a.lots for a in ask_order}
    pairs: dict[tuple[Id, Id], int] = {}
    for bid_id, ask_id in _in_order(previous, bid_order, ask_order):
        lots = min(open_bids[bid_id], open_asks[ask_id])
        if lots:
            pairs[bid_id, ask_id] = lots
            open_bids[bid_id] -= lots
            open_asks[ask_id] -= lots
    # Both sides sum to the same volume: an ask is left for whoever is not filled.
    supply = iter(open_asks.items())
    seller, supplied = next(supply, (None, 0))
    for buyer, bid_lots in open_bids.items():
        wanted = bid_lots
        while wanted:
            if not supplied:
                seller, supplied = next(supply)
                continue
            assert seller is not None
            lots = min(wanted, supplied)
            pairs[buyer, seller] = pairs.get((buyer, seller), 0) + lots
            wanted -= lots
            supplied -= lots
    return pairs


def _in_order(
    previous: Set[tuple[Id, Id]], bids: Sequence[Filled[Id]], asks: Sequence[Filled[Id]]
) -> list[tuple[Id, Id]]:
    """The pairs of before whose two sides are filled again: by bid, then by ask."""
    if not previous:
        return []
    ask_place = {ask.id: place for place, ask in enumerate(asks)}
    bid_place = {bid.id: place for place, bid in enumerate(bids)}
    kept = [(bid_place[b], ask_place[a], b, a) for b, a in previous if b in bid_place and a in ask_place]
    kept.sort(key=lambda pair: pair[:2])
    return [(bid_id, ask_id) for _, _, bid_id, ask_id in kept]


def overage_rate(*, list_rate: int, clearing_rate: int | None, next_unsold_ask: int | None) -> int:
    """The rate of overage and replacement in a period, in micros per Mtok (DESIGN 6).

    `min(list, ceil(1.10 x max(clearing rate, ask of the next unsold lot)))`; list when nothing traded.
    """
    if clearing_rate is None:
        return list_rate
    base = max(clearing_rate, next_unsold_ask or 0)
    return min(list_rate, -(-base * 11 // 10))


def worst_case_micros(steps: Sequence[tuple[int, int]]) -> int:
    """The most a bid can cost: max over steps of rate x cumulative lots; micros, rounded up (1 lot = 1/1000 Mtok)."""
    cumulative = 0
    worst = 0
    for rate, lots in steps:
        cumulative += lots
        worst = max(worst, rate * cumulative)
    return -(-worst // 1000)
