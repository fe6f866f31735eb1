"""The wire form of usage: strict in, canonical out, chained."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from metering.usage import (
    GENESIS_DIGEST,
    MAX_COUNT,
    BatchHeader,
    Finish,
    Flag,
    LeanCounts,
    LeanEvent,
    UsageError,
    UsageEvent,
    decode_batch,
    decode_event,
    encode_batch,
    encode_event,
    encode_lines,
    read_lean,
    split_batch,
)
from pricing.units import Bucket

EVENT = UsageEvent(
    id=UUID("019a0000-0000-7000-8000-000000000001"),
    sequence=1,
    request_id=UUID(int=2),
    attempt=0,
    part=0,
    contract_id=UUID(int=3),
    offering_id=UUID(int=4),
    grade_id=UUID(int=5),
    rate_id=UUID(int=6),
    period_start=datetime(2026, 11, 20, 12, tzinfo=UTC),
    occurred_at=datetime(2026, 11, 20, 12, 0, 1, 5, tzinfo=UTC),
    buckets={Bucket.UNCACHED_INPUT: 12, Bucket.CACHE_READ: 0, Bucket.OUTPUT: 30},
    flags=(Flag.CLIENT_GONE,),
    finish=Finish.STOP,
    bytes_in=120,
    bytes_out=4_000,
    first_byte_ms=12,
    duration_ms=40,
)
SOURCE = UUID(int=9)


def wire(**changes: Any) -> bytes:
    return json.dumps(json.loads(encode_event(EVENT)) | changes).encode()


def lines(count: int, first: int = 1) -> list[bytes]:
    return [encode_event(replace(EVENT, sequence=first + index)) for index in range(count)]


def test_an_event_survives_the_wire_and_its_form_is_canonical() -> None:
    encoded = encode_event(EVENT)
    assert decode_event(encoded) == EVENT
    assert b"\n" not in encoded
    assert list(json.loads(encoded)) == sorted(json.loads(encoded))


def lean_events(*lines: bytes) -> list[LeanEvent | UsageError]:
    return [event for part in read_lean(encode_lines(lines)) for event in part]


def test_a_lean_event_has_the_fields_of_an_event() -> None:
    fields = {field.name: field.required for field in msgspec.structs.fields(UsageEvent)}
    assert {field.name: field.required for field in msgspec.structs.fields(LeanEvent)} == fields
    # The order of the canonical form, which is what it is read and written in.
    for lean_form in (LeanEvent, LeanCounts):
        assert list(lean_form.__struct_fields__) == sorted(lean_form.__struct_fields__)
    assert set(LeanCounts.__struct_fields__) == {bucket.value for bucket in Bucket}
    # By which a name that stands twice is found in the whole line at once.
    assert set(LeanCounts.__struct_fields__).isdisjoint(LeanEvent.__struct_fields__)
    (lean,) = lean_events(encode_event(EVENT))
    assert isinstance(lean, LeanEvent)
    counts = {Bucket(name): getattr(lean.buckets, name) for name in LeanCounts.__struct_fields__}
    assert {bucket: tokens for bucket, tokens in counts.items() if tokens is not None} == {
        bucket: tokens for bucket, tokens in EVENT.buckets.items() if tokens is not None
    }
    for name in fields:
        if name != "buckets":
            assert msgspec.convert(getattr(lean, name), type(getattr(EVENT, name))) == getattr(EVENT, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes_in", -1),
        ("bytes_in", 1.0),
        ("bytes_in", True),
        ("bytes_in", "1"),
        ("bytes_in", None),
        ("bytes_in", MAX_COUNT + 1),
        ("sequence", 0),
        ("attempt", 1_001),
        ("occurred_at", "2026-11-20T12:00:00"),
        ("occurred_at", 1_700_000_000),
        ("id", "not-an-id"),
        ("finish", "bored"),
        ("buckets", None),
        ("surprise", 1),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as refusal:
        decode_event(wire(**{field: value}))
    assert refusal.value.field == field


@pytest.mark.parametrize("tokens", [-1, 1.5, "3", True, MAX_COUNT + 1, [1]])
def test_a_bad_bucket_is_refused_by_name(tokens: Any) -> None:
    with pytest.raises(UsageError) as refusal:
        decode_event(wire(buckets={"uncached_input": 1, "output": tokens}))
    assert refusal.value.field == "buckets.output"


def test_unknown_buckets_missing_fields_and_nonsense_are_refused() -> None:
    with pytest.raises(UsageError, match="tea"):
        decode_event(wire(buckets={"tea": 1}))
    incomplete = json.loads(encode_event(EVENT))
    del incomplete["rate_id"]
    with pytest.raises(UsageError) as refusal:
        decode_event(json.dumps(incomplete).encode())
    assert refusal.value.field == "rate_id"
    for nonsense in (b"", b"{", b"[]", b"\xff\xfe", b'{"id":"\xff"}', b"NaN", b"x" * 5_000):
        with pytest.raises(UsageError):
            decode_event(nonsense)


@pytest.mark.parametrize(
    "spelled", [b'{"bytes_in":1,', b'{"bytes_in" : 1,\n', b'{"bytes\\u005fin":1,', b'{"bytes_in":120,']
)
def test_a_name_that_stands_twice_is_refused_by_both_readers(spelled: bytes) -> None:
    for line in (encode_event(EVENT), json.dumps(json.loads(encode_event(EVENT)), indent=1).encode()):
        assert decode_event(line) == EVENT
        twice = spelled + line[1:]
        with pytest.raises(UsageError, match="twice") as refusal:
            decode_event(twice)
        assert refusal.value.field == "bytes_in"
        good, bad, last = lean_events(*[one.replace(b"\n", b" ") for one in (line, twice, line)])
        assert isinstance(bad, UsageError)
        assert (bad.field, type(good), good) == ("bytes_in", LeanEvent, last)


def test_the_strict_reader_takes_any_spelling_that_says_the_same() -> None:
    shuffled = dict(reversed(json.loads(encode_event(EVENT)).items()))
    del shuffled["api_key_id"], shuffled["flags"]
    (lean,) = lean_events(json.dumps(shuffled).encode())
    assert [lean] == lean_events(encode_event(replace(EVENT, flags=())))


def test_a_batch_comes_back_whole_and_chained() -> None:
    first = encode_batch(source_id=SOURCE, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=lines(3))
    header, events = decode_batch(first)
    assert (header.source_id, header.sequence_from, header.sequence_to) == (SOURCE, 1, 3)
    assert [event.sequence for event in events if isinstance(event, UsageEvent)] == [1, 2, 3]
    second = encode_batch(source_id=SOURCE, sequence_from=4, previous_digest=header.digest, lines=lines(1, 4))
    assert split_batch(second)[0].previous_digest == header.digest


def test_an_edited_truncated_or_spliced_batch_is_refused() -> None:
    batch = encode_batch(source_id=SOURCE, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=lines(3))
    for broken in (
        batch.replace(b'"bytes_in":120', b'"bytes_in":121', 1),
        batch[:-1],
        batch[: batch.rindex(b"\n", 0, -1) + 1],
        batch.replace(b'"sequence_from":1', b'"sequence_from":2'),
        batch.replace(GENESIS_DIGEST.encode(), b"1" * 64),
        batch.replace(b"tokenyard.usage.v1", b"tokenyard.usage.v2"),
        batch.partition(b"\n")[0],
        batch.partition(b"\n")[0] + b"\n",
        b"",
        b"\n\n",
    ):
        with pytest.raises(UsageError):
            decode_batch(broken)


def test_one_bad_event_spoils_only_itself() -> None:
    good = lines(3)
    bad = good[1].replace(b'"bytes_in":120', b'"bytes_in":-5')
    batch = encode_batch(
        source_id=SOURCE, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=[good[0], bad, good[0]]
    )
    _, events = decode_batch(batch)
    assert isinstance(events[0], UsageEvent)
    assert isinstance(events[1], UsageError)
    assert events[1].field == "bytes_in"
    assert isinstance(events[2], UsageError)
    assert events[2].field == "sequence"


def test_a_header_is_read_strictly() -> None:
    batch = encode_batch(source_id=SOURCE, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=lines(1))
    head, _, body = batch.partition(b"\n")
    raw = json.loads(head)
    assert set(raw) == set(BatchHeader.__struct_fields__)
    for change in ({"digest": "x"}, {"extra": 1}, {"sequence_from": 0}, {"source_id": 5}):
        with pytest.raises(UsageError) as refusal:
            split_batch(json.dumps(raw | change).encode() + b"\n" + body)
        assert refusal.value.field in change
