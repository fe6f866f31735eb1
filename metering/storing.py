"""Usage events in and out of their table, by key and in packed form. Rules are `ingesting`'s and `correcting`'s."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import connection
from psycopg import Cursor
from psycopg.adapt import Dumper
from psycopg.pq import Format

from metering.packing import COLUMNS, CONTENT_COLUMNS, HEADER, TRAILER, pack_uuid_array, unpack_contents

_UUID_ARRAY_OID: Final = 2951
_COPY_SQL: Final = f"COPY metering_usageevent ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
# One search of the index per id. The bounds rule out partitions before any is opened; in a subquery the array is not
# looked through by the planner.
_KNOWN_SQL: Final = """
SELECT id, source_id FROM metering_usageevent
 WHERE id = ANY ((SELECT %b)::uuid[]) AND id >= %b::uuid AND id <= %b::uuid
"""
_CONTENT_SQL: Final = f"""
COPY (SELECT id, source_id, {", ".join(CONTENT_COLUMNS)} FROM metering_usageevent
       WHERE id = ANY (%s::uuid[]) AND id >= %s::uuid AND id <= %s::uuid)
  TO STDOUT (FORMAT BINARY)
"""  # noqa: S608


class _PackedIds(bytes):
    """A uuid[] that is in PostgreSQL's binary form already."""


class _PackedIdsDumper(Dumper):
    format = Format.BINARY
    oid = _UUID_ARRAY_OID

    def dump(self, obj: bytes) -> bytes:
        return bytes(obj)


def find_stored(keys: Collection[bytes]) -> dict[bytes, bytes]:
    """Which keys (16 bytes of id, 16 of source; at least one) are stored, and the packed content of each."""
    ids = sorted({key[:16] for key in keys})
    found: list[tuple[UUID, bytes]] = []
    # Not Django's cursor: it would send the ids as text.
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        cursor.adapters.register_dumper(_PackedIds, _PackedIdsDumper)
        for part in _by_month(ids):
            bounds = UUID(bytes=part[0]), UUID(bytes=part[-1])
            cursor.execute(_KNOWN_SQL, [_PackedIds(pack_uuid_array(part)), *bounds], binary=True)
            found += [(event_id, event_id.bytes + source_id.bytes) for event_id, source_id in cursor]
        known = sorted(event_id for event_id, key in found if key in keys)
        if not known:
            return {}
        with cursor.copy(_CONTENT_SQL, [known, known[0], known[-1]]) as copy:
            copied = b"".join(bytes(part) for part in copy)
    stored = {b"".join(filter(None, key)): content for key, content in unpack_contents(copied, 2)}
    return {key: stored[key] for key in stored if key in keys}


def _by_month(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Sorted ids, cut where a partition ends: asked together, each would be looked for in every partition."""
    start = 0
    while start < len(ids):
        made_at = datetime.fromtimestamp(int.from_bytes(ids[start][:6]) / 1_000, UTC)
        next_month = (made_at.replace(day=1) + timedelta(days=32)).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        end = bisect_left(ids, (int(next_month.timestamp()) * 1_000).to_bytes(6), start)
        yield ids[start:end]
        start = end


def copy_events(rows: Iterable[bytes]) -> None:
    """Store packed rows, which are sorted by key. Raises IntegrityError when one is there already: then none is stored,
    and the transaction is good for nothing but its rollback (the caller has a savepoint).
    """
    with connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(_COPY_SQL) as copy:
        copy.write(HEADER)
        for part in rows:
            copy.write(part)
        copy.write(TRAILER)
