"""Grants given back through REST: to the balance, or on to the card that paid, once, never more than was paid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant, GrantRefund
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.cast import Party, make_party
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        made = make_stripe_market(sim, now)
        made.save_card()
        yield made


def purchased(market: StripeMarket, amount: int, *, cost_basis_ppm: int = 1_000_000) -> Grant:
    terms = GrantTerms("purchased", amount, "USD", cost_basis_ppm=cost_basis_ppm)
    return give_grant(id=uuid7(), organization_id=market.acme.id, terms=terms, now=market.now)


def refund(party: Party, grant: Grant | UUID, body: dict[str, Any], *, key: str = "") -> Any:
    path = f"/api/v1/grants/{grant.id if isinstance(grant, Grant) else grant}/refund"
    asked = {"amount_micros": None, **body}
    return party.api.post(path, asked, format="json", HTTP_IDEMPOTENCY_KEY=key or str(uuid4()))


def test_what_was_paid_goes_on_to_the_card_once_in_whole_minor_units(market: StripeMarket) -> None:
    """8 of credit for half its price: 2.345678 are given back for 4.691357, 2.34 to the card and the rest stays."""
    paid = market.top_up(10)
    grant = purchased(market, 8 * UNIT, cost_basis_ppm=500_000)
    before = market.prepaid()
    body = {"amount_micros": 4_691_357, "payment_id": str(paid.id)}
    key = str(uuid4())
    answers = [refund(market.operator, grant, body, key=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    made = answers[0].json()
    assert (made["refund"]["amount_micros"], made["refund"]["paid_micros"]) == (4_691_357, 2_345_678)
    assert (made["sent"]["amount_micros"], made["sent"]["status"]) == (2_340_000, "succeeded")
    assert market.prepaid() == before + 5_678
    assert [one["amount"] for one in market.objects("refund")] == [234]
    grant.refresh_from_db()
    assert grant.free_micros == 8 * UNIT - 4_691_357
    market.assert_books_balance()


def test_a_card_is_not_sent_more_than_it_paid_and_then_nothing_has_changed(market: StripeMarket) -> None:
    small = market.top_up(3)
    market.top_up(10)
    grant = purchased(market, 8 * UNIT)
    before = market.prepaid()
    refused = refund(market.operator, grant, {"payment_id": str(small.id)})
    assert (refused.status_code, refused.json()["field"]) == (422, "payment_id")
    assert "3.00 USD" in refused.json()["detail"]
    grant.refresh_from_db()
    assert (grant.free_micros, market.prepaid(), GrantRefund.objects.count()) == (8 * UNIT, before, 0)
    assert refund(market.operator, grant, {}).json()["sent"] is None
    assert market.prepaid() == before + 8 * UNIT
    market.assert_books_balance()


def test_where_the_processor_refuses_it_stays_on_the_balance(market: StripeMarket) -> None:
    paid = market.top_up(10)
    grant = purchased(market, 4 * UNIT)
    before = market.prepaid()
    charge = market.collection(paid.id).charge_object_id
    market.sim.world.objects[charge]["amount_refunded"] = 1_000
    answer = refund(market.operator, grant, {"payment_id": str(paid.id)})
    assert (answer.status_code, answer.json()["sent"]["status"]) == (201, "failed")
    assert market.prepaid() == before + 4 * UNIT


def test_nobodys_grant_and_another_buyers_payment_are_refused(market: StripeMarket) -> None:
    mallory = make_party("Mallory", ["buyer"], market.now)
    paid = market.top_up(10)
    grant = purchased(market, 4 * UNIT)
    theirs = give_grant(
        id=uuid7(), organization_id=mallory.id, terms=GrantTerms("granted", 5, "USD"), now=market.now
    )
    foreign = refund(market.operator, theirs, {"payment_id": str(paid.id)})
    assert (foreign.status_code, foreign.json()["field"]) == (404, "payment_id")
    assert refund(market.operator, UUID(int=9), {}).status_code == 404
    assert refund(market.acme, grant, {}).json()["code"] == "scope_missing"
    assert refund(market.operator, grant, {"amount_micros": 4 * UNIT + 1}).json()["field"] == "amount_micros"
    assert not GrantRefund.objects.exists()
