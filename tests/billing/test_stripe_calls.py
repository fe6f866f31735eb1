"""What one call to Stripe costs: each of its requests in the budget, and no more time than it has, however it drips."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import stripe

from marketplace.billing.models import ProcessorGate, ProcessorOperation, TopUp
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.processors.stripe_client import BoundedClient
from marketplace.billing.services.processor_gate import through_gate
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim

CHARGES = "POST /v1/payment_intents"


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def test_an_answer_that_drips_ends_with_the_call_and_the_buyer_pays_once(market: StripeMarket) -> None:
    market.save_card()
    for _ in range(2):
        # The second time on a connection that was kept.
        market.sim.fail("drip", CHARGES)
        began = time.monotonic()
        made = market.top_up()
        # STRIPE_TIMEOUT_S is 3 here; the answer's bytes would come for minutes.
        assert time.monotonic() - began < 8
        assert market.collection(made.id).status == ProcessorOperation.Status.UNKNOWN
        market.sweep()
        made.refresh_from_db()
        assert made.status == TopUp.Status.SUCCEEDED
    assert len(market.objects("payment_intent", status="succeeded")) == 2
    assert market.prepaid() == 20 * UNIT


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
def test_a_head_that_drips_and_a_body_of_no_length_end_too(head: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            with taken, contextlib.suppress(OSError):
                taken.recv(65_536)
                taken.sendall(head)
                for _ in range(100):
                    taken.sendall(b"x")
                    time.sleep(0.1)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with pytest.raises(stripe.APIConnectionError):
            BoundedClient(timeout_s=1).request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/", {})
        assert 0.9 <= time.monotonic() - began < 3
        thread.join(timeout=15)


def test_each_request_of_a_call_is_taken_from_the_budget(market: StripeMarket, settings: Any) -> None:
    """3-D Secure takes two (the charge, then its confirmation); with one a second the second waits."""
    market.save_card("pm_card_authenticationRequired")
    settings.STRIPE_CALLS_PER_S, settings.STRIPE_TIMEOUT_S = 1, 15
    ProcessorGate.objects.update(allowance_millis=1_000)
    began = time.monotonic()
    made = market.top_up()
    assert time.monotonic() - began >= 0.9
    assert market.collection(made.id).status == ProcessorOperation.Status.ACTION_REQUIRED


def test_each_page_of_a_list_is_taken_from_the_budget(market: StripeMarket, settings: Any) -> None:
    market.save_card()
    for number in range(250):
        market.sim.world.emit("customer.updated", {"id": f"cus_{number}", "object": "customer"})
    settings.STRIPE_CALLS_PER_S, settings.STRIPE_TIMEOUT_S = 2, 15
    ProcessorGate.objects.update(allowance_millis=1_000)
    processor = payment_processor()
    since = datetime.fromtimestamp(market.sim.world.now_s - 60, tz=market.now.tzinfo)
    began = time.monotonic()
    notices = through_gate(processor, lambda: list(processor.notices(since=since)))
    assert len(notices) > 250
    assert time.monotonic() - began >= 0.9  # three pages, two of them at half a second each
