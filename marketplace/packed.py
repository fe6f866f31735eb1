"""Large arrays for PostgreSQL in its binary form, beside the statement instead of in it.

What `marketplace.arrays` writes is read three times: by the parser as a part of the statement, as an array, and each
element; once more wherever the statement names it again. Of the arrays of an auction round that was a tenth of what the
database did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final
from uuid import UUID

import numpy as np
from django.db import connection
from psycopg import Cursor
from psycopg.adapt import Dumper
from psycopg.pq import Format

_UUID: Final = 2950
_UUID_ARRAY: Final = 2951
_BIGINT: Final = 20
_BIGINT_ARRAY: Final = 1016
# Dimensions, whether there are NULLs, the element's type; of the one dimension its length and first number.
_HEADER: Final = Struct("!iiIii")
_EMPTY: Final = Struct("!iiI")
_UUID_SIZE: Final = "00000010"
_SIZED_BIGINT: Final = np.dtype([("size", ">i4"), ("value", ">i8")])


class PackedUuids(bytes):
    """For a `%s::uuid[]`."""


class PackedBigints(bytes):
    """For a `%s::bigint[]`."""


class _UuidsDumper(Dumper):
    format = Format.BINARY
    oid = _UUID_ARRAY

    def dump(self, obj: bytes) -> bytes:
        return bytes(obj)


class _BigintsDumper(_UuidsDumper):
    oid = _BIGINT_ARRAY


def packed_uuids(ids: Iterable[UUID | str]) -> PackedUuids:
    """Ids as text are 32 hexadecimal digits, with hyphens or without."""
    digits = [value if isinstance(value, str) else value.hex for value in ids]
    if not digits:
        return PackedUuids(_EMPTY.pack(0, 0, _UUID))
    elements = bytes.fromhex(f"{_UUID_SIZE}{_UUID_SIZE.join(digits)}".replace("-", ""))
    # Or those behind it would be read as others.
    assert set(map(len, digits)) <= {32, 36}, "an id has 32 hexadecimal digits"
    assert len(elements) == 20 * len(digits), "an id has 32 hexadecimal digits"
    return PackedUuids(_HEADER.pack(1, 0, _UUID, len(digits), 1) + elements)


def packed_bigints(numbers: Iterable[int]) -> PackedBigints:
    """Raises OverflowError for a number beyond 64 bits."""
    values = list(numbers)
    if not values:
        return PackedBigints(_EMPTY.pack(0, 0, _BIGINT))
    elements = np.empty(len(values), _SIZED_BIGINT)
    elements["size"] = 8
    elements["value"] = np.array(values, np.int64)
    return PackedBigints(_HEADER.pack(1, 0, _BIGINT, len(values), 1) + elements.tobytes())


@contextmanager
def packed_cursor() -> Iterator[Cursor[Any]]:
    """A cursor on Django's connection that takes packed arrays, and long texts without quoting them.

    psycopg's own: Django's writes parameters into the statement.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        cursor.adapters.register_dumper(PackedUuids, _UuidsDumper)
        cursor.adapters.register_dumper(PackedBigints, _BigintsDumper)
        yield cursor
