"""Sends the spool to the market until it is acknowledged, however long that takes."""

import asyncio
import logging
import random
from uuid import UUID

from providers.agent.errors import MarketBusy, MarketRefused, MarketUnreachable
from providers.agent.market import Market
from providers.agent.spool import Batch, Spool

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# However long the market asks to be left alone: a spool that waits longer is no use to anybody.
_LONGEST_WAIT_S = 300.0
_TOO_LARGE = 413


class Uploader:
    """Posts batches in order, one at a time; keeps a batch on any answer but acceptance."""

    def __init__(self, *, spool: Spool, market: Market, source_id: UUID, interval_s: float) -> None:
        self._spool = spool
        self._market = market
        self._source_id = source_id
        self._interval_s = interval_s
        self._pause_s = _FIRST_PAUSE_S

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            batch = await self._spool.next_batch(self._source_id)
            if batch is None:
                await asyncio.sleep(self._interval_s)
                continue
            pause_s = await self._send(batch)
            if pause_s:
                await asyncio.sleep(pause_s)

    async def flush(self) -> bool:
        """One attempt to empty the spool; False when something is left for the next start."""
        while batch := await self._spool.next_batch(self._source_id):
            if await self._send(batch):
                return False
        return True

    async def _send(self, batch: Batch) -> float:
        """The seconds to wait before the next try; 0 when the batch was taken, or cut to be tried at once."""
        try:
            await self._market.post_bytes("/usage", batch.body, content_type="application/x-ndjson")
        except MarketBusy as busy:
            pause_s = self._patience_s(busy.wait_s)
            logger.info("usage kept: market busy", extra={"reason": str(busy), "pause_s": round(pause_s, 1)})
            return pause_s
        except MarketUnreachable as error:
            logger.warning("usage kept: market unreachable", extra={"reason": str(error)})
        except MarketRefused as error:
            if error.status == _TOO_LARGE and await self._spool.halve(batch):
                logger.warning("batch cut in two: too large for the market", extra={"bytes": len(batch.body)})
                return 0.0
            # Nothing is dropped: a refusal is for people to look at, and the counts are money.
            logger.error("usage kept: market refused the batch", extra={"reason": str(error)})
        else:
            self._pause_s = _FIRST_PAUSE_S
            await self._spool.acknowledge(batch)
            return 0.0
        return self._patience_s(None)

    def _patience_s(self, asked_s: float | None) -> float:
        """At least what the market asked for, up to a bound, and a little more by chance: many agents wait at once."""
        own_s = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        if asked_s is None:
            return own_s
        return max(own_s, min(asked_s, _LONGEST_WAIT_S) * random.uniform(1.0, 1.25))
