"""Bad usage through the door: refused or quarantined with the field named, never an error of ours, never counted.

Every case goes through HTTP and ingestion beside a good event, which is counted whatever stands next to it; a batch
that is refused as a whole counts nothing.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from marketplace import clock
from marketplace.ids import uuid7
from metering.ingesting import ingest_batches
from metering.models import UsageBatch, UsageEvent
from metering.services import add_meter_point
from metering.usage import encode_event
from tests.metering.meters import Meters, rollups, totals
from tests.metering.posting import (
    MANY,
    batch_facts,
    envelope,
    meters_of_this_hour,
    numbered,
    post,
    post_cloudevents,
    problem,
    read,
)

COUNTS = (
    "-1",
    "9223372036854775808",
    "1e400",
    "NaN",
    '"1e3"',
    "true",
    "[1]",
    "1.0",
    "1e3",
    "{}",
    "-0.0",
    "Infinity",
)


@pytest.fixture
def meters(db: None) -> Meters:
    return meters_of_this_hour()


def outcome(meters: Meters, bad_line: bytes) -> tuple[str, str]:
    """(result, field) of a line that stands between two good events; the two are counted and nothing else is."""
    good = [meters.event(sequence=1), meters.event(sequence=3)]
    body = meters.batch_of([encode_event(good[0]), bad_line, encode_event(good[1])])
    answer = post(meters, body)
    assert answer.status_code == 202, answer.content
    ingest_batches(now=clock.now())
    batch_id = answer.json()["batch_id"]
    told = read(meters, batch_id).json()
    assert (told["status"], told["accepted_events"], told["duplicate_events"]) == ("stored", 2, 0)
    rows = read(meters, batch_id, "/events").json()["items"]
    assert [row["result"] for row in rows[::2]] == ["accepted", "accepted"]
    assert rows[1]["reason"]
    assert set(UsageEvent.objects.values_list("id", flat=True)) == {event.id for event in good}
    assert rollups()[str(meters.contract_id), "output", "agent"] == (2, 60, 60_000_000)
    stored, numerator, rolled_up = totals()
    assert (stored, numerator) == (2, rolled_up)
    return rows[1]["result"], rows[1]["field"]


def line(meters: Meters, **changes: Any) -> bytes:
    """The second line of a batch, good but for the changes."""
    return encode_event(meters.event(sequence=2, **changes))


def with_text(meters: Meters, name: str, text: str) -> bytes:
    """The same with `text` as the value of a field, spelled as it is."""
    value = json.loads(line(meters))[name]
    spelled = json.dumps(value, separators=(",", ":"))
    changed = line(meters).replace(f'"{name}":{spelled}'.encode(), f'"{name}":{text}'.encode())
    assert f'"{name}":{text}'.encode() in changed
    return changed


@pytest.mark.parametrize("count", COUNTS)
def test_a_bad_count_of_a_bucket_quarantines_its_event(meters: Meters, count: str) -> None:
    bad = line(meters).replace(b'"output":30', f'"output":{count}'.encode())
    result, field = outcome(meters, bad)
    assert (result, field) == ("quarantined", "buckets.output")


@pytest.mark.parametrize("name", ["bytes_in", "duration_ms", "recount_o200k", "attempt", "sequence"])
@pytest.mark.parametrize("count", [*COUNTS, "null"])
def test_a_bad_number_quarantines_its_event(meters: Meters, name: str, count: str) -> None:
    if (name, count) == ("recount_o200k", "null"):
        return  # That is how it says that there is none.
    bad = with_text(meters, name, count)
    assert outcome(meters, bad) == ("quarantined", name)


def test_a_null_bucket_is_not_reported_and_not_zero(meters: Meters) -> None:
    silent = line(meters).replace(b'"output":30', b'"output":null')
    loud = encode_event(meters.event(sequence=1))
    assert post(meters, meters.batch_of([loud, silent])).status_code == 202
    ingest_batches(now=clock.now())
    assert rollups()[str(meters.contract_id), "output", "agent"][0] == 1
    assert rollups()[str(meters.contract_id), "uncached_input", "agent"][0] == 2


WRONG: dict[str, tuple[Callable[[Meters], bytes], str]] = {
    "unknown contract": (lambda m: line(m, contract_id=uuid7()), "contract_id"),
    "unknown offering": (lambda m: line(m, offering_id=uuid7()), "contract_id"),
    "unknown rate": (lambda m: line(m, rate_id=uuid7()), "rate_id"),
    "unknown grade": (lambda m: line(m, grade_id=uuid7()), "grade_id"),
    "unknown bucket": (lambda m: line(m).replace(b'"output":30', b'"tea":30'), "buckets.tea"),
    "bucket without weight": (
        lambda m: line(m).replace(b'"output":30', b'"audio_output":30'),
        "buckets.audio_output",
    ),
    "unknown field": (lambda m: line(m).replace(b'{"api', b'{"prompt":"hello","api', 1), "prompt"),
    "unknown flag": (lambda m: with_text(m, "flags", '["nice"]'), "flags[0]"),
    "event of the future": (
        lambda m: line(m, id=uuid7(clock.wall_now() + timedelta(hours=1))),
        "id",
    ),
    "occurred in the future": (
        lambda m: line(m, occurred_at=clock.wall_now() + timedelta(days=1)),
        "occurred_at",
    ),
    "year 1970": (lambda m: line(m, occurred_at=clock.wall_now().replace(year=1970)), "occurred_at"),
    "id of version 4": (lambda m: line(m, id=uuid4()), "id"),
    "id of 1970": (lambda m: line(m, id=uuid7(clock.wall_now().replace(year=1970))), "id"),
    "naive time": (lambda m: with_text(m, "occurred_at", '"2026-11-20T12:00:00"'), "occurred_at"),
    "time as a number": (lambda m: with_text(m, "occurred_at", "1700000000"), "occurred_at"),
    "another's place": (lambda m: line(m).replace(b'"sequence":2', b'"sequence":7'), "sequence"),
    "empty line": (lambda _: b"", "event"),
    "not an object": (lambda _: b"[1,2]", "event"),
    "cut short": (lambda m: line(m)[:-1], "event"),
    "two objects": (lambda m: line(m) + b"{}", "event"),
    "BOM": (lambda m: b"\xef\xbb\xbf" + line(m), "event"),
    "too long": (lambda m: line(m).replace(b'"finish":"stop"', b'"finish":"%s"' % (b"x" * 5_000)), "event"),
    "deep nesting": (lambda _: b"[" * 4_000, "event"),
    "deep nesting in a field": (lambda _: b'{"id":' + b"[" * 4_000, "id"),
    "deep nesting in a bucket": (lambda _: b'{"buckets":{"output":' + b"[" * 4_000, "buckets.?"),
    "NUL in a text": (lambda m: with_text(m, "finish", '"st\\u0000p"'), "finish"),
    "NUL in an id": (lambda m: with_text(m, "contract_id", '"\\u0000"'), "contract_id"),
    "half a surrogate": (lambda m: with_text(m, "finish", '"\\ud800"'), "event"),
    "a field twice": (lambda m: line(m).replace(b'"bytes_in":', b'"bytes_in":1,"bytes_in":', 1), "bytes_in"),
    "a bucket twice": (
        lambda m: line(m).replace(b'"output":30', b'"output":1,"output":30'),
        "buckets.output",
    ),
    "twice, once in disguise": (
        lambda m: line(m).replace(b'"bytes_in":', b'"bytes\\u005fin":1,"bytes_in":', 1),
        "bytes_in",
    ),
    "twice, instead of what may be left out": (
        lambda m: line(m).replace(b'"api_key_id":null', b'"bytes_in":1', 1),
        "bytes_in",
    ),
    "more than any request": (
        lambda m: line(m).replace(b'"output":30', b'"output":%d' % 2**53),
        "buckets",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_event_is_quarantined_by_itself(meters: Meters, case: str) -> None:
    make, field = WRONG[case]
    assert outcome(meters, make(meters)) == ("quarantined", field)


def test_a_foreign_contract_is_not_this_hosts_to_report(meters: Meters) -> None:
    others = make_foreign(meters)
    bad = encode_event(others.event(sequence=2))
    assert outcome(meters, bad) == ("quarantined", "contract_id")
    assert not [key for key in rollups() if key[0] == str(others.contract_id)]


def make_foreign(meters: Meters) -> Meters:
    """A contract that another host supplies."""
    others = dataclasses.replace(meters, contract_id=uuid7(), offering_id=uuid7())
    add_meter_point(
        contract_id=others.contract_id,
        offering_id=others.offering_id,
        host_id=uuid7(),
        grade_id=meters.grade_id,
        valid_from=meters.now,
    )
    return others


def _bodies(meters: Meters) -> dict[str, tuple[bytes, dict[str, Any], int, str]]:
    """Name to (body, options of the request, status, field)."""
    event = encode_event(meters.event())
    good = meters.batch_of([event])
    header, _, lines = good.partition(b"\n")
    zipped = gzip.compress(good)
    coded = {"headers": {"Content-Encoding": "gzip"}}
    return {
        "empty": (b"", {}, 422, "body"),
        "a line feed": (b"\n", {}, 422, "header"),
        "header alone": (header, {}, 422, "body"),
        "no events": (header + b"\n", {}, 422, "body"),
        "header missing": (lines, {}, 422, "api_key_id"),
        "header twice": (header + b"\n" + good, {}, 422, "header.sequence_to"),
        "sequence mismatch": (
            good.replace(b'"sequence_to":1', b'"sequence_to":2'),
            {},
            422,
            "header.sequence_to",
        ),
        "sequence backwards": (
            good.replace(b'"sequence_from":1', b'"sequence_from":2'),
            {},
            422,
            "header.sequence_to",
        ),
        "sequence of 2^63": (
            good.replace(b'"sequence_to":1', b'"sequence_to":%d' % 2**63),
            {},
            422,
            "sequence_to",
        ),
        "sequence as text": (good.replace(b'"sequence_to":1', b'"sequence_to":"1"'), {}, 422, "sequence_to"),
        "sequence of NaN": (good.replace(b'"sequence_to":1', b'"sequence_to":NaN'), {}, 422, "sequence_to"),
        "truncated gzip": (zipped[:-9], coded, 400, "Content-Encoding"),
        "zip bomb": (gzip.compress(b"0" * 50_000_000), coded, 413, "body"),
        "plain as gzip": (good, coded, 400, "Content-Encoding"),
        "gzip as plain": (zipped, {}, 422, "body"),
        "invalid UTF-8": (good.replace(b"stop", b"st\xc3\x28"), {}, 422, "body"),
        "a surrogate in UTF-8": (good.replace(b"stop", b"\xed\xa0\x80"), {}, 422, "body"),
        "UTF-16": (good.decode().encode("utf-16"), {}, 422, "body"),
        "NUL": (good.replace(b"stop", b"st\0p"), {}, 422, "body"),
        "CRLF": (good.replace(b"\n", b"\r\n"), {}, 422, "body"),
        "BOM": (b"\xef\xbb\xbf" + good, {}, 422, "header"),
        "deep nesting": (b"[" * 1_000_000 + b"\n" + lines, {}, 422, "header"),
        "deep nesting in the header": (b'{"digest":' + b"[" * 100_000 + b"\n" + lines, {}, 422, "digest"),
        "edited": (good.replace(b'"output":30', b'"output":31'), {}, 422, "header.digest"),
        "no last line feed": (good[:-1], {}, 422, "body"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "empty", "a line feed", "header alone", "no events", "header missing", "header twice", "sequence mismatch",
        "sequence backwards", "sequence of 2^63", "sequence as text", "sequence of NaN", "truncated gzip", "zip bomb",
        "plain as gzip", "gzip as plain", "invalid UTF-8", "a surrogate in UTF-8", "UTF-16", "NUL", "CRLF", "BOM",
        "deep nesting", "deep nesting in the header", "edited", "no last line feed",
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_and_counts_nothing(meters: Meters, case: str) -> None:
    body, options, status, field = _bodies(meters)[case]
    _, named = problem(post(meters, body, **options), status)
    assert named == field
    ingest_batches(now=clock.now())
    assert not UsageBatch.objects.exists()
    assert totals() == (0, 0, 0)


@pytest.mark.parametrize("count", COUNTS)
def test_a_bad_count_in_a_cloudevent_is_quarantined_or_refused(meters: Meters, count: str) -> None:
    (event,) = numbered([meters.event()])
    plain = json.dumps([envelope(event)], separators=(",", ":"))
    body = plain.replace('"output":30', f'"output":{count}')
    assert body != plain
    spelled = encode_event(event).replace(b'"output":30', f'"output":{count}'.encode())
    facts = batch_facts([event], lines=spelled + b"\n")
    answer = post_cloudevents(meters, body.encode(), facts, content_type=MANY)
    if count in ("NaN", "Infinity"):
        assert problem(answer, 422) == ("batch_refused", "body")
    else:
        assert answer.status_code == 202, answer.content
        ingest_batches(now=clock.now())
        (row,) = read(meters, answer.json()["batch_id"]).json()["exceptions"]
        assert (row["result"], row["field"]) == ("quarantined", "buckets.output")
    assert totals() == (0, 0, 0)
