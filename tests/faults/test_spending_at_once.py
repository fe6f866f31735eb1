"""Faults 21, 22 of docs/faults.md: whoever spends at once, no more is spent than there is; losers leave no trace."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier
from typing import Any

import aiohttp
import pytest
import time_machine
from django.db import connection

from marketplace.contracts.models import Contract, Entitlement, Hold
from marketplace.contracts.services import request_quote
from marketplace.ledger.models import Hold as LedgerHold
from marketplace.ledger.models import Transfer
from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Bid
from providers.models import HostHour
from tests.conftest import TestDatabase
from tests.contracts.world import World, available, give_money, make_world
from tests.gateway.test_attack_lying_host import delta, lying_host
from tests.gateway.test_gateway import CHAT, Rig, events, rig

__all__ = ["rig"]  # A fixture of the neighbour.

MAX_TOKENS = 200
Answers = Counter[tuple[int, str]]
# All of them, on a busy machine.
ENOUGH_S = 60


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0..count-1)` in as many threads, all let go at the same moment."""
    gate = Barrier(count)

    def run(index: int) -> Any:
        try:
            connection.ensure_connection()
            gate.wait()
            return work(index)
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def greedy_answer() -> list[bytes]:
    """As much output as was asked for, and more input than any request can come to: it costs its whole hold."""
    usage = {"prompt_tokens": 10**7, "completion_tokens": MAX_TOKENS, "total_tokens": 10**7 + MAX_TOKENS}
    last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    return [delta("x")] * MAX_TOKENS + [delta("", finish_reason="stop"), last, b"data: [DONE]\n\n"]


async def in_flight_at_once(count: int, url: str, *, body: bytes, headers: dict[str, str]) -> Answers:
    """`count` POSTs, each on a connection of its own and all but its last byte sent before any is let go; status and
    code of each. Whoever is told that the books are busy comes again, as the official clients do.
    """
    waiting = 0
    all_wait = asyncio.Event()

    async def held_back() -> AsyncIterator[bytes]:
        nonlocal waiting
        yield body[:-1]
        waiting += 1
        if waiting == count:
            all_wait.set()
        await all_wait.wait()
        yield body[-1:]

    async def spend(session: aiohttp.ClientSession) -> tuple[int, str]:
        data: Any = held_back()
        while True:
            async with session.post(url, data=data, headers=headers) as answer:
                assert waiting == count, "nobody is answered before all are there"
                said = await answer.json()
                if answer.status != 503:
                    return answer.status, said.get("error", {}).get("code", "")
                await asyncio.sleep(float(answer.headers["retry-after"]))
                data = body

    connections = aiohttp.TCPConnector(limit=count, force_close=True)
    async with asyncio.timeout(ENOUGH_S), aiohttp.ClientSession(connector=connections) as session:
        return Counter(await asyncio.gather(*(spend(session) for _ in range(count))))


@pytest.mark.parametrize("spends", [50, 500])
def test_of_many_requests_over_http_with_funds_for_ten_exactly_ten_are_served(rig: Rig, spends: int) -> None:
    body = json.dumps({"model": "tiny-chat", "messages": CHAT, "max_tokens": MAX_TOKENS}).encode()
    headers = {"authorization": f"Bearer {rig.world.acme.secret}", "content-type": "application/json"}

    def spend(count: int) -> Answers:
        return asyncio.run(
            in_flight_at_once(count, f"{rig.url}/v1/chat/completions", body=body, headers=headers)
        )

    with lying_host(greedy_answer()):
        rig.fund(500)
        assert spend(1) == {(200, ""): 1}
        first = Hold.objects.get()
        held, price = first.amount_micros, first.captured_micros
        # A request holds a little more than it costs; ten times that does not make an eleventh.
        assert 0 <= 10 * (held - price) < held
        rig.fund(10 * held - available(rig.world))
        answers = spend(spends)
    assert answers == {(200, ""): 10, (402, "insufficient_funds"): spends - 10}
    assert available(rig.world) == 10 * (held - price)
    # The losers left nothing: no hold, no event, no movement of money.
    assert Counter(Hold.objects.values_list("status", flat=True)) == {"captured": 11}
    assert len(events()) == 11
    assert Transfer.objects.exclude(code="top_up").count() == 0
    assert sum(LedgerHold.objects.values_list("amount_micros", flat=True)) == 11 * price
    assert check_ledger() == []


