"""An attempt in two parts: the agent's one count stands beside both, whatever contract or rate each has."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from marketplace.ids import uuid7
from metering.models import DisputedUsage, UsageEvent
from metering.services import amend_event, ingest_batches, replace_estimates
from metering.usage import Flag
from metering.witnesses import Cell
from pricing.services import publish_rate
from pricing.units import Bucket
from tests.metering.meters import make_host
from tests.metering.test_reconciling import HOUR, PPM_OUT, Story, outcome, read, story

__all__ = ["story"]  # A fixture of the neighbour.

Beyond = tuple[UUID, UUID]


@pytest.fixture(params=["another rate", "another contract"])
def beyond(request: pytest.FixtureRequest, story: Story) -> Beyond:
    """Contract and rate of what goes on beyond the volume: the contract's own (spot), or on demand (list)."""
    meters = story.meters
    if request.param == "another rate":
        rate = publish_rate(
            grade_id=meters.grade_id,
            kind="overage",
            micros_per_mtok=400_000,
            source_id=meters.grade_id,
            now=meters.now - timedelta(days=1),
        )
        return meters.contract_id, rate.id
    other = replace(meters, contract_id=uuid7())
    other.add_point()
    return other.contract_id, meters.rate_id


def split(
    story: Story, beyond: Beyond, first: int, last: int, agent: int | None, *, flags: tuple[Flag, ...] = ()
) -> UUID:
    """One attempt's output: what the gateway has in each part, and the agent as a whole (None: not reported)."""
    meters, at = story.meters, story.meters.now
    request_id = uuid7(at)
    common: dict[str, Any] = {"request_id": request_id, "flags": (*flags, Flag.SPLIT)}
    contract_id, rate_id = beyond
    meters.report(
        [
            meters.event(id=uuid7(at), buckets={Bucket.OUTPUT: first}, **common),
            meters.event(
                id=uuid7(at), buckets={Bucket.OUTPUT: last}, part=1, contract_id=contract_id, rate_id=rate_id, **common
            ),
        ]
    )  # fmt: skip
    if agent is not None:
        event = meters.event(id=uuid7(at), request_id=request_id, buckets={Bucket.OUTPUT: agent})
        story.send(event, at + timedelta(seconds=3))
    ingest_batches(now=at + 2 * HOUR)
    return request_id


def withheld(story: Story, beyond: Beyond) -> tuple[int, int]:
    """Of the first part's cell and of the second's."""
    rows = {(row.contract_id, row.rate_id): row.withheld_numerator for row in DisputedUsage.objects.all()}
    return rows.get((story.meters.contract_id, story.meters.rate_id), 0), rows.get(beyond, 0)


def test_a_count_that_agrees_with_the_sum_agrees(story: Story, beyond: Beyond) -> None:
    split(story, beyond, 1_000, 400, 1_400)
    story.request(300, 300)
    story.later()
    assert story.reconcile() is None
    assert outcome() == "agreed"


def test_another_requests_difference_takes_nothing_of_a_part(story: Story, beyond: Beyond) -> None:
    split(story, beyond, 1_000, 400, 1_400)
    story.request(300, 200)
    story.later()
    assert story.reconcile() is not None
    assert withheld(story, beyond) == (100 * PPM_OUT, 0)


@pytest.mark.parametrize(
    ("agent", "expected"), [(1_300, (0, 100)), (1_000, (0, 400)), (900, (100, 400)), (0, (1_000, 400))]
)
def test_what_the_agent_counted_less_is_taken_off_the_second_part_first(
    story: Story, beyond: Beyond, agent: int, expected: tuple[int, int]
) -> None:
    split(story, beyond, 1_000, 400, agent)
    story.later()
    assert story.reconcile() is not None
    assert withheld(story, beyond) == tuple(one * PPM_OUT for one in expected)


