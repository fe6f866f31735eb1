"""The buyer's side of the demonstration market: a program like any buyer's, that knows only addresses and a key.

It posts a standing spot bid, accepts a small committed contract, and sends chats, streaming and not, so that every
kind of contract is used; every few seconds it prints what the market did.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests
from django.conf import settings

from marketplace.local import demo

PAUSE_S = 0.7
REPORT_EVERY_S = 5
TIMEOUT_S = 30
# One spot award covers some of the requests; the rest is served on demand.
BID_STEPS = [(450_000, 8), (300_000, 8)]
COMMITTED = {"firm_lots": 4, "volume_lots": 400, "months": 1}
QUESTIONS = (
    "What is a settlement period?",
    "Who pays for capacity that nobody used?",
    "Explain a uniform-price auction in one sentence.",
    "How many lots are in one Mtok?",
    "Write a haiku about a meter.",
)


class Buyer:
    """acme's program: REST for buying, the OpenAI-compatible gateway for using."""

    def __init__(self, api_key: str) -> None:
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {api_key}"
        self.sent = 0
        self.tokens = 0
        self.refused: dict[str, int] = {}
        self.paid_by: dict[str, int] = {}

    def get(self, path: str, **parameters: str) -> Any:
        answer = self.session.get(f"{settings.PORTAL_URL}/api/v1{path}", params=parameters, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: dict[str, Any], key: str | None = None) -> requests.Response:
        """`key` makes a repeat at the next start the same operation."""
        return self.session.post(
            f"{settings.PORTAL_URL}/api/v1{path}",
            json=body,
            headers={"Idempotency-Key": key or str(uuid4())},
            timeout=TIMEOUT_S,
        )

    def chat(self, question: str, *, stream: bool) -> None:
        body: dict[str, Any] = {
            "model": demo.MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": random.randint(32, 160),
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        answer = self.session.post(
            f"{settings.GATEWAY_URL}/v1/chat/completions", json=body, stream=stream, timeout=TIMEOUT_S
        )
        if answer.status_code != 200:
            code = answer.json().get("error", {}).get("code") or str(answer.status_code)
            self.refused[code] = self.refused.get(code, 0) + 1
            return
        for usage in _usages(answer) if stream else [answer.json()["usage"]]:
            self.sent += 1
            self.tokens += usage["total_tokens"]
            kind = usage["tokenyard"].get("contract_kind", "?")
            self.paid_by[kind] = self.paid_by.get(kind, 0) + 1


def run(*, directory: Path, seconds: int = 0) -> None:
    """Buy and send until SIGTERM, SIGINT or for `seconds` (0: no limit)."""
    ended = threading.Event()
    for told in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told, lambda *_: ended.set())
    deadline = time.monotonic() + seconds if seconds else None
    kept = demo.read(directory)
    buyer = Buyer(kept["buyer"]["api_key"])
    next_report = time.monotonic() + REPORT_EVERY_S
    bought = False
    bid_for = ""
    number = 0
    while not ended.wait(PAUSE_S) and (deadline is None or time.monotonic() < deadline):
        # The parts of the market start in any order and may be killed under us: carry on.
        with suppress(requests.RequestException, ValueError, KeyError):
            bought = bought or _buy(buyer)
            bid_for = _bid_once(buyer, bid_for)
            number += 1
            buyer.chat(random.choice(QUESTIONS), stream=number % 2 == 0)
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + REPORT_EVERY_S
            print(_report(buyer), flush=True)


def _buy(buyer: Buyer) -> bool:
    """The standing bid and the committed contract; True once both stand. Repeating it changes nothing."""
    organization_id = buyer.get("/organization")["id"]
    bid = buyer.post(
        "/bids",
        {
            "grade": demo.MODEL,
            "client_id": "demo-standing",
            "steps": [{"rate_micros_per_mtok": rate, "lots": lots} for rate, lots in BID_STEPS],
        },
        key=f"demo-bid-{organization_id}",
    )
    if bid.status_code not in (200, 201):
        return False
    if any(contract["kind"] == "committed" for contract in buyer.get("/contracts")["items"]):
        return True
    quote = buyer.post(
        "/quotes",
        {
            "grade": demo.MODEL,
            "overage_policy": "list",
            "payment": "prepaid",
            "take_share_ppm": 0,
            **COMMITTED,
        },
    )
    if quote.status_code != 201:
        return False
    accepted = buyer.post(f"/quotes/{quote.json()['id']}/accept", {}, key=f"demo-accept-{quote.json()['id']}")
    return accepted.status_code in (200, 201)


def _bid_once(buyer: Buyer, last: str) -> str:
    """A bid of its own for each coming period, so that demand and with it the price move. Returns the period."""
    book = buyer.get(f"/market/{demo.MODEL}")["open"]
    if book is None or book["period_start"] == last:
        return last
    rate = random.randrange(200_000, 480_000, 1_000)
    steps = [
        {"rate_micros_per_mtok": rate, "lots": random.randint(2, 20)},
        {"rate_micros_per_mtok": rate * 4 // 5, "lots": random.randint(1, 12)},
    ]
    start: str = book["period_start"]
    buyer.post(
        "/bids",
        {"grade": demo.MODEL, "client_id": f"demo-{start}", "steps": steps, "period_start": start},
        key=f"demo-{start}",
    )
    return start


def _usages(answer: requests.Response) -> Iterator[dict[str, Any]]:
    """The usage objects of a stream: one, on the last chunk."""
    for line in answer.iter_lines():
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:]).get("usage")
            if usage is not None and "tokenyard" in usage:
                yield usage


def _report(buyer: Buyer) -> str:
    parts = [f"{buyer.sent} requests, {buyer.tokens} tokens"]
    if buyer.paid_by:
        parts.append(", ".join(f"{kind} {count}" for kind, count in sorted(buyer.paid_by.items())))
    with suppress(requests.RequestException, ValueError, KeyError, IndexError):
        last = buyer.get(f"/market/{demo.MODEL}")["last"]
        if last is not None:
            parts.append(f"last price {last['clearing_rate_micros_per_mtok']} micros/Mtok")
        charges = buyer.get("/charges")["items"]
        by_kind = sorted({charge["kind"] for charge in charges})
        parts.append(
            f"{len(charges)}{'+' if len(charges) >= 50 else ''} charges ({', '.join(by_kind) or 'none yet'})"
        )
        balances = {account["kind"]: account for account in buyer.get("/balance")["accounts"]}
        parts.append(f"{balances['prepaid']['available']} {settings.MARKET_CURRENCY} free")
    if buyer.refused:
        parts.append(
            "refused: " + ", ".join(f"{code} {count}" for code, count in sorted(buyer.refused.items()))
        )
    return "demo: " + " | ".join(parts)
