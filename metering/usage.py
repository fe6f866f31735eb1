"""The wire form of usage: what a meter says about one attempt of one request, and batches of such events.

Pure. Agent and gateway write it, ingestion reads it. A batch is NDJSON: the first line a `BatchHeader`, every
further line one event in its canonical form. Batches of one source are numbered without gaps and chained: the
digest of a batch covers the digest of the one before, so a gap, a replay or an edit shows.

An id is a UUIDv7 made by the meter; whether its time lies inside retention is for ingestion to judge, with a
clock.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Final, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta

from pricing.normalising import Unprovable, evidence_of
from pricing.units import Bucket

MAX_COUNT = 2**53  # Beyond it a JSON reader that uses doubles would round.
MAX_EVENTS_PER_BATCH = 10_000
MAX_EVENT_BYTES = 4_096
FORMAT = "tokenyard.usage.v1"
GENESIS_DIGEST = "0" * 64
_BUCKET_NAMES = frozenset(bucket.value for bucket in Bucket)
# In a line without escapes, whatever looks like a name is one.
_NAME = re.compile(rb'"(\w+)"\s*:')

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Sequenced = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Ordinal = Annotated[int, Meta(ge=0, le=1_000)]
Moment = Annotated[datetime, Meta(tz=True)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# Numbers and names of an engine's usage (`pricing.normalising.evidence_of`), and what was wrong with them.
MAX_EVIDENCE_CHARACTERS = 1_536
Evidence = Annotated[str, Meta(max_length=MAX_EVIDENCE_CHARACTERS)]

BucketTokens = Mapping[Bucket, int | None]


class Flag(StrEnum):
    """What a reader must know before he trusts or bills the counts."""

    CAPPED = "capped"  # The counts exceeded the hold; the excess is not billed.
    ESTIMATED = "estimated"  # No usage came; the meter counted what it carried.
    CUT_BUDGET = "cut_budget"  # The stream was cut because the hold could not be extended.
    CLIENT_GONE = "client_gone"  # The reader hung up before the end.
    UPSTREAM_FAILED = "upstream_failed"  # The engine or the way to it failed.
    UNPROVABLE = "unprovable"  # The engine's figures contradict each other; no bucket is claimed.
    RECOVERED = "recovered"  # Written after a restart from the last running counts.
    HIDDEN_REASONING = (
        "hidden_reasoning"  # Reasoning tokens without their text: a recount stands for `output` only.
    )
    READER_SLOW = "reader_slow"  # The buyer held the stream up: its pace says nothing of the host.
    SPLIT = "split"  # One part of an attempt that went on beyond its contract: other parts have the rest of its counts.


Flags = Annotated[tuple[Flag, ...], Meta(max_length=len(Flag))]


class Finish(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    BUDGET = "budget"
    TIMEOUT = "timeout"
    CLIENT_GONE = "client_gone"
    ERROR = "error"
    NONE = "none"  # Nothing is generated (embeddings), or the engine gave no reason.


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One attempt's metered facts. `grade_id` is the grade version's id; `occurred_at` is admission.

    `first_byte_ms` is the time from admission to the first chunk with output (text, reasoning or a tool call), or to
    the first byte of an answer that is no stream; null where none came. A chunk that only names a role does not end it.

    In `buckets`, a missing or null bucket was not reported; zero is a report. `api_key_id` is null from
    agents. An event with `unproved` claims no bucket: it is quarantined with the engine's own figures.
    """

    id: UUID
    sequence: Sequenced
    request_id: UUID
    attempt: Ordinal
    part: Ordinal
    contract_id: UUID
    offering_id: UUID
    grade_id: UUID
    rate_id: UUID
    period_start: Moment
    occurred_at: Moment
    buckets: dict[Bucket, Count | None]
    finish: Finish
    bytes_in: Count
    bytes_out: Count
    duration_ms: Count
    api_key_id: UUID | None = None
    flags: Flags = ()
    recount_o200k: Count | None = None
    first_byte_ms: Count | None = None
    unproved: Evidence | None = None


