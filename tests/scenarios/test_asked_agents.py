"""The market asks its hosts, every process real: registers each minute, and usage that a restored database lacks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.market import MODEL, Market, wait_until

pytestmark = pytest.mark.e2e


def chats(market: Market, count: int) -> int:
    """Output tokens of so many requests."""
    messages: Any = [{"role": "user", "content": "How many lots are in one Mtok?"}]
    output = 0
    for _ in range(count):
        answer = market.acme.openai.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=8, temperature=0
        )
        assert answer.usage is not None
        output += answer.usage.completion_tokens
    return output


def agents_events(market: Market) -> int:
    (row,) = market.sql(
        "SELECT count(*) FROM metering_usageevent e JOIN metering_metersource s ON s.id = e.source_id"
        " WHERE s.kind = 'agent'"
    )
    return int(row[0])


def chain_ends(market: Market) -> dict[Any, tuple[int, str]]:
    """Next number and last digest by meter."""
    rows = market.sql("SELECT id, next_sequence, last_digest FROM metering_metersource WHERE kind = 'agent'")
    return {source_id: (number, digest) for source_id, number, digest in rows}


def gaps(market: Market) -> int:
    (row,) = market.sql("SELECT count(*) FROM metering_metersource WHERE gap_since IS NOT NULL")
    return int(row[0])


def test_registers_are_read_by_the_market_and_a_restored_database_gets_back_what_it_lacks(
    market: Market,
) -> None:
    market.acme.post("/top-ups", {"amount_micros": 50_000_000})
    chats(market, 2)
    wait_until(lambda: agents_events(market) == 2, "both events of the agents")
    # A read that no heartbeat brought: later than the last one.
    wait_until(
        lambda: market.sql("SELECT 1 FROM providers_host WHERE registers_read_at > last_heartbeat_at"),
        "a register read by the market",
    )
    reads = market.sql(
        "SELECT boot_id, input_tokens, output_tokens, bench_input_tokens, bench_output_tokens"
        " FROM metering_registerread ORDER BY read_at DESC LIMIT 1"
    )
    boot, counted_input, counted_output, bench_input, bench_output = reads[0]
    assert boot not in ("", "unmarked")
    # The bench at the start is in the engine's counters, and stands beside them.
    assert counted_input >= bench_input > 0
    assert counted_output >= bench_output > 0

    before = chain_ends(market)
    market.kill("beat")
    market.kill("worker")
    chats(market, 3)
    wait_until(
        lambda: (
            sum(number for number, _ in chain_ends(market).values())
            == sum(number for number, _ in before.values()) + 3
        ),
        "the batches of three requests",
    )
    after = chain_ends(market)
    losers = {source_id for source_id in before if after[source_id] != before[source_id]}
    # What a backup of an hour ago does not have.
    for source_id in losers:
        number, digest = before[source_id]
        market.sql(
            "DELETE FROM metering_usagebatch WHERE source_id = %s AND sequence_from >= %s", source_id, number
        )
        market.sql(
            "UPDATE metering_metersource SET next_sequence = %s, last_digest = %s WHERE id = %s",
            number,
            digest,
            source_id,
        )
    market.start("worker", "beat")
    # The next batch of a host shows what is missing before it.
    sent = 2 + 3
    for _ in range(20):
        sent += 1
        chats(market, 1)
        time.sleep(1.5)  # Agents upload once a second.
        if all(chain_ends(market)[source_id][0] > after[source_id][0] for source_id in losers):
            break
    total = sent
    wait_until(lambda: agents_events(market) == total and not gaps(market), "every event of the agents")
    assert market.sql("SELECT count(*) FROM metering_usagebatch WHERE chain = 'gap'") == [(len(losers),)]
    assert market.sql("SELECT count(*) FROM metering_usagebatch WHERE chain = 'broken'") == [(0,)]
    market.assert_books_balance()
