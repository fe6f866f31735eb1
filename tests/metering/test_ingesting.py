"""From the inbox to events and sums: once, exactly, whatever comes in."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from django.db import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from marketplace.ids import derived_id, uuid7
from metering.ingesting import MAX_ATTEMPTS, ingest_batches, retry_failed_batches
from metering.models import UsageBatch, UsageEvent, UsageRollup
from metering.packing import FLAG_BITS, flags_of
from metering.selectors import inbox_state, pending_before
from metering.services import accept_batch, register_source, revive_batch
from metering.usage import GENESIS_DIGEST, Finish, Flag, encode_batch, encode_event
from pricing.services import publish_rate
from pricing.units import Bucket
from tests.cast import make_grade
from tests.metering.meters import API_KEY_ID, COUNTS, Meters, rollups, totals

# 12 x 0.25 + 30 x 1.0 standard tokens (weights 1 and 4, kappa 0.25), in millionths.
NUMERATOR = 12 * 250_000 + 30 * 1_000_000


def drain(now: datetime) -> int:
    finished = 0
    while batches := ingest_batches(now=now):
        finished += batches
    return finished


def test_an_event_is_stored_as_it_was_reported_and_summed(meters: Meters, now: datetime) -> None:
    event = meters.event(
        api_key_id=API_KEY_ID, flags=(Flag.CAPPED, Flag.CLIENT_GONE), recount_o200k=31, first_byte_ms=12
    )
    batch = meters.report([event])
    assert ingest_batches(now=now) == 1

    stored = UsageEvent.objects.get()
    assert stored.id == event.id
    assert stored.source_id == meters.gateway.id
    assert stored.batch_id == batch.id
    assert stored.request_id == event.request_id
    assert (stored.contract_id, stored.offering_id) == (meters.contract_id, meters.offering_id)
    assert (stored.grade_id, stored.rate_id) == (meters.grade_id, meters.rate_id)
    assert stored.api_key_id == API_KEY_ID
    assert (stored.period_start, stored.occurred_at) == (now, now + timedelta(seconds=1))
    assert (stored.uncached_input_tokens, stored.cache_read_tokens, stored.output_tokens) == (12, 0, 30)
    assert stored.cache_write_tokens is stored.reasoning_tokens is stored.image_input_tokens is None
    assert stored.numerator == NUMERATOR
    assert (stored.recount_o200k_tokens, stored.first_byte_ms, stored.duration_ms) == (31, 12, 40)
    assert (stored.bytes_in, stored.bytes_out, stored.finish) == (120, 4_000, "stop")
    assert flags_of(stored.flags) == [Flag.CAPPED, Flag.CLIENT_GONE]
    assert {
        (row.bucket, row.events, row.native_tokens, row.numerator, row.api_key_id, row.meter)
        for row in UsageRollup.objects.all()
    } == {
        ("uncached_input", 1, 12, 12 * 250_000, API_KEY_ID, "gateway"),
        ("cache_read", 1, 0, 0, API_KEY_ID, "gateway"),
        ("output", 1, 30, 30 * 1_000_000, API_KEY_ID, "gateway"),
    }
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events, batch.duplicate_events) == ("stored", 1, 0)
    assert batch.exceptions == []


def test_counts_of_any_size_survive_the_binary_row(meters: Meters, now: datetime) -> None:
    counts: dict[Bucket, int | None] = {
        Bucket.UNCACHED_INPUT: 4_095,
        Bucket.CACHE_READ: 4_096,
        Bucket.OUTPUT: 10**8,
        Bucket.AUDIO_INPUT: None,
        Bucket.IMAGE_INPUT: 0,
    }
    meters.report(
        [meters.event(buckets=counts, bytes_out=2**53, duration_ms=2**31 - 1, attempt=1_000, part=1_000)]
    )
    ingest_batches(now=now)
    stored = UsageEvent.objects.get()
    for bucket in Bucket:
        assert getattr(stored, f"{bucket.value}_tokens") == counts.get(bucket)
    assert (stored.bytes_out, stored.duration_ms, stored.attempt, stored.part) == (
        2**53,
        2**31 - 1,
        1_000,
        1_000,
    )
    assert stored.numerator == 4_095 * 250_000 + 4_096 * 25_000 + 10**8 * 1_000_000


def test_the_same_event_again_is_a_duplicate_wherever_it_stands(meters: Meters, now: datetime) -> None:
    event = meters.event()
    first = meters.report([event, event])
    second = meters.report([event, meters.event()])
    assert drain(now) == 2
    third = meters.report([event])
    drain(now)
    results = [
        (batch.accepted_events, batch.duplicate_events, batch.exceptions)
        for batch in UsageBatch.objects.filter(pk__in=[first.pk, second.pk, third.pk]).order_by("pk")
    ]
    assert results == [(1, 1, []), (1, 1, []), (0, 1, [])]
    assert totals() == (2, 2 * NUMERATOR, 2 * NUMERATOR)


def test_gateway_and_agent_may_report_the_same_id_and_are_summed_apart(meters: Meters, now: datetime) -> None:
    event = meters.event()
    meters.report([event])
    accept_batch(source=meters.agent, body=meters.sent([event]), now=now)
    drain(now)
    assert UsageEvent.objects.count() == 2
    sums = rollups()
    assert (
        sums[str(meters.contract_id), "output", "gateway"] == sums[str(meters.contract_id), "output", "agent"]
    )


@pytest.mark.parametrize("apart", [False, True])
def test_the_same_id_with_other_content_is_a_conflict_and_never_counted(
    meters: Meters, now: datetime, apart: bool
) -> None:
    event = meters.event()
    changed = replace(event, buckets={Bucket.OUTPUT: 31})
    meters.report([event])
    if apart:
        drain(now)
    batch = meters.report([changed, event, changed])
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events, batch.duplicate_events) == ("stored", 0, 1)
    assert [(row["index"], row["id"], row["result"], row["field"]) for row in batch.exceptions] == [
        (0, str(event.id), "conflict", "id"),
        (2, str(event.id), "conflict", "id"),
    ]
    assert totals() == (1, NUMERATOR, NUMERATOR)


def test_a_new_sequence_number_does_not_make_the_same_facts_new(meters: Meters, now: datetime) -> None:
    event = meters.event()
    accept_batch(source=meters.agent, body=meters.sent([event]), now=now)
    batch = accept_batch(source=meters.agent, body=meters.sent([event], first=2), now=now)
    drain(now)
    batch.refresh_from_db()
    assert (batch.accepted_events, batch.duplicate_events) == (0, 1)


def _written_otherwise(event: Any) -> bytes:
    """The same facts in another hand: order of keys, offset, forms of an id, a repeated flag, a null bucket."""
    line = json.loads(encode_event(event))
    east = timezone(timedelta(hours=2))
    line |= {
        "id": line["id"].replace("-", ""),
        "request_id": line["request_id"].upper(),
        "contract_id": line["contract_id"].upper(),
        "occurred_at": event.occurred_at.astimezone(east).isoformat(),
        "period_start": event.period_start.astimezone(east).isoformat(),
        "flags": line["flags"] * 2,
        "buckets": dict(reversed(line["buckets"].items())) | {"reasoning": None},
    }
    return json.dumps(dict(reversed(line.items()))).encode() + b"\n"


def test_the_same_facts_written_otherwise_are_a_duplicate(meters: Meters, now: datetime) -> None:
    event = meters.event(flags=(Flag.CLIENT_GONE,))
    body = _written_otherwise(event) + meters.lines([event])
    batch = accept_batch(source=meters.gateway, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert (batch.accepted_events, batch.duplicate_events, batch.exceptions) == (1, 1, [])
    stored = UsageEvent.objects.get()
    assert (stored.id, stored.request_id, stored.occurred_at) == (
        event.id,
        event.request_id,
        event.occurred_at,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": uuid7()},
        {"attempt": 1},
        {"part": 1},
        {"occurred_at_us": 1},
        {"buckets": {**COUNTS, Bucket.REASONING: 0}},
        {"finish": Finish.LENGTH},
        {"bytes_in": 121},
        {"bytes_out": 4_001},
        {"duration_ms": 41},
        {"api_key_id": API_KEY_ID},
        {"flags": (Flag.CAPPED,)},
        {"recount_o200k": 1},
        {"first_byte_ms": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_fact_is_part_of_the_content(meters: Meters, now: datetime, changes: dict[str, Any]) -> None:
    event = meters.event()
    if us := changes.get("occurred_at_us"):
        changes = {"occurred_at": event.occurred_at + timedelta(microseconds=us)}
    batch = meters.report([event, replace(event, **changes)])
    drain(now)
    batch.refresh_from_db()
    assert (batch.accepted_events, [row["result"] for row in batch.exceptions]) == (1, ["conflict"])


@pytest.mark.parametrize(
    "field", ["id", "request_id", "contract_id", "rate_id", "api_key_id", "period_start"]
)
@pytest.mark.parametrize("damage", ["dashes", "spaces", "letters", "short", "empty"])
def test_a_text_that_is_no_id_or_time_is_quarantined_by_name_and_spoils_nothing_else(
    meters: Meters, now: datetime, field: str, damage: str
) -> None:
    line = json.loads(encode_event(meters.event(api_key_id=API_KEY_ID)))
    text = line[field]
    line[field] = {
        # As many characters, and as many digits, as an id has.
        "dashes": text[:7] + "-" + text[7] + text[9:],
        "spaces": text.replace("-", " "),
        "letters": "x" + text[1:],
        "short": text[:-1],
        "empty": "",
    }[damage]
    good = meters.lines([meters.event()])
    body = good + json.dumps(line).encode() + b"\n" + meters.lines([meters.event()])
    batch = accept_batch(source=meters.gateway, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 2)
    assert [(row["index"], row["id"], row["field"]) for row in batch.exceptions] == [(1, None, field)]


@pytest.mark.parametrize("start", ["0001-01-01T00:00:00Z", "9999-12-31T23:00:00Z"])
def test_a_period_at_the_ends_of_the_calendar_is_quarantined(
    meters: Meters, now: datetime, start: str
) -> None:
    line = json.loads(encode_event(meters.event())) | {"period_start": start}
    body = json.dumps(line).encode() + b"\n" + meters.lines([meters.event()])
    batch = accept_batch(source=meters.gateway, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 1)
    assert [row["field"] for row in batch.exceptions] == ["period_start"]


def test_an_event_out_of_its_place_in_a_numbered_batch_is_quarantined(meters: Meters, now: datetime) -> None:
    lines = [encode_event(meters.event(sequence=number)) for number in (1, 3, 3)]
    body = encode_batch(
        source_id=meters.agent.id, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=lines
    )
    batch = accept_batch(source=meters.agent, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert batch.accepted_events == 2
    assert [(row["index"], row["field"]) for row in batch.exceptions] == [(1, "sequence")]


def _quarantine_cases(now: datetime) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "no UUIDv7": ({"id": uuid4()}, "id"),
        "derived id": ({"id": derived_id(uuid7(now), "x")}, "id"),
        "id from the future": ({"id": uuid7(now + timedelta(minutes=11))}, "id"),
        "id long before what it tells": ({"id": uuid7(now - timedelta(days=1, seconds=2))}, "id"),
        "id before retention": ({"id": uuid7(now - timedelta(days=401))}, "id"),
        "unknown contract": ({"contract_id": uuid4()}, "contract_id"),
        "unknown offering": ({"offering_id": uuid4()}, "contract_id"),
        "another grade": ({"grade_id": uuid4()}, "grade_id"),
        "unknown rate": ({"rate_id": uuid4()}, "rate_id"),
        "before the contract": ({"occurred_at": now - timedelta(minutes=11)}, "occurred_at"),
        "from the future": ({"occurred_at": now + timedelta(minutes=11)}, "occurred_at"),
        "another period": ({"period_start": now + timedelta(minutes=15)}, "period_start"),
        "a period long gone": ({"period_start": now - timedelta(hours=2)}, "period_start"),
        "an uneven period": ({"period_start": now + timedelta(microseconds=1)}, "period_start"),
        "a bucket without weight": ({"buckets": {Bucket.AUDIO_OUTPUT: 1}}, "buckets.audio_output"),
        "more than possible": ({"buckets": {Bucket.OUTPUT: 2**53}}, "buckets"),
        "an endless request": ({"duration_ms": 2**31}, "duration_ms"),
        "an endless wait": ({"first_byte_ms": 2**31}, "first_byte_ms"),
    }


@pytest.mark.parametrize("case", list(_quarantine_cases(datetime(2026, 3, 10, tzinfo=UTC))))
def test_what_cannot_be_counted_is_quarantined_with_its_field_named(
    meters: Meters, now: datetime, case: str
) -> None:
    changes, field = _quarantine_cases(now)[case]
    good, bad = meters.event(), meters.event(**changes)
    batch = meters.report([bad, good])
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 1)
    assert [(row["index"], row["id"], row["result"], row["field"]) for row in batch.exceptions] == [
        (0, str(bad.id), "quarantined", field)
    ]
    assert batch.exceptions[0]["reason"]
    assert totals() == (1, NUMERATOR, NUMERATOR)


BAD_VALUES = [
    "-1",
    str(2**53 + 1),
    str(2**63),
    str(2**64),
    "1e400",
    "1e3",
    "NaN",
    '"1e3"',
    "true",
    "[]",
    "{}",
    "1.0",
]
REQUIRED = {
    "bytes_in": [*BAD_VALUES, "null"],
    "buckets.output": BAD_VALUES,
    "sequence": [*BAD_VALUES, "null", "0"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in REQUIRED.items() for value in values]
)
def test_a_bad_number_is_quarantined_and_changes_nothing(
    meters: Meters, now: datetime, field: str, value: str
) -> None:
    line = json.loads(encode_event(meters.event()))
    place = line["buckets"] if field.startswith("buckets.") else line
    place[field.rpartition(".")[2]] = "HERE"
    body = json.dumps(line).replace('"HERE"', value).encode() + b"\n" + meters.lines([meters.event()])
    batch = accept_batch(source=meters.gateway, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 1)
    (exception,) = batch.exceptions
    assert (exception["index"], exception["result"]) == (0, "quarantined")
    # What is no JSON at all has no field.
    assert exception["field"] in ((field, "event") if value == "NaN" else (field,))
    assert totals() == (1, NUMERATOR, NUMERATOR)


def test_an_unknown_field_and_a_null_where_none_may_be_are_named(meters: Meters, now: datetime) -> None:
    line = json.loads(encode_event(meters.event()))
    bodies = [line | {"host_id": "x"}, line | {"id": None}, line | {"finish": "crashed"}]
    body = b"".join(json.dumps(changed).encode() + b"\n" for changed in bodies)
    batch = accept_batch(source=meters.gateway, body=body, now=now)
    drain(now)
    batch.refresh_from_db()
    assert [row["field"] for row in batch.exceptions] == ["host_id", "id", "finish"]


def test_a_host_cannot_report_for_another_hosts_offering(meters: Meters, now: datetime) -> None:
    theirs = make_other_host(meters, now)
    batch = accept_batch(source=meters.agent, body=meters.sent([theirs.event()]), now=now)
    drain(now)
    batch.refresh_from_db()
    assert [row["field"] for row in batch.exceptions] == ["contract_id"]
    assert totals() == (0, 0, 0)


def make_other_host(meters: Meters, now: datetime) -> Meters:
    agent = register_source(kind="agent", host_id=uuid7(), public_key=bytes(32), now=now)
    other = dataclasses.replace(meters, agent=agent, contract_id=uuid7(), offering_id=uuid7())
    other.add_point()
    return other


def test_a_null_bucket_stays_null_and_adds_no_rollup(meters: Meters, now: datetime) -> None:
    meters.report([meters.event(buckets={Bucket.OUTPUT: 5, Bucket.CACHE_READ: None})])
    drain(now)
    assert UsageEvent.objects.get().cache_read_tokens is None
    assert list(UsageRollup.objects.values_list("bucket", flat=True)) == ["output"]


def test_an_event_without_any_count_is_kept_and_costs_nothing(meters: Meters, now: datetime) -> None:
    meters.report([meters.event(buckets={}, flags=(Flag.UPSTREAM_FAILED,))])
    drain(now)
    assert totals() == (1, 0, 0)


def test_every_flag_has_a_bit_of_its_own() -> None:
    assert set(FLAG_BITS) == set(Flag)
    assert sorted(FLAG_BITS.values()) == [1 << place for place in range(len(Flag))]


# Poisoned batches ----------------------------------------------------------------------------------------------


@pytest.fixture
def nearly_full(meters: Meters, now: datetime) -> Meters:
    """A contract whose roll-up cannot take another token: the database itself refuses the sum."""
    other = meters.other_contract()
    other.report([other.event()])
    drain(now)
    UsageRollup.objects.filter(contract_id=other.contract_id).update(native_tokens=2**63 - 1)
    return other


def test_a_poisoned_batch_blocks_nobody_and_is_dead_after_five_attempts(
    meters: Meters, nearly_full: Meters, now: datetime
) -> None:
    before = totals()
    good = [meters.report([meters.event()]) for _ in range(3)]
    poisoned = nearly_full.report([nearly_full.event()])
    good.append(meters.report([meters.event()]))

    assert ingest_batches(now=now) == 4
    assert set(UsageBatch.objects.filter(pk__in=[b.pk for b in good]).values_list("status", flat=True)) == {
        "stored"
    }
    poisoned.refresh_from_db()
    assert (poisoned.status, poisoned.attempts) == ("pending", 1)
    assert pending_before(now)

    # It no longer takes part in the others' transactions.
    late = meters.report([meters.event()])
    assert drain(now) == 1
    late.refresh_from_db()
    assert late.status == "stored"

    for attempt in range(2, MAX_ATTEMPTS + 1):
        assert retry_failed_batches(now=now) == (attempt == MAX_ATTEMPTS)
        poisoned.refresh_from_db()
        assert poisoned.attempts == attempt
    assert poisoned.status == "dead"
    assert DataError.__name__ in poisoned.error
    assert retry_failed_batches(now=now) == 0
    assert not pending_before(now)
    assert inbox_state().dead == 1
    assert totals()[0] == before[0] + 5


def test_a_dead_batch_can_be_revived_when_the_cause_is_gone(nearly_full: Meters, now: datetime) -> None:
    batch = nearly_full.report([nearly_full.event()])
    ingest_batches(now=now)
    for _ in range(MAX_ATTEMPTS):
        retry_failed_batches(now=now)
    UsageRollup.objects.filter(contract_id=nearly_full.contract_id).update(native_tokens=1)
    revive_batch(batch_id=batch.id, now=now)
    assert ingest_batches(now=now) == 1
    batch.refresh_from_db()
    assert (batch.status, batch.error, batch.accepted_events) == ("stored", "", 1)


# Slicing -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_sums_do_not_depend_on_how_usage_is_cut_into_batches(
    meters: Meters, now: datetime, data: st.DataObject
) -> None:
    counts = data.draw(
        st.lists(
            st.dictionaries(
                st.sampled_from([Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.OUTPUT, Bucket.REASONING]),
                st.one_of(st.none(), st.integers(0, 10**8)),
            ),
            min_size=1,
            max_size=20,
        )
    )
    whole, cut = meters.other_contract(), meters.other_contract()
    period = st.sampled_from([now, now + timedelta(minutes=5)])
    periods = [data.draw(period) for _ in counts]

    def events(of: Meters) -> list[Any]:
        return [
            of.event(buckets=buckets, period_start=start, occurred_at=start)
            for buckets, start in zip(counts, periods, strict=True)
        ]

    whole.report(events(whole))
    drain(now)
    left = data.draw(st.permutations(events(cut)))
    while left:
        size = data.draw(st.integers(1, len(left)))
        cut.report(left[:size])
        left = left[size:]
        if data.draw(st.booleans()):
            drain(now)
    drain(now)

    def sums(of: Meters) -> list[tuple[Any, ...]]:
        rows = UsageRollup.objects.filter(contract_id=of.contract_id)
        return sorted(rows.values_list("bucket", "period_start", "events", "native_tokens", "numerator"))

    assert sums(whole) == sums(cut)
    assert sum(row[4] for row in sums(whole)) == sum(
        UsageEvent.objects.filter(contract_id=whole.contract_id).values_list("numerator", flat=True)
    )


def test_usage_that_could_not_be_proved_is_quarantined_with_the_engines_own_figures(
    meters: Meters, now: datetime
) -> None:
    raw = '{"prompt_tokens":5,"total_tokens":9}'
    event = meters.event(
        buckets={}, flags=(Flag.UNPROVABLE,), unproved=f"total_tokens: is 9, the parts are 5; {raw}"
    )
    batch = meters.report([event, meters.event()])
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 1)
    (exception,) = batch.exceptions
    assert (exception["id"], exception["result"], exception["field"]) == (
        str(event.id),
        "quarantined",
        "buckets",
    )
    assert exception["reason"].endswith(raw)
    assert totals() == (1, NUMERATOR, NUMERATOR)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"api_key_id": API_KEY_ID}, "api_key_id"),
        ({"period_start": timedelta(seconds=7)}, "period_start"),
        ({"rate_id": "another grade's"}, "rate_id"),
    ],
)
def test_a_host_says_nothing_that_only_the_market_knows(
    meters: Meters, now: datetime, changes: dict[str, Any], field: str
) -> None:
    if field == "period_start":
        changes = {"period_start": meters.now + changes["period_start"]}
    if field == "rate_id":
        other = make_grade(now, slug="other", model="other")
        rate = publish_rate(grade_id=other.id, kind="list", micros_per_mtok=1, source_id=uuid4(), now=now)
        changes = {"rate_id": rate.id}
    batch = accept_batch(
        source=meters.agent, body=meters.sent([meters.event(**changes), meters.event()]), now=now
    )
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events) == ("stored", 1)
    assert [(row["index"], row["result"], row["field"]) for row in batch.exceptions] == [
        (0, "quarantined", field)
    ]


def test_a_nul_in_what_an_engine_said_costs_nobody_his_batch(meters: Meters, now: datetime) -> None:
    batch = meters.report([meters.event(buckets={}, unproved="a\0b"), meters.event()])
    drain(now)
    batch.refresh_from_db()
    assert (batch.status, batch.accepted_events, batch.attempts) == ("stored", 1, 1)
    assert batch.exceptions[0]["reason"].endswith("a\ufffdb")


def test_rows_of_many_shapes_and_terms_are_stored_together(meters: Meters, now: datetime) -> None:
    """Every combination of reported buckets, in two contracts."""
    contracts = [meters, meters.other_contract()]
    ppm = [Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.OUTPUT, Bucket.REASONING, Bucket.CACHE_WRITE]
    events = [
        contracts[mask % 2].event(
            buckets={bucket: mask + place for place, bucket in enumerate(ppm) if mask >> place & 1},
            first_byte_ms=mask if mask % 3 else None,
            recount_o200k=mask if mask % 5 else None,
            api_key_id=API_KEY_ID if mask % 7 else None,
            finish=list(Finish)[mask % len(Finish)],
        )
        for mask in range(1, 256)
    ]
    meters.report(events)
    drain(now)
    stored = {event.id: event for event in UsageEvent.objects.all()}
    assert len(stored) == len(events)
    for event in events:
        row = stored[event.id]
        told = {bucket: getattr(row, f"{bucket.value}_tokens") for bucket in Bucket}
        assert {bucket: tokens for bucket, tokens in told.items() if tokens is not None} == event.buckets
        assert (row.first_byte_ms, row.recount_o200k_tokens) == (event.first_byte_ms, event.recount_o200k)
        assert (row.api_key_id, row.finish, row.contract_id) == (
            event.api_key_id,
            event.finish.value,
            event.contract_id,
        )
