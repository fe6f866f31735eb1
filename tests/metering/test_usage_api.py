"""POST /usage and what became of a batch, through the door the agent uses."""

import dataclasses
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.test import Client
from msgspec.structs import replace

from marketplace import clock
from metering.ingesting import ingest_batches
from metering.models import UsageBatch
from metering.selectors import sequence_gaps
from metering.services import close_source, register_source
from metering.usage import digest_batch, encode_event
from tests.cast import Party
from tests.metering.meters import Meters, digest_of
from tests.metering.posting import ADDRESS, meters_of_this_hour, post, problem, read


@pytest.fixture
def meters(db: None) -> Meters:
    return meters_of_this_hour()


def test_a_signed_batch_is_durable_at_202_and_tells_what_became_of_its_events(meters: Meters) -> None:
    event = meters.event()
    body = meters.sent([event, event, replace(event, bytes_in=1), meters.event(contract_id=uuid4())])
    answer = post(meters, body)
    assert answer.status_code == 202
    batch_id = answer.json()["batch_id"]
    assert read(meters, batch_id).json()["status"] == "pending"

    ingest_batches(now=meters.now + timedelta(minutes=1))
    told = read(meters, batch_id).json()
    assert (told["status"], told["accepted_events"], told["duplicate_events"]) == ("stored", 1, 1)
    assert [(row["index"], row["result"], row["field"]) for row in told["exceptions"]] == [
        (2, "conflict", "id"),
        (3, "quarantined", "contract_id"),
    ]


@pytest.mark.parametrize(("age_s", "status"), [(300, 202), (-300, 202), (301, 401), (-301, 401)])
def test_a_signature_is_believed_five_minutes_before_and_after_its_time(
    meters: Meters, age_s: int, status: int
) -> None:
    with time_machine.travel(clock.wall_now().replace(microsecond=0), tick=False):
        assert post(meters, meters.sent([meters.event()]), age_s=age_s).status_code == status


@pytest.mark.parametrize("by", ["host", "source"])
def test_the_key_id_is_the_host_or_its_meter(meters: Meters, by: str) -> None:
    key_id = meters.host_id if by == "host" else meters.agent.id
    assert post(meters, meters.sent([meters.event()]), key_id=key_id).status_code == 202


def test_the_same_batch_sent_again_is_the_same_batch(meters: Meters) -> None:
    body = meters.sent([meters.event()])
    first, second = post(meters, body), post(meters, body)
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert UsageBatch.objects.count() == 1


def test_a_request_seen_before_is_refused(meters: Meters) -> None:
    body = meters.sent([meters.event()])
    assert post(meters, body, nonce="once").status_code == 202
    assert problem(post(meters, body, nonce="once"), 401) == ("signature_refused", "")


@pytest.mark.parametrize(
    "options",
    [
        {"private_key": Ed25519PrivateKey.generate()},
        {"key_id": uuid4()},
        {"key_id": "somebody"},
        {"signed_body": b"other"},
        {"url": "http://testserver/api/v1/usage?x=1"},
        {"url": "http://elsewhere/api/v1/usage"},
        {"method": "PUT"},
        {"age_s": 302},
        {"age_s": -302},
    ],
    ids=["key", "host", "key id", "body", "query", "authority", "method", "old", "future"],
)
def test_what_the_host_did_not_sign_so_is_refused(meters: Meters, options: dict[str, Any]) -> None:
    answer = post(meters, meters.sent([meters.event()]), **options)
    assert problem(answer, 401)[0] == "signature_refused"
    assert UsageBatch.objects.count() == 0


def test_an_unsigned_batch_and_one_of_a_closed_meter_are_refused(meters: Meters) -> None:
    body = meters.sent([meters.event()])
    answer = Client().post(ADDRESS, body, content_type="application/x-ndjson")
    assert problem(answer, 401)[0] == "signature_refused"
    close_source(source_id=meters.agent.id)
    assert problem(post(meters, body), 401)[0] == "signature_refused"


