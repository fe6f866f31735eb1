"""What usage events tell of attempts that broke off, and which served request came next."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from metering.failing import attempts_broken_off, attempts_served
from metering.services import ingest_batches
from metering.usage import Flag
from tests.metering.meters import API_KEY_ID, Meters

PERIOD = timedelta(minutes=5)


def store(meters: Meters, **changes: Any) -> None:
    meters.report([meters.event(api_key_id=API_KEY_ID, **changes)])
    ingest_batches(now=meters.now)


def test_broken_off_at_the_end_of_the_attempt_and_served_from_admission(meters: Meters) -> None:
    start = meters.now
    at = [start + timedelta(seconds=second) for second in (1, 10, 30)]
    store(meters, occurred_at=at[0])
    store(meters, occurred_at=at[1], duration_ms=2_500, flags=(Flag.UPSTREAM_FAILED, Flag.ESTIMATED))
    store(meters, occurred_at=at[2], flags=(Flag.CLIENT_GONE,))
    span = {"since": start, "until": start + PERIOD}
    assert attempts_broken_off(meters.contract_id, **span) == [
        (meters.offering_id, start, at[1] + timedelta(milliseconds=2_500))
    ]
    assert attempts_served(meters.offering_id, **span) == [at[0], at[2]]


def test_other_periods_contracts_and_offerings_say_nothing(meters: Meters) -> None:
    store(meters, flags=(Flag.UPSTREAM_FAILED,))
    later = {"since": meters.now + PERIOD, "until": meters.now + 2 * PERIOD}
    assert attempts_broken_off(meters.contract_id, **later) == []
    here = {"since": meters.now, "until": meters.now + PERIOD}
    assert attempts_broken_off(API_KEY_ID, **here) == []
    assert attempts_served(API_KEY_ID, **here) == []
