"""Batches through the door that hosts use: signed requests to /api/v1/usage, as NDJSON and as CloudEvents."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.test import Client
from msgspec.structs import replace

from marketplace import clock
from metering.usage import GENESIS_DIGEST, UsageEvent, digest_batch, encode_event, encode_lines
from providers.wire import sign_request
from tests.metering.meters import Meters, make_meters

ADDRESS = "/api/v1/usage"
URL = f"http://testserver{ADDRESS}"
NDJSON = "application/x-ndjson"
ONE, MANY = "application/cloudevents+json", "application/cloudevents-batch+json"


def meters_of_this_hour() -> Meters:
    """What is signed is signed by the machine's clock."""
    return make_meters(clock.wall_now().replace(minute=0, second=0, microsecond=0))


def signed_headers(meters: Meters, body: bytes, **options: Any) -> dict[str, str]:
    return sign_request(
        method=options.get("method", "POST"),
        url=options.get("url", URL),
        body=options.get("signed_body", body),
        private_key=options.get("private_key", meters.private_key),
        key_id=str(options.get("key_id", meters.host_id)),
        nonce=options.get("nonce", uuid4().hex),
        now=clock.wall_now() - timedelta(seconds=options.get("age_s", 0)),
        covered_headers=options.get("covered_headers"),
    )


def post(meters: Meters, body: bytes, **options: Any) -> Any:
    """`headers` are added unsigned; `environ` goes to the WSGI server's part of the request."""
    content_type = options.get("content_type", NDJSON)
    headers = signed_headers(meters, body, **options) | options.get("headers", {})
    headers["Content-Type"] = content_type  # Django's client leaves it out where the body is empty.
    return Client().post(ADDRESS, body, content_type, headers=headers, **options.get("environ", {}))


def read(meters: Meters, batch_id: object, what: str = "", **options: Any) -> Any:
    address = f"{ADDRESS}/batches/{batch_id}{what}"
    headers = signed_headers(meters, b"", method="GET", url=f"http://testserver{address}", **options)
    return Client().get(address, headers=headers)


def problem(answer: Any, status: int) -> tuple[str, str]:
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    told = answer.json()
    return told["code"], told["field"]


def numbered(events: Sequence[UsageEvent], first: int = 1) -> list[UsageEvent]:
    return [replace(event, sequence=number) for number, event in enumerate(events, first)]


def envelope(event: UsageEvent, **changes: Any) -> dict[str, Any]:
    """A numbered event as a CloudEvent; None drops an attribute."""
    attributes = {
        "specversion": "1.0",
        "id": str(event.id),
        "source": "/hosts/h1/meter",
        "type": "tokenyard.usage.v1",
        "data": json.loads(encode_event(event)),
    } | changes
    return {name: value for name, value in attributes.items() if value is not None}


def batch_facts(
    events: Sequence[UsageEvent],
    previous: str = GENESIS_DIGEST,
    *,
    lines: bytes | None = None,
    changes: Mapping[str, object] | None = None,
) -> str:
    """The field Tokenyard-Batch of these numbered events, or of other lines in their place; None drops a member."""
    if lines is None:
        lines = encode_lines([encode_event(event) for event in events])
    digest = digest_batch(previous, lines)
    members: dict[str, object] = {
        "from": events[0].sequence,
        "to": events[-1].sequence,
        "previous": binary(previous),
        "digest": binary(digest),
    } | dict(changes or {})
    return ", ".join(f"{name}={value}" for name, value in members.items() if value is not None)


def binary(digest: str) -> str:
    return f":{base64.b64encode(bytes.fromhex(digest)).decode()}:"


def post_cloudevents(meters: Meters, body: object, facts: str | None, **options: Any) -> Any:
    """`body` is JSON's value, or its bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    options.setdefault("content_type", MANY if isinstance(body, list) else ONE)
    if facts is not None:
        options.setdefault("covered_headers", {"Tokenyard-Batch": facts})
    return post(meters, content, **options)
