"""Document numbers without gaps: the counter moves in the transaction that issues the document."""

from __future__ import annotations

from uuid import UUID

from django.db import connection

from marketplace.ids import uuid7

_NEXT = """
INSERT INTO billing_documentnumber AS counter (id, issuer_id, series, last_number)
VALUES (%(id)s, %(issuer)s, %(series)s, %(count)s)
ON CONFLICT ON CONSTRAINT billing_documentnumber_unique DO UPDATE SET last_number = counter.last_number + %(count)s
RETURNING last_number
"""


def next_number(*, issuer_id: UUID, series: str) -> str:
    """The next number of a series, such as `TY-2026-000001`.

    Holds the counter's row until the caller's transaction ends: two issuers wait for each other, and a rolled back
    document gives its number back. Call it as late as possible.
    """
    [number] = next_numbers(issuer_id=issuer_id, series=series, count=1)
    return number


def next_numbers(*, issuer_id: UUID, series: str, count: int) -> list[str]:
    """`next_number` so many times, in order."""
    assert connection.in_atomic_block, "a number outside of its document's transaction could be lost"
    assert count > 0
    with connection.cursor() as cursor:
        cursor.execute(_NEXT, {"id": uuid7(), "issuer": issuer_id, "series": series, "count": count})
        (last,) = cursor.fetchone()
    return [f"{series}-{number:06d}" for number in range(last - count + 1, last + 1)]
