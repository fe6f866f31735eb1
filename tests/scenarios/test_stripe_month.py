"""Two months of a market whose money goes through a failing Stripe: everything comes out to the cent.

What happens comes from a seed: purchases by card and on pages, 3-D Secure, declined cards, refunds of which some fail
in the end, banks that take payments back, providers who are paid out; calls that are refused, break or lose their
answer after they had an effect; messages twice, late, in another order, or never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from django.db.models import Sum

from marketplace import clock
from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import (
    DisputeShare,
    Invoice,
    InvoicePayment,
    PaymentDispute,
    Payout,
    ProcessorEvent,
    ProcessorGate,
    ProcessorOperation,
    ProcessorReport,
    TopUp,
)
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.services.collecting import save_card
from marketplace.billing.services.credit_lines import give_credit_line
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.operations import resume_operations
from marketplace.billing.services.paying import pay_invoice
from marketplace.billing.services.processor_events import apply_events
from marketplace.billing.services.processor_reconciling import compare_balances, reconcile_processor
from marketplace.billing.services.provider_accounts import onboarding_link
from marketplace.billing.services.refunds import refund_payment
from marketplace.billing.services.settling import settle_due_periods
from marketplace.billing.verifying import verify_document
from marketplace.contracts.on_demand import choose_on_demand_payment
from marketplace.contracts.services import capture_hold, open_hold, sweep_holds
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import InsufficientFunds
from marketplace.models import ClockOffset, FailingItem
from metering.services import gateway_source, ingest_batches
from metering.usage import Finish, UsageEvent, encode_event
from pricing.models import Grade
from pricing.units import Bucket
from providers.models import Host, Provider
from providers.services import ensure_provider
from tests.billing.stripe_market import UNIT, StripeMarket, make_stripe_market, pay_by
from tests.billing.world import HOUR, identify, set_tax
from tests.cast import Party, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.stripe_sim.server import stripe_sim

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
# Of the next year: the market's clock only moves forward, and Stripe's is the machine's.
YEAR = datetime.now(UTC).year + 1
MARCH_10, APRIL_2, MAY_2 = (
    datetime(YEAR, month, day, tzinfo=UTC) for month, day in ((3, 10), (4, 2), (5, 2))
)
CENT = 10_000
# What a token of output costs in micros: a request of the largest size costs 6.
LIST_RATE = 50_000_000
CARDS = (
    "pm_card_visa",
    "pm_card_bypassPending",
    "pm_card_pendingRefund",
    "pm_card_refundFail",
    "pm_card_authenticationRequired",
    "pm_card_chargeDeclinedInsufficientFunds",
)
KINDS = ("429", "429", "500", "500_after", "drop", "drop")
ROUTES = (
    "POST /v1/payment_intents",
    "POST /v1/refunds",
    "POST /v1/checkout",
    "POST /v1/transfers",
    "POST /v1/payouts",
    "POST /v1/",
    "GET /v1/payment_intents",
    "GET /v1/events",
    "GET /v1/",
)
OPEN = ("requested", "sent", "unknown", "action_required")


@dataclass
class Months(StripeMarket):
    """What happens comes from `chance` alone; `seen` counts what did."""

    hyperion: Party
    grade: Grade
    chance: Random
    seen: Counter[str] = field(default_factory=Counter)
    late: list[dict[str, Any]] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)

    # What people do

    def buy_time(self) -> None:
        made = self.top_up_micros(self.chance.randrange(1_000, 6_000) * CENT)
        self.seen[f"top_up {made.status}"] += 1
        if self.chance.random() < 0.2:
            # He has waited too long, and presses the button again.
            assert self.top_up_micros(made.amount_micros, operation_id=uuid7()).status in TopUp.Status.values

    def change_card(self) -> None:
        """Another card, the next of all that there are, with which he buys at once."""
        if not self.cards:
            self.cards = self.chance.sample(CARDS, len(CARDS))
        with suppress(ProcessorBusy):
            page = save_card(organization_id=self.acme.id, operation_id=uuid7(), currency="USD", now=self.now)
            if page.object_id:
                self.sim.world.pay_checkout(page.object_id, self.cards.pop())
        self.machinery(look=True)
        self.buy_time()

    def at_the_page(self) -> None:
        """The buyer is where a payment has sent him: pays, passes 3-D Secure, fails it, or lets it lie."""
        for session in self.objects("checkout.session", status="open", mode="payment"):
            if self.chance.random() < 0.6:
                self.sim.world.pay_checkout(session["id"])
                self.seen["paid on a page"] += 1
        for intent in self.objects("payment_intent", status="requires_action"):
            draw = self.chance.random()
            if draw < 0.5:
                self.sim.world.authenticate(intent["id"])
                self.seen["3ds passed"] += 1
            elif draw < 0.7:
                self.sim.world.fail_authentication(intent["id"])
                self.seen["3ds failed"] += 1

    def refund(self) -> None:
        payments = [*TopUp.objects.filter(status="succeeded").values_list("id", "amount_micros")]
        if not payments:
            return
        payment_id, whole = self.chance.choice(sorted(payments))
        amount = whole if self.chance.random() < 0.4 else self.chance.randrange(1, whole // CENT) * CENT
        try:
            sent = refund_payment(
                organization_id=self.acme.id, payment_id=payment_id, amount_micros=amount,
                operation_id=uuid7(), now=self.now, actor=SYSTEM,
            )  # fmt: skip
            self.seen[f"refund {sent.status}"] += 1
        except (Conflict, InsufficientFunds, InvalidInput) as refused:
            self.seen[f"refund refused: {refused.code}"] += 1

    def bank_of_buyer(self) -> None:
        """It takes a payment back, or says what came of a dispute or a refund."""
        for dispute in self.objects("dispute", status="needs_response"):
            if self.chance.random() < 0.4:
                won = self.chance.random() < 0.5
                self.sim.world.close_dispute(dispute["id"], won=won)
                self.seen["dispute won" if won else "dispute lost"] += 1
        for refund in self.objects("refund", status="pending"):
            if self.chance.random() < 0.5:
                self.sim.world.settle_refund(refund["id"], failure=self.chance.choice(["", "declined"]))
        for refund in self.objects("refund", status="succeeded"):
            card = self.sim.world.objects[self.sim.world.objects[refund["charge"]]["payment_method"]]["card"]
            if card["last4"] == "5126" and self.chance.random() < 0.5:
                self.sim.world.settle_refund(refund["id"], failure="lost_or_stolen_card")
                self.seen["refund failed after success"] += 1

    def dispute(self, *, of_paid_out: bool = False) -> None:
        moved = {one["source_transaction"] for one in self.objects("transfer")}
        charges = [
            one
            for one in self.objects("charge", status="succeeded", disputed=False)
            if not one["amount_refunded"] and (one["id"] in moved or not of_paid_out)
        ]
        if charges:
            charge = self.chance.choice(charges)
            amount = charge["amount"] if self.chance.random() < 0.6 else charge["amount"] // 3
            self.sim.world.dispute(charge["id"], amount)
            self.seen["dispute"] += 1
            self.seen["dispute after payout"] += charge["id"] in moved

    def use(self) -> None:
        """Requests that the gateway serves, on whatever payment the buyer has chosen."""
        for _ in range(self.chance.randrange(1, 4)):
            Host.objects.update(last_heartbeat_at=self.now, ready=True)
            tokens, id_ = self.chance.randrange(5_000, 40_000), uuid7(self.now)
            opened = open_hold(
                id=id_, organization_id=self.acme.id, grade_ids=[self.grade.id],
                numerators=[tokens * 10**6], now=self.now,
            )  # fmt: skip
            self.seen[f"request {opened.outcome}"] += 1
            if opened.outcome == "ok":
                self._deliver(id_, opened, self.chance.randrange(0, tokens + 1))
            self.now += 2 * MINUTE

    def _deliver(self, id_: UUID, opened: Any, tokens: int) -> None:
        event = UsageEvent(
            id=id_, sequence=1, request_id=id_, attempt=0, part=0, contract_id=opened.contract_id,
            offering_id=opened.offering_id, grade_id=opened.grade_id, rate_id=opened.rate_id,
            period_start=opened.period_start.astimezone(UTC), occurred_at=self.now,
            buckets={Bucket.OUTPUT: tokens}, finish=Finish.STOP, bytes_in=1, bytes_out=1, duration_ms=5,
        )  # fmt: skip
        capture_hold(
            id=id_, numerator=tokens * 10**6, event=encode_event(event) + b"\n",
            source_id=gateway_source(self.now).id, now=self.now,
        )  # fmt: skip

    def choose(self) -> None:
        payment = self.chance.choice(["prepaid", "arrears", "arrears"])
        choose_on_demand_payment(organization_id=self.acme.id, payment=payment, now=self.now, actor=SYSTEM)

    def pay_by_hand(self) -> None:
        due = Invoice.objects.filter(
            status__in=("finalised", "overdue", "action_required"), amount_due_micros__gt=0
        )
        for invoice in due.order_by("id"):
            source = self.chance.choice(["processor", "balance"])
            try:
                paid = pay_invoice(
                    organization_id=self.acme.id, invoice_id=invoice.id, source=source,
                    operation_id=uuid7(), now=self.now, actor=SYSTEM,
                )  # fmt: skip
                self.seen[f"invoice {source} {paid.status}"] += 1
            except (Conflict, InsufficientFunds, ProcessorBusy):
                self.seen[f"invoice {source} refused"] += 1

    def bank_of_provider(self) -> None:
        for payout in self.objects("payout", status="pending"):
            if payout["_account"] and self.chance.random() < 0.6:
                failure = "account_closed" if self.chance.random() < 0.2 else ""
                self.sim.world.pay_out_at_bank(payout["id"], failure=failure)
                self.seen["payout failed at the bank" if failure else "payout at the bank"] += 1

    # What befalls them

    def break_something(self) -> None:
        self.sim.app.faults.clear()
        if self.chance.random() < 0.7:
            kind = self.chance.choice(KINDS)
            self.sim.fail(kind, self.chance.choice(ROUTES), times=self.chance.randrange(1, 3))
            self.seen[f"fault {kind}"] += 1

    def messages(self) -> None:
        """Some come now, once or more often and in any order; some come much later, and some never."""
        coming, self.sim.queue[:] = [*self.late, *self.sim.queue], []
        self.late = []
        for event in coming:
            draw = self.chance.random()
            if draw < 0.15:
                self.seen["message lost"] += 1
            elif draw < 0.35:
                self.seen["message late"] += 1
                self.late.append(event)
            else:
                self.sim.queue.append(event)
        times = self.chance.choice([1, 1, 2, 3])
        self.seen["messages repeated"] += times > 1
        assert set(self.sim.deliver(self.receive, times=times, seed=self.chance.randrange(10**6))) <= {204}

    def machinery(self, *, look: bool) -> None:
        """Workers wake up, some minutes after whatever was broken; `look` at what no message told, too."""
        self.make_older(2 * MINUTE)
        wall_now = clock.wall_now()
        ProcessorGate.objects.update(open_until=None, failures=0)
        ProcessorEvent.objects.filter(status="received").update(next_attempt_at=wall_now)
        ProcessorOperation.objects.filter(status__in=OPEN).update(
            next_attempt_at=wall_now - timedelta(seconds=1), lease_until=None
        )
        apply_events(now=self.now)
        resume_operations(now=self.now)
        ingest_batches(now=self.now)
        sweep_holds(now=self.now)
        assert settle_due_periods(now=self.now).failed == []
        issue_due_documents(now=self.now)
        if look:
            with suppress(ProcessorBusy):
                reconcile_processor(now=self.now)

    def pass_to(self, at: datetime) -> None:
        assert at >= self.now
        self.sim.world.advance(int((at - self.now).total_seconds()))
        self.now = at
        # Whatever reads the market's clock, as the door for webhooks does, is in the same moment.
        ahead_ms = (at - clock.wall_now()) // timedelta(milliseconds=1)
        ClockOffset.objects.update_or_create(id=ClockOffset.ONLY_ID, defaults={"offset_ms": ahead_ms})

    def day(self, at: datetime, *must: Callable[[], None]) -> None:
        """Some of what may happen, and what must, each after something was broken."""
        self.pass_to(at)
        may = [
            self.use, self.use, self.refund, self.refund, self.dispute, self.bank_of_buyer, self.at_the_page,
            self.at_the_page, self.choose, self.pay_by_hand, self.bank_of_provider,
        ]  # fmt: skip
        acts = [self.change_card, *must, *self.chance.sample(may, self.chance.randrange(4, 8))]
        for act in acts:
            self.break_something()
            act()
            if self.chance.random() < 0.5:
                self.messages()
            if self.chance.random() < 0.4:
                self.machinery(look=False)
        self.sim.app.faults.clear()
        self.machinery(look=True)

    def end(self) -> None:
        """Nothing breaks any more, and everybody has done and said what there is to do and to say."""
        self.sim.app.faults.clear()
        for _ in range(6):
            self.pass_to(self.now + 4 * DAY)
            self.sim.queue += self.late
            self.late = []
            for intent in self.objects("payment_intent", status="requires_action"):
                self.sim.world.authenticate(intent["id"])
            for dispute in self.objects("dispute", status="needs_response"):
                self.sim.world.close_dispute(dispute["id"], won=self.chance.random() < 0.5)
            for refund in self.objects("refund", status="pending"):
                self.sim.world.settle_refund(refund["id"])
            for payout in self.objects("payout", status="pending"):
                self.sim.world.pay_out_at_bank(payout["id"])
            self.settle()
            self.machinery(look=True)


@pytest.fixture
def months(
    committed_db: TestDatabase, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Months]:
    with stripe_sim() as sim, pay_by(sim):
        base = make_stripe_market(sim, MARCH_10)
        hyperion = make_party("Hyperion", ["provider"], MARCH_10)
        grade = make_grade(MARCH_10)
        make_plant(hyperion, grade, MARCH_10, list_rate=LIST_RATE)
        set_tax(base.acme, 190_000)
        identify(base.acme)
        identify(hyperion)
        ensure_provider(organization_id=hyperion.id, display_name="Hyperion", now=MARCH_10)
        Provider.objects.update(self_billing_consent_at=MARCH_10)
        yield Months(sim, MARCH_10, base.operator, base.acme, hyperion, grade, Random(request.param))


@pytest.mark.parametrize("months", [1, 20260310], indirect=True)
def test_two_months_on_a_failing_stripe_come_out_to_the_cent(months: Months) -> None:
    months.pass_to(MARCH_10 + HOUR)
    give_credit_line(organization_id=months.acme.id, limit_micros=60 * UNIT, now=MARCH_10, actor=SYSTEM)
    choose_on_demand_payment(organization_id=months.acme.id, payment="arrears", now=MARCH_10, actor=SYSTEM)
    months.sim.fail("drop", "POST /v1/accounts")
    with suppress(ProcessorBusy):
        onboarding_link(organization_id=months.hyperion.id, now=MARCH_10)
    months.make_older(2 * MINUTE)
    months.onboard(months.hyperion)
    for _ in range(3):
        # There is no card yet: each has a page.
        months.buy_time()
        months.use()
    for number in sorted(months.chance.sample(range(1, 21), 7)):
        months.day(MARCH_10 + number * DAY + 9 * HOUR)
    months.day(APRIL_2 + HOUR)
    months.day(APRIL_2 + 2 * HOUR, lambda: months.dispute(of_paid_out=True), months.bank_of_buyer)
    for number in sorted(months.chance.sample(range(1, 28), 5)):
        months.day(APRIL_2 + number * DAY + 9 * HOUR)
    months.day(MAY_2 + HOUR)
    months.end()
    assert {"message lost", "message late", "messages repeated", "dispute", "paid on a page"} <= set(
        months.seen
    )
    print(dict(sorted(months.seen.items())))  # noqa: T201  (pytest shows it when this fails)
    assert_nothing_is_open(months)
    assert_stripe_and_books_agree(months)
    assert_documents_are_right(months)


def assert_nothing_is_open(months: Months) -> None:
    assert list(FailingItem.objects.values_list("job", "item", "error")) == []
    waiting = ProcessorOperation.objects.filter(status__in=("requested", "sent", "unknown"))
    assert list(waiting.values_list("kind", "status", "reason")) == []
    unread = ProcessorEvent.objects.filter(status="received")
    assert list(unread.values_list("event_type", "object_id", "error")) == []
    assert not PaymentDispute.objects.filter(status="open").exists()
    assert not DisputeShare.objects.filter(status="requested").exists()
    assert not Payout.objects.filter(status="pending").exists()


def assert_stripe_and_books_agree(months: Months) -> None:
    months.assert_books_balance()
    report = compare_balances(now=months.now)
    assert (
        report.difference_micros,
        report.details["unknown_movements"],
        report.details["open_operations"],
    ) == (
        0,
        [],
        [],
    )
    world = months.sim.world
    here = months.balance(months.operator, AccountKind.PROCESSOR).posted_micros
    assert (world.available("usd") + world.pending("usd")) * CENT == here
    # Each payment at Stripe is one of ours, and the other way round.
    collected = ProcessorOperation.objects.filter(kind__in=("charge", "checkout"), status="succeeded")
    assert Counter(
        one["amount"] * CENT for one in months.objects("payment_intent", status="succeeded")
    ) == Counter(collected.values_list("amount_micros", flat=True))
    sent_back = ProcessorOperation.objects.filter(kind="refund", status="succeeded")
    assert Counter(one["amount"] * CENT for one in months.objects("refund", status="succeeded")) == Counter(
        sent_back.values_list("amount_micros", flat=True)
    )
    taken = PaymentDispute.objects.all()
    assert Counter((one["amount"] * CENT, one["status"]) for one in months.objects("dispute")) == Counter(
        taken.values_list("amount_micros", "status")
    )
    # And of the provider's account there: what was moved to it, less what was fetched back and paid out.
    account = months.objects("account")[0]["id"]
    sums = {
        kind: ProcessorOperation.objects.filter(kind=kind, status="succeeded").aggregate(
            sum=Sum("amount_micros")
        )["sum"]
        or 0
        for kind in ("transfer", "reversal", "payout")
    }
    there = (world.available("usd", account) + world.pending("usd", account)) * CENT
    assert there == sums["transfer"] - sums["reversal"] - sums["payout"]
    paid = Payout.objects.filter(status="paid").aggregate(sum=Sum("amount_micros"))["sum"] or 0
    assert paid == sums["transfer"] > 0


def assert_documents_are_right(months: Months) -> None:
    charges = check_charges(since=MARCH_10)
    assert (charges.differences, charges.unsettled) == ([], 0)
    invoices = Invoice.objects.exclude(number=None)
    assert {one.period_start.month for one in invoices} == {3, 4}
    for invoice in invoices:
        assert verify_document(number=str(invoice.number)).difference is None
    assert not InvoicePayment.objects.filter(status="pending").exists()
    assert ProcessorReport.objects.exists()
