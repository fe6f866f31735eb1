"""What a batch may come in: codings, CloudEvents, chunked bodies, signatures; and when the market asks to wait."""

import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from backports import zstd
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.test import Client
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519, HMAC_SHA256
from msgspec.structs import replace

from marketplace import clock
from metering import pressure
from metering.coding import unpack_lines
from metering.ingesting import ingest_batches
from metering.models import UsageBatch, UsageEvent
from metering.services import accept_batch
from metering.usage import encode_event, encode_lines
from tests.cast import Party
from tests.metering.meters import Meters, digest_of, rollups, totals
from tests.metering.posting import (
    ADDRESS,
    MANY,
    NDJSON,
    ONE,
    URL,
    batch_facts,
    envelope,
    meters_of_this_hour,
    numbered,
    post,
    post_cloudevents,
    problem,
    read,
)

MIB = 1024 * 1024


def _zstd(body: bytes) -> bytes:
    return zstd.compress(body, options={zstd.CompressionParameter.checksum_flag: 1})


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": _zstd}


@pytest.fixture
def meters(db: None) -> Meters:
    return meters_of_this_hour()


def kept_lines() -> bytes:
    batch = UsageBatch.objects.get()
    lines = unpack_lines(bytes(batch.body))
    assert batch.body_bytes == len(lines)
    return lines


def encoded(meters: Meters, body: bytes, coding: str, **options: Any) -> Any:
    return post(meters, body, headers={"Content-Encoding": coding}, **options)


# Codings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd", "GZIP"])
def test_every_coding_brings_the_same_lines(meters: Meters, coding: str) -> None:
    body = meters.sent([meters.event() for _ in range(50)])
    compress = COMPRESS.get(coding.lower(), bytes)
    assert encoded(meters, compress(body), coding).status_code == 202
    assert kept_lines() == body.partition(b"\n")[2]


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, zstd", "x"])
def test_another_coding_is_not_supported(meters: Meters, coding: str) -> None:
    answer = encoded(meters, zlib.compress(meters.sent([meters.event()])), coding)
    assert problem(answer, 415) == ("unsupported_media_type", "Content-Encoding")


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "fault", ["cut", "cut to the header", "garbage after", "twice", "damaged", "plain", "empty"]
)
def test_a_body_that_is_not_in_its_coding_is_refused(meters: Meters, coding: str, fault: str) -> None:
    body = meters.sent([meters.event()])
    whole = COMPRESS[coding](body)
    middle = len(whole) // 2
    broken = {
        "cut": whole[:-1],
        "cut to the header": whole[:6],
        "garbage after": whole + b"\0",
        "twice": whole + whole,
        "damaged": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        "plain": body,
        "empty": b"",
    }[fault]
    assert problem(encoded(meters, broken, coding), 400) == ("body_unreadable", "Content-Encoding")
    assert not UsageBatch.objects.exists()


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_stops_at_the_limit(meters: Meters, coding: str) -> None:
    bomb = COMPRESS[coding](b"\0" * (200 * MIB))
    assert len(bomb) < MIB
    assert problem(encoded(meters, bomb, coding), 413) == ("body_too_large", "body")


