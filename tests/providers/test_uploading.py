"""The spool on its way to a market that is busy, small, or forgets; what of it is kept for the market to ask again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from metering.usage import GENESIS_DIGEST, split_batch
from providers.agent.clock import AgentClock
from providers.agent.market import Market as MarketClient
from providers.agent.spool import Batch, NotKept, Spool
from providers.agent.uploader import Uploader
from tests.metering.test_usage import EVENT
from tests.providers.agent_rig import Market, run_market

T = TypeVar("T")

SOURCE = UUID(int=9)
KEY = Ed25519PrivateKey.generate()
DAY_S = 24 * 3_600


@pytest.fixture
def market() -> Iterator[Market]:
    with run_market() as market:
        market.public_key = KEY.public_key()
        yield market


def fill(spool: Spool, events: int) -> None:
    futures = [spool.append(EVENT) for _ in range(events)]
    for future in futures:
        future.result(20)


def upload(
    market: Market,
    spool: Spool,
    until: Callable[[], bool],
    *,
    left: int | None = None,
    timeout_s: float = 20.0,
) -> None:
    """Runs the uploader until the condition holds, and the spool knows of no more than `left` to send."""

    async def run() -> None:
        async with aiohttp.ClientSession() as http:
            client = MarketClient(
                http, url=market.url, private_key=KEY, host_id=str(market.host_id), clock=AgentClock()
            )
            uploader = Uploader(spool=spool, market=client, source_id=SOURCE, interval_s=0.01)
            task = asyncio.create_task(uploader.run())
            deadline = time.monotonic() + timeout_s
            while not until() or (left is not None and await spool.pending() > left):
                assert time.monotonic() < deadline, "waited in vain"
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def numbers(batches: list[bytes]) -> list[int]:
    """The event numbers of batches that form one unbroken chain."""
    digest = GENESIS_DIGEST
    found: list[int] = []
    for batch in batches:
        header, _ = split_batch(batch)
        assert header.previous_digest == digest
        digest = header.digest
        found += range(header.sequence_from, header.sequence_to + 1)
    return found


def test_a_full_spool_is_sent_in_order_after_a_restart(tmp_path: Path, market: Market) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, 2_600)
    frozen = asyncio.run(spool.next_batch(SOURCE))
    spool.close()
    spool = Spool(tmp_path / "spool")
    fill(spool, 100)
    assert asyncio.run(spool.pending()) == 2_700
    upload(market, spool, lambda: len(market.events) == 2_700, left=0)
    assert asyncio.run(spool.pending()) == 0
    assert numbers(market.batches) == list(range(1, 2_701))
    assert frozen is not None
    assert market.batches[0] == frozen.body
    assert len(market.batches) == 3
    spool.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_market_is_left_alone_for_as_long_as_it_asks(
    tmp_path: Path, market: Market, status: int
) -> None:
    market.usage_status, market.usage_headers = status, {"Retry-After": "1"}
    spool = Spool(tmp_path / "spool")
    fill(spool, 3)
    upload(market, spool, lambda: len(market.tried_at) == 3)
    waits = [after - before for before, after in pairwise(market.tried_at)]
    assert all(0.95 <= wait < 2.5 for wait in waits), waits
    assert asyncio.run(spool.pending()) == 3
    market.usage_status = 202
    upload(market, spool, lambda: len(market.events) == 3)
    spool.close()


def test_however_long_a_market_asks_there_is_a_bound_and_nonsense_is_ignored() -> None:
    uploader = Uploader.__new__(Uploader)
    uploader._pause_s = 0.5
    for asked_s, least, most in ((10.0**9, 300.0, 375.0), (0.0, 0.25, 1.0), (60.0, 60.0, 75.0)):
        assert least <= uploader._patience_s(asked_s) <= most
    pauses = [uploader._patience_s(None) for _ in range(30)]
    assert max(pauses) <= 30.0
    assert min(pauses[-10:]) >= 15.0
    assert len(set(pauses)) == 30  # Many agents must not come back in step.


def test_a_batch_too_large_for_the_market_is_cut_until_it_fits(tmp_path: Path, market: Market) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, 1_000)
    whole = asyncio.run(spool.next_batch(SOURCE))
    assert whole is not None
    market.most_usage_bytes = len(whole.body) // 3
    upload(market, spool, lambda: len(market.events) == 1_000)
    assert numbers(market.batches) == list(range(1, 1_001))
    assert all(len(batch) <= market.most_usage_bytes for batch in market.batches)
    spool.close()


def test_an_event_that_is_too_large_by_itself_stays(tmp_path: Path, market: Market) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, 2)
    market.most_usage_bytes = 10
    upload(market, spool, lambda: len(market.tried_at) >= 3)
    assert asyncio.run(spool.pending()) == 2
    market.most_usage_bytes = 2**20
    upload(market, spool, lambda: len(market.events) == 2)
    assert numbers(market.batches) == [1, 2]
    spool.close()


# What is kept -------------------------------------------------------------------------------------------------


def send_all(spool: Spool) -> list[Batch]:
    async def run() -> list[Batch]:
        sent = []
        while batch := await spool.next_batch(SOURCE):
            await spool.acknowledge(batch)
            sent.append(batch)
        return sent

    return asyncio.run(run())


def kept(spool: Spool, after: int) -> Batch | None:
    return asyncio.run(spool.sent_batch(SOURCE, after=after))


def test_what_was_acknowledged_can_be_had_again_byte_for_byte(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, 1_500)
    sent = send_all(spool)
    fill(spool, 2)
    sent += send_all(spool)
    spool.close()
    spool = Spool(tmp_path / "spool")
    assert [kept(spool, after) for after in (0, 1_000, 1_500)] == sent
    assert kept(spool, 500) == sent[0]
    assert kept(spool, 1_501) == sent[2]
    assert kept(spool, 1_502) is None
    fill(spool, 1)
    assert kept(spool, 1_502) is None  # Comes by itself.
    assert asyncio.run(spool.pending()) == 1
    spool.close()


def test_what_is_kept_goes_by_age(tmp_path: Path) -> None:
    now_s = 1_800_000_000.0
    spool = Spool(tmp_path / "spool", time_s=lambda: now_s)
    for _ in range(3):
        fill(spool, 1)
        send_all(spool)
        now_s += 3 * DAY_S
    fill(spool, 1)
    send_all(spool)
    with pytest.raises(NotKept) as gone:
        kept(spool, 0)
    assert gone.value.kept_from == 2
    assert kept(spool, 1) is not None
    spool.close()


def test_what_is_kept_goes_by_size_but_never_what_was_not_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", keep_sent_bytes=4_000)
    for _ in range(20):
        fill(spool, 1)
        send_all(spool)
    fill(spool, 50)
    with pytest.raises(NotKept) as gone:
        kept(spool, 0)
    first = gone.value.kept_from
    assert first is not None
    assert 5 < first <= 20
    sizes = [len(batch.body) for number in range(first, 21) if (batch := kept(spool, number - 1))]
    assert sum(sizes) <= 4_000 < sum(sizes) + sizes[0]
    assert asyncio.run(spool.pending()) == 50
    spool.close()


def test_a_question_that_nothing_answers_undoes_no_event_beside_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", keep_sent_bytes=1)
    fill(spool, 1)
    send_all(spool)

    async def both() -> tuple[object, int]:
        asked: Awaitable[object] = spool.sent_batch(SOURCE, after=0)
        stored = asyncio.wrap_future(spool.append(EVENT))
        results = await asyncio.gather(asked, stored, return_exceptions=True)
        assert isinstance(results[1], int)
        return results[0], results[1]

    refused, number = asyncio.run(both())
    assert isinstance(refused, NotKept)
    assert refused.kept_from is None
    assert number == 2
    spool.close()
