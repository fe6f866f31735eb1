"""Large arrays for PostgreSQL as one piece of text.

psycopg makes an array of a list element by element, which for the hundred thousands of an auction round takes longer
than the statement. Only for elements that need no quoting.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID


def uuid_array(ids: Iterable[UUID]) -> str:
    """For a `%s::uuid[]`."""
    return "{" + ",".join([value.hex for value in ids]) + "}"


def bigint_array(numbers: Iterable[int]) -> str:
    """For a `%s::bigint[]`."""
    return "{" + ",".join(map(str, numbers)) + "}"