class LeanCounts(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False
):
    """An event's buckets as the canonical form orders them; null is not reported."""

    audio_input: Count | None = None
    audio_output: Count | None = None
    cache_read: Count | None = None
    cache_write: Count | None = None
    image_input: Count | None = None
    output: Count | None = None
    reasoning: Count | None = None
    uncached_input: Count | None = None


class LeanEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A `UsageEvent` whose ids and period are still text: several times as fast to read.

    Every line that `decode_event` takes is one of these, with the same values. The reverse holds once the text is
    proved, which ingestion does once for the many events that share it. Fields stand in the order of the canonical
    form: so it is read fastest, and written again byte by byte.
    """

    api_key_id: str | None = None
    attempt: Ordinal
    buckets: LeanCounts
    bytes_in: Count
    bytes_out: Count
    contract_id: str
    duration_ms: Count
    finish: Finish
    first_byte_ms: Count | None = None
    flags: Flags = ()
    grade_id: str
    id: str
    occurred_at: Moment
    offering_id: str
    part: Ordinal
    period_start: str
    rate_id: str
    recount_o200k: Count | None = None
    request_id: str
    sequence: Sequenced
    unproved: Evidence | None = None


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """First line of a batch. `digest` chains `previous_digest` (GENESIS_DIGEST for the first) and the event
    lines.
    """

    format: str
    source_id: UUID
    sequence_from: Sequenced
    sequence_to: Sequenced
    previous_digest: Digest
    digest: Digest


class UsageError(ValueError):
    """Usage that cannot be read. `field` names where (dotted, without `$`), `reason` says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


_PART_BYTES: Final = 128 * 1024
_event_decoder = msgspec.json.Decoder(UsageEvent)
_lean_decoder = msgspec.json.Decoder(LeanEvent)
_header_decoder = msgspec.json.Decoder(BatchHeader)
_encoder = msgspec.json.Encoder(order="sorted")
_lean_encoder = msgspec.json.Encoder()


def decode_event(line: bytes) -> UsageEvent:
    """Strict: unknown and repeated fields, floats, negative or huge counts, naive times are refused. Raises
    UsageError.
    """
    if len(line) > MAX_EVENT_BYTES:
        raise UsageError("event", f"longer than {MAX_EVENT_BYTES} bytes")
    try:
        event = _event_decoder.decode(line)
    except msgspec.DecodeError as error:
        raise _usage_error("event", line, error) from None
    except UnicodeDecodeError:
        raise UsageError("event", "not UTF-8") from None
    except RecursionError:
        raise UsageError("event", "nested too deeply") from None
    _refuse_repeated(line)
    return event


def read_lean(body: bytes) -> Iterator[list[LeanEvent | UsageError]]:
    """Each line's event with its ids and period unproved, or what `decode_event` says is wrong with the line.

    In order, some hundred at a time: few enough to stay in a processor's cache until they are used, and so that one bad
    line makes only its neighbours slow.
    """
    start = 0
    while start < len(body):
        end = body.find(b"\n", start + _PART_BYTES) + 1 or len(body)
        part = body[start:end]
        yield _read_good(part) or [_decode_lean(line) for line in part.removesuffix(b"\n").split(b"\n")]
        start = end


