"""From a host that enrols to an invoice that an auditor can recompute: over HTTP, with every process real."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import requests
from openai import APIStatusError

from tests.market import MODEL, Market, wait_until

# What the grade of the test publishes (tests/cast.py): weight x kappa per bucket, in ppm.
STANDARD_PPM = {
    "uncached_input": 250_000,
    "cache_read": 25_000,
    "cache_write": 312_500,
    "output": 1_000_000,
    "reasoning": 1_000_000,
}


def chat(market: Market, *, stream: bool, contract: str | None = None, max_tokens: int = 48) -> Any:
    """One chat by the unchanged openai client; its usage object."""
    headers = {"X-Tokenyard-Contract": contract} if contract else {}
    # The tiny model's random answers may be empty; its likeliest one to this question is not.
    messages: Any = [{"role": "user", "content": "How many lots are in one Mtok?"}]
    if not stream:
        answer = market.acme.openai.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=max_tokens, temperature=0, extra_headers=headers
        )
        assert answer.choices[0].message.content
        return answer.usage
    usage = None
    text = ""
    for chunk in market.acme.openai.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=headers,
    ):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert text
    assert usage is not None
    return usage


def test_a_token_goes_from_host_to_invoice_and_every_amount_can_be_recomputed(market: Market) -> None:
    acme = market.acme

    # Without money nothing is generated, and the error says what to do.
    with pytest.raises(APIStatusError) as refused:
        chat(market, stream=False)
    assert refused.value.status_code == 402
    assert refused.value.code == "insufficient_funds"

    # A top-up, and a request at once: on demand.
    acme.post("/top-ups", {"amount_micros": 50_000_000}, key="first-top-up")
    acme.post("/top-ups", {"amount_micros": 50_000_000}, key="first-top-up")
    assert acme.prepaid["available_micros"] == 50_000_000
    usages = [chat(market, stream=False), chat(market, stream=True)]
    assert {usage.tokenyard["contract_kind"] for usage in usages} == {"on_demand"}

    # A committed contract by quote, paid at its start.
    quote = acme.post(
        "/quotes",
        {
            "grade": MODEL,
            "firm_lots": 1,
            "volume_lots": 100,
            "months": 1,
            "take_share_ppm": 0,
            "overage_policy": "stop",
            "payment": "prepaid",
        },
    )
    committed = acme.post(f"/quotes/{quote['id']}/accept", {})
    wait_until(
        lambda: [c for c in acme.every("/charges") if c["kind"] == "committed_fee"],
        "the committed month to be charged",
    )
    for stream in (False, True):
        usage = chat(market, stream=stream, contract=committed["id"])
        assert usage.tokenyard["contract_id"] == committed["id"]

    # A standing bid; the auction of each period runs by itself.
    acme.post(
        "/bids",
        {
            "grade": MODEL,
            "client_id": "standing-1",
            "steps": [{"rate_micros_per_mtok": 450_000, "lots": 2}],
        },
    )

    def spot_usage() -> Any:
        usage = chat(market, stream=True)
        return usage if usage.tokenyard["contract_kind"] == "spot" else None

    wait_until(spot_usage, "a request to be paid by a spot award", seconds=60)
    public = requests.get(f"{market.portal_url}/api/v1/market/{MODEL}", timeout=10).json()
    assert public["last"]["clearing_rate_micros_per_mtok"] >= 180_000

    # Everything settles: on-demand usage and spot lines.
    def kinds() -> set[str]:
        return {charge["kind"] for charge in acme.every("/charges")}

    wait_until(lambda: {"usage", "spot", "committed_fee"} <= kinds(), "charges of every kind", seconds=90)
    wait_until(lambda: _meters_agree(market), "both meters' events to be rolled up", seconds=30)
    market.assert_books_balance()

    # Gateway, agents and engines agree: nothing is in dispute, and that is published.
    wait_until(lambda: _reconciled_ppm(market) == 1_000_000, "all usage to be reconciled", seconds=60)
    assert market.operator.every("/discrepancies") == []

    # Next month the invoice comes; bids end before, so that its month is complete.
    for bid in acme.every("/bids"):
        wait_until(partial(_cancel, market, bid["id"]), "the bid to be cancelled between rounds")
    wait_until(lambda: not _unsettled(market), "all awards and accruals to be settled", seconds=90)
    market.kill("agent-1", number=15)
    market.kill("agent-2", number=15)
    # Nor does anybody square up what has failed since, between the invoice and what it is compared with.
    market.kill("worker", number=15)
    month = market.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM')")[0][0]
    market.advance(timedelta(days=32))
    market.manage("issueinvoices", "--period", month)
    invoices = acme.every("/invoices")
    assert len(invoices) == 1
    invoice = acme.get(f"/invoices/{invoices[0]['id']}")

    assert invoice["subtotal_micros"] == sum(line["amount_micros"] for line in invoice["lines"])
    expected = _recomputed_from_events(market)
    assert invoice["subtotal_micros"] == expected["subtotal_micros"]
    assert invoice["amount_due_micros"] == 0
    # Hyperion's statement mirrors what acme paid for delivery.
    statement = market.hyperion.every("/statements")[0]
    assert statement["net_micros"] == statement["gross_micros"] - statement["fee_micros"]
    market.assert_books_balance()
    # mallory sees none of it.
    assert market.mallory.every("/invoices") == []
    market.mallory.get(f"/invoices/{invoice['id']}", status=404)


def _reconciled_ppm(market: Market) -> int | None:
    [provider] = requests.get(f"{market.portal_url}/api/v1/providers", timeout=10).json()["items"]
    ppm: int | None = provider["reconciliation_ppm"]
    return ppm


def _cancel(market: Market, bid_id: str) -> bool:
    answer = requests.delete(
        f"{market.portal_url}/api/v1/bids/{bid_id}",
        headers={"Authorization": f"Bearer {market.acme.api_key}"},
        timeout=10,
    )
    return answer.status_code in (200, 204)


def _meters_agree(market: Market) -> bool:
    sums = dict(
        market.sql("SELECT meter, sum(native_tokens)::bigint FROM metering_usagerollup GROUP BY meter")
    )
    return bool(sums) and sums.get("gateway") == sums.get("agent")


def _unsettled(market: Market) -> int:
    """Awards and accruals that no settlement run has squared up yet."""
    [(count,)] = market.sql(
        """SELECT (SELECT count(*) FROM contracts_entitlement e
                     JOIN contracts_contract c ON c.id = e.contract_id AND c.kind = 'spot'
                    WHERE e.settled_at IS NULL)
                + (SELECT count(*) FROM contracts_accrual a
                     JOIN ledger_hold h ON h.id = a.ledger_hold_id AND h.status = 'open')"""
    )
    return int(count)


def _recomputed_from_events(market: Market) -> dict[str, int]:
    """The invoice's subtotal from the gateway's stored events and the contracts' terms, by none of the product's code.

    Fractions of micros are rounded half-even, once per charge line, as docs/rounding.md says.
    """
    settlement_s = 10
    columns = ", ".join(f"coalesce(e.{bucket}_tokens, 0)" for bucket in STANDARD_PPM)
    events = market.sql(
        f"""SELECT c.kind, e.contract_id, e.rate_id, r.micros_per_mtok, e.period_start, {columns}
            FROM metering_usageevent e
            JOIN metering_metersource s ON s.id = e.source_id AND s.kind = 'gateway'
            JOIN contracts_contract c ON c.id = e.contract_id
            JOIN pricing_rate r ON r.id = e.rate_id"""
    )
    numerators: dict[Any, int] = defaultdict(int)
    for kind, contract, rate, micros, period_start, *tokens in events:
        used = sum(count * ppm for count, ppm in zip(tokens, STANDARD_PPM.values(), strict=True))
        settlement = int(period_start.timestamp()) // settlement_s
        numerators[kind, contract, rate, micros, settlement, period_start if kind == "spot" else None] += used
    total = 0
    for (kind, _, _, micros, _, _), used in numerators.items():
        if kind == "on_demand":
            total += _half_even(used * micros, 10**12)
    # What providers failed of awards, when clocks jump: it lowers the minimum take, and they pay a remedy.
    total -= sum(remedy for (remedy,) in market.sql(_REMEDIES))
    # Spot: rate x max(U, theta x (A - F)), usage and minimum take rounded as two lines.
    for entitled, micros, contract, period_start in market.sql(
        """SELECT n.entitled_numerator - n.failed_numerator, r.micros_per_mtok, n.contract_id, n.period_start
           FROM contracts_entitlement n JOIN contracts_contract c ON c.id = n.contract_id AND c.kind = 'spot'
           JOIN pricing_rate r ON r.id = n.rate_id"""
    ):
        used = sum(
            value
            for (kind, c, _, _, _, period), value in numerators.items()
            if kind == "spot" and c == contract and period == period_start
        )
        least = -(-entitled * 500_000 // 1_000_000)
        total += _half_even(used * micros, 10**12) + _half_even(max(0, least - used) * micros, 10**12)
    # Prepaid committed: V x rate, once a month.
    for lots, micros in market.sql(
        """SELECT c.volume_lots, r.micros_per_mtok FROM contracts_contract c JOIN pricing_rate r ON r.id = c.rate_id
           WHERE c.kind = 'committed'"""
    ):
        total += _half_even(lots * 10**9 * micros, 10**12)
    return {"subtotal_micros": total}


_REMEDIES = """
SELECT remedy_micros FROM (
    SELECT DISTINCT ON (contract_id, offering_id, period_start) remedy_micros
    FROM billing_deliveryoutcome ORDER BY contract_id, offering_id, period_start, run DESC) AS latest
"""


def _half_even(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and quotient % 2):
        quotient += 1
    return quotient
