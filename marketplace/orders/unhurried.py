"""Python's cycle collector kept away from work on whole books."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_cycle_collection() -> Iterator[None]:
    """Memory is freed by counting references alone meanwhile, as nearly all of it is anyway.

    A book of 100,000 orders is some million objects without a cycle among them; the collector, set off by their number,
    walked them again and again for half of a round's time. Threads beside this one may go without it as long.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
