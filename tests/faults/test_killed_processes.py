"""kill -9 of worker, agents, Redis and beat under load, and agents with wrong clocks: nothing is lost or doubled."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.market import MODEL, Market, wait_until

REQUESTS_PER_ROUND = 12
AGENTS = ("agent-1", "agent-2")
CLOCK_OFFSET = "TOKENYARD_AGENT_TEST_CLOCK_OFFSET_S"


class Load:
    """Requests of acme's in two threads; remembers what the gateway confirmed."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.confirmed: list[Any] = []
        self.failed = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        threads = [threading.Thread(target=self._send, args=(REQUESTS_PER_ROUND // 2,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run)
        thread.start()
        return thread

    def _send(self, count: int) -> None:
        client = self.market.acme.openai
        for _ in range(count):
            try:
                answer: Any = client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Is anything lost?"}], max_tokens=24
                )
            except Exception:  # what fails while parts are dead is counted, and must cost nothing
                with self._lock:
                    self.failed += 1
                continue
            with self._lock:
                self.confirmed.append(answer.usage)


@pytest.fixture(scope="module")
def funded(market: Market) -> Market:
    market.acme.post("/top-ups", {"amount_micros": 20_000_000})
    return market


@pytest.mark.parametrize("victim", ["worker", "agent-1", "redis", "beat"])
def test_a_killed_process_loses_and_doubles_nothing(funded: Market, victim: str) -> None:
    market = funded
    load = Load(market)
    running = load.start()
    market.kill(victim)
    running.join()
    market.start(victim)
    again = Load(market)
    again.run()
    if victim.startswith("agent"):
        # The other host carries the load meanwhile; the market sees the revived one again by its heartbeat.
        assert again.confirmed
    else:
        assert load.failed == 0
        assert again.failed == 0
    confirmed = {usage.tokenyard["generation_id"] for usage in load.confirmed + again.confirmed}
    _assert_every_confirmed_request_is_counted_once(market, confirmed)
    market.assert_books_balance()


def test_agents_killed_with_a_full_spool_hand_it_in_when_they_are_back(funded: Market) -> None:
    """The market is out of their reach all the while: not a single event has been handed in before."""
    market = funded
    market.kill("web")
    load = Load(market)
    load.run()
    assert load.failed == 0
    for agent in AGENTS:
        market.kill(agent)
    assert sum(_spooled(market, agent) for agent in AGENTS) >= len(load.confirmed)
    market.start(*AGENTS)
    # Started again without a market, they keep what they have; killed again, too.
    market.kill(AGENTS[0])
    market.start("web", AGENTS[0])
    confirmed = {usage.tokenyard["generation_id"] for usage in load.confirmed}
    _assert_every_confirmed_request_is_counted_once(market, confirmed)
    _assert_every_confirmed_request_is_counted_once(market, confirmed, by="agent")
    market.assert_books_balance()


@pytest.mark.parametrize(
    "clocks",
    [
        (timedelta(minutes=10), timedelta(minutes=-10)),
        (datetime(1970, 1, 2, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)),
    ],
    ids=["10 minutes off", "1970 and 2099"],
)
def test_agents_with_wrong_clocks_are_counted_all_the_same(
    funded: Market, clocks: tuple[timedelta | datetime, ...]
) -> None:
    market = funded
    for agent, clock in zip(AGENTS, clocks, strict=True):
        offset = clock - datetime.now(UTC) if isinstance(clock, datetime) else clock
        market.kill(agent)
        market.environment[CLOCK_OFFSET] = str(round(offset.total_seconds()))
        market.start(agent)
    market.environment.pop(CLOCK_OFFSET)
    _await_served(market)
    load = Load(market)
    load.run()
    for agent in AGENTS:
        market.kill(agent)
    market.start(*AGENTS)
    assert load.failed == 0
    confirmed = {usage.tokenyard["generation_id"] for usage in load.confirmed}
    _assert_every_confirmed_request_is_counted_once(market, confirmed)
    _assert_every_confirmed_request_is_counted_once(market, confirmed, by="agent")
    market.assert_books_balance()


def test_everything_is_charged_in_the_end_exactly_as_metered(funded: Market) -> None:
    market = funded
    open_money = "SELECT count(*) FROM ledger_hold WHERE status = 'open'"
    wait_until(lambda: market.sql(open_money)[0][0] == 0, "all holds to be settled", seconds=90)
    charged, rated = market.sql(
        """SELECT (SELECT coalesce(sum(numerator), 0) FROM billing_charge WHERE kind IN ('usage', 'adjustment')),
                  (SELECT coalesce(sum(numerator), 0) FROM metering_usagerollup WHERE meter = 'gateway')"""
    )[0]
    assert charged == rated > 0
    market.assert_books_balance()


def _spooled(market: Market, agent: str) -> int:
    """Events that a dead agent has not handed in."""
    with closing(sqlite3.connect(market.directory / agent / "spool.sqlite3")) as spool:
        return int(spool.execute("SELECT count(*) FROM event").fetchone()[0])


def _await_served(market: Market) -> None:
    """An agent goes by the market's time as soon as it has heard it once, which its first heartbeat does."""

    def served() -> bool:
        load = Load(market)
        load._send(2)
        return load.failed == 0

    wait_until(served, "both agents to serve", seconds=60)


def _assert_every_confirmed_request_is_counted_once(
    market: Market, confirmed: set[str], *, by: str = "gateway"
) -> None:
    def stored() -> bool:
        rows = market.sql(
            """SELECT e.request_id::text FROM metering_usageevent e
               JOIN metering_metersource s ON s.id = e.source_id WHERE s.kind = %s""",
            by,
        )
        counted = [row[0] for row in rows]
        assert len(counted) == len(set(counted)), "a request was counted twice"
        return confirmed <= set(counted)

    wait_until(stored, f"every confirmed request's usage event by the {by}", seconds=60)
