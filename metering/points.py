"""Meter points of many contracts in one step. Part of this room's services: `metering.services` exports it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import transaction

from marketplace.errors import Conflict
from marketplace.packed import packed_cursor, packed_uuids

# In the order of the key, so that two writers of the same points meet in one order.
_ADD: Final = """
INSERT INTO metering_meterpoint AS known (id, contract_id, offering_id, host_id, grade_id, valid_from, valid_until)
SELECT id, contract_id, offering_id, host_id, grade_id, %(valid_from)s, NULL
FROM unnest(%(ids)s::uuid[], %(contracts)s::uuid[], %(offerings)s::uuid[], %(hosts)s::uuid[], %(grades)s::uuid[])
    AS n (id, contract_id, offering_id, host_id, grade_id)
ORDER BY contract_id, offering_id
ON CONFLICT (contract_id, offering_id) DO UPDATE SET
    valid_from = LEAST(known.valid_from, EXCLUDED.valid_from), valid_until = NULL
WHERE (known.host_id, known.grade_id) = (EXCLUDED.host_id, EXCLUDED.grade_id)
    AND (known.valid_from > EXCLUDED.valid_from OR known.valid_until IS NOT NULL)
"""
_OTHERS: Final = """
SELECT 1 FROM unnest(%(contracts)s::uuid[], %(offerings)s::uuid[], %(hosts)s::uuid[], %(grades)s::uuid[])
    AS n (contract_id, offering_id, host_id, grade_id)
JOIN metering_meterpoint AS known USING (contract_id, offering_id)
WHERE (known.host_id, known.grade_id) <> (n.host_id, n.grade_id) LIMIT 1
"""


class NewPoint(NamedTuple):
    """This offering, on this host, may supply this contract in this grade version. Ids may be text.

    `id` is the caller's, of what the point is made for: drawing so many at random takes longer than storing them. Where
    the contract and the offering have a point already, that one keeps its own.
    """

    id: UUID | str
    contract_id: UUID | str
    offering_id: UUID | str
    host_id: UUID | str
    grade_id: UUID | str


@transaction.atomic
def add_meter_points(points: Sequence[NewPoint], *, valid_from: datetime) -> None:
    """As `add_meter_point` without an end, for many. Adding them again only ever widens the time.

    Raises Conflict, adding none, when one exists with another host or grade version: usage already stands on it.
    """
    if not points:
        return
    places: dict[str, Any] = {
        "ids": packed_uuids(point.id for point in points),
        "contracts": packed_uuids(point.contract_id for point in points),
        "offerings": packed_uuids(point.offering_id for point in points),
        "hosts": packed_uuids(point.host_id for point in points),
        "grades": packed_uuids(point.grade_id for point in points),
        "valid_from": valid_from,
    }
    with packed_cursor() as cursor:
        cursor.execute(_ADD, places)
        if cursor.rowcount == len(points):
            return  # All are new or widened; those that need not change are looked at.
        cursor.execute(_OTHERS, places)
        if cursor.fetchone() is not None:
            raise Conflict(
                "The offering supplies this contract in another grade version or from another host."
            )
