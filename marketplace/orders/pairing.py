"""Who supplies whom after a round. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

Id = TypeVar("Id", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Filled(Generic[Id]):
    """A filled order: `lots` awarded; `rate` its best (bid) or only (ask) rate; `rank` breaks ties: (time, id)."""

    id: Id
    lots: int
    rate: int
    rank: tuple[str, str]


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

    def take(bid_id: Id, ask_id: Id) -> None:
        lots = min(open_bids[bid_id], open_asks[ask_id])
        if lots:
            pairs[bid_id, ask_id] = pairs.get((bid_id, ask_id), 0) + lots
            open_bids[bid_id] -= lots
            open_asks[ask_id] -= lots

    place = {a.id: number for number, a in enumerate(ask_order)}
    kept: dict[Id, list[Id]] = {}
    for bid_id, ask_id in previous:
        if ask_id in place:
            kept.setdefault(bid_id, []).append(ask_id)
    for bid in bid_order:
        for ask_id in sorted(kept.get(bid.id, ()), key=place.__getitem__):
            take(bid.id, ask_id)
    asks_left = iter(ask_order)
    left: Filled[Id] | None = next(asks_left, None)
    for bid in bid_order:
        while open_bids[bid.id] and left is not None:
            take(bid.id, left.id)
            if not open_asks[left.id]:
                left = next(asks_left, None)
    return pairs


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
