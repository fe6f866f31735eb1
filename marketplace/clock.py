"""The market's clock. Only edges read it (views, tasks, commands); services and SQL take `now` as an argument.

With TEST_CLOCK=1 one row holds an offset that moves every process at once: web, workers, gateway, agents' market
side. Without it the row is never read, so production pays nothing for the possibility.
"""

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db.models import F

from marketplace.models import ClockOffset

# For callers with their own connection (the gateway's pool): one row, one column, milliseconds.
OFFSET_SQL = "SELECT coalesce(max(offset_ms), 0) FROM marketplace_clockoffset"


class ClockNotMovable(Exception):
    """The clock can be moved only where TEST_CLOCK=1."""


def wall_now() -> datetime:
    """The machine's time, aware, UTC."""
    return datetime.now(UTC)


def now() -> datetime:
    """The market's time, aware, UTC: the machine's, moved by the offset row where TEST_CLOCK=1."""
    if not settings.TEST_CLOCK:
        return wall_now()
    return wall_now() + offset()


def offset() -> timedelta:
    """How far the market's clock is ahead of the machine's; zero where nobody moved it."""
    offset_ms = ClockOffset.objects.values_list("offset_ms", flat=True).first()
    return timedelta(milliseconds=offset_ms or 0)


def advance(delta: timedelta) -> datetime:
    """Move the clock forward for every process and return the new time.

    Raises ClockNotMovable without TEST_CLOCK=1, ValueError for a step backwards: settled time never returns.
    """
    if not settings.TEST_CLOCK:
        raise ClockNotMovable("the clock moves only with TEST_CLOCK=1")
    if delta < timedelta(0):
        raise ValueError("delta must not be negative: the market's time only goes forward")
    step_ms = delta // timedelta(milliseconds=1)
    _, created = ClockOffset.objects.get_or_create(id=ClockOffset.ONLY_ID, defaults={"offset_ms": step_ms})
    if not created:
        ClockOffset.objects.filter(id=ClockOffset.ONLY_ID).update(offset_ms=F("offset_ms") + step_ms)
    return now()
