"""Known ids are asked for month by month, which must neither lose nor repeat one at a partition's edge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from marketplace.ids import uuid7
from metering.storing import _by_month

MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "edge",
    [datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)],
)
def test_ids_are_cut_exactly_where_a_month_ends(edge: datetime) -> None:
    before = sorted(uuid7(edge - step * MILLISECOND).bytes for step in (1, 2, 40 * 86_400_000))
    after = sorted(uuid7(edge + step * MILLISECOND).bytes for step in (0, 1, 27 * 86_400_000))
    parts = [list(part) for part in _by_month(before + after)]
    assert parts == [before[:1], before[1:], after]
    assert list(_by_month([])) == []
