"""How much one printed line holds: what sums to more stands on the next. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

# A column of the books is a signed integer of 64 bits: 9.2 trillion standard tokens, or of units of the currency.
MOST: Final = 2**63 - 1
T = TypeVar("T")


def fitting(items: Iterable[T], *, sums: Callable[[T], tuple[int, ...]]) -> Iterator[list[T]]:
    """The items in their order, in as few runs as it takes for every sum of each run to stay within `MOST`, whatever
    its sign. Each item fits by itself, as it stands in such columns already.
    """
    run: list[T] = []
    totals: tuple[int, ...] = ()
    for item in items:
        added = sums(item)
        grown = tuple(map(sum, zip(totals, added, strict=True))) if run else added
        if run and any(abs(total) > MOST for total in grown):
            yield run
            run, grown = [], added
        run.append(item)
        totals = grown
    if run:
        yield run
