"""Amend, void, backfill: new events with a reason, roll-ups that follow, history that stays."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, transaction
from rest_framework.test import APIClient

from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from metering.ingesting import ingest_batches
from metering.models import UsageCorrection, UsageEvent, UsageRollup
from metering.services import accept_batch, amend_event, backfill_event, void_event
from metering.usage import Flag
from metering.usage import UsageEvent as WireEvent
from pricing.units import Bucket
from tests.cast import Party
from tests.metering.meters import API_KEY_ID, Meters

WHY: Any = {"reason": "the engine counted the template twice", "actor": "operator"}


def stored(meters: Meters, **changes: Any) -> WireEvent:
    event = meters.event(api_key_id=API_KEY_ID, **changes)
    meters.report([event])
    ingest_batches(now=meters.now)
    return event


def replacement_of(made: UsageCorrection) -> UUID:
    assert made.replacement_id is not None
    return made.replacement_id


def sums(**where: Any) -> dict[str, tuple[int, ...]]:
    rows = UsageRollup.objects.filter(**where)
    return {
        row.bucket: (
            row.events,
            row.native_tokens,
            row.numerator,
            row.estimated_events,
            row.estimated_numerator,
        )
        for row in rows
    }


def test_an_amended_event_counts_with_its_new_buckets_and_the_old_one_stays(
    meters: Meters, now: datetime
) -> None:
    event, other = stored(meters), stored(meters)
    buckets: dict[Bucket, int | None] = {Bucket.UNCACHED_INPUT: 10, Bucket.REASONING: 5, Bucket.OUTPUT: 40}
    made = amend_event(source_id=meters.gateway.id, event_id=event.id, buckets=buckets, **WHY, now=now)

    assert (made.kind, made.target_id, made.reason, made.actor) == ("amend", event.id, *WHY.values())
    # Uncached input weighs 0.25, output 1.0; the other event has 12, 0 (cache read) and 30.
    assert sums() == {
        "uncached_input": (2, 22, 22 * 250_000, 0, 0),
        "cache_read": (1, 0, 0, 0, 0),
        "output": (2, 70, 70 * 1_000_000, 0, 0),
        "reasoning": (1, 5, 5 * 1_000_000, 0, 0),
    }
    old = UsageEvent.objects.get(id=event.id)
    assert (old.uncached_input_tokens, old.output_tokens) == (12, 30)
    new = UsageEvent.objects.get(id=replacement_of(made))
    assert new.source.is_editor
    assert (new.request_id, new.api_key_id, new.occurred_at) == (old.request_id, API_KEY_ID, old.occurred_at)
    assert new.cache_read_tokens is None
    assert UsageEvent.objects.filter(id=other.id).exists()


def test_a_void_takes_usage_away_and_leaves_no_empty_sums(meters: Meters, now: datetime) -> None:
    event = stored(meters)
    made = void_event(source_id=meters.gateway.id, event_id=event.id, **WHY, now=now)
    assert (made.kind, made.replacement_id) == ("void", None)
    assert sums() == {}
    assert UsageEvent.objects.filter(id=event.id).exists()


def test_a_backfill_counts_as_the_gateways_whatever_its_age_inside_retention(
    meters: Meters, now: datetime
) -> None:
    later = now + timedelta(days=390)
    made = backfill_event(
        contract_id=meters.contract_id,
        offering_id=meters.offering_id,
        rate_id=meters.rate_id,
        api_key_id=None,
        period_start=now,
        occurred_at=now + timedelta(seconds=3),
        buckets={Bucket.OUTPUT: 7},
        request_id=uuid7(now),
        **WHY,
        now=later,
    )
    assert sums(meter="gateway", period_start=now) == {"output": (1, 7, 7_000_000, 0, 0)}
    event = UsageEvent.objects.get(id=replacement_of(made))
    assert (event.period_start, event.contract_id, event.grade_id) == (
        now,
        meters.contract_id,
        meters.grade_id,
    )


def test_a_request_is_backfilled_once_and_only_if_nobody_reported_it(meters: Meters, now: datetime) -> None:
    known, missing = stored(meters), uuid7(now)
    asked: Any = {
        "contract_id": meters.contract_id, "offering_id": meters.offering_id, "rate_id": meters.rate_id,
        "api_key_id": None, "period_start": now, "occurred_at": now, "buckets": {Bucket.OUTPUT: 1}, **WHY, "now": now,
    }  # fmt: skip
    first = backfill_event(request_id=missing, **asked)
    for request_id in (known.request_id, missing):
        with pytest.raises(Conflict) as refused:
            backfill_event(request_id=request_id, **asked)
        assert refused.value.field == "request_id"
    assert first.replacement_source_id is not None
    void_event(source_id=first.replacement_source_id, event_id=replacement_of(first), **WHY, now=now)
    backfill_event(request_id=missing, **asked)
    assert sums(api_key_id=UUID(int=0))["output"][0] == 1


def test_an_amended_estimate_is_one_no_more(meters: Meters, now: datetime) -> None:
    event = stored(meters, flags=(Flag.ESTIMATED,), recount_o200k=29)
    assert sums()["output"] == (1, 30, 30_000_000, 1, 30_000_000)
    amend_event(source_id=meters.gateway.id, event_id=event.id, buckets={Bucket.OUTPUT: 28}, **WHY, now=now)
    assert sums() == {"output": (1, 28, 28_000_000, 0, 0)}
    output = UsageRollup.objects.get()
    assert (output.recounted_tokens, output.recount_o200k_tokens) == (28, 29)


def test_an_amended_event_hides_its_reasoning_as_before(meters: Meters, now: datetime) -> None:
    event = stored(meters, flags=(Flag.HIDDEN_REASONING,), recount_o200k=29)
    amend_event(
        source_id=meters.gateway.id,
        event_id=event.id,
        buckets={Bucket.OUTPUT: 28, Bucket.REASONING: 9},
        **WHY,
        now=now,
    )
    output = UsageRollup.objects.get(bucket="output")
    assert (output.recounted_tokens, output.recount_o200k_tokens) == (28, 29)


def test_an_event_is_corrected_once_its_replacement_again(meters: Meters, now: datetime) -> None:
    event = stored(meters)
    first = amend_event(
        source_id=meters.gateway.id, event_id=event.id, buckets={Bucket.OUTPUT: 9}, **WHY, now=now
    )
    with pytest.raises(Conflict, match="correct its replacement"):
        void_event(source_id=meters.gateway.id, event_id=event.id, **WHY, now=now)
    assert sums() == {"output": (1, 9, 9_000_000, 0, 0)}
    assert first.replacement_id is not None
    assert first.replacement_source_id is not None
    void_event(source_id=first.replacement_source_id, event_id=first.replacement_id, **WHY, now=now)
    assert sums() == {}
    assert UsageCorrection.objects.count() == 2


def test_agents_events_are_corrected_among_the_agents(meters: Meters, now: datetime) -> None:
    event = meters.event()
    accept_batch(source=meters.agent, body=meters.sent([event]), now=now)
    ingest_batches(now=now)
    amend_event(source_id=meters.agent.id, event_id=event.id, buckets={Bucket.OUTPUT: 1}, **WHY, now=now)
    assert sums(meter="agent") == {"output": (1, 1, 1_000_000, 0, 0)}
    assert sums(meter="gateway") == {}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"buckets": {}}, "buckets"),
        ({"buckets": {Bucket.OUTPUT: None}}, "buckets"),
        ({"buckets": {Bucket.OUTPUT: -1}}, "buckets.output"),
        ({"buckets": {Bucket.OUTPUT: 2**63}}, "buckets.output"),
        ({"buckets": {Bucket.OUTPUT: True}}, "buckets.output"),
        ({"buckets": {Bucket.OUTPUT: 2**53}}, "buckets"),
        ({"buckets": {Bucket.AUDIO_OUTPUT: 1}}, "buckets.audio_output"),
        ({"reason": " "}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"actor": ""}, "actor"),
    ],
)
def test_a_bad_amendment_names_its_field_and_changes_nothing(
    meters: Meters, now: datetime, changes: dict[str, Any], field: str
) -> None:
    event = stored(meters)
    before = sums()
    asked = {"buckets": {Bucket.OUTPUT: 1}, **WHY} | changes
    with pytest.raises(InvalidInput) as refused:
        amend_event(source_id=meters.gateway.id, event_id=event.id, **asked, now=now)
    assert refused.value.field == field
    assert sums() == before
    assert UsageEvent.objects.count() == 1
    assert not UsageCorrection.objects.exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"contract_id": uuid4()}, "contract_id"),
        ({"rate_id": uuid4()}, "rate_id"),
        ({"period_start": -timedelta(days=500)}, "period_start"),
        ({"period_start": timedelta(days=3)}, "period_start"),
        ({"period_start": timedelta(seconds=1)}, "period_start"),
        ({"occurred_at": timedelta(hours=2)}, "occurred_at"),
        ({"occurred_at": -timedelta(hours=1)}, "occurred_at"),
    ],
)
def test_a_bad_backfill_names_its_field_and_changes_nothing(
    meters: Meters, now: datetime, changes: dict[str, Any], field: str
) -> None:
    asked: dict[str, Any] = {
        "contract_id": meters.contract_id,
        "offering_id": meters.offering_id,
        "rate_id": meters.rate_id,
        "api_key_id": None,
        "period_start": now,
        "occurred_at": now,
        "buckets": {Bucket.OUTPUT: 1},
        "request_id": UUID(int=5),
    }
    for name, change in changes.items():
        asked[name] = now + change if isinstance(change, timedelta) else change
    with pytest.raises(InvalidInput) as refused:
        backfill_event(**asked, **WHY, now=now)
    assert refused.value.field == field
    assert sums() == {}
    assert not UsageEvent.objects.exists()


def test_what_is_not_there_or_too_old_is_not_corrected(meters: Meters, now: datetime) -> None:
    event = stored(meters)
    with pytest.raises(NotFound):
        void_event(source_id=meters.agent.id, event_id=event.id, **WHY, now=now)
    with pytest.raises(Conflict, match="retention"):
        void_event(source_id=meters.gateway.id, event_id=event.id, **WHY, now=now + timedelta(days=401))


@pytest.mark.parametrize(
    "statement", ["UPDATE metering_usagecorrection SET reason = 'x'", "DELETE FROM metering_usagecorrection"]
)
def test_corrections_cannot_be_changed(meters: Meters, now: datetime, statement: str) -> None:
    from django.db import connection

    void_event(source_id=meters.gateway.id, event_id=stored(meters).id, **WHY, now=now)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def desk(operator: Party) -> APIClient:
    return operator.api


def post(desk: APIClient, body: dict[str, Any]) -> Any:
    return desk.post("/api/v1/usage/corrections", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))


def test_the_operator_corrects_over_rest_and_the_audit_trail_says_so(
    meters: Meters, now: datetime, desk: APIClient, operator: Party
) -> None:
    event = stored(meters)
    target = {"source_id": str(meters.gateway.id), "event_id": str(event.id), "reason": WHY["reason"]}
    amended = post(desk, {"kind": "amend", **target, "buckets": {"output": 4, "cache_read": None}})
    assert amended.status_code == 201, amended.content
    assert sums() == {"output": (1, 4, 4_000_000, 0, 0)}
    again = {
        "source_id": amended.json()["replacement_source_id"],
        "event_id": amended.json()["replacement_id"],
        "reason": "all of it was a probe",
    }
    assert post(desk, {"kind": "void", **again}).status_code == 201
    assert sums() == {}
    listed = desk.get("/api/v1/usage/corrections").json()["items"]
    assert [(row["kind"], row["reason"]) for row in listed] == [
        ("void", "all of it was a probe"),
        ("amend", WHY["reason"]),
    ]
    assert listed[0]["actor"].startswith("api_key:")
    actions = [row["action"] for row in desk.get("/api/v1/audit").json()["items"]]
    assert {"usage.amend", "usage.void"} <= set(actions)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"buckets": {"output": -1}}, "buckets.output"),
        ({"buckets": {"output": "1e3"}}, "buckets.output"),
        ({"buckets": {"output": 1.5}}, "buckets.output"),
        ({"buckets": {"video": 1}}, "buckets.video"),
        ({"buckets": []}, "buckets"),
        ({"reason": ""}, "reason"),
        ({"kind": "delete"}, "kind"),
        ({"event_id": None}, "event_id"),
        ({"contract_id": str(uuid4())}, "contract_id"),
    ],
)
def test_a_bad_correction_is_answered_with_its_field_and_changes_nothing(
    meters: Meters, desk: APIClient, changes: dict[str, Any], field: str
) -> None:
    event = stored(meters)
    before = sums()
    body = {
        "kind": "amend", "source_id": str(meters.gateway.id), "event_id": str(event.id), "reason": "x",
        "buckets": {"output": 1},
    }  # fmt: skip
    answer = post(desk, {name: value for name, value in (body | changes).items() if value is not None})
    assert answer.status_code in (400, 422), answer.content
    assert field in answer.content.decode()
    assert sums() == before
