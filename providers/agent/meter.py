"""Meters one attempt: what went in and out, and what the engine says it used."""

import re
import time
from typing import Any

import msgspec
import uuid_utils.compat

from metering.usage import Finish, Flag, UsageEvent
from pricing.normalising import Unprovable, adapt, collect_usage
from pricing.units import Bucket
from providers.wire import DONE, DeliveryKey, SseParser

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
_USAGE_FIELDS = (b'"usage"', b'"timings"')


class AttemptMeter:
    """Fed with the bytes that pass; holds on to payloads instead of decoding them, so that passing costs
    nothing.
    """

    def __init__(self, *, key: DeliveryKey, usage_source: str, bytes_in: int) -> None:
        self.recorded = False  # Set by whoever stores the event: there is one per attempt.
        self._key = key
        self._usage_source = usage_source
        self._bytes_in = bytes_in
        self._bytes_out = 0
        self._started = time.monotonic()
        self._first_byte: float | None = None
        self._parser = SseParser()
        self._last_usage: bytes | None = None
        self._finish: Finish | None = None
        self._generated_chunks = 0

    def feed_stream(self, chunk: bytes) -> bool:
        """Notes a chunk of an event stream; True when it completes the end mark. Raises SseTooLong."""
        self._note_bytes(chunk)
        ended = False
        for payload in self._parser.feed(chunk):
            if payload == DONE:
                ended = True
                continue
            if any(field in payload for field in _USAGE_FIELDS):
                self._last_usage = payload
            if self._finish is None:
                found = _FINISH.search(payload)
                if found:
                    self._finish = _FINISHES.get(found.group(1), Finish.STOP)
            if any(field in payload for field in _GENERATED):
                self._generated_chunks += 1
        return ended

    def feed_answer(self, body: bytes) -> None:
        """Notes a whole answer (not streamed)."""
        self._note_bytes(body)
        self._last_usage = body
        found = _FINISH.search(body)
        if found:
            self._finish = _FINISHES.get(found.group(1), Finish.STOP)

    def event(self, *, finish: Finish | None = None, flags: tuple[Flag, ...] = ()) -> UsageEvent:
        """The attempt's usage event; `finish` overrides what the engine said. The spool sets the sequence."""
        buckets, usage_flags = self._buckets()
        key = self._key
        return UsageEvent(
            id=uuid_utils.compat.uuid7(),
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
            first_byte_ms=self._milliseconds(self._first_byte),
            duration_ms=self._milliseconds(time.monotonic()) or 0,
        )

    def _note_bytes(self, data: bytes) -> None:
        if self._first_byte is None:
            self._first_byte = time.monotonic()
        self._bytes_out += len(data)

    def _milliseconds(self, moment: float | None) -> int | None:
        return None if moment is None else round((moment - self._started) * 1000)

    def _buckets(self) -> tuple[dict[Bucket, int | None], tuple[Flag, ...]]:
        """What the engine reported last, running counts included; else a count of the chunks that passed."""
        raw = self._raw_usage()
        if raw is not None:
            try:
                return dict(adapt(self._usage_source, raw).reported()), ()
            except Unprovable:
                return {}, (Flag.UNPROVABLE,)
        if self._generated_chunks:
            return {Bucket.OUTPUT: self._generated_chunks}, (Flag.ESTIMATED,)
        return {}, ()

    def _raw_usage(self) -> Any:
        if self._last_usage is None:
            return None
        try:
            answer = msgspec.json.decode(self._last_usage)
        except msgspec.DecodeError:
            return None
        return collect_usage(self._usage_source, None, answer) if isinstance(answer, dict) else None
