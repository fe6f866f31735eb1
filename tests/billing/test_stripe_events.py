"""What Stripe tells us, as often and in whatever order it comes, or not at all: the same books."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from marketplace import clock
from marketplace.billing.models import ProcessorEvent, ProcessorOperation, ProcessorReport, TopUp
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.services.operations import record_outcome
from marketplace.billing.services.processor_events import PATIENCE, apply_events
from marketplace.billing.services.processor_reconciling import reconcile_processor
from marketplace.ids import derived_id, uuid7
from marketplace.ledger.models import AccountKind, Transfer
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.conftest import TestDatabase
from tests.stripe_sim.server import sign, stripe_sim


@pytest.fixture
def market(committed_db: TestDatabase, now: datetime) -> Iterator[StripeMarket]:
    with stripe_sim() as sim, pay_by(sim):
        yield make_stripe_market(sim, now)


def pay_on_page(market: StripeMarket, units: int = 10) -> TopUp:
    """Paid at Stripe; we have not been told."""
    made = market.top_up(units)
    market.sim.world.pay_checkout(market.collection(made.id).object_id)
    return made


def postings() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ledger_transfer WHERE code = 'top_up'")
        return int(cursor.fetchone()[0])


@pytest.mark.parametrize("seed", range(3))
def test_doubled_and_reordered_events_for_one_fact_post_it_once(market: StripeMarket, seed: int) -> None:
    made = pay_on_page(market)
    kinds = {event["type"] for event in market.sim.queue}
    assert {"charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"} <= kinds
    events = len(market.sim.queue)
    assert market.sim.deliver(market.receive, times=5, seed=seed) == [204] * 5 * events
    assert ProcessorEvent.objects.count() == events
    market.apply()
    made.refresh_from_db()
    assert made.status == TopUp.Status.SUCCEEDED
    assert (market.prepaid(), postings()) == (10 * UNIT, 1)
    # The fact makes the posting's id, so that no other way to it could post it again.
    assert Transfer.objects.get(code="top_up").id == derived_id(made.id, "transfer")
    market.assert_books_balance()


def test_the_same_event_fifty_times_at_once_is_one_row(market: StripeMarket) -> None:
    pay_on_page(market)
    raw = market.sim.body_of(market.sim.queue[-1])
    signature = sign(raw, market.sim.secrets)

    def send(_: int) -> int:
        try:
            return market.receive(raw, signature)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, range(50)))
    assert statuses == [204] * 50
    assert ProcessorEvent.objects.count() == 1


def test_a_failure_that_arrives_after_the_success_changes_nothing(market: StripeMarket) -> None:
    market.save_card()
    made = market.top_up()
    intent = market.objects("payment_intent")[0]
    late = {**intent, "status": "requires_payment_method"}
    market.sim.world.emit("payment_intent.payment_failed", late)
    market.settle()
    made.refresh_from_db()
    assert made.status == TopUp.Status.SUCCEEDED
    assert market.prepaid() == 10 * UNIT
    # Not by what the message says, and not by what a reading of it that was on its way says either.
    operation = market.collection(made.id)
    assert operation.status == ProcessorOperation.Status.SUCCEEDED
    late_reading = Outcome(OutcomeStatus.FAILED, reference=operation.object_id, reason="card_declined")
    record_outcome(operation_id=operation.id, outcome=late_reading, now=market.now)
    after = market.collection(made.id)
    assert (after.status, after.ended_at) == (operation.status, operation.ended_at)
    made.refresh_from_db()
    assert (made.status, market.prepaid()) == (TopUp.Status.SUCCEEDED, 10 * UNIT)


def test_an_event_before_our_own_commit_waits_for_it(market: StripeMarket) -> None:
    operation_id = uuid7()
    subject: dict[str, Any] = {
        "id": "pi_early",
        "object": "payment_intent",
        "metadata": {"operation": str(operation_id)},
    }
    market.sim.world.emit("payment_intent.succeeded", subject)
    assert market.sim.deliver(market.receive) == [204]
    market.apply()
    event = ProcessorEvent.objects.get()
    assert (event.status, event.attempts) == (ProcessorEvent.Status.RECEIVED, 1)
    assert event.error
    assert apply_events(now=market.now) == 0  # not at once again
    # What never comes is given up after a day.
    ProcessorEvent.objects.update(next_attempt_at=clock.wall_now())
    apply_events(now=clock.now() + PATIENCE)
    event.refresh_from_db()
    assert event.status == ProcessorEvent.Status.IGNORED


def test_an_event_that_overtakes_the_answer_finds_the_payment_by_our_own_id(market: StripeMarket) -> None:
    market.save_card()
    market.sim.fail("drop", "POST /v1/payment_intents")
    made = market.top_up()
    assert market.collection(made.id).object_id == ""
    market.settle()
    made.refresh_from_db()
    assert made.status == TopUp.Status.SUCCEEDED
    assert postings() == 1


def test_missing_events_are_found_within_one_round_of_the_reconciler(market: StripeMarket) -> None:
    made = pay_on_page(market)
    market.sim.deliver(market.receive, lose=bool)
    assert ProcessorEvent.objects.count() == 0
    done = reconcile_processor(now=market.now)
    assert done.missed > 0
    made.refresh_from_db()
    assert made.status == TopUp.Status.SUCCEEDED
    assert reconcile_processor(now=market.now).missed == 0
    assert postings() == 1


def test_the_daily_report_agrees_once_fees_are_posted_and_names_strangers(
    market: StripeMarket, capsys: pytest.CaptureFixture[str]
) -> None:
    pay_on_page(market)
    market.settle()
    report = reconcile_processor(now=market.now).report
    assert report is not None
    assert report.difference_micros == 0, report.details
    fee = 10 * UNIT * 29 // 1000 + 300_000
    assert market.balance(market.operator, AccountKind.OPERATOR).posted_micros == -fee
    assert reconcile_processor(now=market.now).report is None  # one a day
    call_command("reconcileprocessor")
    assert json.loads(capsys.readouterr().out)["difference_micros"] == 0
    # Somebody takes money at Stripe by hand.
    market.sim.world.book(-500, "usd", "po_by_hand", "payout")
    with pytest.raises(SystemExit) as ended:
        call_command("reconcileprocessor")
    assert ended.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert told["difference_micros"] == -5 * UNIT
    assert any("po_by_hand" in one for one in told["unknown_movements"])
    assert ProcessorReport.objects.count() == 3
    market.assert_books_balance()


def test_what_was_paid_after_a_backup_was_taken_is_found_again(market: StripeMarket) -> None:
    """As a restored database stands: the page is open, and what told of its payment went with the newer one."""
    made = market.top_up()
    market.sim.world.pay_checkout(market.collection(made.id).object_id)
    market.sim.deliver(market.receive, lose=bool)
    market.sim.world.advance(3600)
    done = reconcile_processor(now=market.now + timedelta(hours=1))
    assert market.prepaid() == 10 * UNIT
    assert done.report is not None
    assert (done.report.difference_micros, done.report.details["unknown_movements"]) == (0, [])


def test_forged_stale_and_reserialised_messages_are_refused_and_nothing_is_kept(market: StripeMarket) -> None:
    pay_on_page(market)
    event = market.sim.queue[-1]
    raw = market.sim.body_of(event)
    good = sign(raw, market.sim.secrets)
    again = json.dumps(json.loads(raw)).encode()
    stale = sign(raw, market.sim.secrets, at=int(clock.wall_now().timestamp()) - 301)
    for body, header in (
        (raw, sign(raw, ["whsec_forged"])),
        (raw, stale),
        (again, good),
        (raw, ""),
        (raw, "t=1,v1="),
        (raw, "nonsense"),
        (b"\xff\xfe", good),
        (b"[]", sign(b"[]", market.sim.secrets)),
        (b"{}", sign(b"{}", market.sim.secrets)),
    ):
        assert market.receive(body, header) == 400
    assert ProcessorEvent.objects.count() == 0
    assert market.receive(raw, good) == 204


def test_both_secrets_are_good_while_one_takes_the_others_place(market: StripeMarket, settings: Any) -> None:
    pay_on_page(market)
    raw = market.sim.body_of(market.sim.queue[-1])
    old, new = "whsec_simulated", "whsec_new"
    settings.STRIPE_WEBHOOK_SECRETS = [old, new]
    assert market.receive(raw, sign(raw, [old, new])) == 204
    assert market.receive(raw, sign(raw, [old])) == 204
    assert market.receive(raw, sign(raw, [new])) == 204
    settings.STRIPE_WEBHOOK_SECRETS = [new]
    assert market.receive(raw, sign(raw, [old])) == 400
    assert market.receive(raw, sign(raw, [old, new])) == 204


def test_logs_name_no_key(market: StripeMarket, caplog: pytest.LogCaptureFixture, settings: Any) -> None:
    from django.conf import settings as real

    market.save_card()
    settings.STRIPE_SECRET_KEY = real.STRIPE_SECRET_KEY + "_wrong"
    with caplog.at_level("DEBUG", logger="marketplace"):
        made = market.top_up()
    assert made.status == TopUp.Status.PENDING
    assert ProcessorOperation.objects.filter(reason__contains="sk_test").count() == 0
    assert "sk_test" not in caplog.text
