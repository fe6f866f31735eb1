"""REST of cards, refunds, provider accounts and what is left to people, against the simulated Stripe."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from marketplace.accounts.models import AuditEntry, Organization
from marketplace.billing.models import InvoicePayment, ProcessorOperation, ProcessorPayer, TopUp
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import STALE, record_outcome
from marketplace.billing.services.processor_reconciling import compare_balances
from tests.billing.stripe_invoices import DUE, Owing, owing_market
from tests.billing.stripe_market import UNIT
from tests.billing.test_stripe_invoices import credit
from tests.cast import Party, make_party
from tests.conftest import TestDatabase

API = "/api/v1/"


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[Owing]:
    with owing_market(now) as made:
        yield made


def post(party: Party, path: str, body: dict[str, Any] | None = None, *, key: str = "") -> Any:
    return party.api.post(API + path, body or {}, format="json", HTTP_IDEMPOTENCY_KEY=key or str(uuid4()))


def test_a_card_is_left_at_the_page_shown_and_forgotten(market: Owing) -> None:
    acme = market.acme
    assert acme.api.get(API + "card").json()["is_saved"] is False
    assert acme.api.patch(API + "card", {"collect_automatically": False}, format="json").status_code == 404
    assert acme.api.delete(API + "card").status_code == 404
    key = str(uuid4())
    pages = [post(acme, "card", key=key) for _ in range(2)]
    assert [page.status_code for page in pages] == [201, 201]
    assert pages[0].content == pages[1].content
    assert pages[0].json()["action_url"].startswith("https://checkout.stripe.test/")
    market.sim.world.pay_checkout(ProcessorOperation.objects.get(kind="save_card").object_id)
    market.settle()
    shown = {"is_saved": True, "brand": "visa", "last4": "4242", "expires": "2034-12"}
    assert acme.api.get(API + "card").json() == shown | {"collect_automatically": True}
    changed = acme.api.patch(API + "card", {"collect_automatically": False}, format="json")
    assert changed.json() == shown | {"collect_automatically": False}
    method = ProcessorPayer.objects.get().payment_method_id
    assert acme.api.delete(API + "card").status_code == 204
    assert acme.api.get(API + "card").json()["is_saved"] is False
    assert market.sim.world.objects[method]["customer"] is None
    assert AuditEntry.objects.filter(action="card.removed", organization_id=acme.id).count() == 1
    # What is paid now goes by the page again.
    assert market.pay().action_url.startswith("https://checkout.stripe.test/")


def test_a_card_is_not_removed_under_a_charge_and_needs_no_answer_to_be_forgotten(market: Owing) -> None:
    market.save_card()
    market.sim.fail("drop", "POST /v1/payment_intents")
    market.pay()
    refused = market.acme.api.delete(API + "card")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    market.sweep()
    market.sim.fail("500", "POST /v1/payment_methods")
    assert market.acme.api.delete(API + "card").status_code == 204
    assert ProcessorPayer.objects.get().payment_method_id == ""


def test_unused_balance_goes_back_to_the_card_once_and_never_more_than_came(market: Owing) -> None:
    market.save_card()
    made = market.top_up(10)
    before = market.prepaid()
    body, key = {"payment_id": str(made.id), "amount_micros": 4 * UNIT}, str(uuid4())
    answers = [post(market.acme, "refunds", body, key=key) for _ in range(2)]
    assert answers[0].status_code == 201
    assert answers[0].content == answers[1].content
    assert (answers[0].json()["status"], answers[0].json()["payment_id"]) == ("succeeded", str(made.id))
    assert market.prepaid() == before - 4 * UNIT
    too_much = post(market.acme, "refunds", body | {"amount_micros": 7 * UNIT})
    assert (too_much.status_code, too_much.json()["field"]) == (422, "amount_micros")
    assert len(market.acme.api.get(API + "refunds").json()["items"]) == 1
    mallory = make_party("Mallory", ["buyer"], market.now)
    assert post(mallory, "refunds", body).status_code == 404
    assert mallory.api.get(API + "refunds").json()["items"] == []
    market.assert_books_balance()


def test_what_a_credit_note_gave_back_of_an_invoice_paid_by_card_goes_to_the_card(market: Owing) -> None:
    market.save_card()
    paid = market.pay()
    credit(market, None)
    assert market.prepaid() >= DUE
    answer = post(market.acme, "refunds", {"payment_id": str(paid.id), "amount_micros": DUE})
    assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")
    more = post(market.acme, "refunds", {"payment_id": str(paid.id), "amount_micros": UNIT})
    assert more.status_code == 422
    market.assert_books_balance()


def test_a_provider_is_led_to_the_processor_and_told_why_payouts_wait(market: Owing) -> None:
    other = make_party("Helios", ["provider"], market.now)
    asked = post(other, "payout-account/link")
    assert (asked.status_code, asked.json()["field"]) == (422, "country")
    Organization.objects.filter(pk=other.id).update(country="DE")
    assert other.api.get(API + "payout-account").json()["is_open"] is False
    link = post(other, "payout-account/link")
    assert (link.status_code, link.json()["url"][:27]) == (201, "https://connect.stripe.test")
    shown = other.api.get(API + "payout-account").json()
    assert (shown["is_open"], shown["requirements_due"]) == (True, ["onboarding"])
    assert shown["blocked_reason"]
    assert ProcessorOperation.objects.filter(kind="account").count() == 1
    assert market.acme.api.get(API + "payout-account").status_code == 403


def test_what_is_left_to_people_is_looked_up_once_more_and_given_up(market: Owing) -> None:
    market.save_card()
    market.sim.fail("500", "POST /v1/payment_intents", times=9)
    asked = market.pay()
    market.make_older(timedelta(hours=23))
    market.sweep()
    operation = market.operation_of(asked)
    assert operation.reason == STALE
    listed = market.operator.api.get(API + "processor-operations").json()["items"]
    assert [one["id"] for one in listed] == [str(operation.id)]
    path = f"processor-operations/{operation.id}/give-up"
    ProcessorOperation.objects.update(lease_until=None)
    done = post(market.operator, path, {"reason": "not in the dashboard"})
    assert (done.status_code, done.json()["status"]) == (200, "failed")
    asked.refresh_from_db()
    assert (asked.status, market.status()) == ("failed", "finalised")
    again = post(market.operator, path, {"reason": "not in the dashboard"})
    assert again.status_code == 409
    assert AuditEntry.objects.filter(action="processor_operation.given_up").count() == 1
    assert market.operator.api.get(API + "processor-operations").json()["items"] == []


def test_money_that_comes_after_it_was_given_up_is_received_once(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    asked = market.pay()
    operation = market.operation_of(asked)
    given_up = Outcome(OutcomeStatus.FAILED, operation.object_id, "given up")
    record_outcome(operation_id=operation.id, outcome=given_up, now=market.now)
    assert market.status() == "finalised"
    market.sim.world.authenticate(operation.object_id)
    market.settle()
    market.settle()
    asked.refresh_from_db()
    assert (asked.status, asked.failure, market.status()) == ("succeeded", "", "paid")
    assert market.receivable() == 0
    market.assert_books_balance()


def test_money_that_comes_twice_is_the_buyers_balance(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    first = market.operation_of(market.pay())
    given_up = Outcome(OutcomeStatus.FAILED, first.object_id, "given up")
    record_outcome(operation_id=first.id, outcome=given_up, now=market.now)
    market.save_card()
    market.pay()
    before = market.prepaid()
    market.sim.world.authenticate(first.object_id)
    market.settle()
    assert (market.status(), market.receivable(), market.prepaid()) == ("paid", 0, before + DUE)
    market.assert_books_balance()


def test_what_is_found_there_is_not_given_up(market: Owing) -> None:
    market.save_card()
    market.sim.fail("500_after", "POST /v1/payment_intents")
    asked = market.pay()
    ProcessorOperation.objects.filter(subject_id=asked.id).update(reason=STALE, lease_until=None)
    path = f"processor-operations/{market.operation_of(asked).id}/give-up"
    refused = post(market.operator, path, {"reason": "not in the dashboard"})
    assert refused.status_code == 409
    assert (market.status(), InvoicePayment.objects.get().status) == ("paid", "succeeded")


def test_the_operator_reads_the_daily_reports(market: Owing) -> None:
    market.save_card()
    market.pay()
    report = compare_balances(now=market.now)
    (shown,) = market.operator.api.get(API + "processor-reports").json()["items"]
    assert (shown["id"], shown["difference_micros"]) == (str(report.id), report.difference_micros)


def test_a_waiting_charge_of_a_top_up_is_not_refunded(market: Owing) -> None:
    market.save_card("pm_card_authenticationRequired")
    made = market.top_up(10)
    assert made.status == TopUp.Status.PENDING
    refused = post(market.acme, "refunds", {"payment_id": str(made.id), "amount_micros": UNIT})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
