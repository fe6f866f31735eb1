"""A request's body as a batch: its coding undone, NDJSON or CloudEvents 1.0 read into a proved header and event lines.

Pure. Whatever the form, a batch is the same header and the same compact lines after it; no event is decoded here.
A fault of the whole is refused with its field named; a fault of one event is left for ingestion to quarantine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import unquote
from uuid import UUID

import http_sf
import msgspec
from django.utils.http import parse_header_parameters
from msgspec import Meta

from marketplace.errors import DomainError, InvalidInput
from metering.coding import CODINGS, IDENTITY, CodingError, TooLong, decode_body
from metering.usage import (
    FORMAT,
    MAX_COUNT,
    BatchHeader,
    Moment,
    UnreadBatch,
    UsageError,
    prove_batch,
    read_batch,
)

# As sent and as decoded.
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
# What NDJSON says in its first line, CloudEvents say in this structured field (RFC 9651), under the same signature.
BATCH_HEADER: Final = "Tokenyard-Batch"
NDJSON: Final = "application/x-ndjson"
CLOUDEVENT: Final = "application/cloudevents+json"
CLOUDEVENTS: Final = "application/cloudevents-batch+json"
JSON: Final = "application/json"
_DIGEST_BYTES: Final = 32
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class BatchRefused(InvalidInput):
    """The batch as a whole cannot be believed; nothing of it was kept."""

    code = "batch_refused"


class BatchTooLarge(DomainError):
    """More than a batch may have; nothing was kept."""

    code = "body_too_large"
    http_status = 413
    title = "Content too large"

    def __init__(self, how: str = "has") -> None:
        super().__init__(f"A batch {how} at most {MAX_BATCH_BYTES} bytes.", field="body")


class BodyUnreadable(DomainError):
    """The bytes are not in the coding that the request names; nothing was kept."""

    code = "body_unreadable"
    http_status = 400
    title = "The body cannot be read"


class UnsupportedMedia(DomainError):
    """A coding or a form that no batch comes in."""

    code = "unsupported_media_type"
    http_status = 415
    title = "Unsupported media type"


class Signer(NamedTuple):
    """The registered meter that signed the request, and its host."""

    source_id: UUID
    host_id: UUID | None


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of CloudEvents 1.0 that say something here; extensions and others are passed over."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1, max_length=200)]
    source: Annotated[str, Meta(min_length=1, max_length=2_000)]
    type: Literal["tokenyard.usage.v1"]
    data: msgspec.Raw
    time: Moment | None = None
    datacontenttype: Annotated[str, Meta(pattern="^application/json *(;.*)?$")] = JSON
    data_base64: None = None


class _Named(msgspec.Struct, frozen=True):
    """What an event says that its envelope says too."""

    id: str | None = None
    occurred_at: Moment | None = None


_Read = Callable[[bytes, Mapping[str, str], BatchHeader, Signer], UnreadBatch]
_cloudevent = msgspec.json.Decoder(CloudEvent)
_cloudevents = msgspec.json.Decoder(list[CloudEvent])
_attributes = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_named = msgspec.json.Decoder(_Named)
_encoder = msgspec.json.Encoder()


def read_request(body: bytes, *, headers: Mapping[str, str], signer: Signer) -> UnreadBatch:
    """The batch in a request's body. Raises UnsupportedMedia, BodyUnreadable, BatchTooLarge, BatchRefused."""
    media_type = _media_type(headers)
    coding = (headers.get("Content-Encoding") or IDENTITY).strip().lower()
    if coding not in CODINGS:
        raise UnsupportedMedia(
            f"Content-Encoding: must be one of {', '.join(CODINGS)}", field="Content-Encoding"
        )
    try:
        text = decode_body(body, coding, limit_bytes=MAX_BATCH_BYTES)
    except TooLong:
        raise BatchTooLarge("has" if coding == IDENTITY else "has, decoded,") from None
    except CodingError as error:
        raise BodyUnreadable(f"Content-Encoding: the body {error}", field="Content-Encoding") from None
    if media_type == NDJSON:
        if BATCH_HEADER in headers:
            raise BatchRefused(f"{BATCH_HEADER}: the first line of NDJSON says it", field=BATCH_HEADER)
        return read_ndjson(text)
    facts = _read_facts(headers.get(BATCH_HEADER), signer.source_id)
    check_text(text)
    return _FORMS[media_type](text, headers, facts, signer)