_PEAK = """
import resource, sys
from metering.coding import TooLong, decode_body
bomb = sys.stdin.buffer.read()
decode_body  # Imported before the first look.
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_body(bomb, sys.argv[1], limit_bytes=8 * 1024 * 1024)
except TooLong:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_costs_no_more_memory_than_the_limit_allows(coding: str) -> None:
    bomb = COMPRESS[coding](b"\0" * (400 * MIB))
    told = subprocess.run([sys.executable, "-c", _PEAK, coding], input=bomb, capture_output=True, check=True)
    assert int(told.stdout) < 64 * 1024  # KiB: the limit, its copies, zstd's window.


def test_a_zstd_window_above_what_its_rfc_allows_is_refused(meters: Meters) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    body = compressor.compress(meters.sent([meters.event()])) + compressor.flush()
    assert problem(encoded(meters, body, "zstd"), 400) == ("body_unreadable", "Content-Encoding")


def test_a_signature_is_checked_before_anything_is_decoded(meters: Meters) -> None:
    bomb = gzip.compress(b"\0" * MIB)
    assert problem(encoded(meters, bomb, "gzip", signed_body=bomb + b"x"), 401)[0] == "signature_refused"
    # The digest is that of the bytes as sent, not of what they unfold to.
    body = meters.sent([meters.event()])
    answer = encoded(meters, gzip.compress(body), "gzip", signed_body=body)
    assert problem(answer, 401)[0] == "signature_refused"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "", "application/x-ndjson; charset=latin-1", "a/b/c;;"]
)
def test_another_form_is_not_supported(meters: Meters, content_type: str) -> None:
    answer = post(meters, meters.sent([meters.event()]), content_type=content_type)
    assert problem(answer, 415) == ("unsupported_media_type", "Content-Type")


def test_a_media_type_may_name_its_charset(meters: Meters) -> None:
    body = meters.sent([meters.event()])
    assert post(meters, body, content_type=f"{NDJSON}; charset=UTF-8").status_code == 202


# Sizes -------------------------------------------------------------------------------------------------------------


def test_ten_thousand_events_are_taken_and_one_more_is_not(meters: Meters) -> None:
    line = encode_event(meters.event())
    lines = [line.replace(b'"sequence":1}', b'"sequence":%d}' % number) for number in range(1, 10_002)]
    whole = meters.batch_of(lines[:10_000])
    assert post(meters, whole).status_code == 202
    header, _, rest = whole.partition(b"\n")
    told = json.loads(header)
    more = rest + lines[-1] + b"\n"
    told |= {"sequence_to": 10_001, "digest": digest_of(b"\n" + more)}
    answer = post(meters, json.dumps(told).encode() + b"\n" + more)
    assert problem(answer, 422) == ("batch_refused", "body")


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_the_limit_holds_as_sent_and_as_decoded(meters: Meters, coding: str) -> None:
    full = b" " * (8 * MIB)
    compress = COMPRESS.get(coding, bytes)
    # Full to the last byte it is read, and is no batch.
    assert problem(encoded(meters, compress(full), coding), 422)[0] == "batch_refused"
    assert problem(encoded(meters, compress(full + b" "), coding), 413) == ("body_too_large", "body")


class _Wire(BytesIO):
    """A body as a WSGI server hands it on; it notes how much was taken."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


@pytest.mark.parametrize("length", ["8388609", "99999999999999999999", "-1", "1e3", "\u0661"])
def test_a_length_that_is_too_large_or_none_is_refused_unread(meters: Meters, length: str) -> None:
    wire = _Wire(b"{}")
    answer = post(meters, b"{}", environ={"CONTENT_LENGTH": length, "wsgi.input": wire})
    assert problem(answer, 413) == ("body_too_large", "body")
    assert wire.taken == 0


def chunked(meters: Meters, body: bytes, *, terminated: bool = True) -> tuple[Any, _Wire]:
    stream = _Wire(body)
    environ = {
        "CONTENT_LENGTH": "",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": stream,
        "wsgi.input_terminated": terminated,
    }
    return post(meters, body, environ=environ), stream


def test_a_chunked_body_is_read_up_to_the_limit(meters: Meters) -> None:
    body = meters.sent([meters.event()])
    answer, _ = chunked(meters, body)
    assert answer.status_code == 202
    answer, stream = chunked(meters, b" " * (9 * MIB))
    assert problem(answer, 413) == ("body_too_large", "body")
    assert stream.taken == 8 * MIB + 1


def test_without_a_length_or_an_end_the_length_is_asked_for(meters: Meters) -> None:
    answer, stream = chunked(meters, meters.sent([meters.event()]), terminated=False)
    assert problem(answer, 411) == ("length_required", "Content-Length")
    assert stream.taken == 0


# CloudEvents -------------------------------------------------------------------------------------------------------


def test_cloudevents_end_as_the_same_lines_as_ndjson(meters: Meters) -> None:
    events = numbered([meters.event() for _ in range(3)])
    body = json.dumps([envelope(event) for event in events], indent=2).encode()
    answer = post_cloudevents(meters, body, batch_facts(spelled(events)), content_type=MANY)
    assert answer.status_code == 202
    assert kept_lines() == encode_lines([encode_event(event) for event in events])
    ingest_batches(now=clock.now())
    assert totals()[0] == 3
    assert read(meters, answer.json()["batch_id"]).json()["accepted_events"] == 3


