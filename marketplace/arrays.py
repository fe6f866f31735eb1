"""Large arrays for PostgreSQL as one piece of text.

psycopg makes an array of a list element by element, which for the hundred thousands of an auction round takes longer
than the statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID


def uuid_array(ids: Iterable[UUID | str]) -> str:
    """For a `%s::uuid[]`. Ids that are text already stay as they are."""
    return "{" + ",".join([value if isinstance(value, str) else value.hex for value in ids]) + "}"


def nullable_uuid_array(ids: Iterable[UUID | None]) -> str:
    """For a `%s::uuid[]` with NULLs in it."""
    return "{" + ",".join(["NULL" if value is None else value.hex for value in ids]) + "}"


def text_array(texts: Iterable[str]) -> str:
    """For a `%s::text[]`; every element is quoted, so that none of them is taken for NULL or for a separator."""
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return "{" + ",".join([f'"{text}"' for text in quoted]) + "}"


def bigint_array(numbers: Iterable[int]) -> str:
    """For a `%s::bigint[]`."""
    return "{" + ",".join(map(str, numbers)) + "}"
