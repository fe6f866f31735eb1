"""What organizations read of usage: sums by any group, pages that never shift, exports, single events."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
import time_machine

from marketplace.accounts.services import SYSTEM, create_api_key
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from metering.models import MeterSource, UsageEvent, UsageRollup
from metering.reading import Group, Slice, UsageQuery, usage_page, usage_rows
from metering.services import (
    accept_batch,
    add_meter_point,
    amend_event,
    gateway_source,
    ingest_batches,
    void_event,
)
from metering.usage import GENESIS_DIGEST, Finish, Flag, encode_batch, encode_event, encode_lines
from metering.usage import UsageEvent as WireEvent
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.world import on_demand
from tests.cast import Party, Plant, make_grade, make_plant

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
PERIOD = 5 * MINUTE


@dataclass(frozen=True)
class Usage:
    """Two days of roll-ups: acme on two grades at two hosts with two keys, mallory on one."""

    contracts: list[Contract]
    keys: list[UUID]
    plants: list[Plant]
    start: datetime


@pytest.fixture
def usage(
    acme: Party, mallory: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> Iterator[Usage]:
    other_grade = make_grade(now, slug="other-chat", model="other-chat")
    other = make_plant(hyperion, other_grade, now, name="h2")
    contracts = [
        on_demand(acme, grade, now),
        on_demand(acme, other_grade, now),
        on_demand(mallory, grade, now),
    ]
    keys = [
        create_api_key(
            organization_id=acme.id, label=name, project=name, scopes=["read"], now=now, actor=SYSTEM
        )[0].id
        for name in ("=alpha", "beta")
    ]
    start = datetime(2026, 3, 8, 0, 0, tzinfo=UTC)
    rows = []
    for number in range(48 * 2):
        at = start + number * 30 * MINUTE
        rows += [
            roll_up(contracts[0], plant, keys[number % 2], "output", at, 10 + number),
            roll_up(contracts[0], plant, keys[number % 2], "uncached_input", at, 100, events=2, estimated=1),
            roll_up(contracts[1], other, keys[0], "output", at, 7),
            roll_up(contracts[2], plant, UUID(int=5), "output", at, 1_000_000),
            roll_up(contracts[0], plant, UUID(int=0), "output", at, 11 + number, meter="agent"),
        ]
    UsageRollup.objects.bulk_create(rows)
    with time_machine.travel(start + 2 * DAY, tick=False):
        yield Usage(contracts, keys, [plant, other], start)


def roll_up(
    contract: Contract, plant: Plant, key: UUID, bucket: str, at: datetime, tokens: int, *, events: int = 1,
    estimated: int = 0, meter: str = "gateway",
) -> UsageRollup:  # fmt: skip
    return UsageRollup(
        contract_id=contract.id,
        rate_id=plant.offering.list_rate_id,
        api_key_id=key,
        offering_id=plant.offering.id,
        bucket=bucket,
        meter=meter,
        period_start=at,
        grade_id=contract.grade_id,
        events=events,
        native_tokens=tokens,
        numerator=tokens * 1_000_000,
        estimated_events=estimated,
        estimated_numerator=estimated * 1_000,
    )


def read(party: Party, *, status: int = 200, **parameters: Any) -> Any:
    answer = party.api.get("/api/v1/usage", parameters)
    assert answer.status_code == status, answer.getvalue()
    return answer.json()


def every(party: Party, **parameters: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while True:
        page = read(party, **parameters, **cursor)
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


ALL: dict[str, Any] = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-10T00:00:00Z"}
OUTPUT_OF_FIRST = sum(10 + number for number in range(96))


@pytest.mark.parametrize(
    ("group", "column", "expected"),
    [
        ("contract", "contract_id", 2), ("api_key", "api_key_id", 2), ("project", "project", 2),
        ("model", "model", 2), ("grade", "grade", 2), ("host", "host_id", 2), ("offering", "offering_id", 2),
        ("bucket", "bucket", 2),
    ],
)  # fmt: skip
def test_usage_is_grouped_by_anything_and_always_comes_to_the_same(
    usage: Usage, acme: Party, group: str, column: str, expected: int
) -> None:
    items = every(acme, group_by=group, slice="month", **ALL)
    assert {item["start"] for item in items} == {"2026-03-01T00:00:00Z"}
    assert len({item[column] for item in items}) == len(items) == expected
    total = OUTPUT_OF_FIRST + 96 * 100 + 96 * 7
    assert sum(item["native_tokens"] for item in items) == total
    assert sum(item["numerator"] for item in items) == total * 10**6
    assert sum(item["estimated_numerator"] for item in items) == 96 * 1_000


def test_events_are_counted_once_where_buckets_are_not_told_apart(usage: Usage, acme: Party) -> None:
    terms = {"slice": "month", "contract_id": str(usage.contracts[0].id), **ALL}
    [all_buckets] = every(acme, group_by="contract", **terms)
    assert (all_buckets["events"], all_buckets["estimated_events"]) == (2 * 96, 96)
    by_bucket = {item["bucket"]: item for item in every(acme, group_by="bucket", **terms)}
    assert by_bucket["output"]["events"] == 96
    assert by_bucket["uncached_input"]["events"] == 2 * 96
    # What nobody reported has no row: null is not zero.
    assert set(by_bucket) == {"output", "uncached_input"}


@pytest.mark.parametrize(("slice_by", "slices"), [("period", 96), ("hour", 48), ("day", 2), ("month", 1)])
def test_slices_are_cut_in_utc_newest_first(usage: Usage, acme: Party, slice_by: str, slices: int) -> None:
    items = every(acme, group_by="model", slice=slice_by, model="other-chat", page_size=7, **ALL)
    starts = [item["start"] for item in items]
    assert starts == sorted(set(starts), reverse=True)
    assert len(starts) == slices
    assert sum(item["native_tokens"] for item in items) == 96 * 7


@pytest.mark.parametrize("size", [1, 3, 50, 200])
def test_pages_of_any_size_give_the_same_rows_once(usage: Usage, acme: Party, size: int) -> None:
    terms = {"group_by": "project,bucket,host", "slice": "day", **ALL}
    whole = every(acme, page_size=200, **terms)
    paged = every(acme, page_size=size, **terms)
    assert paged == whole
    assert (
        len({(row["start"], row["project"], row["bucket"], row["host_id"]) for row in whole})
        == len(whole)
        == 10
    )


def test_a_page_does_not_shift_when_usage_arrives_between(usage: Usage, acme: Party, plant: Plant) -> None:
    first = read(acme, group_by="bucket", slice="hour", page_size=5, **ALL)
    late = usage.start + 2 * DAY - 10 * MINUTE
    roll_up(usage.contracts[0], plant, usage.keys[0], "audio_input", late, 1).save(force_insert=True)
    following = read(acme, group_by="bucket", slice="hour", page_size=5, cursor=first["next"], **ALL)
    assert (following["items"][0]["start"], following["items"][0]["bucket"]) == (
        "2026-03-09T21:00:00Z",
        "uncached_input",
    )


def test_the_range_of_a_cursor_stays_that_of_its_first_page(usage: Usage, acme: Party) -> None:
    """`until` defaults to now, and now moves on while somebody reads."""
    first = read(acme, group_by="bucket", page_size=3)
    with time_machine.travel(usage.start + 3 * DAY, tick=False):
        following = read(acme, group_by="bucket", page_size=200, cursor=first["next"])
    assert len(first["items"]) + len(following["items"]) == 24 * 2


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"group_by": "bucket,bucket"}, "group_by"), ({"group_by": "colour"}, "group_by"),
        ({"group_by": ""}, "group_by"), ({"slice": "week"}, "slice"), ({"bucket": "input"}, "bucket"),
        ({"since": "2026-03-10T00:00:00Z", "until": "2026-03-09T00:00:00Z"}, "since"),
        ({"since": "2024-03-10T00:00:00Z", "until": "2026-03-09T00:00:00Z"}, "since"),
        ({"since": "2026-03-10"}, "since"), ({"cursor": "x"}, "cursor"), ({"cursor": "e30"}, "cursor"),
        ({"cursor": "W10"}, "cursor"), ({"cursor": "\u00e9"}, "cursor"), ({"page_size": "0"}, "page_size"),
        ({"format": "xlsx"}, "format"), ({"role": "emperor"}, "role"), ({"colour": "red"}, "colour"),
        ({"meter": "engine"}, "meter"), ({"contract_id": "1"}, "contract_id"), ({"model": "a\0"}, "model"),
    ],
)  # fmt: skip
def test_a_bad_question_names_its_field(usage: Usage, acme: Party, terms: dict[str, str], field: str) -> None:
    answer = acme.api.get("/api/v1/usage", terms)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_cursor_of_another_question_is_refused(usage: Usage, acme: Party) -> None:
    cursor = read(acme, group_by="bucket", page_size=1, **ALL)["next"]
    for other in ({"group_by": "model"}, {"group_by": "bucket", "slice": "day"}):
        answer = acme.api.get("/api/v1/usage", {**other, **ALL, "cursor": cursor})
        assert (answer.status_code, answer.json()["field"]) == (422, "cursor")


@pytest.mark.parametrize("key", ["\ud800", "a\0b"])
def test_a_cursor_whose_place_is_no_text_is_refused(usage: Usage, acme: Party, key: str) -> None:
    cursor = read(acme, group_by="model", page_size=1, **ALL)["next"]
    told = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    bad = json.dumps([*told[:-1], key])
    forged = base64.urlsafe_b64encode(bad.encode()).decode().rstrip("=")
    answer = acme.api.get("/api/v1/usage", {"group_by": "model", **ALL, "cursor": forged})
    assert (answer.status_code, answer.json()["field"]) == (422, "cursor")


def test_the_agents_counts_can_be_read_beside_the_gateways(usage: Usage, acme: Party) -> None:
    [gateway] = every(acme, group_by="bucket", bucket="output", model="tiny-chat", slice="month", **ALL)
    [agent] = every(acme, group_by="bucket", bucket="output", slice="month", meter="agent", **ALL)
    assert agent["native_tokens"] == gateway["native_tokens"] + 96
    # Agents know no keys.
    assert {item["api_key_id"] for item in every(acme, group_by="api_key", meter="agent", **ALL)} == {None}


def test_a_voided_bucket_is_absent_not_zero(usage: Usage, acme: Party, plant: Plant) -> None:
    roll_up(usage.contracts[0], plant, usage.keys[0], "cache_read", usage.start, 0, events=0).save(
        force_insert=True
    )
    assert every(acme, bucket="cache_read", **ALL) == []


# Who sees what ----------------------------------------------------------------------------------------------------


def test_a_provider_reads_what_his_hosts_supplied_but_not_to_whom(
    usage: Usage, hyperion: Party, mallory: Party
) -> None:
    items = every(hyperion, slice="month", **ALL)
    assert {item["host_id"] for item in items} == {str(plant.host.id) for plant in usage.plants}
    assert sum(row["native_tokens"] for row in items) == OUTPUT_OF_FIRST + 96 * 100 + 96 * 7 + 96 * 1_000_000
    assert not {"contract_id", "api_key_id", "project"} & set(items[0])
    for terms, field in (
        ({"group_by": "bucket,contract"}, "group_by"),
        ({"group_by": "project"}, "group_by"),
        ({"contract_id": str(usage.contracts[0].id)}, "contract_id"),
        ({"api_key_id": str(usage.keys[0])}, "api_key_id"),
        ({"project": "beta"}, "project"),
    ):
        answer = hyperion.api.get("/api/v1/usage", terms)
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    # mallory provides too, and supplied nothing.
    host = str(usage.plants[0].host.id)
    assert every(mallory, role="provider", **ALL) == []
    assert every(mallory, role="provider", host_id=host, group_by="host", **ALL) == []


def test_an_organization_reads_only_in_roles_that_it_has(usage: Usage, acme: Party, operator: Party) -> None:
    assert read(acme, role="provider", status=403)["code"] == "role_missing"
    assert read(acme, role="operator", status=403)["code"] == "role_missing"
    assert {item["grade"] for item in every(operator, **ALL)} == {"tiny-chat", "other-chat"}
    by_contract = every(operator, group_by="contract", slice="month", **ALL)
    assert {item["contract_id"] for item in by_contract} == {str(item.id) for item in usage.contracts}


def test_filters_by_host_and_key_narrow(usage: Usage, acme: Party) -> None:
    other = usage.plants[1]
    items = every(acme, host_id=str(other.host.id), group_by="host,model", slice="month", **ALL)
    assert [(row["host_id"], row["model"]) for row in items] == [(str(other.host.id), "other-chat")]
    [keyed] = every(acme, api_key_id=str(usage.keys[1]), group_by="api_key", slice="month", **ALL)
    assert keyed["native_tokens"] == sum(110 + number for number in range(1, 96, 2))
    assert every(acme, api_key_id=str(UUID(int=5)), **ALL) == []
    assert every(acme, project="=alpha", group_by="project", slice="month", **ALL)[0]["project"] == "=alpha"


# Exports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"format": "csv"}, {"HTTP_ACCEPT": "text/csv"}])
def test_a_csv_holds_the_whole_result_and_no_formula(usage: Usage, acme: Party, how: dict[str, str]) -> None:
    headers: dict[str, Any] = {name: how[name] for name in how if name.startswith("HTTP")}
    terms = {name: how[name] for name in how if not name.startswith("HTTP")}
    answer = acme.api.get(
        "/api/v1/usage", {"group_by": "project,bucket", "slice": "period", **ALL, **terms}, **headers
    )
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/csv; charset=utf-8")
    assert answer["Content-Disposition"] == (
        'attachment; filename="usage-20260301T000000Z-20260310T000000Z.csv"'
    )
    text = answer.getvalue().decode()
    assert text.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    # More than any page: both keys of the first contract in two buckets, and the second contract.
    assert len(rows) == 96 * 2 + 96 // 2
    assert {row["project"] for row in rows} == {"'=alpha", "beta"}
    assert sum(int(row["native_tokens"]) for row in rows) == OUTPUT_OF_FIRST + 96 * 100 + 96 * 7
    shown = every(acme, group_by="project,bucket", slice="period", page_size=200, **ALL)
    assert [row["start"] for row in rows] == [item["start"] for item in shown]


def test_ndjson_holds_the_same_rows_as_the_pages(usage: Usage, acme: Party) -> None:
    terms = {"group_by": "contract,api_key,bucket", "slice": "hour", **ALL}
    answer = acme.api.get("/api/v1/usage", {**terms, "format": "ndjson"})
    assert answer["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    assert lines == every(acme, page_size=200, **terms)


def test_a_refused_export_is_still_a_problem_document(usage: Usage, acme: Party) -> None:
    answer = acme.api.get("/api/v1/usage", {"slice": "week"}, HTTP_ACCEPT="text/csv")
    assert (answer.status_code, answer["Content-Type"]) == (422, "application/problem+json")
    answer = acme.api.get("/api/v1/usage", HTTP_ACCEPT="image/png")
    assert (answer.status_code, answer["Content-Type"]) == (406, "application/problem+json")


def test_an_export_reads_a_few_rows_at_a_time(usage: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
    import metering.reading

    query = UsageQuery(
        since=usage.start - 300 * DAY,
        until=usage.start + 2 * DAY,
        slice_by=Slice.PERIOD,
        groups=(Group.CONTRACT, Group.BUCKET),
        contract_ids=[contract.id for contract in usage.contracts],
    )
    whole = list(usage_rows(query))
    monkeypatch.setattr(metering.reading, "_EXPORT_ROWS", 7)
    assert list(usage_rows(query)) == whole
    assert len(whole) == 96 * 4
    page, more = usage_page(query, after=whole[9].place, size=5)
    assert (page, more) == (whole[10:15], True)


# Single events ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witnessed:
    contract: Contract
    plant: Plant
    gateway: MeterSource
    event: WireEvent
    agents: WireEvent


@pytest.fixture
def witnessed(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Iterator[Witnessed]:
    """One request of acme's at hyperion's host, seen by gateway and agent."""
    contract = on_demand(acme, grade, now)
    add_meter_point(
        contract_id=contract.id,
        offering_id=plant.offering.id,
        host_id=plant.host.id,
        grade_id=grade.id,
        valid_from=now,
    )
    event = WireEvent(
        id=uuid7(now),
        sequence=1,
        request_id=uuid7(now),
        attempt=0,
        part=0,
        contract_id=contract.id,
        offering_id=plant.offering.id,
        grade_id=grade.id,
        rate_id=plant.offering.list_rate_id,
        api_key_id=acme.api_key_id,
        period_start=now,
        occurred_at=now + timedelta(seconds=2),
        buckets={Bucket.UNCACHED_INPUT: 12, Bucket.CACHE_READ: 0, Bucket.OUTPUT: 30},
        finish=Finish.STOP,
        bytes_in=120,
        bytes_out=4_000,
        duration_ms=40,
    )
    agents = msgspec.structs.replace(
        event,
        id=uuid7(now),
        api_key_id=None,
        buckets={Bucket.UNCACHED_INPUT: 12, Bucket.OUTPUT: 31},
        flags=(Flag.ESTIMATED,),
    )
    gateway = gateway_source(now)
    accept_batch(source=gateway, body=encode_lines([encode_event(event)]), now=now)
    source = plant.host.source
    assert source is not None
    body = encode_batch(
        source_id=source.id, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=[encode_event(agents)]
    )
    accept_batch(source=source, body=body, now=now)
    with time_machine.travel(now + MINUTE, tick=False):
        ingest_batches(now=now + MINUTE)
        assert UsageEvent.objects.count() == 2
        yield Witnessed(contract, plant, gateway, event, agents)


def event_of(party: Party, event_id: UUID, *, status: int = 200, **parameters: str) -> Any:
    answer = party.api.get(f"/api/v1/usage/events/{event_id}", parameters)
    assert answer.status_code == status, answer.content
    return answer.json()


def test_a_buyer_sees_what_both_meters_saw_of_his_request(witnessed: Witnessed, acme: Party) -> None:
    found = event_of(acme, witnessed.event.id)
    assert (found["meter"], found["layer"], found["status"]) == ("gateway", "validated", "counted")
    assert found["buckets"]["cache_read"] == 0
    assert found["buckets"]["cache_write"] is None
    assert found["numerator"] == str(12 * 250_000 + 30 * 1_000_000)
    assert (found["contract_id"], found["api_key_id"]) == (str(witnessed.contract.id), str(acme.api_key_id))
    witnesses = {item["meter"]: item for item in found["witnesses"]}
    assert witnesses["agent"]["id"] == str(witnessed.agents.id)
    assert (witnesses["agent"]["layer"], witnesses["agent"]["flags"]) == ("estimated", ["estimated"])
    assert witnesses["agent"]["buckets"]["output"] == 31
    assert found["corrections"] == []


def test_a_provider_sees_the_event_without_the_buyer(witnessed: Witnessed, hyperion: Party) -> None:
    for event_id in (witnessed.event.id, witnessed.agents.id):
        answer = hyperion.api.get(f"/api/v1/usage/events/{event_id}")
        assert answer.status_code == 200
        text = answer.content.decode()
        rate_id = str(witnessed.event.rate_id)
        assert not [word for word in (str(witnessed.contract.id), "Acme", rate_id) if word in text]
        assert {item["api_key_id"] for item in answer.json()["witnesses"]} == {None}


def test_others_are_told_that_there_is_no_such_event(
    witnessed: Witnessed, mallory: Party, operator: Party
) -> None:
    for role in ("buyer", "provider"):
        assert event_of(mallory, witnessed.event.id, status=404, role=role) == event_of(
            mallory, uuid7(), status=404, role=role
        )
    assert event_of(mallory, witnessed.event.id, status=403, role="operator")["code"] == "role_missing"
    assert event_of(mallory, witnessed.event.id, status=422, role="x")["field"] == "role"
    assert event_of(operator, witnessed.event.id)["contract_id"] == str(witnessed.contract.id)


def test_what_was_corrected_says_so_and_by_whom_to_the_operator_alone(
    witnessed: Witnessed, acme: Party, hyperion: Party, operator: Party, now: datetime
) -> None:
    later = now + MINUTE
    amended = amend_event(
        source_id=witnessed.gateway.id,
        event_id=witnessed.event.id,
        buckets={Bucket.UNCACHED_INPUT: 12, Bucket.OUTPUT: 29},
        reason="counted a stop token",
        actor="user:someone",
        now=later,
    )
    assert amended.replacement_id is not None
    assert amended.replacement_source_id is not None
    void_event(
        source_id=amended.replacement_source_id,
        event_id=amended.replacement_id,
        reason="never delivered",
        actor="user:someone",
        now=later,
    )
    first = event_of(acme, witnessed.event.id)
    assert (first["layer"], first["status"]) == ("validated", "amended")
    second = event_of(acme, amended.replacement_id)
    assert (second["layer"], second["status"], second["buckets"]["output"]) == ("edited", "voided", 29)
    for found in (first, second):
        assert [item["kind"] for item in found["corrections"]] == ["amend", "void"]
        assert [item["reason"] for item in found["corrections"]] == [
            "counted a stop token",
            "never delivered",
        ]
        assert {item["actor"] for item in found["corrections"]} == {None}
        assert len(found["witnesses"]) == 3
    assert event_of(hyperion, witnessed.event.id)["corrections"][0]["actor"] is None
    assert event_of(operator, witnessed.event.id)["corrections"][0]["actor"] == "user:someone"
    # Nothing of it counts any more, and nothing is not a row of zeros.
    assert every(acme, group_by="bucket", since="2026-03-10T00:00:00Z", until="2026-03-11T00:00:00Z") == []


def test_the_events_of_a_period_are_listed_by_id(
    witnessed: Witnessed, acme: Party, hyperion: Party, operator: Party, now: datetime
) -> None:
    more = [msgspec.structs.replace(witnessed.event, id=uuid7(now), request_id=uuid7(now)) for _ in range(5)]
    accept_batch(
        source=witnessed.gateway, body=encode_lines([encode_event(event) for event in more]), now=now
    )
    ingest_batches(now=now + MINUTE)
    expected = sorted((str(event.id) for event in [witnessed.event, *more]), reverse=True)
    stated: dict[str, Any] = {"period_start": now.isoformat().replace("+00:00", "Z")}
    found: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = acme.api.get(
            "/api/v1/usage/events",
            {"contract_id": str(witnessed.contract.id), "page_size": 4, **stated, **cursor},
        ).json()
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == expected
    own = hyperion.api.get("/api/v1/usage/events", {"meter": "agent", **stated}).json()["items"]
    assert [(item["id"], item["contract_id"]) for item in own] == [(str(witnessed.agents.id), None)]
    later = {"period_start": (now + PERIOD).isoformat().replace("+00:00", "Z")}
    assert acme.api.get("/api/v1/usage/events", later).json()["items"] == []
    refused = hyperion.api.get("/api/v1/usage/events", {"contract_id": str(witnessed.contract.id)})
    assert (refused.status_code, refused.json()["field"]) == (422, "contract_id")
    assert operator.api.get("/api/v1/usage/events", stated).json()["field"] == "contract_id"