def _malformed(meters: Meters) -> dict[str, tuple[bytes, str]]:
    good = meters.sent([meters.event(), meters.event()])
    header, _, lines = good.partition(b"\n")
    line = encode_event(meters.event())

    def with_lines(changed: bytes) -> bytes:
        digest = digest_batch("0" * 64, changed)
        return header.replace(digest_of(good).encode(), digest.encode()) + b"\n" + changed

    return {
        "nothing": (b"", "body"),
        "header alone": (header + b"\n", "body"),
        "truncated": (good[:-10], "body"),
        "a line missing": (header + b"\n" + line + b"\n", "header.sequence_to"),
        "a changed event": (good.replace(b'"bytes_in":120', b'"bytes_in":121'), "header.digest"),
        "no header": (lines, "api_key_id"),
        "not JSON": (b"\x01\x02\n" + lines, "header"),
        "not UTF-8": (with_lines(lines.replace(b"stop", b"st\xffp")), "body"),
        "CRLF": (with_lines(lines.replace(b"\n", b"\r\n")), "body"),
        "BOM": (b"\xef\xbb\xbf" + good, "header"),
        "deep nesting": (b"[" * 100_000 + good, "header"),
        "NUL": (with_lines(lines.replace(b"stop", b"st\0p")), "body"),
        "another format": (good.replace(b"tokenyard.usage.v1", b"tokenyard.usage.v9"), "header.format"),
        "another meter": (
            good.replace(str(meters.agent.id).encode(), str(uuid4()).encode()),
            "header.source_id",
        ),
        "number zero": (good.replace(b'"sequence_from":1', b'"sequence_from":0'), "sequence_from"),
        "unknown field": (good.replace(b'{"digest"', b'{"x":1,"digest"', 1), "x"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "nothing", "header alone", "truncated", "a line missing", "a changed event", "no header", "not JSON",
        "not UTF-8", "CRLF", "BOM", "deep nesting", "NUL", "another format", "another meter", "number zero",
        "unknown field",
    ],
)  # fmt: skip
def test_a_malformed_batch_is_refused_naming_the_field(meters: Meters, case: str) -> None:
    body, field = _malformed(meters)[case]
    code, named = problem(post(meters, body), 422)
    assert code == "batch_refused"
    assert named.removeprefix("header.") == field.removeprefix("header.")
    assert UsageBatch.objects.count() == 0


def test_a_batch_above_eight_mebibytes_is_refused_unread(meters: Meters) -> None:
    answer = post(meters, b" " * (8 * 1024 * 1024 + 1), signed_body=b"")
    assert problem(answer, 413) == ("body_too_large", "body")


def test_a_chain_is_followed_and_its_breaks_are_recorded_not_refused(meters: Meters) -> None:
    first = meters.sent([meters.event(), meters.event()])
    second = meters.sent([meters.event()], first=3, previous_digest=digest_of(first))
    gap = meters.sent([meters.event()], first=9, previous_digest="a" * 64)
    edited = meters.sent([meters.event()], first=10, previous_digest="b" * 64)
    again = meters.sent([meters.event()], first=3, previous_digest=digest_of(first))
    for body in (first, second, gap, edited, again):
        assert post(meters, body).status_code == 202
    assert list(UsageBatch.objects.order_by("pk").values_list("chain", flat=True)) == [
        "linked", "linked", "gap", "broken", "broken",
    ]  # fmt: skip
    assert sequence_gaps(meters.agent) == [(4, 8)]


def test_mallory_reads_no_batch(meters: Meters, mallory: Party, acme: Party, hyperion: Party) -> None:
    batch_id = post(meters, meters.sent([meters.event()])).json()["batch_id"]
    address = f"{ADDRESS}/batches/{batch_id}"
    for party in (mallory, acme, hyperion):
        assert party.api.get(address).status_code == 403
    assert Client().get(address).status_code == 401
    # Her host signs well, and it is not its batch.
    hers = make_other_meters(meters)
    assert problem(read(hers, batch_id), 404)[0] == "not_found"
    assert problem(read(hers, batch_id, private_key=meters.private_key), 401)[0] == "signature_refused"


def make_other_meters(meters: Meters) -> Meters:
    private_key = Ed25519PrivateKey.generate()
    public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    agent = register_source(kind="agent", host_id=uuid4(), public_key=public_key, now=meters.now)
    return dataclasses.replace(meters, agent=agent, private_key=private_key)


def test_the_operator_reads_any_batch(meters: Meters, operator: Party) -> None:
    batch_id = post(meters, meters.sent([meters.event()])).json()["batch_id"]
    assert operator.api.get(f"{ADDRESS}/batches/{batch_id}").json()["status"] == "pending"
    assert operator.api.get(f"{ADDRESS}/batches/{uuid4()}").status_code == 404
