"""Sources, points, nonces, and what is read of roll-ups and registers."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from metering import tasks
from metering.ingesting import ingest_batches
from metering.models import Discrepancy, MeterSource, RegisterRead, UsageBatch
from metering.reading import Group, Slice, UsageQuery, usage_rows
from metering.reconciling import reconcile_host
from metering.selectors import (
    inbox_state,
    pending_before,
    rollups_of,
    usage_over_time,
    usage_summary,
)
from metering.services import (
    BatchRefused,
    accept_batch,
    add_meter_point,
    close_source,
    forget_nonces,
    record_register_read,
    register_source,
    remember_nonce,
    set_dependable_limit,
)
from pricing.units import Bucket
from tests.metering.meters import API_KEY_ID, Meters

HOUR = timedelta(hours=1)


def test_a_host_has_one_active_meter_of_a_kind(db: None, now: datetime) -> None:
    host_id = uuid4()
    first = register_source(kind="agent", host_id=host_id, public_key=bytes(32), now=now)
    with pytest.raises(Conflict) as refused:
        register_source(kind="agent", host_id=host_id, public_key=bytes(32), now=now)
    assert refused.value.field == "host_id"
    close_source(source_id=first.id)
    close_source(source_id=first.id)
    second = register_source(kind="agent", host_id=host_id, public_key=bytes(32), now=now)
    set_dependable_limit(source_id=second.id, numerator_per_s=850_000_000, now=now)
    assert MeterSource.objects.get(pk=second.id).dependable_numerator_per_s == 850_000_000
    with pytest.raises(InvalidInput):
        register_source(kind="agent", host_id=uuid4(), public_key=b"short", now=now)


def test_adding_a_point_again_only_widens_it(meters: Meters, now: datetime) -> None:
    place: dict[str, Any] = {
        "contract_id": uuid4(),
        "offering_id": uuid4(),
        "host_id": meters.host_id,
        "grade_id": meters.grade_id,
    }
    add_meter_point(**place, valid_from=now, valid_until=now + HOUR)
    point = add_meter_point(**place, valid_from=now + HOUR, valid_until=now + 2 * HOUR)
    assert (point.valid_from, point.valid_until) == (now, now + 2 * HOUR)
    point = add_meter_point(**place, valid_from=now - HOUR)
    assert (point.valid_from, point.valid_until) == (now - HOUR, None)
    with pytest.raises(Conflict):
        add_meter_point(**(place | {"host_id": uuid4()}), valid_from=now)


def test_a_nonce_is_good_once_per_key_while_a_signature_is_believed(db: None, now: datetime) -> None:
    key_id = uuid4()
    assert remember_nonce(key_id=key_id, nonce="a\0\udc80" * 60, now=now)
    assert not remember_nonce(key_id=key_id, nonce="a\0\udc80" * 60, now=now + timedelta(minutes=14))
    assert remember_nonce(key_id=uuid4(), nonce="a\0\udc80" * 60, now=now)
    assert remember_nonce(key_id=key_id, nonce="b", now=now)
    assert remember_nonce(key_id=key_id, nonce="b", now=now + timedelta(minutes=16))
    assert forget_nonces(now=now + timedelta(minutes=16)) == 2


def test_the_gateways_batch_needs_no_header_and_a_hosts_does(meters: Meters, now: datetime) -> None:
    lines = meters.lines([meters.event()])
    assert accept_batch(source=meters.gateway, body=lines, now=now).sequence_from is None
    with pytest.raises(BatchRefused):
        accept_batch(source=meters.agent, body=lines, now=now)


def test_pending_usage_of_the_gateway_is_seen_until_it_is_stored(meters: Meters, now: datetime) -> None:
    assert not pending_before(now)
    accept_batch(source=meters.agent, body=meters.sent([meters.event()]), now=now)
    assert not pending_before(now)
    meters.report([meters.event()])
    assert pending_before(now)
    assert not pending_before(now - timedelta(seconds=1))
    assert inbox_state().pending == 2
    ingest_batches(now=now)
    assert not pending_before(now)
    assert inbox_state().pending == 0


def test_hours_and_days_are_derived_from_periods(meters: Meters, now: datetime) -> None:
    starts = [now, now + timedelta(minutes=5), now + HOUR]
    events = [
        meters.event(period_start=at, occurred_at=at, api_key_id=API_KEY_ID, id=uuid7(at)) for at in starts
    ]
    meters.report([*events, meters.event(buckets={Bucket.OUTPUT: 7})])
    ingest_batches(now=now + HOUR)
    contracts, until = [meters.contract_id], now + 2 * HOUR

    def outputs(slice_by: Slice, **terms: Any) -> list[tuple[datetime, Any, int, int]]:
        groups = (Group.CONTRACT, Group.API_KEY, Group.BUCKET)
        query = UsageQuery(
            since=now,
            until=until,
            slice_by=slice_by,
            groups=groups,
            bucket="output",
            **{"contract_ids": contracts, **terms},
        )
        return [
            (row.place.start, row.columns["api_key_id"], row.events, row.native_tokens)
            for row in usage_rows(query)
        ]

    assert outputs(Slice.HOUR) == [
        (now + HOUR, API_KEY_ID, 1, 30),
        (now, None, 1, 7),
        (now, API_KEY_ID, 2, 60),
    ]
    assert [row[0] for row in outputs(Slice.DAY)] == [now.replace(hour=0)] * 2
    assert outputs(Slice.PERIOD, api_key_id=API_KEY_ID) == [
        (at, API_KEY_ID, 1, 30) for at in reversed(starts)
    ]
    assert outputs(Slice.HOUR, contract_ids=[]) == []
    assert outputs(Slice.HOUR, contract_ids=[uuid4()]) == []
    summary = usage_summary(contracts, since=now, until=until)
    assert (summary.requests, summary.native_tokens["output"]) == (4, 97)
    assert summary.numerator == sum(
        row.numerator for row in rollups_of(meters.contract_id, since=now, until=until)
    )
    assert (
        sum(numerator for _, numerator in usage_over_time(contracts, since=now, until=until))
        == summary.numerator
    )


def read(meters: Meters, at: datetime, *, boot: str = "b1", input_tokens: int, output_tokens: int) -> None:
    record_register_read(
        host_id=meters.host_id,
        boot_id=boot,
        read_at=at,
        input_tokens=input_tokens,
        cache_read_tokens=None,
        output_tokens=output_tokens,
        energy_millijoules=None,
    )


def reconcile(meters: Meters, now: datetime) -> Discrepancy | None:
    return reconcile_host(
        host_id=meters.host_id,
        offering_ids=[meters.offering_id],
        settlement_start=now,
        settlement_end=now + HOUR,
        now=now + HOUR,
    )


@pytest.mark.parametrize(("agent_output", "agrees"), [(1_000, True), (996, True), (995, True), (994, False)])
def test_meters_may_differ_by_half_a_percent(
    meters: Meters, now: datetime, agent_output: int, agrees: bool
) -> None:
    carried = meters.event(buckets={Bucket.OUTPUT: 1_000})
    meters.report([carried])
    agents = [meters.event(buckets={Bucket.OUTPUT: agent_output}, request_id=carried.request_id)]
    accept_batch(source=meters.agent, body=meters.sent(agents), now=now)
    ingest_batches(now=now)
    found = reconcile(meters, now)
    assert (found is None) == agrees
    if found is not None:
        assert found.evidence["disputed"] == ["output_tokens"]
        assert found.evidence["gateway"]["output_tokens"] == 1_000
        assert found.evidence["agent"]["output_tokens"] == agent_output
        assert reconcile(meters, now) == found


@pytest.mark.parametrize(
    ("engine_output", "boot", "agrees"),
    [(30, "b1", True), (500, "b1", True), (29, "b1", False), (0, "b1", False), (0, "b2", True)],
    ids=["same", "also benches", "less", "nothing", "restarted: nobody knows"],
)
def test_an_engine_that_saw_less_than_was_metered_is_a_discrepancy(
    meters: Meters, now: datetime, engine_output: int, boot: str, agrees: bool
) -> None:
    event = meters.event()
    meters.report([event])
    accept_batch(source=meters.agent, body=meters.sent([event]), now=now)
    ingest_batches(now=now)
    read(meters, now - timedelta(seconds=30), input_tokens=100, output_tokens=100)
    read(meters, now + HOUR, boot=boot, input_tokens=112, output_tokens=100 + engine_output)
    read(meters, now + HOUR, boot=boot, input_tokens=112, output_tokens=100 + engine_output)
    assert RegisterRead.objects.count() == 2
    found = reconcile(meters, now)
    assert (found is None) == agrees
    if found is not None:
        assert found.evidence["engine"] == {"input_tokens": 12, "output_tokens": engine_output}


def test_the_tasks_empty_the_inbox_and_may_run_at_any_time(
    meters: Meters, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marketplace.clock.now", lambda: now)
    tasks.ingest_pending()
    for _ in range(3):
        meters.report([meters.event()])
    tasks.ingest_pending()
    tasks.sweep_batches()
    tasks.make_partitions()
    assert set(UsageBatch.objects.values_list("status", flat=True)) == {"stored"}
