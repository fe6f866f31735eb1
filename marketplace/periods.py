"""Periods of the market: half-open `[start, end)`, UTC, aligned to 1970-01-01T00:00Z. Pure but for the two lengths."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.conf import settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """`start` belongs to it, `end` to the next one."""

    start: datetime
    end: datetime

    def __contains__(self, at: object) -> bool:
        return isinstance(at, datetime) and self.start <= at < self.end

    @property
    def seconds(self) -> int:
        return (self.end - self.start) // timedelta(seconds=1)


def period_at(at: datetime, length_s: int) -> Period:
    """The period of `length_s` seconds that holds the aware moment `at`: start = floor(t / length) * length."""
    assert at.tzinfo is not None, "a period needs an aware time"
    assert length_s > 0
    length = timedelta(seconds=length_s)
    start = _EPOCH + (at - _EPOCH) // length * length
    return Period(start, start + length)


def delivery_period(at: datetime) -> Period:
    """When it is supplied (DELIVERY_PERIOD_S)."""
    return period_at(at, settings.DELIVERY_PERIOD_S)


def settlement_period(at: datetime) -> Period:
    """When it is squared up (SETTLEMENT_PERIOD_S)."""
    return period_at(at, settings.SETTLEMENT_PERIOD_S)


def contract_month(start: datetime, n: int) -> Period:
    """The n-th contract month (0 is the first) of a term that began at `start`, anchored at that instant.

    A day the month does not have becomes its last day (31 January, then 28 February, then 31 March): always counted
    from `start`, never from the month before, so that no day is lost for good.
    """
    assert start.tzinfo is not None
    assert n >= 0
    anchor = start.astimezone(UTC)
    return Period(_add_months(anchor, n), _add_months(anchor, n + 1))


def calendar_month(at: datetime) -> Period:
    """The UTC calendar month that holds `at`: what an invoice is about."""
    assert at.tzinfo is not None
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Period(start, _add_months(start, 1))


def _add_months(moment: datetime, months: int) -> datetime:
    years, month_index = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month_index + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)