def read_ndjson(text: bytes) -> UnreadBatch:
    """Raises BatchRefused naming the field."""
    check_text(text)
    if (carriage := text.find(b"\r")) >= 0:
        raise BatchRefused(
            f"body: line {_line_of(text, carriage)} holds a CR; lines end with LF", field="body"
        )
    try:
        return read_batch(text)
    except UsageError as error:
        raise BatchRefused(f"{error.field}: {error.reason}", field=error.field) from error


def check_text(text: bytes) -> None:
    """What no form may hold, whatever its digest says. Raises BatchRefused naming the line."""
    if not text:
        raise BatchRefused("body: is empty", field="body")
    try:
        if not text.isascii():  # Which costs a tenth of reading it.
            text.decode()
    except UnicodeDecodeError as error:
        raise BatchRefused(f"body: line {_line_of(text, error.start)} is not UTF-8", field="body") from None
    if (nul := text.find(b"\0")) >= 0:
        raise BatchRefused(f"body: line {_line_of(text, nul)} holds a NUL", field="body")


def _line_of(text: bytes, position: int) -> int:
    return text.count(b"\n", 0, position) + 1


def _media_type(headers: Mapping[str, str]) -> str:
    name, parameters = parse_header_parameters(headers.get("Content-Type") or "")
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMedia("Content-Type: the charset must be utf-8", field="Content-Type")
    if name == JSON and "Ce-Specversion" not in headers:
        name = ""
    if name != NDJSON and name not in _FORMS:
        wanted = ", ".join((NDJSON, CLOUDEVENT, CLOUDEVENTS))
        raise UnsupportedMedia(f"Content-Type: must be one of {wanted}", field="Content-Type")
    return name


# CloudEvents -----------------------------------------------------------------------------------------------------


def _read_facts(text: str | None, source_id: UUID) -> BatchHeader:
    """`from=1, to=2, previous=:..:, digest=:..:` as the header that NDJSON would have. Raises BatchRefused."""

    def refuse(reason: str) -> BatchRefused:
        return BatchRefused(f"{BATCH_HEADER}: {reason}", field=BATCH_HEADER)

    def refuse_repeated(name: str, _where: str) -> None:
        raise ValueError(f"{name} stands twice")

    if text is None:
        raise refuse("is missing; it says from, to, previous and digest")
    try:
        parsed: Any = http_sf.parse(
            text.encode("ascii"), tltype="dictionary", on_duplicate_key=refuse_repeated
        )
    except ValueError as error:
        raise refuse(f"is not a structured dictionary ({str(error)[:100]})") from None
    if set(parsed) != {"from", "to", "previous", "digest"}:
        raise refuse("must have from, to, previous and digest, and nothing else")
    facts = {name: member[0] if isinstance(member, tuple) else member for name, member in parsed.items()}
    for name in ("from", "to"):
        if type(facts[name]) is not int or not 1 <= facts[name] <= MAX_COUNT:
            raise refuse(f"{name} must be an integer from 1 on")
    for name in ("previous", "digest"):
        if not isinstance(facts[name], bytes) or len(facts[name]) != _DIGEST_BYTES:
            raise refuse(f"{name} must be a byte sequence of {_DIGEST_BYTES} bytes")
    return BatchHeader(
        format=FORMAT,
        source_id=source_id,
        sequence_from=facts["from"],
        sequence_to=facts["to"],
        previous_digest=facts["previous"].hex(),
        digest=facts["digest"].hex(),
    )


def _read_one(text: bytes, _headers: Mapping[str, str], facts: BatchHeader, signer: Signer) -> UnreadBatch:
    compact = _compact(text)
    events = [_decode(_cloudevent, compact)]
    _refuse_repeated(b"[" + compact + b"]")
    return _gather(events, facts, signer, single=True)


