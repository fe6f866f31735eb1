"""Usage events as rows of PostgreSQL's binary COPY. Pure: bytes in and out, no database.

Rows are packed by hand, and many at once (`columns`), because this is where ingestion's time goes: the driver's own row
writer looks at every value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final
from uuid import UUID

from metering.usage import Flag
from pricing.units import Bucket

# The stored form of an event's flags; bits are never reused.
FLAG_BITS: Final = {
    Flag.CAPPED: 1,
    Flag.ESTIMATED: 2,
    Flag.CUT_BUDGET: 4,
    Flag.CLIENT_GONE: 8,
    Flag.UPSTREAM_FAILED: 16,
    Flag.UNPROVABLE: 32,
    Flag.RECOVERED: 64,
    Flag.HIDDEN_REASONING: 128,
    Flag.READER_SLOW: 256,
    Flag.SPLIT: 512,
}
# Whose event's counts were not reported by the engine to this meter.
ESTIMATED_BITS: Final = FLAG_BITS[Flag.ESTIMATED] | FLAG_BITS[Flag.RECOVERED]
COUNT_COLUMNS: Final = tuple(f"{bucket.value}_tokens" for bucket in Bucket)
# In the order of the packed row; types in `COLUMN_TYPES`. First who brought it, then the content: all that the meter
# said but for the sequence, first what the events of one contract, period and key share. Two events are the same when
# their contents are, byte by byte: PostgreSQL's COPY gives a stored one back in this form.
OWNER_COLUMNS: Final = ("source_id", "batch_id")
CONTENT_COLUMNS: Final = (
    "contract_id", "offering_id", "grade_id", "rate_id", "period_start", "api_key_id",
    "id", "request_id", "occurred_at", "bytes_in", "bytes_out", "numerator", "duration_ms", "attempt", "part", "flags",
    "finish", "first_byte_ms", "recount_o200k_tokens", *COUNT_COLUMNS,
)  # fmt: skip
COLUMNS: Final = OWNER_COLUMNS + CONTENT_COLUMNS
COLUMN_TYPES: Final = (
    "uuid", "uuid", *("uuid",) * 4, "timestamptz", "uuid", "uuid", "uuid", "timestamptz", *("bigint",) * 3, "integer",
    *("smallint",) * 3, "text", "integer", *("bigint",) * (1 + len(COUNT_COLUMNS)),
)  # fmt: skip

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
TRAILER: Final = b"\xff\xff"
NULL: Final = b"\xff\xff\xff\xff"
# Each value stands after its length.
_TERMS: Final = Struct("!" + "i16s" * 4 + "iq")
_COLUMN_COUNT: Final = Struct("!h")
_LENGTH: Final = Struct("!i")
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
# From 1970 to what `microseconds` counts from.
EPOCH_US: Final = int(_EPOCH.timestamp()) * 1_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
# A uuid[] in binary: one dimension without nulls, of elements of type uuid; then its length and its first index.
_UUID_ARRAY: Final = Struct("!iiIii")
_UUID_OID: Final = 2950


def flag_bits(flags: tuple[Flag, ...]) -> int:
    bits = 0
    for flag in flags:
        bits |= FLAG_BITS[flag]
    return bits


def flags_of(bits: int) -> list[Flag]:
    """What `flag_bits` packed."""
    return [flag for flag, bit in FLAG_BITS.items() if bits & bit]


def pack_terms(
    *,
    contract_id: UUID,
    offering_id: UUID,
    grade_id: UUID,
    rate_id: UUID,
    period_start: datetime,
    api_key_id: UUID | None,
) -> bytes:
    """How the content of every event of one contract, period and key begins."""
    fixed = _TERMS.pack(
        16, contract_id.bytes,
        16, offering_id.bytes,
        16, grade_id.bytes,
        16, rate_id.bytes,
        8, microseconds(period_start),
    )  # fmt: skip
    return fixed + (NULL if api_key_id is None else b"\0\0\0\x10" + api_key_id.bytes)


def unpack_contents(copied: bytes, columns: int) -> Iterator[tuple[list[bytes | None], bytes]]:
    """The rows of a binary COPY: the first `columns` values of each, and the rest of the row as it stands."""
    place = len(HEADER)
    while copied[place : place + 2] != TRAILER:
        (count,) = _COLUMN_COUNT.unpack_from(copied, place)
        place += 2
        values: list[bytes | None] = []
        rest = place
        for column in range(count):
            if column == columns:
                rest = place
            (length,) = _LENGTH.unpack_from(copied, place)
            place += 4
            if column < columns:
                values.append(copied[place : place + length] if length >= 0 else None)
            place += max(length, 0)
        yield values, copied[rest:place]


def pack_uuid_array(ids: Sequence[bytes]) -> bytes:
    """A uuid[] parameter in PostgreSQL's binary form; `ids` are 16 bytes each, at least one."""
    elements = b"\0\0\0\x10" + b"\0\0\0\x10".join(ids)
    return _UUID_ARRAY.pack(1, 0, _UUID_OID, len(ids), 1) + elements


def microseconds(at: datetime) -> int:
    """Since 2000 (UTC), as PostgreSQL counts."""
    return (at - _EPOCH) // _MICROSECOND
