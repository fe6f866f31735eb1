from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from marketplace.periods import (
    calendar_month,
    contract_month,
    delivery_period,
    period_at,
    settlement_period,
)

MOMENTS = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(MOMENTS, st.sampled_from([10, 30, 300, 3_600, 86_400]))
def test_every_moment_is_in_exactly_one_period(at: datetime, length_s: int) -> None:
    period = period_at(at, length_s)
    assert at in period
    assert period.end not in period
    assert period.seconds == length_s
    assert period.start.timestamp() % length_s == 0
    assert period_at(period.start, length_s) == period
    assert period_at(period.end, length_s).start == period.end


@given(MOMENTS, st.integers(0, 24))
def test_contract_months_follow_each_other_without_gap(start: datetime, n: int) -> None:
    assert contract_month(start, n).end == contract_month(start, n + 1).start
    assert contract_month(start, 0).start == start
    assert 28 <= (contract_month(start, n).end - contract_month(start, n).start).days <= 31


def test_a_day_the_month_lacks_becomes_its_last_and_comes_back() -> None:
    start = datetime(2026, 1, 31, 12, tzinfo=UTC)
    days = [contract_month(start, n).start.date().isoformat() for n in range(4)]
    assert days == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]


def test_months_are_of_utc_whatever_the_offset_of_the_moment() -> None:
    at = datetime.fromisoformat("2026-03-01T01:00:00+02:00")
    assert calendar_month(at) == (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))


def test_the_markets_own_periods_have_the_configured_lengths(now: datetime) -> None:
    assert delivery_period(now + timedelta(seconds=299)).start == now
    assert settlement_period(now + timedelta(minutes=59)).start == now
