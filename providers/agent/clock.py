"""What time it is at the market, whatever this machine's own clock says.

Signatures, delivery keys and event ids are judged by the market's clock. A host whose clock is off by ten minutes, or
stands at 1970 after a cold start, would be refused everywhere; so the agent goes by the market's time, learned from the
`Date` of every answer (also of the refusal that a wrong clock brings), and tells the market how far its own is off.
"""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

# A `Date` has whole seconds, and half of the way to and fro is unknown: less than this is not worth correcting.
_TRUSTED_WITHIN_S = 2.0
_EARLIEST_S = 0.0
_LATEST_S = 253_402_214_400.0  # The last day of 9999: what a datetime can hold.


class AgentClock:
    """`wall` and `monotonic` are the machine's, in seconds; `test_offset_s` rehearses a wrong wall clock."""

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        test_offset_s: int = 0,
    ) -> None:
        self._wall = wall
        self._test_offset_s = test_offset_s
        self.monotonic = monotonic
        # The market's time less the monotonic clock, once it differs from what the machine says: a machine whose clock
        # is set right (or wrong) meanwhile does not disturb it.
        self._market_less_monotonic_s: float | None = None

    def machine_now(self) -> datetime:
        """This machine's own clock, right or wrong."""
        return _moment(self._machine_s())

    def now(self) -> datetime:
        """The market's time; the machine's own until the market has answered, or while both agree."""
        return _moment(self._now_s())

    def learn(self, headers: Mapping[str, str], *, asked_at_s: float) -> bool:
        """Notes the `Date` of the market's answer to a request sent at `asked_at_s` (monotonic).

        True when the time gone by until now was wrong by more than an answer can tell: what was signed with it is worth
        another try.
        """
        market_s = _date_s(headers.get("Date"))
        if market_s is None:
            return False
        answered_at_s = self.monotonic()
        uncertain_s = _TRUSTED_WITHIN_S + (answered_at_s - asked_at_s) / 2
        # The middle of the way, and of the second that the header stands for.
        market_s += 0.5 + (answered_at_s - asked_at_s) / 2
        was_wrong = abs(market_s - self._now_s()) > uncertain_s
        machine_agrees = abs(market_s - self._machine_s()) <= uncertain_s
        if machine_agrees:
            if self._market_less_monotonic_s is not None:
                logger.info("this machine's clock agrees with the market's again")
            self._market_less_monotonic_s = None
        elif was_wrong or self._market_less_monotonic_s is None:
            if was_wrong:
                logger.warning(
                    "this machine's clock is wrong; going by the market's time",
                    extra={"clock_skew_s": round(self._machine_s() - market_s)},
                )
            self._market_less_monotonic_s = market_s - answered_at_s
        return was_wrong

    def _machine_s(self) -> float:
        return self._wall() + self._test_offset_s

    def _now_s(self) -> float:
        if self._market_less_monotonic_s is None:
            return self._machine_s()
        return self._market_less_monotonic_s + self.monotonic()


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The seconds that an answer asks to wait for (RFC 9110: seconds, or a date); None where it does not say."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    date_s = _date_s(text)
    return None if date_s is None else max(0.0, date_s - now.timestamp())


def _date_s(text: str | None) -> float | None:
    if not text or len(text) > 64:
        return None
    try:
        parsed = parsedate_to_datetime(text)
        return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _moment(seconds: float) -> datetime:
    bounded = min(max(seconds, _EARLIEST_S), _LATEST_S)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=bounded)
