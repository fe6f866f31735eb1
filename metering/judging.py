"""Which events of a claim may be counted, judged many at a time; what may not is noted on its batch.

The rules are `validating`'s. Reads the database for what the market knows, once; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import numpy as np

from metering.columns import BUCKETS, Columns, Fields, Ints
from metering.packing import EPOCH_US
from metering.usage import LeanEvent, UsageError, decode_event, read_lean
from metering.validating import (
    ID_BEFORE_US,
    MAX_DURATION_MS,
    MAX_EVENT_NUMERATOR,
    Facts,
    Problem,
    Supply,
    Terms,
    Window,
    find_problem,
    find_supply,
    load_facts,
    numerator_of,
    read_terms,
)

_NO_WEIGHTS: Final = (0,) * BUCKETS
_read_texts: Final = attrgetter(
    "contract_id", "offering_id", "grade_id", "rate_id", "period_start", "api_key_id"
)

# What the events of one contract, period and key share, as their lines have it.
_Texts = tuple[str, str, str, str, str, str | None]


@dataclass
class Work:
    """A claimed batch and what became of its events."""

    id: UUID
    source_id: UUID
    kind: str
    host_id: UUID | None
    sequence_from: int | None
    body: bytes
    accepted: int = 0
    duplicates: list[int] = field(default_factory=list)
    exceptions: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def lines(self) -> list[bytes]:
        return self.body.removesuffix(b"\n").split(b"\n")

    def except_event(self, index: int, event_id: UUID | None, result: str, name: str, reason: str) -> None:
        self.exceptions.append({
            "index": index, "id": str(event_id) if event_id else None, "result": result, "field": name,
            # No JSON of PostgreSQL's holds a NUL; some texts of the engine's may.
            "reason": reason.replace("\0", "\ufffd"),
        })  # fmt: skip


@dataclass(slots=True)
class Lane:
    """What the events of one contract, period, key and meter share. `terms` is None where they cannot be read."""

    terms: Terms | None
    kind: str
    supply: Supply | None


@dataclass(slots=True)
class Claim:
    """All that was claimed, as columns: of each event that could be read its batch, its place in it, and its lane."""

    works: list[Work]
    lanes: list[Lane]
    work_of: Ints
    place_of: Ints
    lane_of: Ints
    columns: Columns
    numerators: Ints
    facts: Facts

    def noted_at(self, event: int) -> tuple[Work, int]:
        return self.works[self.work_of[event]], int(self.place_of[event])


def lay_out(works: list[Work], window: Window) -> Claim | None:
    """The events that could be read; the others are noted on their batches. None when no event is left."""
    fields = Fields()
    owners: dict[tuple[str, UUID | None], int] = {}
    lanes: dict[tuple[int, _Texts], int] = {}
    work_of: list[int] = []
    place_of: list[int] = []
    lane_of: list[int] = []
    for number, work in enumerate(works):
        before, place = len(fields), 0
        owner = owners.setdefault((work.kind, work.host_id), len(owners))
        for part in read_lean(work.body):
            events = [event for event in part if isinstance(event, LeanEvent)]
            if len(events) == len(part):
                place_of += range(place, place + len(part))
            else:
                place_of += _except_unread(work, place, part)
            fields.extend(events)
            lane_of += [lanes.setdefault((owner, texts), len(lanes)) for texts in map(_read_texts, events)]
            place += len(part)
        work_of += [number] * (len(fields) - before)
    if not work_of:
        return None
    terms = {texts: read_terms(texts) for texts in {texts for _, texts in lanes}}
    known_owners = list(owners)
    facts = load_facts(read for read in terms.values() if read is not None)
    return Claim(
        works=works,
        lanes=[_lane(terms[texts], *known_owners[owner], facts, window) for owner, texts in lanes],
        work_of=np.array(work_of, np.int64),
        place_of=np.array(place_of, np.int64),
        lane_of=np.array(lane_of, np.int64),
        columns=Columns(fields),
        numerators=np.zeros(len(work_of), np.int64),
        facts=facts,
    )


def _except_unread(work: Work, first: int, part: Sequence[LeanEvent | UsageError]) -> list[int]:
    """The places of those that could be read; what is wrong with the others is noted."""
    read = []
    for place, event in enumerate(part, first):
        if isinstance(event, LeanEvent):
            read.append(place)
        else:
            work.except_event(place, None, "quarantined", event.field, event.reason)
    return read


def _lane(terms: Terms | None, kind: str, host_id: UUID | None, facts: Facts, window: Window) -> Lane:
    if terms is None:
        return Lane(None, kind, None)
    return Lane(terms, kind, find_supply(terms, kind=kind, host_id=host_id, facts=facts, window=window))


def judge(claim: Claim, window: Window) -> Ints:
    """The events that may be counted, with their numerators set; everything else is noted on its batch.

    Whatever an event shares with others was checked once for all of them (`find_supply`), the rest for all events at
    once. One that fails any check is judged again by itself, by the rules as they are written (`_examine`).
    """
    columns, lane_of = claim.columns, claim.lane_of
    supplies = [lane.supply for lane in claim.lanes]
    first_us = np.array([supply.first_us if supply else 0 for supply in supplies], np.int64)[lane_of]
    until_us = np.array([supply.until_us if supply else 0 for supply in supplies], np.int64)[lane_of]
    weights = np.array([supply.standard_ppm if supply else _NO_WEIGHTS for supply in supplies], np.int64)
    expected = np.array([work.sequence_from or 0 for work in claim.works], np.int64)[claim.work_of]
    numbered = np.array([work.sequence_from is not None for work in claim.works])[claim.work_of]
    made_ms = columns.times_ms()
    fits, numerators = columns.weigh(weights[lane_of], most=MAX_EVENT_NUMERATOR)
    claim.numerators = numerators
    good = (
        columns.are_uuid7()
        & columns.has_request_id
        & (made_ms >= window.first_ms)
        & (made_ms <= window.last_ms)
        & (made_ms * 1000 >= columns.occurred_us + (EPOCH_US - ID_BEFORE_US))
        & (columns.occurred_us >= first_us)
        & (columns.occurred_us < until_us)
        & (columns.duration_ms <= MAX_DURATION_MS)
        & (columns.first_byte_ms <= MAX_DURATION_MS)
        & (~numbered | (columns.sequences == expected + claim.place_of))
        & ~columns.unproved
        & fits
    )
    for event in np.flatnonzero(~good).tolist():
        good[event] = _examine(claim, event, window)
    return np.flatnonzero(good)


def _examine(claim: Claim, event: int, window: Window) -> bool:
    """Whether an event may be counted after all (then its columns are set right); if not, its fault is noted."""
    work, place = claim.noted_at(event)
    try:
        read = decode_event(work.lines[place])
    except UsageError as error:
        work.except_event(place, None, "quarantined", error.field, error.reason)
        return False
    if work.sequence_from is not None and read.sequence != (number := work.sequence_from + place):
        reason = f"{read.sequence} stands in the place of {number}"
        work.except_event(place, None, "quarantined", "sequence", reason)
        return False
    found = find_problem(read, kind=work.kind, host_id=work.host_id, facts=claim.facts, window=window)
    numerator = found or numerator_of(read, claim.facts.standard_ppm.get(read.grade_id, {}))
    if isinstance(numerator, Problem):
        work.except_event(place, read.id, "quarantined", *numerator)
        return False
    claim.columns.ids[event] = np.frombuffer(read.id.bytes, np.uint8)
    claim.columns.request_ids[event] = np.frombuffer(read.request_id.bytes, np.uint8)
    claim.numerators[event] = numerator
    return True
