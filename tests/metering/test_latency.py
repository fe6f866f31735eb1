"""Percentiles of what the gateway measured: exact, and of nothing else (docs/service-levels.md)."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.ids import uuid7
from metering.latency import Latency, latencies
from metering.services import accept_batch, amend_event, ingest_batches, void_event
from metering.usage import Finish, Flag
from pricing.service_levels import nearest_rank, output_token_us
from pricing.units import Bucket
from tests.metering.meters import Meters

HOUR = timedelta(hours=1)


def measured(meters: Meters, metric: str = "first_token", percentile: int = 50, **more: Any) -> list[Latency]:
    return latencies(
        meters.contract_id,
        since=meters.now,
        until=meters.now + HOUR,
        grade_id=meters.grade_id,
        metric=metric,
        percentile=percentile,
        **more,
    )


def store(meters: Meters, *changes: dict[str, Any]) -> list[Any]:
    events = [meters.event(**one) for one in changes]
    meters.report(events)
    ingest_batches(now=meters.now)
    return events


def test_the_database_finds_the_same_value_as_the_definition(meters: Meters) -> None:
    """Every percentile of every size up to 30, and repeated values."""
    seen: list[int] = []
    shuffled = random.Random(7)
    for size in range(1, 31):
        value = shuffled.choice([10, 20, 20, 35, 700, 12_345])
        store(meters, {"first_byte_ms": value, "duration_ms": 20_000})
        seen.append(value * 1_000)
        for percentile in {1, 50, 95, 99, shuffled.randrange(1, 100)}:
            [found] = measured(meters, percentile=percentile)
            expected = nearest_rank(seen, percentile)
            assert (found.requests, found.percentile_us) == (size, expected), percentile


def test_time_per_output_token_counts_reasoning_and_rounds_down(meters: Meters) -> None:
    buckets = {Bucket.UNCACHED_INPUT: 5, Bucket.OUTPUT: 8, Bucket.REASONING: 3}
    store(meters, {"first_byte_ms": 101, "duration_ms": 300, "buckets": buckets})
    [found] = measured(meters, "output_token")
    assert (
        found.percentile_us
        == output_token_us(first_token_ms=101, duration_ms=300, output_tokens=11)
        == 19_900
    )


BASE: dict[str, Any] = {"first_byte_ms": 100, "duration_ms": 400}


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, {"first_token", "output_token"}),
        ({"first_byte_ms": None}, set()),
        ({"attempt": 1}, set()),
        ({"part": 1}, set()),
        ({"flags": (Flag.RECOVERED,)}, set()),
        ({"buckets": {Bucket.OUTPUT: 0}}, set()),
        ({"flags": (Flag.READER_SLOW,)}, {"first_token"}),
        ({"flags": (Flag.CLIENT_GONE,), "finish": Finish.CLIENT_GONE}, {"first_token"}),
        ({"flags": (Flag.CUT_BUDGET,), "finish": Finish.BUDGET}, {"first_token"}),
        ({"flags": (Flag.UPSTREAM_FAILED,), "finish": Finish.ERROR}, {"first_token"}),
        ({"buckets": {Bucket.UNCACHED_INPUT: 9, Bucket.OUTPUT: 1}}, {"first_token"}),
        # A host that tells no usage is measured all the same, by the gateway's own count.
        ({"flags": (Flag.ESTIMATED,)}, {"first_token", "output_token"}),
        ({"flags": (Flag.CAPPED,), "finish": Finish.LENGTH}, {"first_token", "output_token"}),
    ],
)
def test_what_is_counted(meters: Meters, changes: dict[str, Any], counted: set[str]) -> None:
    store(meters, BASE | changes)
    assert {metric for metric in ("first_token", "output_token") if measured(meters, metric)} == counted


def test_an_agents_word_is_no_measurement(meters: Meters) -> None:
    accept_batch(source=meters.agent, body=meters.sent([meters.event(**BASE)]), now=meters.now)
    ingest_batches(now=meters.now)
    assert measured(meters) == []


def test_other_contracts_periods_and_grades_are_left_out(meters: Meters, now: datetime) -> None:
    store(meters, BASE)
    for other in (
        {"contract_id": uuid7(now)},
        {"since": now + HOUR, "until": now + 2 * HOUR},
        {"grade_id": uuid7(now)},
    ):
        terms: dict[str, Any] = {
            "contract_id": meters.contract_id,
            "since": now,
            "until": now + HOUR,
            "grade_id": meters.grade_id,
        } | other
        contract = terms.pop("contract_id")
        assert latencies(contract, metric="first_token", percentile=50, **terms) == []


@pytest.mark.parametrize(("most", "requests"), [(11, 0), (12, 1), (None, 1)])
def test_longer_requests_than_a_level_speaks_of_are_left_out(
    meters: Meters, most: int | None, requests: int
) -> None:
    store(meters, BASE)
    assert len(measured(meters, max_input_tokens=most)) == requests


def test_a_voided_request_was_never_measured_and_an_amended_one_once(meters: Meters, now: datetime) -> None:
    amended, voided = store(meters, BASE, BASE | {"first_byte_ms": 900})
    why: Any = {"source_id": meters.gateway.id, "reason": "a test", "actor": "operator", "now": now}
    amend_event(event_id=amended.id, buckets={Bucket.OUTPUT: 7}, **why)
    void_event(event_id=voided.id, **why)
    [found] = measured(meters, percentile=99)
    assert (found.requests, found.percentile_us) == (1, 100_000)
