"""Document numbers without gaps: the counter moves in the transaction that issues the document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import connection

from marketplace.accounts.organization_clocks import with_clocks
from marketplace.ids import uuid7

_NEXT = """
INSERT INTO billing_documentnumber AS counter (id, issuer_id, series, last_number)
VALUES (%(id)s, %(issuer)s, %(series)s, %(count)s)
ON CONFLICT ON CONSTRAINT billing_documentnumber_unique DO UPDATE SET last_number = counter.last_number + %(count)s
RETURNING last_number
"""


def series_of(prefix: str, organization_id: UUID, *, now: datetime) -> str:
    """The series of a document for this organization: `TY-2026`, or `TEST-0a1b2c3d-TY-2027` where it has a test clock.

    Its documents are dated ahead of everybody else's: in one series the others' would stand out of the order of dates.
    """
    return _series(prefix, organization_id, has_clock=bool(with_clocks([organization_id])), now=now)


def numbers_for(
    organization_ids: Sequence[UUID], *, issuer_id: UUID, prefix: str, now: datetime
) -> list[str]:
    """The next number of each organization's series, in this order; one counter is locked for each series."""
    clocked = with_clocks(organization_ids)
    series = [_series(prefix, one, has_clock=one in clocked, now=now) for one in organization_ids]
    numbers = {
        name: iter(next_numbers(issuer_id=issuer_id, series=name, count=series.count(name)))
        for name in sorted(set(series))
    }
    return [next(numbers[name]) for name in series]


def _series(prefix: str, organization_id: UUID, *, has_clock: bool, now: datetime) -> str:
    plain = f"{prefix}-{now.year}"
    return f"TEST-{organization_id.hex[-8:]}-{plain}" if has_clock else plain


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
