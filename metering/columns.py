"""Many events as columns: checked, packed and summed at once, a few operations for all instead of many for each. Pure.

A count that was not reported is NOT_REPORTED in its column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metering.packing import COLUMNS, ESTIMATED_BITS, FLAG_BITS, flag_bits, microseconds
from metering.usage import Finish, Flag, LeanEvent
from pricing.units import Bucket

NOT_REPORTED: Final = -1
BUCKETS: Final = len(Bucket)
_OUTPUT: Final = tuple(Bucket).index(Bucket.OUTPUT)
_REASONING: Final = tuple(Bucket).index(Bucket.REASONING)
_HIDDEN: Final = FLAG_BITS[Flag.HIDDEN_REASONING]
_ROWS_A_PART: Final = 512
_UUID_CHARACTERS: Final = 36
_DASHES: Final = (8, 13, 18, 23)
_NO_ID: Final = b"\0" * 16
_FINISHES: Final = tuple(finish.value for finish in Finish)
_FINISH_CODES: Final = {finish: code for code, finish in enumerate(_FINISHES)}
_READERS: Final = {
    name: attrgetter(name)
    for name in (
        "sequence", "id", "request_id", "occurred_at", "bytes_in", "bytes_out", "duration_ms", "attempt", "part",
        "first_byte_ms", "recount_o200k", "flags", "unproved", "finish",
        *[f"buckets.{bucket.value}" for bucket in Bucket],
    )
}  # fmt: skip
# Up to here sums of int64 cannot overflow, however many events a claim has.
_SMALL: Final = 2**40
_SOURCE_AND_BATCH: Final = (
    2 + 2 * 20
)  # Bytes before the content: the number of columns, then both with their lengths.

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Sums(NamedTuple):
    """What events of one contract, period and key come to: per bucket in the order of `Bucket`, and their recounts.

    `known` are the events that report the bucket; recounts are o200k tokens, `recounted` the native output and
    reasoning tokens of the same events, without reasoning whose text was hidden. An estimate is made of its recount, so
    that the one says nothing about the other.
    """

    known: Sequence[int]
    tokens: Sequence[int]
    estimated_known: Sequence[int]
    estimated_tokens: Sequence[int]
    recounted: int
    recount_o200k: int


class Fields:
    """The fields of events, gathered part by part: the events themselves need not be kept."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {name: [] for name in _READERS}

    def extend(self, events: Sequence[LeanEvent]) -> None:
        for values, read in zip(self.values.values(), _READERS.values(), strict=True):
            values.extend(map(read, events))

    def __len__(self) -> int:
        return len(self.values["id"])


class Columns:
    """The columns of the gathered events, in their order."""

    def __init__(self, fields: Fields) -> None:
        column = fields.values
        self.sequences = np.array(column["sequence"], np.int64)
        self.has_id, self.ids = _ids(column["id"])
        self.has_request_id, self.request_ids = _ids(column["request_id"])
        self.occurred_us = np.array([microseconds(at) for at in column["occurred_at"]], np.int64)
        self.bytes_in = np.array(column["bytes_in"], np.int64)
        self.bytes_out = np.array(column["bytes_out"], np.int64)
        self.duration_ms = np.array(column["duration_ms"], np.int64)
        self.attempts = np.array(column["attempt"], np.int64)
        self.parts = np.array(column["part"], np.int64)
        self.first_byte_ms = _nullable(column["first_byte_ms"])
        self.recounts = _nullable(column["recount_o200k"])
        self.flags = _flags(column["flags"])
        self.unproved = np.array([text is not None for text in column["unproved"]], np.bool_)
        # `_value_`: `value` is a property that costs three times as much.
        self.finishes = np.array([_FINISH_CODES[finish._value_] for finish in column["finish"]], np.int64)
        self.counts = np.stack([_nullable(column[f"buckets.{bucket.value}"]) for bucket in Bucket])

    def times_ms(self) -> Ints:
        """The time inside each UUIDv7."""
        return (self.ids[:, :8].copy().view(">u8").ravel() >> 16).astype(np.int64)

    def are_uuid7(self) -> Bools:
        """Which ids are of version 7 of RFC 9562."""
        is_seven: Bools = (self.ids[:, 6] & 0xF0 == 0x70) & (self.ids[:, 8] & 0xC0 == 0x80)
        return is_seven & self.has_id

    def weigh(self, weights: Ints, *, most: int) -> tuple[Bools, Ints]:
        """Which events stay within `most`, and their numerators (0 for the others). `weights` is events x buckets."""
        counts = np.maximum(self.counts, 0)
        # In floating point first, which does not overflow; far from the bound its error does not matter, near it the
        # exact product decides.
        roughly = (counts.astype(np.float64) * weights.T).sum(axis=0)
        safe = roughly <= 2.0 * most
        numerators = np.where(safe, (np.where(safe, counts, 0) * weights.T).sum(axis=0), 0)
        fits = safe & (numerators <= most)
        return fits, np.where(fits, numerators, 0)

    def sums(self, chosen: Ints, starts: Ints) -> list[Sums]:
        """Of the events at these places, run by run; a run ends where the next of `starts` begins. Exact."""
        counts = self.counts[:, chosen]
        flags, recounts = self.flags[chosen], self.recounts[chosen]
        is_estimated = (flags & ESTIMATED_BITS) != 0
        recounted = (recounts >= 0) & (counts[_OUTPUT] >= 0) & ~is_estimated
        shown = recounted & ((flags & _HIDDEN) == 0)
        known, tokens = counts >= 0, np.maximum(counts, 0)
        summed = np.concatenate((
            known, tokens, known & is_estimated, tokens * is_estimated,
            [tokens[_OUTPUT] * recounted + tokens[_REASONING] * shown, recounts * recounted],
        ))  # fmt: skip
        if summed.max(initial=0) >= _SMALL:
            summed = summed.astype(object)  # Integers of any size.
        runs = np.add.reduceat(summed, starts, axis=1).T.tolist()
        cut = [slice(place * BUCKETS, (place + 1) * BUCKETS) for place in range(4)]
        return [Sums(*(run[part] for part in cut), *run[4 * BUCKETS :]) for run in runs]


