"""The holds of an attempt: they cover what comes next, and end captured or voided.

Where the gateway cannot know what was used, the hold stays for the sweeper, which captures the agent's signed count.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from marketplace.contracts.holds import Opened
from marketplace.gateway import metrics
from marketplace.gateway.attempts import Attempt, Means, Over, Portion
from marketplace.gateway.config import (
    EXTEND_OUTPUT_TOKENS,
    LOOKAHEAD_TOKENS,
    READER_SLOW_S,
    READER_SLOW_SHARE,
)
from marketplace.gateway.counting import count_input_tokens
from marketplace.gateway.errors import BOOKS_AWAY, upstream_failed
from marketplace.gateway.exchange import Exchange
from marketplace.gateway.parsing import Asked
from marketplace.gateway.refusals import refusal_of
from marketplace.gateway.store import Caller, GradeVersion
from marketplace.ids import uuid7
from metering.usage import Finish, Flag
from pricing.units import OUTPUT_BUCKETS

logger = logging.getLogger(__name__)

_CAPTURE_RETRIES_S: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


class Settling:
    """The holds of one request. `started` is on the monotonic clock; `occurred_at` is admission, in market time."""

    def __init__(
        self,
        means: Means,
        exchange: Exchange,
        *,
        caller: Caller,
        asked: Asked,
        request_id: UUID,
        bytes_in: int,
        occurred_at: datetime,
        started: float,
    ) -> None:
        self._means = means
        self._exchange = exchange
        self._caller = caller
        self._asked = asked
        self._request_id = request_id
        self._bytes_in = bytes_in
        self._occurred_at = occurred_at
        self._started = started

    async def hold(
        self,
        number: int,
        versions: Sequence[GradeVersion],
        numerators: Sequence[int],
        *,
        contract_id: UUID | None,
        exclude: Sequence[UUID],
    ) -> tuple[UUID, Opened, Over | None]:
        """An attempt's hold; where it is the last of a contract, with a second one beyond it. Raises ApiError.

        Where its host has not that much to spare beyond the contract, all of it is asked of others.
        """
        hold_id = self._request_id if number == 0 else uuid7(self._occurred_at)
        for may_split in (True, False):
            opened = await self._means.store.open_hold(
                id=hold_id,
                request_id=self._request_id,
                attempt=number,
                caller=self._caller,
                grade_ids=[version.id for version in versions],
                numerators=numerators,
                contract_id=contract_id,
                exclude=exclude,
                may_split=may_split,
                now=self._occurred_at,
            )
            if opened.outcome != "ok":
                metrics.HOLDS.labels(opened.outcome).inc()
                raise upstream_failed() if exclude else refusal_of(opened)
            assert opened.amount_numerator is not None
            grade, asked = next(
                pair for pair in zip(versions, numerators, strict=True) if pair[0].id == opened.grade_id
            )
            if opened.amount_numerator == asked:
                return hold_id, opened, None
            over = await self.open_over(
                hold_id,
                asked - opened.amount_numerator,
                token_numerator=max(grade.standard_ppm.values()),
                is_admission=True,
            )
            if over is not None:
                return hold_id, opened, over
            # Or the request ends here: two open holds of one attempt could both be captured by the agent's count of it.
            await self._means.store.void_hold(id=hold_id, now=await self._means.store.now())
            hold_id = uuid7(self._occurred_at)
        raise AssertionError("a hold that may not be split covers all that was asked")

    async def covered(self, attempt: Attempt) -> bool:
        """Whether the hold covers the next tokens, extending it where it does not. False: cut the stream now."""
        meter = attempt.meter
        used = meter.bound()
        made = sum(meter.counts().get(bucket, 0) for bucket in OUTPUT_BUCKETS) or meter.generated_chunks
        left = max(1, attempt.limit - made)
        if used + min(LOOKAHEAD_TOKENS, left) * meter.output_ppm <= attempt.covered_numerator:
            return True
        if attempt.covered_numerator >= meter.most_numerator:
            return (
                True  # All that the request can come to is held; what a host says beyond it is never billed.
            )
        if await self._extend(attempt, min(EXTEND_OUTPUT_TOKENS, left) * meter.output_ppm):
            return True
        return used + meter.output_ppm <= attempt.covered_numerator

    async def _extend(self, attempt: Attempt, delta: int) -> bool:
        """Whether so much more is held: by the last part's hold, or by a part beyond a contract that is used up."""
        if attempt.no_more:
            return False
        growing = attempt.over or attempt
        outcome = await self._means.store.extend_hold(
            id=growing.hold_id, delta_numerator=delta, now=await self._means.store.now()
        )
        metrics.HOLDS.labels(f"extend_{outcome}").inc()
        if outcome == "ok":
            growing.amount_numerator += delta
            return True
        if outcome == "contract_exhausted" and attempt.over is None and await self._go_over(attempt, delta):
            return True
        attempt.no_more = True
        return False

    async def _go_over(self, attempt: Attempt, delta: int) -> bool:
        """Uses the contract up and goes on under its overage policy. False where it does not go on."""
        taken = await self._means.store.take_rest(
            id=attempt.hold_id, most_numerator=delta, now=await self._means.store.now()
        )
        attempt.amount_numerator += taken
        if taken < delta:
            attempt.over = await self.open_over(
                attempt.hold_id, delta - taken, token_numerator=attempt.meter.token_numerator
            )
        return taken == delta or attempt.over is not None

    async def open_over(
        self, hold_id: UUID, amount_numerator: int, *, token_numerator: int, is_admission: bool = False
    ) -> Over | None:
        """The hold of part 1: so much, and a token more for what of the first hold is less than one. None: refused."""
        over_id, amount = uuid7(self._occurred_at), amount_numerator + token_numerator
        opened = await self._means.store.open_part(
            hold_id=hold_id,
            id=over_id,
            amount_numerator=amount,
            is_admission=is_admission,
            now=await self._means.store.now(),
        )
        metrics.HOLDS.labels(f"part_{opened.outcome}").inc()
        return Over(over_id, opened, amount) if opened.outcome == "ok" else None

    async def settle(self, attempt: Attempt, finish: Finish, flags: set[Flag]) -> bool:
        """Captures or voids, also when the caller's task is cancelled meanwhile. True when the hold is captured."""
        return await asyncio.shield(asyncio.ensure_future(self._end_hold(attempt, finish, flags)))

    async def _end_hold(self, attempt: Attempt, finish: Finish, flags: set[Flag]) -> bool:
        meter = attempt.meter
        meter.flags |= flags
        if self._held_up(attempt):
            meter.flags.add(Flag.READER_SLOW)
        if meter.generated_chunks == 0 and finish in (Finish.ERROR, Finish.TIMEOUT):
            await self.fail(attempt.hold_id, attempt.opened, attempt.over, cause="failed_attempt")
            return False
        if Flag.UPSTREAM_FAILED in flags:
            await self._remember(attempt.hold_id, attempt.opened, "failed_attempt")
        if not meter.reported:
            if meter.generated_chunks == 0 and finish is Finish.CLIENT_GONE:
                # Nobody here knows how far the engine came; the agent does, and the sweeper takes its word.
                metrics.HOLDS.labels("left_to_sweeper").inc()
                return False
            meter.estimate(await asyncio.to_thread(count_input_tokens, self._asked.body))
        meter.cut_to_bounds()
        await self._cover_or_cap(attempt)
        started = time.monotonic()
        captured = await self._capture(attempt, finish)
        metrics.CAPTURE_SECONDS.observe(time.monotonic() - started)
        metrics.ATTEMPTS.labels("delivered").inc()
        for bucket, count in meter.counts().items():
            metrics.TOKENS.labels(bucket.value).inc(count)
        return captured

    def _held_up(self, attempt: Attempt) -> bool:
        """Whether the buyer read so slowly that the time per output token says nothing of the host."""
        if attempt.first_byte_ms is None:
            return False
        carried = time.monotonic() - self._started - attempt.first_byte_ms / 1000
        return attempt.reader_s > max(READER_SLOW_S, carried * READER_SLOW_SHARE)

    async def _cover_or_cap(self, attempt: Attempt) -> None:
        excess = attempt.excess_numerator
        if excess <= 0 or await self._extend(attempt, excess):
            return
        if attempt.over is None:
            attempt.meter.cap(attempt.amount_numerator)
        else:
            attempt.meter.cap_parts(attempt.amount_numerator, attempt.over.amount_numerator)

    async def _capture(self, attempt: Attempt, finish: Finish) -> bool:
        """Captures each part, the first one first, so that a part whose gateway died is told from what it covers."""
        first, *others = attempt.portions()
        is_split = any(any(portion.counts.values()) for portion in others)
        if is_split:
            attempt.meter.flags.add(Flag.SPLIT)
        duration_ms = round((time.monotonic() - self._started) * 1000)
        captured = await self._capture_portion(attempt, first, finish, duration_ms)
        for portion in others:
            if is_split:
                await self._capture_portion(attempt, portion, finish, duration_ms)
            else:
                await self.void(portion.hold_id)
        return captured

    async def _capture_portion(
        self, attempt: Attempt, portion: Portion, finish: Finish, duration_ms: int
    ) -> bool:
        numerator = attempt.meter.numerator_of(portion.counts)
        event = attempt.meter.event(
            hold_id=portion.hold_id,
            request_id=self._request_id,
            attempt=attempt.number,
            opened=portion.opened,
            api_key_id=self._caller.api_key_id,
            occurred_at=self._occurred_at,
            finish=finish,
            # The attempt's own figures belong to its first part.
            bytes_in=self._bytes_in if portion.part == 0 else 0,
            bytes_out=self._exchange.bytes_out if portion.part == 0 else 0,
            first_byte_ms=attempt.first_byte_ms if portion.part == 0 else None,
            duration_ms=duration_ms,
            part=portion.part,
            counts=portion.counts,
        )
        for pause_s in (*_CAPTURE_RETRIES_S, None):
            try:
                captured = await self._means.store.capture_hold(
                    id=portion.hold_id,
                    numerator=numerator,
                    event=event,
                    source_id=self._means.source_id,
                    now=await self._means.store.now(),
                )
            except BOOKS_AWAY:
                if pause_s is None:
                    # The hold stays open, and the sweeper captures the agent's count.
                    logger.exception("capture failed", extra={"hold_id": str(portion.hold_id)})
                    return False
                await asyncio.sleep(pause_s)
                continue
            metrics.HOLDS.labels(f"capture_{captured.outcome}").inc()
            return captured.outcome in ("ok", "captured")
        return False

    async def fail(self, hold_id: UUID, opened: Opened, over: Over | None = None, *, cause: str) -> None:
        """The host served nothing of it: that is remembered, and what is held given back."""
        await self._remember(hold_id, opened, cause)
        await self.void(hold_id, over)

    async def _remember(self, hold_id: UUID, opened: Opened, cause: str) -> None:
        """Evidence of a failure (`FailedAttempt`), before the attempt's hold ends.

        A period is settled only when its holds have ended, so it is there by then.
        """
        assert opened.offering_id is not None
        try:
            await self._means.store.record_failed_attempt(
                id=hold_id, offering_id=opened.offering_id, cause=cause, now=await self._means.store.now()
            )
        except BOOKS_AWAY:
            logger.exception("failed attempt not recorded", extra={"hold_id": str(hold_id)})

    async def void(self, hold_id: UUID, over: Over | None = None) -> None:
        """Gives the hold back, what goes over first; where the database does not answer, the sweeper will."""
        try:
            for id in (hold_id,) if over is None else (over.hold_id, hold_id):  # noqa: A001
                await self._means.store.void_hold(id=id, now=await self._means.store.now())
        except BOOKS_AWAY:
            logger.exception("void failed", extra={"hold_id": str(hold_id)})
