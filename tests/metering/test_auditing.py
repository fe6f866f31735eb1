"""`checkusage` re-adds what ingestion has added, by other means, and finds whatever was changed behind its back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from io import StringIO

import psycopg
import pytest
import time_machine
from django.core.management import call_command

from metering.auditing import UsageDifference, check_usage
from metering.ingesting import ingest_batches
from metering.models import UsageBatch, UsageCorrection, UsageRollup
from metering.services import accept_batch
from metering.usage import Flag
from pricing.units import Bucket
from tests.conftest import TestDatabase
from tests.metering.meters import Meters, make_meters


def _found(now: datetime) -> set[str]:
    return {difference.what for difference in check_usage(since=now - timedelta(days=1))}


def _store(meters: Meters) -> None:
    """Of both meters: plain, estimated, recounted, with reasoning and without any count; some twice."""
    events = [
        meters.event(),
        meters.event(flags=(Flag.ESTIMATED,)),
        meters.event(flags=(Flag.RECOVERED, Flag.CAPPED), recount_o200k=29),
        meters.event(buckets={Bucket.OUTPUT: 7, Bucket.REASONING: 5}, recount_o200k=11),
        meters.event(
            buckets={Bucket.OUTPUT: 7, Bucket.REASONING: 5}, recount_o200k=11, flags=(Flag.HIDDEN_REASONING,)
        ),
        meters.event(buckets={Bucket.UNCACHED_INPUT: 3}, recount_o200k=0),
        meters.event(buckets={}),
    ]
    meters.report([*events, events[0]])
    meters.report([events[1], meters.event()])
    accept_batch(source=meters.agent, body=meters.sent([meters.event() for _ in range(3)]), now=meters.now)
    assert ingest_batches(now=meters.now) == 3


def test_what_ingestion_adds_is_what_an_auditor_adds(meters: Meters, now: datetime) -> None:
    assert _found(now) == set()
    _store(meters)
    assert UsageRollup.objects.filter(estimated_events__gt=0, recounted_tokens__gt=0).exists()
    output = UsageRollup.objects.get(meter="gateway", bucket="output", recounted_tokens__gt=0)
    # Of the estimated nothing, of the one that hides its reasoning only its output.
    assert (output.recounted_tokens, output.recount_o200k_tokens) == (7 + 5 + 7, 11 + 11)
    assert _found(now) == set()


@pytest.mark.parametrize(
    "figure",
    [
        "events", "native_tokens", "numerator", "estimated_events", "estimated_numerator", "recounted_tokens",
        "recount_o200k_tokens",
    ],
)  # fmt: skip
def test_each_figure_of_a_rollup_is_checked(meters: Meters, now: datetime, figure: str) -> None:
    _store(meters)
    row = UsageRollup.objects.filter(meter="gateway", bucket="output", estimated_events=2).get()
    UsageRollup.objects.filter(pk=row.pk).update(**{figure: getattr(row, figure) - 1})
    [difference] = check_usage(since=now)
    assert difference == UsageDifference(
        f"rollup_{figure}", difference.key, getattr(row, figure) - 1, getattr(row, figure)
    )
    assert difference.key["contract_id"] == str(meters.contract_id)
    assert (difference.key["bucket"], difference.key["meter"]) == ("output", "gateway")


def test_a_rollup_that_is_gone_and_one_of_nothing_are_found(meters: Meters, now: datetime) -> None:
    _store(meters)
    UsageRollup.objects.filter(meter="agent").delete()
    UsageRollup.objects.filter(bucket="output").update(contract_id=meters.grade_id)
    assert _found(now) >= {"rollup_events", "rollup_native_tokens", "rollup_numerator"}


def test_an_event_that_a_correction_took_out_no_longer_counts(meters: Meters, now: datetime) -> None:
    event = meters.event()
    meters.report([event])
    ingest_batches(now=now)
    UsageCorrection.objects.create(
        kind="void",
        target_id=event.id,
        target_source=meters.gateway,
        reason="a test of the audit",
        actor="operator",
        created_at=now,
    )
    assert _found(now) == {"rollup_events", "rollup_native_tokens", "rollup_numerator"}
    UsageRollup.objects.update(events=0, native_tokens=0, numerator=0)
    assert _found(now) == set()


def test_a_batch_that_tells_another_story_than_its_events_is_found(meters: Meters, now: datetime) -> None:
    _store(meters)
    batch = UsageBatch.objects.get(source=meters.agent)
    UsageBatch.objects.filter(pk=batch.pk).update(accepted_events=2)
    assert check_usage(since=now) == [
        UsageDifference("batch_accepted_events", {"batch_id": str(batch.pk)}, 2, 3),
        UsageDifference("batch_told_events", {"batch_id": str(batch.pk)}, 2, 3),
    ]


def test_periods_before_the_time_asked_for_are_not_judged(meters: Meters, now: datetime) -> None:
    _store(meters)
    UsageRollup.objects.update(events=99)
    assert check_usage(since=now) != []
    assert check_usage(since=now + timedelta(seconds=1)) == []


def test_checkusage_says_so_and_exits_with_1(committed_db: TestDatabase, now: datetime) -> None:
    meters = make_meters(now)
    _store(meters)
    with time_machine.travel(now, tick=False):
        told, complaint = StringIO(), StringIO()
        call_command("checkusage", stdout=told, stderr=complaint)
        report = json.loads(told.getvalue())
        assert (report["ok"], report["events"], report["differences"]) == (True, 11, [])
        assert complaint.getvalue() == ""
        # A numerator that is not its buckets': only the owner could, and not while the trigger is there.
        with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
            owner.execute("ALTER TABLE metering_usageevent DISABLE TRIGGER USER")
            owner.execute("UPDATE metering_usageevent SET numerator = numerator + 1")
        told = StringIO()
        with pytest.raises(SystemExit, match="1"):
            call_command("checkusage", stdout=told, stderr=complaint)
    report = json.loads(told.getvalue())
    assert (report["ok"], report["difference_count"]) == (False, 2)
    assert {difference["what"] for difference in report["differences"]} == {"event_numerator"}
    assert "checkusage: event_numerator of" in complaint.getvalue()
