"""The market's signed word about every change of an order, and that anybody can check it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.test import Client
from rest_framework.test import APIClient

from marketplace.orders.models import Auction
from marketplace.orders.receipts import ReceiptInvalid, key_id_of, sign_receipt, verify_receipt
from marketplace.orders.services.recording import market_public_key
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.terms import canonical
from tests.cast import Party, Plant, fund
from tests.orders.world import PERIOD, bid_of

PAGE = Path(__file__).resolve().parents[2] / "docs/orders.md"
BODY: dict[str, Any] = {
    "grade": "tiny-chat",
    "client_id": "März-1 \N{SNOWMAN}",
    "steps": [{"rate_micros_per_mtok": 450_000, "lots": 40}],
}


@pytest.fixture
def standing_still(now: datetime) -> Iterator[datetime]:
    with time_machine.travel(now, tick=False):
        yield now


def post(client: APIClient, path: str, body: dict[str, Any]) -> Any:
    return client.post(f"/api/v1/{path}", body, format="json", headers={"Idempotency-Key": str(uuid4())})


def check_as_documented(receipt: dict[str, Any], key: dict[str, Any]) -> None:
    """The page's own words, run."""
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(snippet, {"receipt": receipt, "key": key})  # noqa: S102 - our own page


def test_every_change_gives_a_receipt_that_the_documented_way_verifies(
    acme: Party, plant: Plant, standing_still: datetime
) -> None:
    fund(acme, 1_000_000, standing_still)
    advance_auctions(now=standing_still)
    auction = Auction.objects.get()
    placed = post(acme.api, "bids", BODY)
    assert placed.status_code == 201, placed.content
    bid = placed.json()
    address = f"/api/v1/bids/{bid['id']}"
    change = {"revision": 1, "steps": [{"rate_micros_per_mtok": 500_000, "lots": 40}]}
    revised = acme.api.patch(address, change, format="json").json()
    cancelled = acme.api.delete(address).json()
    key = Client().get("/api/v1/market-key").json()
    listed = acme.api.get(f"{address}/receipts").json()["items"]
    assert listed == [cancelled["receipt"], revised["receipt"], bid["receipt"]]
    for receipt in listed:
        check_as_documented(receipt, key)
    assert bid["receipt"]["document"] == {
        "receipt": "tokenyard.bid-receipt.v1",
        "market": settings.PORTAL_URL,
        "key_id": key["key_id"],
        "event": "placed",
        "bid_id": bid["id"],
        "revision": 1,
        "terms_sha256": bid["receipt"]["document"]["terms_sha256"],
        "held_micros": 18_000,
        "received_at": "2026-03-10T12:00:00Z",
        "priority_at": "2026-03-10T12:00:00Z",
        "first_period_start": "2026-03-10T12:05:00Z",
        "first_auction_id": str(auction.id),
    }
    events = [(one["document"]["event"], one["document"]["held_micros"]) for one in listed]
    assert events == [("cancelled", 0), ("revised", 20_000), ("placed", 18_000)]
    assert listed[0]["document"]["first_period_start"] is None
    assert listed[2]["terms"] == {
        "grade": "tiny-chat",
        "client_id": BODY["client_id"],
        "steps": [[450_000, 40]],
        "period_start": None,
        "min_fill_lots": 0,
        "all_or_none": False,
        "max_total_micros_per_day": None,
        "valid_until": None,
    }


@pytest.mark.parametrize(
    ("name", "value"), [("held_micros", 17_999), ("received_at", "2026-03-10T11:59:59Z"), ("revision", 2)]
)
def test_a_receipt_that_was_changed_is_nobodys_word(
    acme: Party, plant: Plant, standing_still: datetime, name: str, value: object
) -> None:
    fund(acme, 1_000_000, standing_still)
    receipt = post(acme.api, "bids", BODY).json()["receipt"]
    key = Client().get("/api/v1/market-key").json()
    receipt["document"][name] = value
    with pytest.raises(InvalidSignature):
        check_as_documented(receipt, key)
    with pytest.raises(ReceiptInvalid):
        verify_receipt(receipt["document"], receipt["signature"], public_key=market_public_key())


def test_a_signature_of_another_kind_or_key_is_no_receipt() -> None:
    document = {"receipt": "x", "n": 1}
    market = Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY)
    other = Ed25519PrivateKey.generate()
    good = base64.b64encode(sign_receipt(document, private_key=market)).decode()
    verify_receipt({"n": 1, "receipt": "x"}, good, public_key=market_public_key())
    bare = base64.b64encode(market.sign(canonical(document))).decode()
    foreign = base64.b64encode(sign_receipt(document, private_key=other)).decode()
    for signature in (bare, foreign, "", "!", good[:-4], "ü"):
        with pytest.raises(ReceiptInvalid):
            verify_receipt(document, signature, public_key=market_public_key())
    assert key_id_of(market_public_key()) != key_id_of(other.public_key().public_bytes_raw())


@pytest.mark.parametrize(
    ("share", "opened", "periods_on", "named"),
    [
        (0.1, True, 1, True),
        (0.1, False, 1, False),
        (0.85, True, 1, True),
        # After the gate, whether or not a worker has closed it, comes the next book.
        (0.9, True, 2, False),
        (0.95, False, 2, False),
    ],
)
def test_it_names_the_first_book_that_the_order_enters(
    acme: Party, plant: Plant, now: datetime, share: float, opened: bool, periods_on: int, named: bool
) -> None:
    fund(acme, 1_000_000, now)
    if opened:
        advance_auctions(now=now)
    bid = bid_of(acme, now + PERIOD * share)
    document = bid.revisions.get().receipt
    start = (now + PERIOD * periods_on).astimezone(UTC)
    assert datetime.fromisoformat(document["first_period_start"]) == start
    assert (document["first_auction_id"] is not None) is named


def test_it_names_the_period_that_a_single_bid_is_for(acme: Party, plant: Plant, now: datetime) -> None:
    fund(acme, 1_000_000, now)
    advance_auctions(now=now)
    document = bid_of(acme, now, period_start=now + 3 * PERIOD).revisions.get().receipt
    assert datetime.fromisoformat(document["first_period_start"]) == now + 3 * PERIOD
    assert document["first_auction_id"] is None


def test_the_same_request_again_is_the_same_receipt_also_after_the_gate(
    acme: Party, plant: Plant, now: datetime
) -> None:
    # All the money there is: a second hold would not fit, and must not be tried.
    fund(acme, 20_000, now)
    body = {**BODY, "period_start": "2026-03-10T12:05:00Z"}
    with time_machine.travel(now, tick=False):
        first = post(acme.api, "bids", body)
    with time_machine.travel(now + timedelta(minutes=4, seconds=50), tick=False):
        again = post(acme.api, "bids", body)
    assert again.status_code == 201, again.content
    assert again.json()["receipt"] == first.json()["receipt"]


def test_mallory_gets_no_receipt_of_acmes(
    acme: Party, mallory: Party, plant: Plant, standing_still: datetime
) -> None:
    fund(acme, 1_000_000, standing_still)
    bid = bid_of(acme, standing_still)
    assert acme.api.get(f"/api/v1/bids/{bid.id}/receipts").status_code == 200
    assert mallory.api.get(f"/api/v1/bids/{bid.id}/receipts").status_code == 404