def test_what_the_agent_has_not_sent_yet_lacks_in_both_parts_and_is_no_lower_count(
    story: Story, beyond: Beyond
) -> None:
    split(story, beyond, 1_000, 400, None)
    story.request(100, 100)
    found = story.reconcile()
    assert found is not None
    assert found.evidence["agent_missing_events"] == 2
    assert withheld(story, beyond) == (0, 0)


def test_a_whole_record_without_it_is_a_lower_count_of_both(story: Story, beyond: Beyond) -> None:
    split(story, beyond, 1_000, 400, None)
    story.request(100, 100)
    story.later()
    assert story.reconcile() is not None
    assert withheld(story, beyond) == (1_000 * PPM_OUT, 400 * PPM_OUT)


def test_an_estimate_in_two_parts_is_held_against_nobody(story: Story, beyond: Beyond) -> None:
    split(story, beyond, 1_000, 400, 900, flags=(Flag.ESTIMATED,))
    story.request(300, 200)
    story.later()
    assert story.reconcile() is not None
    assert withheld(story, beyond) == (100 * PPM_OUT, 0)


@pytest.mark.parametrize("part", [0, 1])
def test_an_attempt_of_which_a_part_was_corrected_is_not_compared_any_more(
    story: Story, beyond: Beyond, part: int
) -> None:
    meters = story.meters
    request_id = split(story, beyond, 1_000, 400, 1_400)
    story.request(300, 300)
    story.later()
    event = UsageEvent.objects.get(source=meters.gateway, request_id=request_id, part=part)
    amend_event(
        source_id=meters.gateway.id, event_id=event.id, buckets={Bucket.OUTPUT: 50}, reason="it was less",
        actor="operator", now=meters.now + HOUR,
    )  # fmt: skip
    amended = UsageEvent.objects.get(request_id=request_id, part=part, source__is_editor=True)
    assert (amended.contract_id, amended.rate_id) == (event.contract_id, event.rate_id)
    assert story.reconcile() is None
    assert outcome() == "agreed"


def test_an_engine_sees_both_parts_as_one(story: Story, beyond: Beyond) -> None:
    meters = story.meters
    split(story, beyond, 1_000, 400, 1_400)
    story.later()
    read(story, meters.now - timedelta(seconds=5), output=0)
    read(story, meters.now + HOUR, output=1_400)
    assert story.reconcile() is None


@pytest.mark.parametrize(
    ("agent", "expected"), [(1_500, (1_000, 400)), (1_250, (1_000, 250)), (700, (700, 0))]
)
def test_estimates_of_parts_are_replaced_by_what_the_agent_counted_of_them_together(
    story: Story, beyond: Beyond, agent: int, expected: tuple[int, int]
) -> None:
    meters = story.meters
    request_id = split(story, beyond, 1_000, 400, agent, flags=(Flag.ESTIMATED,))
    now = meters.now + HOUR
    assert replace_estimates(since=meters.now - HOUR, now=now) == 2
    assert replace_estimates(since=meters.now - HOUR, now=now) == 0
    edited = UsageEvent.objects.filter(request_id=request_id, source__is_editor=True).order_by("part")
    assert [(event.part, event.output_tokens or 0) for event in edited] == list(enumerate(expected))


def test_the_same_request_of_another_host_is_no_part_of_it(story: Story, beyond: Beyond) -> None:
    """What a stranger claims under a request's id does not make its parts agree."""
    meters = story.meters
    request_id = split(story, beyond, 1_000, 400, 900)
    other = replace(make_host(meters), contract_id=meters.contract_id)
    other.add_point()
    other.report([other.event(request_id=request_id, buckets={Bucket.OUTPUT: 500}, part=1)])
    story.later()
    assert story.reconcile() is not None
    assert withheld(story, beyond) == (100 * PPM_OUT, 400 * PPM_OUT)
    assert not [row for row in DisputedUsage.objects.all() if Cell(
        row.contract_id, row.rate_id, row.offering_id, row.period_start).offering_id == other.offering_id]  # fmt: skip
