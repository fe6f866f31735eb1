"""Gateway, agent and engine are compared for each settlement period, and again when its sums change."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.ids import uuid7
from marketplace.models import JobRun
from metering.models import Discrepancy, MeterFinding, MeterSource, Reconciliation, UsageRollup
from metering.services import accept_batch, ingest_batches
from metering.usage import Flag
from pricing.models import Grade
from providers.models import Host
from providers.reconciling import LATE_USAGE_JOB, RECOUNT_JOB, reconcile_hosts, reconcile_period
from tests.cast import Party, Plant, make_plant
from tests.metering.meters import Meters, make_meters


@pytest.fixture
def meters(db: None, now: datetime) -> Meters:
    return make_meters(now)


NIL = "00000000-0000-0000-0000-000000000000"


def metered(plant: Plant, meter: str, tokens: int, period_start: datetime) -> None:
    UsageRollup.objects.create(
        contract_id=uuid7(),
        rate_id=plant.offering.list_rate_id,
        api_key_id=NIL,
        offering_id=plant.offering.id,
        bucket="output",
        meter=meter,
        period_start=period_start,
        grade_id=plant.offering.grade_id,
        events=1,
        native_tokens=tokens,
        numerator=tokens,
    )


def test_a_host_whose_meters_differ_beyond_tolerance_is_flagged_once(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_500, now)
    # The period is due an hour later, plus the longest request and the grace.
    at = now + timedelta(hours=1, seconds=960)
    assert reconcile_hosts(now=at) == 1
    assert reconcile_hosts(now=at) == 0
    assert Discrepancy.objects.get().host_id == plant.host.id


def test_a_difference_within_half_a_percent_is_agreement(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_050, now)
    assert reconcile_hosts(now=now + timedelta(hours=1, seconds=960)) == 0
    assert not Discrepancy.objects.exists()


# The period, the longest request of the grade (15 s), and the grace.
DUE = timedelta(hours=1, seconds=75)


def test_a_period_is_compared_when_its_last_request_must_be_over(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_000, now)
    assert reconcile_hosts(now=now + DUE - timedelta(seconds=1)) == 0
    assert not Reconciliation.objects.exists()
    assert reconcile_hosts(now=now + DUE) == 0
    assert Reconciliation.objects.get().outcome == "agreed"


def test_usage_that_comes_late_is_compared_again(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_000, now)
    reconcile_hosts(now=now + DUE)
    metered(plant, "agent", 1_000, now)
    assert reconcile_hosts(now=now + DUE + timedelta(seconds=15)) == 1
    assert Discrepancy.objects.get().evidence["agent"]["output_tokens"] == 11_000


def test_old_usage_that_changes_is_looked_for_once_an_hour(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_000, now)
    later = now + timedelta(days=40)
    assert reconcile_hosts(now=later) == 0
    assert Reconciliation.objects.count() == 1
    metered(plant, "agent", 1_000, now)
    assert reconcile_hosts(now=later + timedelta(minutes=30)) == 0
    assert reconcile_hosts(now=later + timedelta(minutes=61)) == 1


def test_a_host_that_cannot_be_compared_keeps_no_other_from_being_so(
    hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    for one in (plant, second):
        metered(one, "gateway", 10_000, now)
        metered(one, "agent", 9_000, now)
    UsageRollup.objects.filter(offering_id=plant.offering.id, meter="agent").update(bucket="noise")
    with pytest.raises(ValueError, match="noise"):
        reconcile_period(settlement_start=now, now=now + DUE)
    assert Discrepancy.objects.get().host_id == second.host.id


def test_a_host_that_cannot_be_compared_stops_no_other_work(
    hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    for one in (plant, second):
        metered(one, "gateway", 10_000, now)
        metered(one, "agent", 9_000, now)
    UsageRollup.objects.filter(offering_id=plant.offering.id, meter="agent").update(bucket="noise")
    old = Discrepancy.objects.create(
        host_id=uuid7(), settlement_start=now - timedelta(days=20), created_at=now - timedelta(days=20)
    )
    with pytest.raises(ValueError, match="noise"):
        reconcile_hosts(now=now + DUE)
    old.refresh_from_db()
    assert (old.status, old.ruling) == ("resolved", "lower")
    assert Discrepancy.objects.get(status="open").host_id == second.host.id
    assert JobRun.objects.get(job=RECOUNT_JOB).finished_at is not None
    assert JobRun.objects.get(job=LATE_USAGE_JOB).finished_at is not None


def test_sums_that_no_column_holds_stop_nobody(
    hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    for one in (plant, second):
        metered(one, "gateway", 10_000, now)
    for _ in range(2):
        metered(plant, "agent", 9 * 10**18, now)
    metered(second, "agent", 9_000, now)
    assert reconcile_hosts(now=now + DUE) == 2
    assert Reconciliation.objects.get(host_id=plant.host.id).agent_numerator == 2**63 - 1


def test_an_agents_event_without_any_count_stops_nobody(meters: Meters, plant: Plant, now: datetime) -> None:
    """Another host's, of a request that the gateway estimated."""
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 9_000, now)
    event = meters.event(flags=(Flag.ESTIMATED,))
    meters.report([event])
    nothing = meters.event(id=uuid7(now), request_id=event.request_id, buckets={})
    accept_batch(source=meters.agent, body=meters.sent([nothing]), now=now)
    ingest_batches(now=now + timedelta(minutes=9))
    assert reconcile_period(settlement_start=now, now=now + DUE) == 1
    assert Discrepancy.objects.get().host_id == plant.host.id


def test_what_is_not_agreed_is_looked_at_again_for_a_day(plant: Plant, now: datetime) -> None:
    """The agent's record gets whole by usage of a later period, which changes no sum of this one."""
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 9_000, now)
    MeterSource.objects.filter(host_id=plant.host.id).update(gap_since=now)
    assert reconcile_hosts(now=now + DUE) == 1
    assert Discrepancy.objects.get().evidence["agent_is_complete"] is False
    MeterSource.objects.filter(host_id=plant.host.id).update(gap_since=None)
    for meter in ("gateway", "agent"):
        metered(plant, meter, 7, now + timedelta(hours=1))
    reconcile_hosts(now=now + DUE + timedelta(minutes=4))
    assert Discrepancy.objects.get().evidence["agent_is_complete"] is False
    reconcile_hosts(now=now + DUE + timedelta(minutes=6))
    assert Discrepancy.objects.get().evidence["agent_is_complete"] is True


def test_what_a_host_says_of_its_clock_is_noted(plant: Plant, now: datetime) -> None:
    metered(plant, "gateway", 10_000, now)
    metered(plant, "agent", 10_000, now)
    Host.objects.filter(pk=plant.host.id).update(clock_skew_ms=-600_000)
    reconcile_hosts(now=now + DUE)
    assert MeterFinding.objects.get().evidence["said_ms"] == -600_000