def _read_good(part: bytes) -> list[LeanEvent | UsageError]:
    """All events of these lines; nothing when any of them needs a slower look."""
    try:
        events = _lean_decoder.decode_lines(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    # What reads the same when it is written again says nothing twice.
    return list(events) if _lean_encoder.encode_lines(events) == part else []


def _decode_lean(line: bytes) -> LeanEvent | UsageError:
    if len(line) <= MAX_EVENT_BYTES:
        try:
            event = _lean_decoder.decode(line)
            if _lean_encoder.encode(event) != line:
                _refuse_repeated(line)
            return event
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # The strict reader says why.
        except UsageError as error:
            return error
    try:
        decode_event(line)
    except UsageError as error:
        return error
    raise AssertionError("the two readers of an event disagree")


def _refuse_repeated(line: bytes) -> None:
    """Of a line that could be read. Raises UsageError for a name that stands twice: readers differ in which counts."""
    names: list[str] = []
    if b"\\" in line:
        json.loads(line, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    else:
        names = [name.decode() for name in _NAME.findall(line)]
    # Fields and buckets have no name in common: each may stand once in the whole line.
    if len(set(names)) != len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise UsageError(_dotted(repeated), "stands twice in one object")


def _dotted(name: str) -> str:
    return f"buckets.{name}" if name in _BUCKET_NAMES else name


def unproved_usage(refusal: Unprovable, raw: object) -> str:
    """What an event says in `unproved`: what is wrong with the engine's figures, and the figures."""
    return f"{refusal.field}: {refusal.reason}; {evidence_of(raw)}"[:MAX_EVIDENCE_CHARACTERS]


def encode_event(event: UsageEvent) -> bytes:
    """Canonical JSON: keys sorted, times in UTC, buckets that were not reported left out, flags sorted and
    unique.
    """
    return _encoder.encode(_canonical(event))


def digest_batch(previous_digest: str, body: bytes | memoryview) -> str:
    """SHA-256 over the previous batch's digest and this batch's event lines (as sent, without the header
    line).
    """
    digest = sha256(bytes.fromhex(previous_digest))
    digest.update(body)
    return digest.hexdigest()


def encode_lines(lines: Sequence[bytes]) -> bytes:
    """Event lines as a batch body, each ended by a line feed."""
    return b"".join(line + b"\n" for line in lines)


def encode_batch(
    *, source_id: UUID, sequence_from: int, previous_digest: str, lines: Sequence[bytes]
) -> bytes:
    """A whole batch as sent. `lines` are `encode_event` outputs with sequences `sequence_from`, +1, +2 ..."""
    assert 1 <= len(lines) <= MAX_EVENTS_PER_BATCH, "a batch has 1 to 10,000 events"
    body = encode_lines(lines)
    header = BatchHeader(
        format=FORMAT,
        source_id=source_id,
        sequence_from=sequence_from,
        sequence_to=sequence_from + len(lines) - 1,
        previous_digest=previous_digest,
        digest=digest_batch(previous_digest, body),
    )
    return _encoder.encode(header) + b"\n" + body


class UnreadBatch(NamedTuple):
    """A batch whose header is proved against its event lines; the lines are not looked at yet.

    `lines` ends with a line feed and has `events` of them; it may be a view into what was received.
    """

    header: BatchHeader
    lines: memoryview
    events: int


def read_batch(batch: bytes) -> UnreadBatch:
    """The header, proved against the event lines (count and digest). Raises UsageError when the batch as a whole cannot
    be believed; a single bad event is left for `decode_event`, so that it quarantines only itself.
    """
    end = batch.find(b"\n")
    first = batch if end < 0 else batch[:end]
    try:
        header = _header_decoder.decode(first)
    except msgspec.DecodeError as error:
        raise _usage_error("header", first, error) from None
    except UnicodeDecodeError:
        raise UsageError("header", "not UTF-8") from None
    except RecursionError:
        raise UsageError("header", "nested too deeply") from None
    if header.format != FORMAT:
        raise UsageError("header.format", f"must be {FORMAT}")
    if end < 0 or end + 1 == len(batch) or not batch.endswith(b"\n"):
        raise UsageError("body", "must have events, each ended by a line feed")
    return prove_batch(header, memoryview(batch)[end + 1 :], events=batch.count(b"\n", end + 1))


def prove_batch(header: BatchHeader, lines: memoryview, *, events: int) -> UnreadBatch:
    """Raises UsageError when the header is not that of these lines, or they are too many."""
    if events > MAX_EVENTS_PER_BATCH:
        raise UsageError("body", f"more than {MAX_EVENTS_PER_BATCH} events")
    if header.sequence_to - header.sequence_from + 1 != events:
        raise UsageError("header.sequence_to", f"does not match the {events} events that follow")
    if digest_batch(header.previous_digest, lines) != header.digest:
        raise UsageError("header.digest", "does not match previous_digest and the events")
    return UnreadBatch(header, lines, events)


def split_batch(batch: bytes) -> tuple[BatchHeader, list[bytes]]:
    """The header and the event lines, not yet decoded. Raises UsageError as `read_batch` does."""
    unread = read_batch(batch)
    return unread.header, bytes(unread.lines[:-1]).split(b"\n")


def decode_batch(batch: bytes) -> tuple[BatchHeader, list[UsageEvent | UsageError]]:
    """Header and, line by line, the event or what is wrong with it. Raises UsageError as `split_batch` does."""
    header, lines = split_batch(batch)
    return header, decode_lines(lines, sequence_from=header.sequence_from)


def decode_lines(lines: Iterable[bytes], *, sequence_from: int) -> list[UsageEvent | UsageError]:
    """Each line's event, or its UsageError. An event whose sequence is not the line's place is an error."""
    results: list[UsageEvent | UsageError] = []
    for sequence, line in enumerate(lines, sequence_from):
        try:
            event = decode_event(line)
        except UsageError as error:
            results.append(error)
            continue
        if event.sequence != sequence:
            results.append(UsageError("sequence", f"{event.sequence} stands in the place of {sequence}"))
        else:
            results.append(event)
    return results


def _canonical(event: UsageEvent) -> UsageEvent:
    return msgspec.structs.replace(
        event,
        period_start=event.period_start.astimezone(UTC),
        occurred_at=event.occurred_at.astimezone(UTC),
        buckets={bucket: tokens for bucket, tokens in event.buckets.items() if tokens is not None},
        flags=tuple(sorted(set(event.flags))),
    )


def _usage_error(whole: str, line: bytes, error: msgspec.DecodeError) -> UsageError:
    """msgspec's message with the field taken out of it (`... - at `$.bytes_in``)."""
    reason, separator, path = str(error).partition(" - at ")
    if "`$.buckets[...]`" in path:
        return UsageError(f"buckets.{_bad_bucket(line)}", reason)
    if "`key` in `$.buckets`" in path:
        return UsageError(".".join(["buckets", *re.findall(r"'(\w+)'", reason)]), reason)
    if not separator:
        for sign in ("unknown field `", "required field `"):
            if sign in reason:
                return UsageError(reason.partition(sign)[2].rstrip("`"), reason)
        return UsageError(_name_before(line, reason) or whole, reason)
    field = path.rpartition("`$")[2].strip("`").removeprefix(".")
    return UsageError(field or whole, reason)


def _name_before(line: bytes, reason: str) -> str | None:
    """Whose value is not JSON (`NaN`, `01`, ..), where msgspec tells the byte at which it stopped."""
    place = re.search(r"\(byte (\d+)\)", reason)
    name = place and re.search(rb'"(\w+)"\s*:\s*[-\w.]*\Z', line[: int(place[1])])
    if not name:
        return None
    return _dotted(name[1].decode())


def _bad_bucket(line: bytes) -> str:
    """Which bucket msgspec refused: it does not name the keys of a mapping."""
    # Piece by piece: what is refused may be a number that no plain reading can hold.
    try:
        raw = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        buckets = msgspec.json.decode(raw["buckets"], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return "?"  # The rest of the line is worse.
    for name, tokens in buckets.items():
        try:
            msgspec.json.decode(tokens, type=Count | None)
        except msgspec.DecodeError:
            return str(name)
    return "?"
