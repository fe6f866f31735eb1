"""Usage events as rows of PostgreSQL's binary COPY. Pure: bytes in and out, no database.

Rows are packed by hand because this is where ingestion's time goes: the driver's own row writer looks at every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct
from typing import Final
from uuid import UUID

from metering.usage import Finish, Flag, LeanEvent
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
# In the order of the packed row; types in `COLUMN_TYPES`. First what ingestion adds, then the content, first of it what
# the events of one contract share. The content's packed form is what `content_digest` is made of: to change its order
# or form is to change what the same content is, so a new column goes before it, or after it and unpacked while null.
COLUMNS: Final = (
    "source_id", "batch_id", "numerator", "content_digest",
    "contract_id", "offering_id", "grade_id", "rate_id", "period_start", "api_key_id",
    "id", "request_id", "occurred_at", "bytes_in", "bytes_out", "duration_ms", "attempt", "part", "flags", "finish",
    "first_byte_ms", "recount_o200k_tokens", *COUNT_COLUMNS,
)  # fmt: skip
COLUMN_TYPES: Final = (
    "uuid", "uuid", "bigint", "bytea", *("uuid",) * 4, "timestamptz", "uuid", "uuid", "uuid", "timestamptz", "bigint",
    "bigint", "integer", *("smallint",) * 3, "text", "integer", *("bigint",) * (1 + len(COUNT_COLUMNS)),
)  # fmt: skip

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
TRAILER: Final = b"\xff\xff"
_NULL: Final = b"\xff\xff\xff\xff"
# Each value stands after its length.
_OWNER: Final = Struct("!h i16s i16s")  # Number of columns, source, batch.
_ADDED: Final = Struct("!iq i16s")
_TERMS: Final = Struct("!" + "i16s" * 4 + "iq")
_FACTS: Final = Struct("!" + "i16s" * 2 + "iq" * 3 + "ii" + "ih" * 3)
_INT8: Final = Struct("!iq")
_INT4: Final = Struct("!ii")
# Where `content_digest` stands in a packed row.
_DIGEST: Final = slice(_OWNER.size + _ADDED.size - 16, _OWNER.size + _ADDED.size)
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_DAY_US: Final = 86_400_000_000
_FINISHES: Final = {finish: len(finish.value).to_bytes(4, "big") + finish.value.encode() for finish in Finish}
_SMALL: Final = tuple(_INT8.pack(8, count) for count in range(4_096))
_UUID_CHARACTERS: Final = 36
_DASHES: Final = (8, 13, 18, 23)


def flag_bits(flags: tuple[Flag, ...]) -> int:
    bits = 0
    for flag in flags:
        bits |= FLAG_BITS[flag]
    return bits


def flags_of(bits: int) -> list[Flag]:
    """What `flag_bits` packed."""
    return [flag for flag, bit in FLAG_BITS.items() if bits & bit]


def pack_ids(texts: Sequence[str]) -> list[bytes | None]:
    """The 16 bytes of each UUID; None for what is not one in its usual form (which may still be one)."""
    packed = _pack_usual_ids(texts)
    if packed is None:
        return [one[0] if (one := _pack_usual_ids([text])) else None for text in texts]
    return list(packed)


def _pack_usual_ids(texts: Sequence[str]) -> list[bytes] | None:
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
    if len(packed) != 16 * count:
        return None
    return [packed[start : start + 16] for start in range(0, len(packed), 16)]


def pack_owner(*, source_id: UUID, batch_id: UUID) -> bytes:
    """How every row of a batch begins."""
    return _OWNER.pack(len(COLUMNS), 16, source_id.bytes, 16, batch_id.bytes)


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
    return fixed + (_NULL if api_key_id is None else b"\0\0\0\x10" + api_key_id.bytes)


def pack_content(
    event: LeanEvent,
    *,
    terms: bytes,
    event_id: bytes,
    request_id: bytes,
    occurred_us: int,
    counts: Sequence[int | None],
) -> bytes:
    """All that the meter said but for the sequence: the same facts under a new number are the same.

    `terms` is of `pack_terms`, `counts` are the event's in the order of `Bucket`. One form for one meaning, whatever
    the order of keys, the offset of a time or the repetition of a flag was on the wire.
    """
    flags, first_byte_ms, recount = event.flags, event.first_byte_ms, event.recount_o200k
    return b"".join([
        terms,
        _FACTS.pack(
            16, event_id,
            16, request_id,
            8, occurred_us,
            8, event.bytes_in,
            8, event.bytes_out,
            4, event.duration_ms,
            2, event.attempt,
            2, event.part,
            2, flag_bits(flags) if flags else 0,
        ),
        _FINISHES[event.finish],
        _NULL if first_byte_ms is None else _INT4.pack(4, first_byte_ms),
        _NULL if recount is None else _INT8.pack(8, recount),
        *[
            _NULL if count is None else _SMALL[count] if count < 4_096 else _INT8.pack(8, count)
            for count in counts
        ],
    ])  # fmt: skip


def pack_row(owner: bytes, numerator: int, content: bytes) -> bytes:
    """One row of COPY ... (FORMAT BINARY) with the columns of `COLUMNS`."""
    return owner + _ADDED.pack(8, numerator, 16, sha256(content).digest()) + content


def digest_of_row(row: bytes) -> bytes:
    """The content digest: the first 16 bytes of the SHA-256 of the packed content."""
    return row[_DIGEST]


def microseconds(at: datetime) -> int:
    """Since 2000 (UTC), as PostgreSQL counts."""
    since: timedelta = at - _EPOCH
    return since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds
