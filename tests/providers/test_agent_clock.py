"""The agent goes by the market's time, however wrong its machine's clock is."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import uuid4

import pytest

from marketplace.ids import uuid7_time_ms
from metering.usage import Finish
from providers.agent.clock import AgentClock, retry_after_s
from providers.agent.meter import AttemptMeter
from providers.wire import DeliveryKey

TRUE = datetime(2026, 11, 20, 12, tzinfo=UTC)
OFFSETS = {
    "ten minutes fast": timedelta(minutes=10),
    "ten minutes slow": -timedelta(minutes=10),
    "at 1970": datetime(1970, 1, 1, 0, 5, tzinfo=UTC) - TRUE,
    "at 2099": datetime(2099, 6, 1, tzinfo=UTC) - TRUE,
}


class Machine:
    """A machine whose clock is off, and whose time passes when it is told."""

    def __init__(self, offset: timedelta = timedelta(0)) -> None:
        self.passed_s = 0.0
        self.offset = offset

    def wall(self) -> float:
        return (TRUE + self.offset).timestamp() + self.passed_s

    def monotonic(self) -> float:
        return 1_000.0 + self.passed_s

    def clock(self) -> AgentClock:
        return AgentClock(wall=self.wall, monotonic=self.monotonic)

    @property
    def date(self) -> dict[str, str]:
        """The market's header now."""
        return {"Date": format_datetime(TRUE + timedelta(seconds=int(self.passed_s)), usegmt=True)}

    @property
    def true_now(self) -> datetime:
        return TRUE + timedelta(seconds=self.passed_s)


def near(first: datetime, second: datetime, *, within_s: float = 1.1) -> bool:
    return abs((first - second).total_seconds()) <= within_s


@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS.keys())
def test_one_answer_of_the_market_sets_a_wrong_clock_right(offset: timedelta) -> None:
    machine = Machine(offset)
    clock = machine.clock()
    assert near(clock.now(), machine.true_now + offset)
    assert clock.learn(machine.date, asked_at_s=machine.monotonic())
    assert near(clock.now(), machine.true_now)
    machine.passed_s = 3_600.0
    assert near(clock.now(), machine.true_now)
    assert not clock.learn(machine.date, asked_at_s=machine.monotonic())
    # What it tells the market of itself is still its own.
    assert near(clock.machine_now(), machine.true_now + offset, within_s=0.001)


@pytest.mark.parametrize("offset_s", [-1.5, -0.4, 0, 0.4, 1.5])
def test_a_clock_that_is_right_is_left_alone(offset_s: float) -> None:
    machine = Machine(timedelta(seconds=offset_s))
    clock = machine.clock()
    assert not clock.learn(machine.date, asked_at_s=machine.monotonic())
    assert clock.now() == clock.machine_now()


def test_an_answer_that_took_long_is_not_believed_to_the_second() -> None:
    machine = Machine(timedelta(seconds=5))
    clock = machine.clock()
    machine.passed_s = 20.0
    assert not clock.learn(machine.date, asked_at_s=1_000.0)
    assert clock.now() == clock.machine_now()


def test_a_clock_that_is_set_meanwhile_disturbs_nothing() -> None:
    machine = Machine(OFFSETS["at 1970"])
    clock = machine.clock()
    clock.learn(machine.date, asked_at_s=machine.monotonic())
    machine.offset = timedelta(0)  # NTP came up.
    assert near(clock.now(), machine.true_now)
    assert not clock.learn(machine.date, asked_at_s=machine.monotonic())
    assert clock.now() == clock.machine_now()


@pytest.mark.parametrize(
    "date",
    [None, "", "yesterday", "Fri, 20 Nov 99999 12:00:00 GMT", "x" * 5_000, "Fri, 32 Nov 2026 99:00:00"],
)
def test_an_answer_without_a_time_teaches_nothing(date: str | None) -> None:
    machine = Machine(OFFSETS["at 2099"])
    clock = machine.clock()
    headers = {} if date is None else {"Date": date}
    assert not clock.learn(headers, asked_at_s=machine.monotonic())
    assert clock.now() == clock.machine_now()


def test_a_clock_out_of_all_bounds_is_still_a_time() -> None:
    for offset_s in (-(10**12), 10**15):
        assert AgentClock(test_offset_s=offset_s).now().tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        (format_datetime(TRUE + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(TRUE - timedelta(seconds=90), usegmt=True), 0.0),
        ("-5", None),
        ("1e9", None),
        ("soon", None),
        ("", None),
        ("9" * 40, None),
    ],
)
def test_what_retry_after_says(text: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": text}, now=TRUE) == seconds


def delivery_key() -> DeliveryKey:
    return DeliveryKey(
        hold_id=uuid4(),
        request_id=uuid4(),
        contract_id=uuid4(),
        offering_id=uuid4(),
        grade_id=uuid4(),
        rate_id=uuid4(),
        period_start=TRUE,
        occurred_at=TRUE + timedelta(milliseconds=250),
        expires_at=TRUE + timedelta(seconds=30),
        max_output_tokens=5,
    )


@pytest.mark.parametrize("learned", [True, False], ids=["market answered", "market not yet heard of"])
@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS.keys())
def test_event_ids_are_of_the_markets_time_from_the_first_event_on(offset: timedelta, learned: bool) -> None:
    machine = Machine(offset)
    clock = machine.clock()
    if learned:
        clock.learn(machine.date, asked_at_s=machine.monotonic())
    meter = AttemptMeter(key=delivery_key(), usage_source="llamacpp", bytes_in=1, monotonic=clock.monotonic)
    machine.passed_s = 2.5
    event = meter.event(finish=Finish.STOP)
    assert uuid7_time_ms(event.id) == int(TRUE.timestamp() * 1000) + 250 + 2_500
    assert (event.id.version, event.duration_ms) == (7, 2_500)


def test_ids_of_one_moment_differ() -> None:
    still: Callable[[], float] = lambda: 5.0  # noqa: E731
    key = delivery_key()
    ids = {
        AttemptMeter(key=key, usage_source="vllm", bytes_in=1, monotonic=still).event().id
        for _ in range(2_000)
    }
    assert len(ids) == 2_000