def _read_many(text: bytes, _headers: Mapping[str, str], facts: BatchHeader, signer: Signer) -> UnreadBatch:
    compact = _compact(text)
    events = _decode(_cloudevents, compact)
    if not events:
        raise BatchRefused("body: has no events", field="body")
    _refuse_repeated(compact)
    return _gather(events, facts, signer, single=False)


def _read_binary(text: bytes, headers: Mapping[str, str], facts: BatchHeader, signer: Signer) -> UnreadBatch:
    """Attributes in headers `ce-..`, percent-encoded; the body is the data."""
    attributes: dict[str, Any] = {
        name.lower().removeprefix("ce-"): unquote(value)
        for name, value in headers.items()
        if name.lower().startswith("ce-")
    }
    attributes["data"] = msgspec.Raw(_compact(text))
    attributes.pop("datacontenttype", None)  # Content-Type says it here.
    try:
        event = msgspec.convert(attributes, CloudEvent)
    except msgspec.ValidationError as error:
        raise _attribute_refused(error) from None
    return _gather([event], facts, signer, single=True)


_FORMS: Final[Mapping[str, _Read]] = {
    CLOUDEVENT: _read_one,
    CLOUDEVENTS: _read_many,
    JSON: _read_binary,
}


def _compact(text: bytes) -> bytes:
    """The same JSON without white space between its parts; every name, number and string as it was spelled."""
    try:
        return msgspec.json.format(text, indent=-1)
    except msgspec.DecodeError as error:
        raise BatchRefused(f"body: {error}", field="body") from None
    except RecursionError:
        raise BatchRefused("body: is nested too deeply", field="body") from None


def _decode(decoder: msgspec.json.Decoder[Any], compact: bytes) -> Any:
    try:
        return decoder.decode(compact)
    except msgspec.ValidationError as error:
        raise _attribute_refused(error) from None


def _attribute_refused(error: msgspec.ValidationError) -> BatchRefused:
    """msgspec's words with the attribute taken out of them: `3.source` of the fourth event, `source` of a single."""
    reason, _, path = str(error).partition(" - at `$")
    place = re.match(r"\[(\d+)\]", path)
    name = re.search(r"field `(\w+)`", reason) or re.search(r"\.(\w+)", path)
    field = ".".join([found[1] for found in (place, name) if found]) or "body"
    return BatchRefused(f"{field}: {reason}", field=field)


def _refuse_repeated(compact: bytes) -> None:
    """What reads differently when written again says an attribute twice, or spells one with escapes."""
    if _encoder.encode(_attributes.decode(compact)) != compact:
        raise BatchRefused(
            "body: an attribute stands twice, or is not spelled in plain letters", field="body"
        )


def _gather(events: Sequence[CloudEvent], facts: BatchHeader, signer: Signer, *, single: bool) -> UnreadBatch:
    for index, event in enumerate(events):
        contradiction = _find_contradiction(event, signer)
        if contradiction is not None:
            name, reason = contradiction
            field = name if single else f"{index}.{name}"
            raise BatchRefused(f"{field}: {reason}", field=field)
    lines = b"".join([bytes(event.data) + b"\n" for event in events])
    try:
        return prove_batch(facts, memoryview(lines), events=len(events))
    except UsageError as error:
        field = BATCH_HEADER if error.field.startswith("header.") else error.field
        raise BatchRefused(f"{field}: {error.reason}", field=field) from error


def _find_contradiction(event: CloudEvent, signer: Signer) -> tuple[str, str] | None:
    """Where the envelope says other than the event in it, or than the signature around it."""
    claimed = event.source.rstrip("/").rpartition("/")[2].removeprefix("urn:uuid:")
    if _UUID.fullmatch(claimed) and UUID(claimed) not in signer:
        return "source", "names another meter than the one that signed the request"
    try:
        named = _named.decode(event.data)
    except (msgspec.DecodeError, RecursionError):
        return None  # The event itself is bad: only it is quarantined.
    if named.id is not None and named.id != event.id:
        return "id", "is not the id in data"
    if event.time is not None and named.occurred_at is not None and event.time != named.occurred_at:
        return "time", "is not occurred_at in data"
    return None
