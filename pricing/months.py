"""Periods of time: half-open `[start, end)`, UTC. What a contract, a charge or an invoice is about is instants.

Nothing here knows a zone. Where an organization sees its dates in a zone of its own, its clock may show the start of
a period an hour later after a change to summer time: the instant, and what the period costs, are the same.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from pricing.units import Micros, div_half_even

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Period(NamedTuple):
    """`start` belongs to it, `end` to the next one."""

    start: datetime
    end: datetime

    # All three in UTC: Python takes two times of one zone by their clocks, which jump.
    def __contains__(self, at: object) -> bool:
        if not isinstance(at, datetime):
            return False
        assert at.tzinfo is not None, "a period needs an aware time"
        return self.start.astimezone(UTC) <= at.astimezone(UTC) < self.end.astimezone(UTC)

    @property
    def microseconds(self) -> int:
        return (self.end.astimezone(UTC) - self.start.astimezone(UTC)) // _MICROSECOND

    @property
    def seconds(self) -> int:
        return self.microseconds // 1_000_000


def period_at(at: datetime, length_s: int) -> Period:
    """The period of `length_s` seconds that holds the aware moment `at`: start = floor(t / length) * length."""
    assert at.tzinfo is not None, "a period needs an aware time"
    assert length_s > 0
    length = timedelta(seconds=length_s)
    start = _EPOCH + (at - _EPOCH) // length * length
    return Period(start, start + length)


def contract_month(start: datetime, n: int) -> Period:
    """The n-th contract month (0 is the first) of a term that began at `start`, anchored at that instant.

    A day the month does not have becomes its last day (31 January, then 28 February, then 31 March): always counted
    from `start`, never from the month before, so that no day is lost for good.
    """
    assert start.tzinfo is not None
    assert n >= 0
    anchor = start.astimezone(UTC)
    return Period(_add_months(anchor, n), _add_months(anchor, n + 1))


def contract_month_at(start: datetime, at: datetime) -> int:
    """Which contract month of a term that began at `start` holds the moment `at`, which is not before it."""
    # In UTC first: Python compares two times of one zone by their clocks, which jump.
    anchor, moment = start.astimezone(UTC), at.astimezone(UTC)
    assert anchor <= moment
    n = (moment.year - anchor.year) * 12 + moment.month - anchor.month
    # The anchor's day and time are later in the month than `at`, or its last day stands for it.
    return n if _add_months(anchor, n) <= moment else n - 1


def last_term_before(end: datetime, months: int) -> datetime:
    """The start of a term of so many contract months that is over by `end`, and as late as its day of the month may be.

    31 March less one month is 28 February: its month ends on 28 March.
    """
    assert end.tzinfo is not None
    assert months >= 0
    return _add_months(end.astimezone(UTC), -months)


def calendar_month(at: datetime) -> Period:
    """The UTC calendar month that holds `at`: what an invoice is about."""
    assert at.tzinfo is not None
    start = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Period(start, _add_months(start, 1))


def by_calendar_month(period: Period) -> Iterator[Period]:
    """A period cut at the starts of UTC calendar months: the part that each month's invoice is about."""
    at = period.start.astimezone(UTC)
    end = period.end.astimezone(UTC)
    while at < end:
        until = min(calendar_month(at).end, end)
        yield Period(at, until)
        at = until


def prorated(amount_micros: int, part: Period, *, whole: Period) -> Micros:
    """The share of `part` in an amount for `whole`, by time to the microsecond.

    A difference of what has accrued at its end and at its start, each half to even: parts that tile the whole add up to
    the amount, however it is cut.
    """
    start, length = whole.start.astimezone(UTC), whole.microseconds
    assert start <= part.start.astimezone(UTC) <= part.end.astimezone(UTC) <= whole.end.astimezone(UTC)

    def accrued(at: datetime) -> int:
        return div_half_even(amount_micros * Period(start, at).microseconds, length)

    return Micros(accrued(part.end) - accrued(part.start))


def _add_months(moment: datetime, months: int) -> datetime:
    years, month_index = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month_index + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)
