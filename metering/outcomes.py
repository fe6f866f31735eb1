"""What became of each event of a batch, exactly one row per event, from what ingestion noted on the batch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

import msgspec

from metering.coding import unpack_lines
from metering.models import UsageBatch

Result = Literal["pending", "accepted", "duplicate", "conflict", "quarantined", "dead"]
RESULTS: Final[tuple[Result, ...]] = (
    "pending", "accepted", "duplicate", "conflict", "quarantined", "dead",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """`index` is the event's place in the batch, from 0; `id` is null where the line has none that can be read."""

    index: int
    id: UUID | None
    result: Result
    field: str
    reason: str


class _Named(msgspec.Struct, frozen=True):
    id: UUID


_named = msgspec.json.Decoder(_Named)


def event_outcomes(batch: UsageBatch, *, first: int, limit: int) -> list[Outcome]:
    """Of at most `limit` events from the place `first` on, in the order of the batch. `batch` comes with its body."""
    lines = unpack_lines(bytes(batch.body)).removesuffix(b"\n").split(b"\n")
    exceptions = {exception["index"]: exception for exception in batch.exceptions}
    starts = [run[0] for run in batch.duplicates]
    outcomes = []
    for index, line in enumerate(lines[first : first + limit], first):
        result, field, reason = _settled(batch, index, exceptions.get(index), starts)
        outcomes.append(Outcome(index, _id_of(line), result, field, reason))
    return outcomes


def _settled(
    batch: UsageBatch, index: int, exception: dict[str, str] | None, starts: list[int]
) -> tuple[Result, str, str]:
    if batch.status == UsageBatch.Status.PENDING:
        return "pending", "", ""
    if batch.status == UsageBatch.Status.DEAD:
        return "dead", "", batch.error
    if exception is not None:
        result: Result = "conflict" if exception["result"] == "conflict" else "quarantined"
        return result, exception["field"], exception["reason"]
    run = bisect_right(starts, index) - 1
    if run >= 0 and index <= batch.duplicates[run][1]:
        return "duplicate", "", ""
    return "accepted", "", ""


def _id_of(line: bytes) -> UUID | None:
    try:
        return _named.decode(line).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
