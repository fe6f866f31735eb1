"""Identifiers: UUIDv7 everywhere, and ids derived from a parent that keep the parent's time.

A derived id lets a retry find what it made the first time without remembering anything: the same parent and
code always give the same id. It keeps the parent's 48-bit time so that it sorts beside the parent and lands
in the same time partition.
"""

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from uuid import UUID

import uuid_utils.compat

_TIME_BITS = 48
_DIGEST_BITS = 128 - _TIME_BITS
_VERSION_7 = 0x7 << 76
_VERSION_8 = 0x8 << 76
_VARIANT_RFC = 0b10 << 62
# A digit of the digest with the variant's two bits in place of its own.
_VARIANT_DIGIT = {f"{digit:x}": f"{0b1000 | digit & 0b11:x}" for digit in range(16)}
_VERSION_MASK = 0xF << 76
_VARIANT_MASK = 0b11 << 62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def uuid7(at: datetime | None = None) -> UUID:
    """A new UUIDv7 (RFC 9562, section 5.7), of this moment or of the aware moment `at`."""
    if at is None:
        return uuid_utils.compat.uuid7()
    assert at.tzinfo is not None, "an id needs an aware time"
    time_ms = (at - _EPOCH) // _MILLISECOND
    value = (time_ms << _DIGEST_BITS) | int.from_bytes(os.urandom(_DIGEST_BITS // 8))
    return _with_version(value, _VERSION_7)


def uuid7_time_ms(value: UUID) -> int:
    """Milliseconds since 1970 (UTC) in the first 48 bits of a version 7 id, or of an id derived from one."""
    return value.int >> _DIGEST_BITS


def derived_id(parent: UUID, code: str) -> UUID:
    """The id that belongs to `code` under `parent`: version 8 (RFC 9562, section 5.8), a pure function.

    Layout: the parent's 48-bit time, then BLAKE2b(parent bytes, code) with version and variant bits set.
    122 - 48 = 74 bits of digest, so two codes under one parent never meet in practice.
    """
    digest = blake2b(code.encode(), key=parent.bytes, digest_size=_DIGEST_BITS // 8).digest()
    value = (uuid7_time_ms(parent) << _DIGEST_BITS) | int.from_bytes(digest)
    return _with_version(value, _VERSION_8)


def derived_hex(parent: str, code: str) -> str:
    """`derived_id` from one piece of text to another, for the hundred thousands of an auction round: an id is 32
    hexadecimal digits, with hyphens or without, and comes back as 32 without.
    """
    digits = parent.replace("-", "")
    digest = blake2b(code.encode(), key=bytes.fromhex(digits), digest_size=_DIGEST_BITS // 8).hexdigest()
    return f"{digits[:12]}8{digest[1:4]}{_VARIANT_DIGIT[digest[4]]}{digest[5:]}"


def derived_hexes(parent: str, codes: Iterable[str]) -> list[str]:
    """`derived_hex` of one parent for many codes, which takes its key in once."""
    digits = parent.replace("-", "")
    begin = f"{digits[:12]}8"
    keyed = blake2b(key=bytes.fromhex(digits), digest_size=_DIGEST_BITS // 8)
    made = []
    for code in codes:
        derived = keyed.copy()
        derived.update(code.encode())
        digest = derived.hexdigest()
        made.append(f"{begin}{digest[1:4]}{_VARIANT_DIGIT[digest[4]]}{digest[5:]}")
    return made


def _with_version(value: int, version_bits: int) -> UUID:
    return UUID(int=(value & ~_VERSION_MASK & ~_VARIANT_MASK) | version_bits | _VARIANT_RFC)