@pytest.fixture
def world(committed_db: TestDatabase, now: datetime) -> Iterator[World]:
    with time_machine.travel(now, tick=False):
        yield make_world(now)


def test_of_fifty_bids_over_rest_with_funds_for_ten_exactly_ten_are_placed(
    world: World, now: datetime
) -> None:
    give_money(world, 10 * 250, now)
    steps = [{"rate_micros_per_mtok": 250_000, "lots": 1}]

    def bid(index: int) -> tuple[int, str]:
        body = {"grade": "tiny-chat", "client_id": f"b{index}", "steps": steps}
        answer = world.acme.api.post("/api/v1/bids", body, format="json", HTTP_IDEMPOTENCY_KEY=f"k{index}")
        return answer.status_code, answer.json().get("code", "")

    assert Counter(at_once(50, bid)) == {(201, ""): 10, (402, "insufficient_funds"): 40}
    assert (available(world), Bid.objects.count(), LedgerHold.objects.count()) == (0, 10, 10)
    assert Transfer.objects.count() == 1
    assert check_ledger() == []


def quote_of(world: World, now: datetime) -> str:
    return str(
        request_quote(
            organization_id=world.acme.id, grade_slug="tiny-chat", firm_lots=10, volume_lots=100, months=1,
            starts_at=None, take_share_ppm=0, overage_policy="stop", payment="prepaid", now=now,
        ).id
    )  # fmt: skip


@pytest.mark.parametrize("tabs", [1, 12])
def test_a_double_click_and_twelve_tabs_buy_one_contract_under_one_hold(
    world: World, now: datetime, tabs: int
) -> None:
    """`tabs` keys, twelve requests: the same click delivered again is answered as the first, another tab refused."""
    give_money(world, 10_000_000, now)
    address = f"/api/v1/quotes/{quote_of(world, now)}/accept"

    def accept(index: int) -> Any:
        return world.acme.api.post(address, HTTP_IDEMPOTENCY_KEY=f"tab-{index % tabs}")

    answers = at_once(12, accept)
    bought = [answer for answer in answers if answer.status_code == 201]
    assert bought
    assert {answer.content for answer in bought} == {bought[0].content}
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert tabs == 1 or len(bought) == 1
    assert (Contract.objects.count(), Entitlement.objects.count(), LedgerHold.objects.count()) == (1, 1, 1)
    assert available(world) == 10_000_000 - 50_000
    assert HostHour.objects.filter(sold_ppm__gt=0).exists()
    # Whoever clicks once more later gets the first answer under its own key, and a refusal under another.
    assert accept(0).status_code in (201, 409)
    assert world.acme.api.post(address, HTTP_IDEMPOTENCY_KEY="later").status_code == 409
    assert LedgerHold.objects.count() == 1
    assert check_ledger() == []


def test_two_quotes_accepted_at_once_with_money_for_one_make_one_contract(
    world: World, now: datetime
) -> None:
    give_money(world, 50_000, now)
    quotes = [quote_of(world, now) for _ in range(6)]

    def accept(index: int) -> tuple[int, str]:
        answer = world.acme.api.post(
            f"/api/v1/quotes/{quotes[index]}/accept", HTTP_IDEMPOTENCY_KEY=f"k{index}"
        )
        return answer.status_code, answer.json().get("code", "")

    assert Counter(at_once(6, accept)) == {(201, ""): 1, (402, "insufficient_funds"): 5}
    assert (Contract.objects.count(), LedgerHold.objects.count(), available(world)) == (1, 1, 0)
    assert check_ledger() == []
