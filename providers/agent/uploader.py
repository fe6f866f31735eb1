"""Sends the spool to the market until it is acknowledged, however long that takes."""

import asyncio
import logging
import random
from uuid import UUID

from providers.agent.errors import MarketRefused, MarketUnreachable
from providers.agent.market import Market
from providers.agent.spool import Batch, Spool

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Uploader:
    """Posts batches in order, one at a time; keeps a batch on any answer but acceptance."""

    def __init__(self, *, spool: Spool, market: Market, source_id: UUID, interval_s: float) -> None:
        self._spool = spool
        self._market = market
        self._source_id = source_id
        self._interval_s = interval_s

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            batch = await self._spool.next_batch(self._source_id)
            if batch is None:
                await asyncio.sleep(self._interval_s)
                continue
            if await self._send(batch):
                pause_s = _FIRST_PAUSE_S
                continue
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def flush(self) -> bool:
        """One attempt to empty the spool; False when something is left for the next start."""
        while batch := await self._spool.next_batch(self._source_id):
            if not await self._send(batch):
                return False
        return True

    async def _send(self, batch: Batch) -> bool:
        try:
            await self._market.post_bytes("/usage", batch.body, content_type="application/x-ndjson")
        except MarketUnreachable as error:
            logger.warning("usage kept: market unreachable", extra={"reason": str(error)})
            return False
        except MarketRefused as error:
            # Nothing is dropped: a refusal is for people to look at, and the counts are money.
            logger.error("usage kept: market refused the batch", extra={"reason": str(error)})
            return False
        await self._spool.acknowledge(batch)
        return True