def spelled(events: list[Any]) -> list[Any]:
    """Python's json and the canonical form agree on these events: same order, no white space."""
    for event in events:
        line = encode_event(event)
        assert json.dumps(json.loads(line), separators=(",", ":")).encode() == line
    return events


@pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
def test_a_single_cloudevent_is_a_batch_of_one(meters: Meters, coding: str) -> None:
    (event,) = numbered([meters.event()])
    extras = {"subject": "a", "traceparent": "00-1", "time": event.occurred_at.isoformat()}
    body = COMPRESS.get(coding, bytes)(json.dumps(envelope(event, **extras)).encode())
    answer = post_cloudevents(
        meters,
        body,
        batch_facts([event]),
        content_type="application/cloudevents+json; charset=utf-8",
        headers={"Content-Encoding": coding},
    )
    assert answer.status_code == 202
    assert kept_lines() == encode_event(event) + b"\n"


def test_a_cloudevent_in_binary_mode_has_its_attributes_in_headers(meters: Meters) -> None:
    (event,) = numbered([meters.event()])
    attributes = {
        "ce-specversion": "1.0",
        "ce-id": str(event.id),
        "ce-source": "/hosts/%C3%A9",
        "ce-type": "tokenyard.usage.v1",
        "ce-time": event.occurred_at.isoformat(),
    }

    def send(**changes: str) -> Any:
        headers = attributes | {name.replace("_", "-"): value for name, value in changes.items()}
        return post_cloudevents(
            meters,
            encode_event(event),
            batch_facts([event]),
            content_type="application/json",
            headers=headers,
        )

    assert send().status_code == 202
    assert kept_lines() == encode_event(event) + b"\n"
    assert problem(send(ce_id=str(uuid4())), 422) == ("batch_refused", "id")
    assert problem(send(ce_type="other"), 422) == ("batch_refused", "type")
    assert problem(send(ce_specversion="0.3"), 422) == ("batch_refused", "specversion")


def test_the_same_batch_in_either_form_is_the_same_batch(meters: Meters) -> None:
    events = numbered([meters.event(), meters.event()])
    as_ndjson = post(meters, meters.sent(events))
    as_cloudevents = post_cloudevents(meters, [envelope(event) for event in events], batch_facts(events))
    assert as_cloudevents.json()["batch_id"] == as_ndjson.json()["batch_id"]
    assert UsageBatch.objects.count() == 1


def test_a_chain_goes_on_from_one_form_to_the_other(meters: Meters) -> None:
    first = meters.sent([meters.event()])
    assert post(meters, first).status_code == 202
    more = numbered([meters.event()], first=2)
    facts = batch_facts(more, digest_of(first))
    assert post_cloudevents(meters, envelope(more[0]), facts).status_code == 202
    assert set(UsageBatch.objects.values_list("chain", flat=True)) == {"linked"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": None}, "specversion"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 5}, "id"),
        ({"id": str(UUID(int=1))}, "id"),
        ({"type": "other"}, "type"),
        ({"type": None}, "type"),
        ({"source": None}, "source"),
        ({"source": ""}, "source"),
        ({"source": f"urn:uuid:{UUID(int=9)}"}, "source"),
        ({"source": f"https://market/meters/{UUID(int=9)}/"}, "source"),
        ({"time": "2026-11-20T12:00:00Z"}, "time"),
        ({"time": "yesterday"}, "time"),
        ({"datacontenttype": "text/xml"}, "datacontenttype"),
        ({"data": None}, "data"),
        ({"data_base64": "e30="}, "data_base64"),
    ],
)
def test_an_envelope_at_fault_refuses_the_batch_and_names_the_attribute(
    meters: Meters, changes: dict[str, Any], field: str
) -> None:
    events = numbered([meters.event(), meters.event()])
    facts = batch_facts(events)
    answer = post_cloudevents(meters, [envelope(events[0]), envelope(events[1], **changes)], facts)
    assert problem(answer, 422) == ("batch_refused", f"1.{field}")
    answer = post_cloudevents(meters, envelope(events[0], **changes), batch_facts(events[:1]))
    assert problem(answer, 422) == ("batch_refused", field)
    assert not UsageBatch.objects.exists()


