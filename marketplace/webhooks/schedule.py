"""When to try again. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

# The schedule that the specification recommends, cut off at three days.
_PAUSES_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 72_000)
GIVE_UP_AFTER: Final = timedelta(hours=72)
_LONGEST_ASKED_S: Final = 3_600
_SPREAD_PERCENT: Final = 20


def next_attempt(
    *, attempts: int, give_up_at: datetime, asked_s: int | None, spread: int, now: datetime
) -> datetime | None:
    """The next try after `attempts` tries, or None when it is time to give up.

    `asked_s` is the endpoint's Retry-After, believed up to an hour. `spread` is random from 0 to 99 and adds up to a
    fifth of the pause, so that what failed together does not come back together. The last try is at `give_up_at`.
    """
    assert attempts >= 1
    assert 0 <= spread < 100
    if now >= give_up_at:
        return None
    pause_s = _PAUSES_S[min(attempts, len(_PAUSES_S)) - 1]
    pause = timedelta(seconds=pause_s, milliseconds=pause_s * 10 * spread * _SPREAD_PERCENT // 100)
    if asked_s is not None:
        pause = max(pause, timedelta(seconds=min(asked_s, _LONGEST_ASKED_S)))
    return min(now + pause, give_up_at)