class Rows:
    """Some of the events in the form of COPY ... (FORMAT BINARY) with the columns of `packing.COLUMNS`."""

    def __init__(
        self,
        columns: Columns,
        kept: Ints,
        *,
        owners: Sequence[tuple[bytes, bytes]],
        owner_of: Ints,
        terms: Sequence[bytes],
        terms_of: Ints,
        numerators: Ints,
    ) -> None:
        """`owners` are (source, batch), `terms` of `packing.pack_terms`; both are named by place for each event."""
        shapes = _shapes(columns, np.array([len(one) for one in terms], np.int64)[terms_of])
        _, first, shape_of = np.unique(shapes[kept], return_index=True, return_inverse=True)
        self._shape_of = np.empty(len(shapes), np.int64)
        self._shape_of[kept] = shape_of
        self._place_in = np.empty(len(shapes), np.int64)
        self._packed: list[NDArray[Any]] = []
        sources = np.array([source for source, _ in owners], "V16")
        batches = np.array([batch for _, batch in owners], "V16")
        by_length = {
            length: np.array([one if len(one) == length else b"" for one in terms], f"V{length}")
            for length in {len(terms[place]) for place in set(terms_of[kept].tolist())}
        }
        for shape, example in enumerate(kept[first].tolist()):
            chosen = kept[shape_of == shape]
            self._place_in[chosen] = np.arange(len(chosen))
            length = len(terms[terms_of[example]])
            packed = np.zeros(len(chosen), _row_type(columns, example, length))
            _fill(packed, columns, chosen, numerators)
            packed["source"] = sources[owner_of[chosen]]
            packed["batch"] = batches[owner_of[chosen]]
            packed["terms"] = by_length[length][terms_of[chosen]]
            self._packed.append(packed)

    def rows(self, chosen: Ints) -> Iterator[bytes]:
        """The events at these places, in this order, as parts of a COPY of handy size."""
        for start in range(0, len(chosen), _ROWS_A_PART):
            part = chosen[start : start + _ROWS_A_PART]
            shapes = self._shape_of[part]
            if (shapes == shapes[0]).all():
                yield self._packed[shapes[0]][self._place_in[part]].tobytes()
            else:
                yield b"".join(self._each(part))

    def contents(self, chosen: Ints) -> list[bytes]:
        """The columns of `packing.CONTENT_COLUMNS` of each of the events at these places."""
        return [row[_SOURCE_AND_BATCH:] for row in self._each(chosen)]

    def _each(self, chosen: Ints) -> Iterator[bytes]:
        packed = [rows.view(f"V{rows.itemsize}") for rows in self._packed]
        shapes, places = self._shape_of[chosen].tolist(), self._place_in[chosen].tolist()
        for shape, place in zip(shapes, places, strict=True):
            yield packed[shape][place].tobytes()


def _ids(texts: Sequence[str]) -> tuple[Bools, NDArray[np.uint8]]:
    packed = _usual_ids(texts)
    if packed is not None:
        return np.ones(len(texts), np.bool_), np.frombuffer(packed, np.uint8).reshape(-1, 16).copy()
    each = [_usual_ids([text]) for text in texts]
    ids = np.frombuffer(b"".join([one or _NO_ID for one in each]), np.uint8).reshape(-1, 16).copy()
    return np.array([one is not None for one in each], np.bool_), ids


