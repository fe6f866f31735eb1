"""Exact sums of events: tallied here, added to the stored ones in one sorted statement.

A tally is all that ingestion and corrections have to say to the roll-ups; it does not matter how the events were split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from django.db.backends.utils import CursorWrapper

from metering.columns import Sums
from metering.validating import Terms
from pricing.units import Bucket

NO_KEY: Final = UUID(int=0)

_KEYS: Final = (
    ("contract_id", "uuid"), ("rate_id", "uuid"), ("api_key_id", "uuid"), ("offering_id", "uuid"), ("bucket", "text"),
    ("meter", "text"), ("period_start", "timestamptz"),
)  # fmt: skip
_SUMS: Final = (
    "events", "native_tokens", "numerator", "estimated_events", "estimated_numerator", "recounted_tokens",
    "recount_o200k_tokens",
)  # fmt: skip
_KEY_NAMES: Final = ", ".join(name for name, _ in _KEYS)
# One document instead of fifteen arrays: the driver dumps arrays value by value.
_TALLIED: Final = f"""json_to_recordset(%s::json) AS t (
    {", ".join(f"{name} {kind}" for name, kind in _KEYS)}, grade_id uuid,
    {", ".join(f"{name} bigint" for name in _SUMS)}
)"""
_SAME_KEY: Final = " AND ".join(f"r.{name} = t.{name}" for name, _ in _KEYS)
_ADD_SQL: Final = f"""
INSERT INTO metering_usagerollup AS r ({_KEY_NAMES}, grade_id, {", ".join(_SUMS)})
SELECT {_KEY_NAMES}, grade_id, {", ".join(_SUMS)} FROM {_TALLIED}
 ORDER BY {_KEY_NAMES}
ON CONFLICT ({_KEY_NAMES}) DO UPDATE SET {", ".join(f"{name} = r.{name} + excluded.{name}" for name in _SUMS)}
"""  # noqa: S608
# An upsert would check the negative row before it finds the one that it changes: so first there is a row, then it
# changes, and one that nothing is left of goes (a bucket that nobody reported has no row).
_TOUCH_SQL: Final = f"""
INSERT INTO metering_usagerollup ({_KEY_NAMES}, grade_id, {", ".join(_SUMS)})
SELECT {_KEY_NAMES}, grade_id, {", ".join(["0"] * len(_SUMS))} FROM {_TALLIED}
 ORDER BY {_KEY_NAMES}
ON CONFLICT ({_KEY_NAMES}) DO UPDATE SET grade_id = excluded.grade_id
"""  # noqa: S608
_CHANGE_SQL: Final = f"""
UPDATE metering_usagerollup r SET {", ".join(f"{name} = r.{name} + t.{name}" for name in _SUMS)}
  FROM {_TALLIED} WHERE {_SAME_KEY}
"""  # noqa: S608
_SWEEP_SQL: Final = f"""
DELETE FROM metering_usagerollup r USING {_TALLIED} WHERE {_SAME_KEY} AND r.events = 0
"""  # noqa: S608


class _Key(NamedTuple):
    contract_id: UUID
    rate_id: UUID
    api_key_id: UUID
    offering_id: UUID
    bucket: str
    meter: str
    period_start: object
    grade_id: UUID


class Tally:
    """Sums by roll-up key. A numerator of a bucket's sum is the sum of its numerators: tokens times one weight."""

    def __init__(self) -> None:
        self._sums: dict[_Key, list[int]] = {}

    def add(
        self, terms: Terms, meter: str, weights: Mapping[Bucket, int], sums: Sums, *, sign: int = 1
    ) -> None:
        """Add (or with `sign` -1 take away) what events of one contract, period, key and meter come to."""
        for place, bucket in enumerate(Bucket):
            if sums.known[place] == 0:
                continue
            ppm = weights.get(bucket, 0)
            added = [
                sums.known[place],
                sums.tokens[place],
                sums.tokens[place] * ppm,
                sums.estimated_known[place],
                sums.estimated_tokens[place] * ppm,
                *((sums.recounted, sums.recount_o200k) if bucket is Bucket.OUTPUT else (0, 0)),
            ]
            held = self._sums.setdefault(_key(terms, bucket, meter), [0] * len(_SUMS))
            for index, amount in enumerate(added):
                held[index] += sign * amount

    def write(self, cursor: CursorWrapper) -> None:
        """Add to the stored sums. Rows are locked in the order of their keys."""
        if not self._sums:
            return
        document = msgspec.json.encode([
            {**key._asdict(), **dict(zip(_SUMS, sums, strict=True))} for key, sums in self._sums.items()
        ]).decode()  # fmt: skip
        if all(amount >= 0 for sums in self._sums.values() for amount in sums):
            cursor.execute(_ADD_SQL, [document])
            return
        for statement in (_TOUCH_SQL, _CHANGE_SQL, _SWEEP_SQL):
            cursor.execute(statement, [document])


def _key(terms: Terms, bucket: Bucket, meter: str) -> _Key:
    return _Key(
        terms.contract_id,
        terms.rate_id,
        terms.api_key_id or NO_KEY,
        terms.offering_id,
        bucket.value,
        meter,
        terms.period_start,
        terms.grade_id,
    )
