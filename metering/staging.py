"""Usage events as rows of PostgreSQL's binary COPY. Pure: bytes in and out, no database.

Rows are packed by hand because this is where ingestion's time goes: the driver's own row writer looks at every value.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

from metering.usage import Finish, Flag, UsageEvent
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
}
COUNT_COLUMNS: Final = tuple(f"{bucket.value}_tokens" for bucket in Bucket)
# In the order of the packed row; types in `COLUMN_TYPES`.
COLUMNS: Final = (
    "id", "source_id", "batch_id", "request_id", "contract_id", "offering_id", "grade_id", "rate_id",
    "content_digest", "period_start", "occurred_at", "numerator", "bytes_in", "bytes_out", "duration_ms", "attempt",
    "part", "flags", "finish", "api_key_id", "first_byte_ms", "recount_o200k_tokens", *COUNT_COLUMNS,
)  # fmt: skip
COLUMN_TYPES: Final = (
    *("uuid",) * 8, "bytea", "timestamptz", "timestamptz", *("bigint",) * 3, "integer", *("smallint",) * 3, "text",
    "uuid", "integer", *("bigint",) * (1 + len(COUNT_COLUMNS)),
)  # fmt: skip

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
TRAILER: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
# Number of columns, then each value after its length: 9 of 16 bytes (ids and the digest), 5 of 8, one of 4, 3 of 2.
_FIXED: Final = Struct("!h" + "i16s" * 9 + "iq" * 5 + "ii" + "ih" * 3)
_INT8: Final = Struct("!iq")
_INT4: Final = Struct("!ii")
_COLUMN_COUNT: Final = len(COLUMNS)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000
_FINISHES: Final = {finish: len(finish.value).to_bytes(4, "big") + finish.value.encode() for finish in Finish}
_BUCKETS: Final = tuple(Bucket)
_SMALL: Final = tuple(_INT8.pack(8, count) for count in range(4_096))


def flag_bits(flags: tuple[Flag, ...]) -> int:
    bits = 0
    for flag in flags:
        bits |= FLAG_BITS[flag]
    return bits


def flags_of(bits: int) -> list[Flag]:
    """What `flag_bits` packed."""
    return [flag for flag, bit in FLAG_BITS.items() if bits & bit]


def pack_row(
    event: UsageEvent, *, source_id: bytes, batch_id: bytes, numerator: int, content_digest: bytes
) -> bytes:
    """One row of COPY ... (FORMAT BINARY) with the columns of `COLUMNS`. The ids are the 16 bytes of a UUID."""
    assert len(content_digest) == 16
    counts = event.buckets
    tail = b"".join([_pack_count(counts.get(bucket)) for bucket in _BUCKETS])
    fixed = _FIXED.pack(
        _COLUMN_COUNT,
        16, event.id.bytes,
        16, source_id,
        16, batch_id,
        16, event.request_id.bytes,
        16, event.contract_id.bytes,
        16, event.offering_id.bytes,
        16, event.grade_id.bytes,
        16, event.rate_id.bytes,
        16, content_digest,
        8, _microseconds(event.period_start),
        8, _microseconds(event.occurred_at),
        8, numerator,
        8, event.bytes_in,
        8, event.bytes_out,
        4, event.duration_ms,
        2, event.attempt,
        2, event.part,
        2, flag_bits(event.flags) if event.flags else 0,
    )  # fmt: skip
    api_key_id, first_byte_ms = event.api_key_id, event.first_byte_ms
    return b"".join((
        fixed,
        _FINISHES[event.finish],
        _NULL if api_key_id is None else b"\0\0\0\x10" + api_key_id.bytes,
        _NULL if first_byte_ms is None else _INT4.pack(4, first_byte_ms),
        _pack_count(event.recount_o200k),
        tail,
    ))  # fmt: skip


def _pack_count(count: int | None) -> bytes:
    if count is None:
        return _NULL
    return _SMALL[count] if count < 4_096 else _INT8.pack(8, count)


def _microseconds(at: datetime) -> int:
    since: timedelta = at - _EPOCH
    return since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds
