"""One generation: hold, dispatch, carry; `settling` captures.

A request has attempts at different hosts, each with a hold of its own, before the first byte only; at most one is
captured. Whatever happens after dispatch, the hold ends captured or voided, or, where the gateway cannot know what was
used, stays for the sweeper, which captures the agent's signed count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import aiohttp
import msgspec

from marketplace.contracts.holds import Opened
from marketplace.gateway import metrics, upstream
from marketplace.gateway.answers import Answer, has_output
from marketplace.gateway.attempts import Attempt, HostFailed, Means, Over
from marketplace.gateway.config import FIRST_OUTPUT_TOKENS, MAX_ANSWER_BYTES, MAX_ATTEMPTS
from marketplace.gateway.errors import ApiError, invalid, timed_out, upstream_failed
from marketplace.gateway.exchange import ClientGone, Exchange
from marketplace.gateway.parsing import CHAT, EMBEDDINGS, Asked
from marketplace.gateway.plain import is_plain
from marketplace.gateway.refusals import rate_limit_headers
from marketplace.gateway.settling import Settling
from marketplace.gateway.store import Caller, GradeVersion, Model
from marketplace.gateway.usage import UsageMeter, finish_of
from marketplace.ids import uuid7
from metering.usage import Finish, Flag
from pricing.rating import worst_case_numerator
from providers.wire import DONE, DeliveryKey, SseParser, SseTooLong, encode_delivery_key

__all__ = ["Delivery", "Means"]

logger = logging.getLogger(__name__)

_DONE_EVENT: Final = b"data: [DONE]\n\n"
_REFUSED_BY_REQUEST: Final = frozenset({400, 404, 413, 422})
_decode: Final = msgspec.json.Decoder().decode


class Delivery:
    """`occurred_at` is admission: rate, grade version and period are fixed by it to the last token."""

    def __init__(
        self,
        means: Means,
        exchange: Exchange,
        *,
        caller: Caller,
        asked: Asked,
        model: Model,
        contract_id: UUID | None,
        bytes_in: int,
        occurred_at: datetime,
    ) -> None:
        self._means = means
        self._exchange = exchange
        self._caller = caller
        self._asked = asked
        self._model = model
        self._contract_id = contract_id
        self._occurred_at = occurred_at
        self._started = time.monotonic()
        # Market time: the event's id is this one, and its time must lie with its period.
        self.generation_id = uuid7(occurred_at)
        self._embeddings = asked.path == EMBEDDINGS
        self._settling = Settling(
            means,
            exchange,
            caller=caller,
            asked=asked,
            request_id=self.generation_id,
            bytes_in=bytes_in,
            occurred_at=occurred_at,
            started=self._started,
        )

    async def serve(self) -> None:
        """Answers the exchange. Raises ApiError (nothing was sent yet) or ClientGone."""
        attempt = await self._dispatch()
        try:
            if self._embeddings:
                await self._serve_embeddings(attempt)
            else:
                await self._serve_generation(attempt)
        finally:
            # Back to the pool where it was read to its end; otherwise hanging up is what stops the engine.
            attempt.response.release() if attempt.response.content.at_eof() else attempt.response.close()

    # Admission and dispatch ------------------------------------------------------------------------------------------

    async def _dispatch(self) -> Attempt:
        limits = [self._limit(version) for version in self._model.versions]
        numerators = [
            worst_case_numerator(
                self._input_bound(version),
                0 if self._embeddings else min(limit, FIRST_OUTPUT_TOKENS),
                version.standard_ppm,
            )
            for version, limit in zip(self._model.versions, limits, strict=True)
        ]
        exclude: list[UUID] = []
        for number in range(MAX_ATTEMPTS):
            hold_id, opened, over = await self._settling.hold(
                number, self._model.versions, numerators, contract_id=self._contract_id, exclude=exclude
            )
            try:
                return await self._attempt(number, hold_id, opened, over)
            except HostFailed as error:
                metrics.ATTEMPTS.labels("failed").inc()
                logger.warning("attempt failed", extra={"host_id": str(opened.host_id), "reason": str(error)})
                await self._settling.fail(hold_id, opened, over, cause=error.cause)
                assert opened.offering_id is not None
                exclude.append(opened.offering_id)
            except ApiError:
                await self._settling.void(hold_id, over)
                raise
        raise upstream_failed()

    def _limit(self, version: GradeVersion) -> int:
        asked = self._asked.max_output_tokens
        if asked is None:
            return version.max_output_tokens
        if asked > version.max_output_tokens and version is self._model.versions[0]:
            name = self._asked.max_output_param
            raise invalid(
                name, f"'{name}' is {asked}, but this model makes at most {version.max_output_tokens} tokens."
            )
        return min(asked, version.max_output_tokens)

    def _input_bound(self, version: GradeVersion) -> int:
        return self._asked.input_bytes + version.template_overhead_tokens

    async def _attempt(self, number: int, hold_id: UUID, opened: Opened, over: Over | None) -> Attempt:
        """Dispatches and waits for the first byte. Raises HostFailed, ApiError, or ClientGone (hold left open)."""
        grade = next(version for version in self._model.versions if version.id == opened.grade_id)
        limit = self._limit(grade)
        key = encode_delivery_key(
            self._delivery_key(number, hold_id, opened, limit), private_key=self._means.config.signing_key
        )
        assert opened.base_url is not None
        assert opened.amount_numerator is not None
        metrics.ADMISSION_SECONDS.observe(time.monotonic() - self._started)
        try:
            async with asyncio.timeout(self._time_left(grade)):
                response = await self._exchange.unless_gone(
                    upstream.post(
                        self._means.client,
                        base_url=opened.base_url,
                        path=self._asked.path,
                        body=self._body(limit),
                        delivery_key=key,
                        stream=not self._embeddings,
                    )
                )
                if response.status != 200:
                    await self._refuse(response, grade)
                # Often it came with the head, and then there is nothing to wait for.
                first = response.content.read_nowait()
                if not first:
                    first = await self._exchange.unless_gone(response.content.readany())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if self._time_left(grade) <= 0:
                if number == 0:
                    # It had all the time that a request has. A later attempt has only what the first one left.
                    await self._settling.fail(hold_id, opened, over, cause="failed_attempt")
                raise timed_out() from None
            raise HostFailed(type(error).__name__) from None
        if not first:
            response.close()
            raise HostFailed("empty answer")
        return Attempt(
            number=number,
            hold_id=hold_id,
            opened=opened,
            grade=grade,
            meter=UsageMeter(
                grade=grade,
                engine=opened.engine,
                input_bound_tokens=self._input_bound(grade),
                output_bound_tokens=0 if self._embeddings else limit,
            ),
            limit=limit,
            amount_numerator=opened.amount_numerator,
            response=response,
            first=first,
            over=over,
        )

    def _body(self, limit: int) -> bytes:
        fields: dict[str, Any] = self._asked.body | {"model": self._asked.model}
        if not self._embeddings:
            # Streamed also when the buyer wants it whole: only a stream can be metered and cut as it goes.
            fields |= {"max_tokens": limit, "stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(fields)

    def _delivery_key(self, number: int, hold_id: UUID, opened: Opened, limit: int) -> DeliveryKey:
        assert opened.contract_id is not None
        assert opened.offering_id is not None
        assert opened.grade_id is not None
        assert opened.rate_id is not None
        assert opened.period_start is not None
        assert opened.expires_at is not None
        return DeliveryKey(
            hold_id=hold_id,
            request_id=self.generation_id,
            contract_id=opened.contract_id,
            offering_id=opened.offering_id,
            grade_id=opened.grade_id,
            rate_id=opened.rate_id,
            period_start=opened.period_start,
            occurred_at=self._occurred_at,
            expires_at=opened.expires_at,
            max_output_tokens=0 if self._embeddings else limit,
            attempt=number,
        )

    async def _refuse(self, response: aiohttp.ClientResponse, grade: GradeVersion) -> None:
        """A refusal that the request itself can have caused is the buyer's; any other is the host's failure."""
        status = response.status
        message, param = await upstream.read_error(response)
        response.close()
        if status in _REFUSED_BY_REQUEST and not is_plain(
            self._asked,
            input_bound_tokens=self._input_bound(grade),
            limit_tokens=0 if self._embeddings else self._limit(grade),
            context_tokens=self._model.context_tokens,
        ):
            raise ApiError(400, "invalid_request", message, param=param)
        raise HostFailed(f"status {status}", cause="refused")

    def _time_left(self, grade: GradeVersion) -> float:
        return grade.max_request_s - (time.monotonic() - self._started)

    # Carrying --------------------------------------------------------------------------------------------------------

    async def _serve_generation(self, attempt: Attempt) -> None:
        answer = Answer(
            self._asked, generation_id=self.generation_id, created=int(self._occurred_at.timestamp())
        )
        # Closing the response wakes whoever reads it, so that a hang-up is noticed between two tokens.
        watch = self._exchange.watch()

        def hang_up(_: object) -> None:
            attempt.response.close()

        watch.add_done_callback(hang_up)
        finish, flags = await self._carry(attempt, answer)
        watch.remove_done_callback(hang_up)
        settled = await self._settling.settle(attempt, finish, flags)
        if self._exchange.gone:
            raise ClientGone
        if not settled or finish in (Finish.ERROR, Finish.TIMEOUT):
            await self._fail(timed_out() if finish is Finish.TIMEOUT else upstream_failed())
            return
        usage = self._usage_object(attempt)
        if not self._asked.stream:
            reason = "budget" if finish is Finish.BUDGET else None
            body = answer.whole(finish_reason=reason, usage=usage)
            await self._exchange.answer(200, body, self._headers(attempt.opened))
            return
        end = answer.usage_chunk(usage) + _DONE_EVENT if self._asked.include_usage else _DONE_EVENT
        if not self._exchange.started:
            await self._start_stream(attempt)
        await self._exchange.write(end, more=False)

    async def _carry(self, attempt: Attempt, answer: Answer) -> tuple[Finish, set[Flag]]:
        """Carries the stream to its end, forwarding as it comes. How it finished, and what a reader must know of it."""
        meter, parser = attempt.meter, SseParser()
        chunk, ended, size = attempt.first, False, 0
        try:
            async with asyncio.timeout(self._time_left(attempt.grade)):
                while chunk and not ended:
                    size += len(chunk)
                    if size > MAX_ANSWER_BYTES:
                        raise HostFailed("answer too large")
                    out, ended = self._take_checked(chunk, parser, meter, answer)
                    if attempt.first_byte_ms is None and meter.generated_chunks:
                        # Several engines begin with a chunk that only names the role, before they computed anything.
                        self._note_first_output(attempt)
                    if out:
                        if not self._exchange.started:
                            await self._start_stream(attempt)
                        ready = time.monotonic()
                        await self._exchange.write(out, more=True)
                        attempt.reader_s += time.monotonic() - ready
                    for _ in iter(meter.recount.count_some, False):
                        await asyncio.sleep(0)
                    if ended or meter.finish is not None:
                        pass  # Only usage can follow; nothing more is generated.
                    elif not await self._settling.covered(attempt):
                        attempt.response.close()
                        await self._cut(attempt, answer)
                        return Finish.BUDGET, {Flag.CUT_BUDGET}
                    if not ended:
                        chunk = await attempt.response.content.readany()
        except TimeoutError:
            return Finish.TIMEOUT, set()
        except (aiohttp.ClientError, OSError, SseTooLong, HostFailed, msgspec.DecodeError) as error:
            if self._exchange.gone:
                return Finish.CLIENT_GONE, {Flag.CLIENT_GONE}
            logger.warning(
                "stream failed",
                extra={"host_id": str(attempt.opened.host_id), "reason": type(error).__name__},
            )
            return Finish.ERROR, {Flag.UPSTREAM_FAILED}
        except asyncio.CancelledError:
            # The process is stopping: what was carried is captured all the same.
            await asyncio.shield(self._settling.settle(attempt, Finish.CLIENT_GONE, {Flag.CLIENT_GONE}))
            raise
        if self._exchange.gone and meter.finish is None:
            return Finish.CLIENT_GONE, {Flag.CLIENT_GONE}
        if meter.finish is None:
            return Finish.ERROR, {Flag.UPSTREAM_FAILED}
        return finish_of(meter.finish), set()

    def _take_checked(
        self, chunk: bytes, parser: SseParser, meter: UsageMeter, answer: Answer
    ) -> tuple[bytes, bool]:
        """`_take`, with whatever a host sends that is no chunk as the host's failure, never as ours."""
        try:
            return self._take(chunk, parser, meter, answer)
        except (AttributeError, TypeError, LookupError, ValueError, RecursionError):
            raise HostFailed("not a chunk of a completion") from None

    def _take(self, chunk: bytes, parser: SseParser, meter: UsageMeter, answer: Answer) -> tuple[bytes, bool]:
        """What of a network chunk goes to the buyer now, and whether the end mark was in it."""
        out: list[bytes] = []
        for payload in parser.feed(chunk):
            if payload == DONE:
                return b"".join(out), True
            event = _decode(payload)
            if not isinstance(event, dict) or "error" in event:
                raise HostFailed("error in the stream")
            meter.feed(event)
            for choice in event.get("choices") or ():
                if choice.get("index", 0) != 0:
                    continue
                reason = choice.get("finish_reason")
                if not isinstance(reason, str | None):
                    raise HostFailed("finish_reason is no text")
                meter.finish = reason or meter.finish
                meter.generated_chunks += has_output(choice)
                meter.recount.take(choice, streamed=self._asked.stream, chat=self._asked.path == CHAT)
                if self._asked.stream:
                    out.append(answer.chunk(choice))
                else:
                    answer.collect(choice)
        return b"".join(out), False

    def _note_first_output(self, attempt: Attempt) -> None:
        seconds = time.monotonic() - self._started
        attempt.first_byte_ms = round(seconds * 1000)
        metrics.FIRST_OUTPUT_SECONDS.observe(seconds)

    async def _cut(self, attempt: Attempt, answer: Answer) -> None:
        if self._asked.stream:
            if not self._exchange.started:
                await self._start_stream(attempt)
            await self._exchange.write(answer.end_chunk("budget"), more=True)

    async def _start_stream(self, attempt: Attempt) -> None:
        head = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._exchange.start(200, head | {"x-accel-buffering": "no"} | self._headers(attempt.opened))

    async def _fail(self, error: ApiError) -> None:
        """An error before anything was sent is the answer; later it is the stream's last event, without end mark."""
        if not self._exchange.started:
            raise error
        await self._exchange.write(b"data: " + error.encoded() + b"\n\n", more=False)

    async def _serve_embeddings(self, attempt: Attempt) -> None:
        self._note_first_output(attempt)
        parts, size = [attempt.first], len(attempt.first)
        try:
            async with asyncio.timeout(self._time_left(attempt.grade)):
                while part := await self._exchange.unless_gone(attempt.response.content.readany()):
                    parts.append(part)
                    size += len(part)
                    if size > MAX_ANSWER_BYTES:
                        raise HostFailed("answer too large")
            whole = _decode(b"".join(parts))
            if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
                raise HostFailed("no embeddings in the answer")
        except (TimeoutError, aiohttp.ClientError, OSError, HostFailed, msgspec.DecodeError):
            await self._settling.fail(attempt.hold_id, attempt.opened, attempt.over, cause="failed_attempt")
            raise upstream_failed() from None
        attempt.meter.feed(whole)
        await self._settling.settle(attempt, Finish.NONE, set())
        usage = self._usage_object(attempt)
        body = {"object": "list", "data": whole["data"], "model": self._asked.model, "usage": usage}
        await self._exchange.answer(200, msgspec.json.encode(body), self._headers(attempt.opened))

    def _usage_object(self, attempt: Attempt) -> dict[str, Any]:
        portions = [
            portion for portion in attempt.portions() if portion.part == 0 or any(portion.counts.values())
        ]
        return attempt.meter.usage_object(
            generation_id=self.generation_id,
            parts=[(portion.opened, portion.counts) for portion in portions],
        )

    def _headers(self, opened: Opened) -> dict[str, str]:
        return {
            "x-generation-id": str(self.generation_id),
            "x-request-id": str(self.generation_id),
            "x-tokenyard-contract": str(opened.contract_id),
        } | rate_limit_headers(opened)
