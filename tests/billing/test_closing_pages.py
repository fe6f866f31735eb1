"""An open page of the processor's and the balance: whichever pays first, the invoice is paid once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from marketplace.billing.models import InvoicePayment
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import record_outcome
from marketplace.billing.services.paying import NothingDue
from marketplace.errors import Conflict
from tests.billing.stripe_invoices import DUE, Owing, owing_market
from tests.cast import fund
from tests.conftest import TestDatabase


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    with owing_market(now) as made:
        yield made


def give_money(market: Owing, settings: Any) -> None:
    """By the sandbox, which has no pages, on another day."""
    settings.PAYMENT_PROCESSOR = "sandbox"
    fund(market.acme, 2 * DUE, market.now)
    settings.PAYMENT_PROCESSOR = "stripe"


def test_the_balance_pays_and_the_page_is_closed(market: Owing, settings: Any) -> None:
    page = market.pay()
    give_money(market, settings)
    before = market.prepaid()
    key = uuid4()
    for _ in range(2):
        assert market.pay("balance", operation_id=key).status == "succeeded"
    assert (market.status(), market.receivable(), market.prepaid()) == ("paid", 0, before - DUE)
    page.refresh_from_db()
    assert (page.status, page.failure, page.action_url) == ("failed", "expired", "")
    assert [one["status"] for one in market.objects("checkout.session")] == ["expired"]
    market.settle()
    market.sweep()
    assert (market.status(), market.prepaid()) == ("paid", before - DUE)
    market.assert_books_balance()


def test_a_page_that_was_paid_before_it_could_be_closed_is_the_payment(market: Owing, settings: Any) -> None:
    page = market.pay()
    give_money(market, settings)
    before = market.prepaid()
    # Paid, and nobody has told us.
    market.sim.world.pay_checkout(market.operation_of(page).object_id)
    with pytest.raises(NothingDue):
        market.pay("balance")
    market.settle()
    assert (market.status(), market.receivable(), market.prepaid()) == ("paid", 0, before)
    assert InvoicePayment.objects.filter(status="succeeded").count() == 1
    market.assert_books_balance()


@pytest.mark.parametrize("fault", ["drop", "500_after"])
def test_a_lost_answer_leaves_the_page_to_be_closed_by_the_next_attempt(
    market: Owing, settings: Any, fault: str
) -> None:
    market.pay()
    give_money(market, settings)
    path = "POST /v1/checkout/sessions/{id}/expire"
    market.sim.fail(fault, path)
    with pytest.raises(Conflict, match="under way"):
        market.pay("balance")
    assert len(market.sim.calls(path)) == 1
    assert market.pay("balance").status == "succeeded"
    assert (market.status(), market.receivable()) == ("paid", 0)
    market.assert_books_balance()


def test_a_page_stays_open_while_the_balance_does_not_cover_the_invoice(market: Owing) -> None:
    page = market.pay()
    with pytest.raises(Conflict):
        market.pay("balance")
    assert [one["status"] for one in market.objects("checkout.session")] == ["open"]
    market.sim.world.pay_checkout(market.operation_of(page).object_id)
    market.settle()
    assert (market.status(), market.receivable()) == ("paid", 0)


def test_money_of_a_page_that_was_closed_here_too_early_goes_to_the_balance(
    market: Owing, settings: Any
) -> None:
    page = market.operation_of(market.pay())
    closed = Outcome(OutcomeStatus.FAILED, page.object_id, reason="expired")
    record_outcome(operation_id=page.id, outcome=closed, now=market.now)
    give_money(market, settings)
    before = market.prepaid()
    market.pay("balance")
    market.sim.world.pay_checkout(page.object_id)
    market.settle()
    assert (market.status(), market.receivable(), market.prepaid()) == ("paid", 0, before)
    market.assert_books_balance()
