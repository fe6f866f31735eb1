"""The rules of the market's controls: which moves are allowed, the breaker, the median, the cap and its review.

Pure, exact integers. Rates are micros per Mtok, lengths seconds. The rules in words, with their counterparts of
electricity markets: docs/controls.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

# The cap of a grade that no review has moved, as a multiple of its reference rate.
CAP_MULTIPLE: Final = 10
BREAKER_WINDOW: Final = timedelta(days=7)
# The breaker trips above the sum that 7.5 hours at the cap come to: 90 periods of five minutes.
BREAKER_S_AT_CAP: Final = 27_000
MEDIAN_WINDOW: Final = timedelta(days=30)
ADMINISTERED_MULTIPLE: Final = 2
CAP_NOTICE: Final = timedelta(days=28)
REVIEW_WINDOW: Final = timedelta(days=30)
REVIEW_DAYS: Final = 2
REVIEW_NEAR_CAP_PERCENT: Final = 70
REVIEW_RAISE_PERCENT: Final = 25
# Fewer organizations than this on the sellers' side of a grade: nobody asks above his own firm list rate.
FEW_SELLERS: Final = 3


class Status(StrEnum):
    """What a grade's market does now."""

    NORMAL = "normal"
    CAPPED = "capped"
    HALTED = "halted"


class Action(StrEnum):
    """What moved a control. Setting the administered rate leaves the status where it is."""

    TRIPPED = "tripped"
    RELEASED = "released"
    HALTED = "halted"
    RESUMED = "resumed"
    RATE_SET = "rate_set"


MOVES: Final[dict[Action, frozenset[tuple[Status, Status]]]] = {
    Action.TRIPPED: frozenset({(Status.NORMAL, Status.CAPPED)}),
    Action.RELEASED: frozenset({(Status.CAPPED, Status.NORMAL)}),
    Action.HALTED: frozenset({(Status.NORMAL, Status.HALTED), (Status.CAPPED, Status.HALTED)}),
    Action.RESUMED: frozenset({(Status.HALTED, Status.NORMAL)}),
    Action.RATE_SET: frozenset((status, status) for status in Status),
}


def breaker_action(status: Status, *, rolling_sum: int, cap: int, period_s: int) -> Action | None:
    """What the breaker does now, if anything. A halted market has no prices to break: nothing moves it but people."""
    over = is_over_threshold(rolling_sum=rolling_sum, cap=cap, period_s=period_s)
    if status is Status.NORMAL and over:
        return Action.TRIPPED
    if status is Status.CAPPED and not over:
        return Action.RELEASED
    return None


def is_over_threshold(*, rolling_sum: int, cap: int, period_s: int) -> bool:
    """Whether the clearing rates of seven days sum to more than 7.5 hours at the cap.

    Compared without division, so that it is exact for every length of the delivery period.
    """
    assert rolling_sum >= 0
    assert cap > 0
    assert period_s > 0
    return rolling_sum * period_s > cap * BREAKER_S_AT_CAP


def threshold(*, cap: int, period_s: int) -> int:
    """The greatest rolling sum that does not trip the breaker, for people to read."""
    return cap * BREAKER_S_AT_CAP // period_s


def periods_in_window(period_s: int) -> int:
    """How many delivery periods the breaker looks at: 2,016 of five minutes."""
    return int(BREAKER_WINDOW.total_seconds()) // period_s


def lower_median(rates: Sequence[int]) -> int | None:
    """The middle rate, of two middle ones the lower (PostgreSQL's percentile_disc(0.5)); None of none."""
    return sorted(rates)[(len(rates) - 1) // 2] if rates else None


def administered_cap(*, median: int | None, cap: int) -> int:
    """Twice the median, never above the cap itself and never below the smallest rate a bid can have."""
    return cap if median is None else max(1, min(cap, ADMINISTERED_MULTIPLE * median))


def book_cap(*, cap: int, administered: int | None) -> int:
    """What a book is sealed with: the cap of the grade, or the administered one while the breaker holds it lower."""
    return cap if administered is None else min(cap, administered)


def is_near_cap(*, rate: int, cap: int) -> bool:
    return 100 * rate >= REVIEW_NEAR_CAP_PERCENT * cap


def review_is_due(days_near_cap: Iterable[date]) -> bool:
    """Whether a clearing rate came near the cap on so many different UTC days of the window that the cap is asked
    about."""
    return len(set(days_near_cap)) >= REVIEW_DAYS


def raised_cap(cap: int) -> int:
    """The cap that a review by rule proposes: a quarter more, rounded down."""
    return cap * (100 + REVIEW_RAISE_PERCENT) // 100