def _usual_ids(texts: Sequence[str]) -> bytes | None:
    """All at once, which costs a sixth of one by one; None when any is unusual."""
    if any(length != _UUID_CHARACTERS for length in set(map(len, texts))):
        return None
    whole, count = "".join(texts), len(texts)
    dashes = "-" * count
    if any(whole[place::_UUID_CHARACTERS] != dashes for place in _DASHES):
        return None
    try:
        packed = bytes.fromhex(whole.replace("-", ""))
    except ValueError:
        return None
    # Shorter where it skipped a space or there were more dashes.
    return packed if len(packed) == 16 * count else None


def _nullable(values: Sequence[int | None]) -> Ints:
    missing = values.count(None)
    if missing == 0:
        return np.array(values, np.int64)
    if missing == len(values):
        return np.full(len(values), NOT_REPORTED, np.int64)
    return np.array([NOT_REPORTED if value is None else value for value in values], np.int64)


def _flags(flags: Sequence[tuple[Flag, ...]]) -> Ints:
    if not any(flags):
        return np.zeros(len(flags), np.int64)
    return np.array([flag_bits(some) if some else 0 for some in flags], np.int64)


def _shapes(columns: Columns, terms_lengths: Ints) -> Ints:
    """A number that is equal for rows whose values have equal lengths and nulls in the same places."""
    shapes: Ints = terms_lengths * len(_FINISHES) + columns.finishes
    for nullable in (columns.first_byte_ms, columns.recounts, *columns.counts):
        shapes = shapes * 2 + (nullable >= 0)
    return shapes


def _row_type(columns: Columns, example: int, terms_bytes: int) -> np.dtype[Any]:
    finish = len(_FINISHES[columns.finishes[example]])
    fields: list[tuple[str, str]] = [("columns", ">i2"), *_value("source", "V16"), *_value("batch", "V16")]
    fields.append(("terms", f"V{terms_bytes}"))
    for name, kind in _FIXED:
        fields += _value(name, kind)
    fields += _value("finish", f"S{finish}")
    for name, kind, read in _NULLABLE:
        fields += _value(name, kind) if read(columns)[example] >= 0 else [(f"{name} length", ">i4")]
    return np.dtype(fields)


def _value(name: str, kind: str) -> list[tuple[str, str]]:
    return [(f"{name} length", ">i4"), (name, kind)]


def _fill(packed: NDArray[Any], columns: Columns, chosen: Ints, numerators: Ints) -> None:
    """Everything but who brought it and what it shares with others."""
    packed["columns"] = len(COLUMNS)
    names = packed.dtype.names or ()
    for name in names:
        if name.endswith(" length"):
            of = name.removesuffix(" length")
            packed[name] = packed.dtype[of].itemsize if of in names else -1
    packed["id"] = columns.ids[chosen].view("V16").ravel()
    packed["request_id"] = columns.request_ids[chosen].view("V16").ravel()
    packed["occurred_at"] = columns.occurred_us[chosen]
    packed["bytes_in"] = columns.bytes_in[chosen]
    packed["bytes_out"] = columns.bytes_out[chosen]
    packed["numerator"] = numerators[chosen]
    packed["duration_ms"] = columns.duration_ms[chosen]
    packed["attempt"] = columns.attempts[chosen]
    packed["part"] = columns.parts[chosen]
    packed["flags"] = columns.flags[chosen]
    packed["finish"] = _FINISHES[columns.finishes[chosen[0]]].encode()
    for name, _, read in _NULLABLE:
        if name in names:
            packed[name] = read(columns)[chosen]


def _count_reader(place: int) -> Callable[[Columns], Ints]:
    return lambda columns: columns.counts[place]


_FIXED: Final = (
    ("id", "V16"), ("request_id", "V16"), ("occurred_at", ">i8"), ("bytes_in", ">i8"), ("bytes_out", ">i8"),
    ("numerator", ">i8"), ("duration_ms", ">i4"), ("attempt", ">i2"), ("part", ">i2"), ("flags", ">i2"),
)  # fmt: skip
_NULLABLE: Final[Iterable[tuple[str, str, Callable[[Columns], Ints]]]] = (
    ("first_byte_ms", ">i4", lambda columns: columns.first_byte_ms),
    ("recount_o200k_tokens", ">i8", lambda columns: columns.recounts),
    *[(f"{bucket.value}_tokens", ">i8", _count_reader(place)) for place, bucket in enumerate(Bucket)],
)
