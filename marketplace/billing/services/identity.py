"""Ids of what billing writes: derived, so that a second run finds what the first one wrote and changes nothing."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from marketplace.ids import derived_id, uuid7

_RANDOM_BITS = 80


def id_at(owner: UUID, at: datetime, code: str) -> UUID:
    """The id of `code` of `owner` at a moment. It carries the moment's time, so that ids sort by period."""
    time_ms = uuid7(at).int >> _RANDOM_BITS
    anchor = UUID(int=(time_ms << _RANDOM_BITS) | (owner.int & ((1 << _RANDOM_BITS) - 1)))
    return derived_id(anchor, f"{owner}:{at.isoformat()}:{code}")
