"""Gateway, agent and engine are compared once for each settlement period."""

from __future__ import annotations

from datetime import datetime, timedelta

from marketplace.ids import uuid7
from metering.models import Discrepancy, UsageRollup
from providers.reconciling import reconcile_hosts
from tests.cast import Plant

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