def test_the_registered_source_counts_whatever_the_payload_says(meters: Meters) -> None:
    for number, source in enumerate(["anything at all", str(meters.agent.id), f"/hosts/{meters.host_id}"], 1):
        (event,) = numbered([meters.event()], first=number)
        answer = post_cloudevents(meters, envelope(event, source=source), batch_facts([event]))
        assert answer.status_code == 202, answer.content
    ingest_batches(now=clock.now())
    assert set(UsageEvent.objects.values_list("source_id", flat=True)) == {meters.agent.id}


def test_bad_data_quarantines_its_event_alone(meters: Meters) -> None:
    good, other = numbered([meters.event(), meters.event()])
    data = json.loads(encode_event(other)) | {"bytes_in": -1}
    lines = encode_lines([encode_event(good), json.dumps(data, separators=(",", ":")).encode()])
    facts = batch_facts([good, other], lines=lines)
    answer = post_cloudevents(meters, [envelope(good), envelope(other, data=data)], facts)
    assert answer.status_code == 202, answer.content
    ingest_batches(now=clock.now())
    told = read(meters, answer.json()["batch_id"]).json()
    assert (told["accepted_events"], told["exceptions"][0]["field"]) == (1, "bytes_in")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", "body"),
        (b"{}", "body"),
        (b"[1]", "0"),
        (b"nonsense", "body"),
        (b"[" * 100_000, "body"),
        (b"\xef\xbb\xbf[]", "body"),
        (b'["\xff"]', "body"),
        (b'["\0"]', "body"),
        (b"", "body"),
    ],
)
def test_what_is_no_array_of_cloudevents_is_refused(meters: Meters, body: bytes, field: str) -> None:
    events = numbered([meters.event()])
    answer = post_cloudevents(meters, body, batch_facts(events), content_type=MANY)
    assert problem(answer, 422) == ("batch_refused", field)


def test_an_attribute_that_stands_twice_or_is_disguised_is_refused(meters: Meters) -> None:
    (event,) = numbered([meters.event()])
    plain = json.dumps(envelope(event)).encode()
    for body in (plain.replace(b'{"spec', b'{"id":"x","spec', 1), plain.replace(b'"id"', b'"\\u0069d"', 1)):
        answer = post_cloudevents(meters, body, batch_facts([event]), content_type=ONE)
        assert problem(answer, 422) == ("batch_refused", "body")


@pytest.mark.parametrize(
    "facts",
    [
        None,
        "",
        "nonsense;;",
        "from=1",
        {"from": 0},
        {"from": "1.0"},
        {"from": None},
        {"to": 2},
        {"to": '"1"'},
        {"previous": ":AAAA:"},
        {"previous": None},
        {"digest": '"x"'},
        {"digest": f":{'A' * 43}=:"},
        {"extra": 1},
        {"to": "1, to=1"},
    ],
    ids=str,
)
def test_the_batchs_facts_must_be_whole_and_true(meters: Meters, facts: Any) -> None:
    (event,) = numbered([meters.event()])
    text = batch_facts([event], changes=facts) if isinstance(facts, dict) else facts
    answer = post_cloudevents(meters, envelope(event), text)
    assert problem(answer, 422) == ("batch_refused", "Tokenyard-Batch")
    assert not UsageBatch.objects.exists()


def test_the_batchs_facts_must_be_signed(meters: Meters) -> None:
    (event,) = numbered([meters.event()])
    facts = batch_facts([event])
    body = json.dumps(envelope(event)).encode()
    unsigned = post_cloudevents(meters, body, None, headers={"Tokenyard-Batch": facts}, content_type=ONE)
    assert problem(unsigned, 401)[0] == "signature_refused"
    other = {"Tokenyard-Batch": facts.replace("to=1", "to=2")}
    changed = post_cloudevents(meters, body, facts, headers=other, content_type=ONE)
    assert problem(changed, 401)[0] == "signature_refused"
    assert post_cloudevents(meters, body, facts, content_type=ONE).status_code == 202


def test_ndjson_takes_no_second_header(meters: Meters) -> None:
    (event,) = numbered([meters.event()])
    facts = {"Tokenyard-Batch": batch_facts([event])}
    answer = post(meters, meters.sent([event]), covered_headers=facts)
    assert problem(answer, 422) == ("batch_refused", "Tokenyard-Batch")


# Signatures --------------------------------------------------------------------------------------------------------


class _Message:
    def __init__(self, headers: dict[str, str]) -> None:
        self.method, self.url, self.headers = "POST", URL, headers


