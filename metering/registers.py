"""What an engine's running counters moved by between two moments: over restarts, without the host's own benches. Pure.

A register read holds counters since the engine's start, by our meaning of them: `input_tokens` includes what came from
the cache, whatever the engine's own counter does. A restart begins them at nought, so the tokens between the last read
before it and the restart are known to nobody: such a difference is a lower bound, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Reading(Protocol):
    """One read of an engine, as `metering.models.RegisterRead` keeps it. None: the engine has no such counter."""

    boot_id: str
    input_tokens: int | None
    cache_read_tokens: int | None
    output_tokens: int | None
    energy_millijoules: int | None
    bench_input_tokens: int
    bench_output_tokens: int


@dataclass(frozen=True, slots=True)
class RegisterDelta:
    """Tokens that an engine handled for others between the first and the last of some reads; never negative.

    `input_tokens` and `output_tokens` are without the host's own benches, whose tokens stand beside them;
    `cache_read_tokens` is the part of all input, benches included, that came from the cache. None: no counter, or
    fewer than two reads. `is_complete`: no restart in between, so that nothing went by unread.
    """

    input_tokens: int | None
    cache_read_tokens: int | None
    output_tokens: int | None
    energy_millijoules: int | None
    bench_input_tokens: int
    bench_output_tokens: int
    resets: int
    is_complete: bool


def register_delta(reads: Sequence[Reading]) -> RegisterDelta:
    """The movement of the counters over `reads`, which are of one host and in the order of time.

    Within one boot it is last less first; each later boot adds all that it had counted by its last read. A token
    counter that went down without a new boot id was started anew as well.
    """
    told = [read for read in reads if _tells_tokens(read)]
    # At either end the engine must have told its counters: what lies outside is not in their difference.
    spans = len(told) >= 2 and told[0] is reads[0] and told[-1] is reads[-1]
    resets = [_is_reset(before, after) for before, after in pairwise(told)]
    bench_input = _moved([read.bench_input_tokens for read in reads])
    bench_output = _moved([read.bench_output_tokens for read in reads])
    return RegisterDelta(
        input_tokens=_less(_counted([read.input_tokens for read in told], resets, spans), bench_input),
        cache_read_tokens=_counted([read.cache_read_tokens for read in told], resets, spans),
        output_tokens=_less(_counted([read.output_tokens for read in told], resets, spans), bench_output),
        # Counted by the accelerator's driver, so an engine's restart does not touch it.
        energy_millijoules=_energy([read.energy_millijoules for read in reads]),
        bench_input_tokens=bench_input,
        bench_output_tokens=bench_output,
        resets=sum(resets),
        is_complete=spans and not any(resets),
    )


def _tells_tokens(read: Reading) -> bool:
    """An engine that did not answer at that moment left no counters, only the accelerator's energy."""
    return read.input_tokens is not None or read.output_tokens is not None


def _is_reset(before: Reading, after: Reading) -> bool:
    return before.boot_id != after.boot_id or any(
        was is not None and now is not None and now < was
        for was, now in (
            (before.input_tokens, after.input_tokens),
            (before.output_tokens, after.output_tokens),
        )
    )


def _counted(values: Sequence[int | None], resets: Sequence[bool], spans: bool) -> int | None:
    """None as soon as one read lacks the counter: a part would pass for the whole."""
    known = [value for value in values if value is not None]
    if not spans or len(known) < len(values):
        return None
    return sum(
        after if was_reset else max(0, after - before)
        for (before, after), was_reset in zip(pairwise(known), resets, strict=True)
    )


def _energy(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return _moved(known) if len(known) == len(values) and len(known) >= 2 else None


def _moved(values: Sequence[int]) -> int:
    """A counter that goes down was started anew at nought."""
    return sum(after - before if after >= before else after for before, after in pairwise(values))


def _less(counted: int | None, own: int) -> int | None:
    return None if counted is None else max(0, counted - own)
