"""Meters one attempt: what went in and out, and what the engine says it used."""

import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils.compat

from metering.usage import Finish, Flag, UsageEvent, unproved_usage
from pricing.normalising import Unprovable, adapt, collect_usage
from pricing.units import Bucket
from providers.wire import DONE, DeliveryKey, SseParser, carries_output

_FINISH = re.compile(rb'"finish_reason":\s*"([a-z_]+)"')
_FINISHES = {
    b"stop": Finish.STOP,
    b"length": Finish.LENGTH,
    b"tool_calls": Finish.TOOL_CALLS,
    b"function_call": Finish.TOOL_CALLS,
    b"content_filter": Finish.CONTENT_FILTER,
}
# A chunk with generated text, for engines that send no running counts. Quotes inside a text are escaped, so
# these only match names of fields.
_GENERATED = (
    b'"content":"',
    b'"content": "',
    b'"text":"',
    b'"text": "',
    b'"reasoning_content":"',
    b'"arguments":"',
)
_USAGE_FIELDS = (b'"usage"', b'"timings"', b'"sglext"')
# A chunk that says there is no usage yet says nothing.
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null')
# Some engines tell usage in parts: the input first, the rest last, cached tokens in a chunk of their own. Running
# counts come with every chunk; the last one wins, so these many are enough.
_LAST_PAYLOADS = 3


class AttemptMeter:
    """Fed with the bytes that pass; holds on to payloads instead of decoding them, so that passing costs
    nothing.
    """

    def __init__(
        self,
        *,
        key: DeliveryKey,
        usage_source: str,
        bytes_in: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recorded = False  # Set by whoever stores the event: there is one per attempt.
        self._key = key
        self._usage_source = usage_source
        self._bytes_in = bytes_in
        self._bytes_out = 0
        self._monotonic = monotonic
        self._started = monotonic()
        self._first_output: float | None = None
        self._parser = SseParser()
        self._first_usage: bytes | None = None
        self._last_usage: deque[bytes] = deque(maxlen=_LAST_PAYLOADS)
        self._finish: Finish | None = None
        self._generated_chunks = 0

    def feed_stream(self, chunk: bytes) -> bool:
        """Notes a chunk of an event stream; True when it completes the end mark. Raises SseTooLong."""
        self._bytes_out += len(chunk)
        ended = False
        for payload in self._parser.feed(chunk):
            if payload == DONE:
                ended = True
                continue
            if self._first_output is None and _brings_output(payload):
                self._first_output = self._monotonic()
            if any(field in payload for field in _USAGE_FIELDS):
                self._note_usage(payload)
            if self._finish is None:
                found = _FINISH.search(payload)
                if found:
                    self._finish = _FINISHES.get(found.group(1), Finish.STOP)
            if any(field in payload for field in _GENERATED):
                self._generated_chunks += 1
        return ended

    def feed_answer(self, body: bytes) -> None:
        """Notes a whole answer (not streamed)."""
        self._bytes_out += len(body)
        if self._first_output is None:
            self._first_output = self._monotonic()
        self._note_usage(body)
        found = _FINISH.search(body)
        if found:
            self._finish = _FINISHES.get(found.group(1), Finish.STOP)

    def event(self, *, finish: Finish | None = None, flags: tuple[Flag, ...] = ()) -> UsageEvent:
        """The attempt's usage event; `finish` overrides what the engine said. The spool sets the sequence."""
        buckets, usage_flags, unproved = self._buckets()
        key = self._key
        return UsageEvent(
            id=self._event_id(),
            sequence=1,
            request_id=key.request_id,
            attempt=key.attempt,
            part=key.part,
            contract_id=key.contract_id,
            offering_id=key.offering_id,
            grade_id=key.grade_id,
            rate_id=key.rate_id,
            period_start=key.period_start,
            occurred_at=key.occurred_at,
            buckets=buckets,
            flags=(*flags, *usage_flags),
            finish=finish or self._finish or Finish.NONE,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            first_byte_ms=self._milliseconds(self._first_output),
            duration_ms=self._milliseconds(self._monotonic()) or 0,
            unproved=unproved,
        )

    def _event_id(self) -> UUID:
        """A UUIDv7 of the market's time: admission, as the market signed it, and what has gone by since.

        Never of this machine's clock: the market keeps usage by the time inside its id and quarantines what lies
        outside its retention or ahead of its own clock, so a clock at 1970, or ten minutes fast, would cost the host
        its pay.
        """
        elapsed_ms = round((self._monotonic() - self._started) * 1000)
        time_ms = round(self._key.occurred_at.timestamp() * 1000) + elapsed_ms
        event_id: UUID = uuid_utils.compat.uuid7(nanoseconds=max(0, time_ms) * 1_000_000)
        return event_id

    def _milliseconds(self, moment: float | None) -> int | None:
        return None if moment is None else round((moment - self._started) * 1000)

    def _buckets(self) -> tuple[dict[Bucket, int | None], tuple[Flag, ...], str | None]:
        """What the engine reported last, running counts included; else a count of the chunks that passed.

        Of usage that contradicts itself nothing is claimed: the engine's figures go along, for people to look at.
        """
        raw = self._raw_usage()
        if raw is not None:
            try:
                return dict(adapt(self._usage_source, raw).reported()), (), None
            except Unprovable as error:
                return {}, (Flag.UNPROVABLE,), unproved_usage(error, raw)
        if self._generated_chunks:
            return {Bucket.OUTPUT: self._generated_chunks}, (Flag.ESTIMATED,), None
        return {}, (), None

    def _note_usage(self, payload: bytes) -> None:
        if not any(field in _NO_USAGE.sub(b"", payload) for field in _USAGE_FIELDS):
            return
        if self._first_usage is None:
            self._first_usage = payload
        else:
            self._last_usage.append(payload)

    def _raw_usage(self) -> Any:
        raw = None
        for payload in filter(None, [self._first_usage, *self._last_usage]):
            try:
                answer = msgspec.json.decode(payload)
            except msgspec.DecodeError:
                continue
            if isinstance(answer, dict):
                raw = collect_usage(self._usage_source, raw, answer)
        return raw


def _brings_output(payload: bytes) -> bool:
    """Whether a chunk has output. Decoded until the first one only: what follows passes undecoded."""
    try:
        return carries_output(msgspec.json.decode(payload))
    except (msgspec.DecodeError, RecursionError):
        return False