COVERED = ("@method", "@authority", "@target-uri", "content-digest")


def signed_by_hand(meters: Meters, sent: bytes, *, hmac: bool = False, **changes: Any) -> Any:
    """A signature of the library's own making, for what `sign_request` would never sign."""
    key_id = str(meters.host_id)
    public = meters.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    resolver = MappingKeyResolver(
        public_keys={}, private_keys={key_id: public if hmac else meters.private_key}
    )
    signer = HTTPMessageSigner(signature_algorithm=HMAC_SHA256 if hmac else ED25519, key_resolver=resolver)
    message = _Message({})
    terms: dict[str, Any] = {
        "key_id": key_id,
        "created": clock.wall_now(),
        "nonce": uuid4().hex,
        "covered_component_ids": COVERED,
        "body": sent,
    }
    signer.sign(message, **(terms | changes))
    return Client().post(ADDRESS, sent, NDJSON, headers=message.headers)


def test_a_signature_made_by_the_library_itself_is_believed(meters: Meters) -> None:
    assert signed_by_hand(meters, meters.sent([meters.event()])).status_code == 202


@pytest.mark.parametrize(
    "changes",
    [
        {"hmac": True},
        {"hmac": True, "include_alg": False},
        {"nonce": None},
        {"nonce": ""},
        {"nonce": "n" * 201},
        {"expires": clock.wall_now() - timedelta(seconds=1)},
        {"covered_component_ids": COVERED[1:]},
        {"covered_component_ids": COVERED[:1] + COVERED[2:]},
        {"covered_component_ids": COVERED[:2] + COVERED[3:]},
        {"covered_component_ids": COVERED[:3], "body": None},
        {"body": b"another"},
    ],
    ids=[
        "alg", "alg unsaid", "no nonce", "empty nonce", "long nonce", "expired", "no method", "no authority",
        "no target", "no digest", "another body",
    ],
)  # fmt: skip
def test_a_signature_that_lacks_something_is_refused(meters: Meters, changes: dict[str, Any]) -> None:
    answer = signed_by_hand(meters, meters.sent([meters.event()]), **changes)
    assert problem(answer, 401)[0] == "signature_refused"
    assert not UsageBatch.objects.exists()


# Back-pressure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["USAGE_INBOX_MAX_BATCHES", "USAGE_INBOX_MAX_BYTES"])
def test_a_full_inbox_asks_hosts_to_wait_and_takes_what_it_knows(
    meters: Meters, settings: Any, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(pressure, "LOOK_EVERY_S", 0.0)
    setattr(settings, bound, 1)
    first = meters.sent([meters.event()])
    second = meters.sent([meters.event()], first=2, previous_digest=digest_of(first))
    assert post(meters, first).status_code == 202

    answer = post(meters, second)
    assert problem(answer, 429) == ("inbox_full", "")
    assert 1 <= int(answer["Retry-After"]) <= 60
    assert post(meters, first).status_code == 202, "it is durable already"
    assert UsageBatch.objects.count() == 1
    # What the gateway metered was served and captured: it is never turned away.
    accept_batch(source=meters.gateway, body=meters.lines([meters.event()]), now=meters.now)

    ingest_batches(now=clock.now())
    assert post(meters, second).status_code == 202


def test_the_wait_grows_with_the_age_of_the_oldest_batch(
    meters: Meters, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.USAGE_INBOX_MAX_BATCHES = 1
    for oldest_s, wait_s in ((0.0, 1), (17.4, 17), (86_400.0, 60)):
        depth = pressure.Depth(1, 100, oldest_s)
        monkeypatch.setattr(pressure, "_looked", [(float("inf"), depth)])
        with pytest.raises(pressure.InboxFull) as refusal:
            pressure.check_inbox()
        assert refusal.value.retry_after_s == wait_s


def test_the_inbox_is_looked_at_once_a_second(
    meters: Meters, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(pressure, "_looked", [])
    with django_assert_num_queries(1):
        pressure.check_inbox()
        pressure.check_inbox()


# What became of each event -----------------------------------------------------------------------------------------


def outcomes(meters: Meters, batch_id: str, page_size: int = 3) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    query = f"page_size={page_size}"
    while True:
        page = meters_page(meters, batch_id, query)
        rows += page["items"]
        if page["next"] is None:
            return rows
        query = f"page_size={page_size}&cursor={page['next']}"


def meters_page(meters: Meters, batch_id: str, query: str) -> dict[str, Any]:
    answer = read(meters, batch_id, f"/events?{query}")
    assert answer.status_code == 200, answer.content
    page: dict[str, Any] = answer.json()
    return page


def test_every_event_has_exactly_one_row(meters: Meters) -> None:
    event = meters.event()
    sent = [
        event, event, event, meters.event(), replace(event, bytes_in=1), meters.event(contract_id=uuid4()), event,
        meters.event(id=uuid4()),
    ]  # fmt: skip
    batch_id = post(meters, meters.sent(sent)).json()["batch_id"]
    assert {row["result"] for row in outcomes(meters, batch_id)} == {"pending"}

    ingest_batches(now=clock.now())
    rows = outcomes(meters, batch_id)
    assert [row["index"] for row in rows] == list(range(len(sent)))
    assert [row["id"] for row in rows] == [str(told.id) for told in sent]
    assert [(row["result"], row["field"]) for row in rows] == [
        ("accepted", ""),
        ("duplicate", ""),
        ("duplicate", ""),
        ("accepted", ""),
        ("conflict", "id"),
        ("quarantined", "contract_id"),
        ("duplicate", ""),
        ("quarantined", "id"),
    ]
    assert all(bool(row["reason"]) is bool(row["field"]) for row in rows)
    told = read(meters, batch_id).json()
    assert told["duplicates"] == [[1, 2], [6, 6]]
    assert told["accepted_events"] + told["duplicate_events"] + len(told["exceptions"]) == len(sent)
    assert rollups()[str(meters.contract_id), "output", "agent"][0] == 2


def test_a_line_without_an_id_has_its_row_too(meters: Meters) -> None:
    body = meters.batch_of([b"nonsense", encode_event(meters.event(sequence=2))])
    batch_id = post(meters, body).json()["batch_id"]
    ingest_batches(now=clock.now())
    assert [(row["id"] is None, row["result"], row["field"]) for row in outcomes(meters, batch_id)] == [
        (True, "quarantined", "event"),
        (False, "accepted", ""),
    ]


@pytest.mark.parametrize("query", ["cursor=x", "page_size=0", "page_size=201"])
def test_a_bad_page_is_refused_by_name(meters: Meters, query: str) -> None:
    batch_id = post(meters, meters.sent([meters.event()])).json()["batch_id"]
    answer = read(meters, batch_id, f"/events?{query}")
    assert problem(answer, 422)[1] == query.partition("=")[0]
    beyond = meters_page(meters, batch_id, f"cursor={UUID(int=2**127).hex}")
    assert beyond == {"items": [], "next": None}


def test_the_operator_sees_the_dead_and_revives_them(
    meters: Meters, operator: Party, acme: Party, mallory: Party
) -> None:
    batch_id = post(meters, meters.sent([meters.event()])).json()["batch_id"]
    UsageBatch.objects.filter(pk=batch_id).update(status="dead", attempts=5, error="KeyError: 'x'")
    (dead,) = operator.api.get(f"{ADDRESS}/batches").json()["items"]
    assert (dead["id"], dead["status"], dead["error"]) == (batch_id, "dead", "KeyError: 'x'")
    assert operator.api.get(f"{ADDRESS}/batches?status=pending").json()["items"] == []
    assert problem(operator.api.get(f"{ADDRESS}/batches?status=lost"), 422)[1] == "status"
    (row,) = operator.api.get(f"{ADDRESS}/batches/{batch_id}/events").json()["items"]
    assert (row["result"], row["reason"]) == ("dead", "KeyError: 'x'")

    address = f"{ADDRESS}/batches/{batch_id}/revive"
    for party in (acme, mallory):
        assert party.api.post(address).status_code == 403
        assert party.api.get(f"{ADDRESS}/batches").status_code == 403
        assert party.api.get(f"{ADDRESS}/batches/{batch_id}/events").status_code == 403
    assert operator.api.post(address).json()["status"] == "pending"
    assert problem(operator.api.post(address), 409)[0] == "conflict"
    assert problem(operator.api.post(f"{ADDRESS}/batches/{uuid4()}/revive"), 404)[0] == "not_found"
    ingest_batches(now=clock.now())
    assert read(meters, batch_id).json()["accepted_events"] == 1
