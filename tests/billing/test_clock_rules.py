"""Test clocks: who may have one, what it may not do, crashes, and what never moves with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.db import IntegrityError, connection, transaction
from pytest_django import Settings

from marketplace.accounts.models import AuditEntry, OrganizationClock
from marketplace.accounts.organization_clocks import (
    LEASE,
    MOST_AHEAD,
    ClockAhead,
    begin_advance,
    billing_now,
    clock_of,
    create_clock,
    plan_stop,
    remove_clock,
    take_walk,
)
from marketplace.accounts.services import SYSTEM
from marketplace.billing.clock_instants import next_instant
from marketplace.billing.models import Charge, DocumentNumber, Invoice, MonthOutcome, Payout, Statement
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.clock_walks import do_what_is_due, keep_clocks, walk_clock, walk_clocks
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.payout_destinations import give_consent, request_destination
from marketplace.billing.services.settling import settle_due_periods
from marketplace.contracts.ending import first_end
from marketplace.contracts.models import Contract, Entitlement, Hold
from marketplace.contracts.services import advance_contracts, open_hold, sweep_holds, void_hold
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant
from marketplace.ledger.models import Hold as LedgerHold
from marketplace.ledger.selectors import check_ledger
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.rounds import open_auctions
from marketplace.webhooks.models import WebhookDelivery, WebhookEvent
from marketplace.webhooks.services import create_endpoint
from pricing.models import Grade
from providers.models import HostHour, Provider
from tests.billing.test_clocks import ARREARS, DAY, PREPAID, advance, ask, story
from tests.billing.test_month_ends import buy, credit
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    accrue,
    assert_books_balance,
    identify,
    meter,
    money,
    on_demand,
)
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.orders.world import bid_of


def clocked(party: Party, now: datetime) -> None:
    create_clock(organization_id=party.id, now=now, actor=SYSTEM)


def sold(plant: Plant, since: datetime) -> int:
    hours = HostHour.objects.filter(host=plant.host, hour_start__gte=since)
    return sum(hours.values_list("sold_ppm", flat=True))


def test_only_a_sandbox_has_test_clocks(acme: Party, now: datetime, settings: Settings) -> None:
    settings.PAYMENT_PROCESSOR = "stripe"
    refused = ask(acme, "", None, now)
    assert (refused.status_code, refused.json()["code"]) == (409, "test_clocks_need_sandbox")
    settings.PAYMENT_PROCESSOR = "sandbox"
    assert ask(acme, "", None, now).status_code == 201
    settings.PAYMENT_PROCESSOR = "stripe"
    refused = ask(acme, "/advance", {"to": (now + DAY).isoformat()}, now)
    assert (refused.status_code, refused.json()["code"]) == (409, "test_clocks_need_sandbox")
    assert clock_of(acme.id).now_at == now


def test_the_operator_keeps_real_time_and_a_clock_is_given_once(
    acme: Party, operator: Party, now: datetime
) -> None:
    assert ask(operator, "", None, now).status_code == 403
    with time_machine.travel(now, tick=False):
        shown = acme.api.get("/api/v1/test-clock").json()
    assert (shown["id"], shown["status"], shown["now_at"], shown["events"]) == (
        None,
        "none",
        "2026-03-10T12:00:00Z",
        [],
    )
    assert ask(acme, "/advance", {"to": (now + DAY).isoformat()}, now).status_code == 404
    assert ask(acme, "", None, now).status_code == 201
    assert ask(acme, "", None, now).status_code == 409


def test_mallory_moves_her_own_time_and_nobody_elses(acme: Party, mallory: Party, now: datetime) -> None:
    clocked(acme, now)
    assert ask(mallory, "/advance", {"to": (now + DAY).isoformat()}, now).status_code == 404
    clocked(mallory, now)
    advance(mallory, now + DAY, now)
    assert clock_of(acme.id).now_at == now
    assert billing_now(acme.id, now) == now


@pytest.mark.parametrize(
    "to", [timedelta(0), timedelta(days=-1), timedelta(days=366, seconds=1)], ids=["here", "back", "far"]
)
def test_a_clock_goes_forward_a_year_at_most(acme: Party, now: datetime, to: timedelta) -> None:
    clocked(acme, now)
    refused = ask(acme, "/advance", {"to": (now + to).isoformat()}, now)
    assert (refused.status_code, refused.json()["field"]) == (422, "to")
    assert clock_of(acme.id).status == "ready"


def test_it_comes_three_years_ahead_and_no_further(acme: Party, now: datetime) -> None:
    clocked(acme, now)
    for year in (1, 2, 3):
        advance(acme, now + year * MOST_AHEAD / 3, now)
    with pytest.raises(InvalidInput):
        begin_advance(
            organization_id=acme.id, to=now + MOST_AHEAD + timedelta(seconds=1), now=now, actor=SYSTEM
        )
    # Real time goes on, and with it the bound.
    advance(acme, now + MOST_AHEAD + DAY, now + DAY)


def test_one_advance_at_a_time_and_what_is_ahead_stays(acme: Party, now: datetime) -> None:
    clocked(acme, now)
    begin_advance(organization_id=acme.id, to=now + DAY, now=now, actor=SYSTEM)
    refused = ask(acme, "/advance", {"to": (now + 2 * DAY).isoformat()}, now)
    assert (refused.status_code, refused.json()["code"]) == (409, "test_clock_advancing")
    assert walk_clocks(now=now) == 1
    with pytest.raises(ClockAhead):
        remove_clock(organization_id=acme.id, now=now, actor=SYSTEM)
    remove_clock(organization_id=acme.id, now=now + DAY, actor=SYSTEM)
    assert not OrganizationClock.objects.exists()
    actions = AuditEntry.objects.filter(organization=acme.id, action__startswith="test_clock.")
    assert set(actions.values_list("action", flat=True)) == {
        "test_clock.created",
        "test_clock.advanced",
        "test_clock.removed",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"status": "ready"},
        {"target_at": None},
        {"from_at": None},
        {"advances": 0},
        {"stop_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"worker_id": uuid4()},
        {"failure": "x"},
    ],
)
def test_the_table_refuses_a_clock_that_makes_no_sense(
    acme: Party, now: datetime, change: dict[str, object]
) -> None:
    clocked(acme, now)
    begin_advance(organization_id=acme.id, to=now + DAY, now=now, actor=SYSTEM)
    with pytest.raises(IntegrityError, match="accounts_organizationclock"), transaction.atomic():
        OrganizationClock.objects.update(**change)


def test_a_walk_that_dies_at_every_stop_comes_to_the_same(
    acme: Party, mallory: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """mallory's walk is never cut. acme's worker does all of a stop and dies before the clock has moved, at each."""
    for party in (acme, mallory):
        fund(party, FUNDS, now)
        buy(party, grade, now, months=3, **PREPAID)
        clocked(party, now)
    to = now + 130 * DAY
    advance(mallory, to, now)
    begin_advance(organization_id=acme.id, to=to, now=now, actor=SYSTEM)
    wall, stops = datetime.now(UTC), 0
    while (clock := clock_of(acme.id)).now_at < to:
        dead, wall = uuid7(), wall + 2 * LEASE
        assert take_walk(clock.pk, worker_id=dead, wall_now=wall) is not None
        at = next_instant(acme.id, after=clock.now_at, until=to)
        assert plan_stop(clock, at=at, worker_id=dead)
        do_what_is_due(organization_id=acme.id, at=at, now=now)
        # It died here. Its lease keeps the walk for a while, then another worker does all of the stop again.
        with time_machine.travel(wall + LEASE / 2, tick=False):
            assert walk_clocks(now=now) == 0
        assert clock_of(acme.id).now_at == clock.now_at
        with time_machine.travel(wall + LEASE, tick=False):
            walk_clock(clock_id=clock.pk, now=now, deadline=datetime.now(UTC), stops=1)
        assert clock_of(acme.id).now_at == at
        stops += 1
    assert stops > 6
    assert story(acme) == story(mallory)
    assert_books_balance()


def test_two_workers_at_once_charge_a_month_once(committed_db: TestDatabase, now: datetime) -> None:
    operator, acme, hyperion = (
        make_party(name, [role], now)
        for name, role in (("Operator", "operator"), ("Acme", "buyer"), ("Hyperion", "provider"))
    )
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    buy(acme, grade, now, months=2, **PREPAID)
    clocked(acme, now)
    begin_advance(organization_id=acme.id, to=now + 80 * DAY, now=now, actor=SYSTEM)

    def walk(_: int) -> int:
        try:
            return walk_clocks(now=now)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        arrived = sum(pool.map(walk, range(3)))
    assert arrived == 1
    assert clock_of(acme.id).status == "ready"
    assert Charge.objects.filter(kind="committed_fee").count() == 2
    assert operator.id
    assert check_ledger() == []


def test_a_month_without_funds_suspends_by_the_clock_and_a_top_up_brings_it_back(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 5_000_000, now)
    contract = buy(acme, grade, now, months=2, starts_at=now + HOUR)
    clocked(acme, now)
    before = sold(plant, now)
    second = contract.starts_at + timedelta(days=31)
    advance(acme, second + HOUR, now)
    contract.refresh_from_db()
    assert (contract.status, contract.suspended_at) == ("suspended", second)
    # Beat of real time sees nothing due, and a top-up is found by the clock's own.
    advance_contracts(now=now)
    settle_due_periods(now=now)
    advance(acme, second + 2 * DAY, now)
    contract.refresh_from_db()
    assert contract.freed_at == second + DAY
    assert sold(plant, now) < before
    fund(acme, 5_000_000, now)
    keep_clocks(now=now)
    assert Contract.objects.filter(pk=contract.pk, status="active", freed_at__isnull=True).exists()
    assert_books_balance()


def test_what_ended_by_the_clock_frees_real_capacity_and_owes_nothing_more(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=1)
    clocked(acme, now)
    real = contract.starts_at + HOUR / 2
    assert sold(plant, now) > 0
    advance(acme, now + 40 * DAY, real)
    contract.refresh_from_db()
    assert (contract.status, contract.delivers_until) == ("ended", real)
    assert sold(plant, real + HOUR / 2) == 0
    keep_clocks(now=real + HOUR)
    assert sold(plant, real + HOUR / 2) == 0
    assert HostHour.objects.filter(sold_ppm__lt=0).count() == 0
    # Sold again at once, to somebody whose time is real.
    other = make_party("Other", ["buyer"], real)
    fund(other, FUNDS, real)
    assert buy(other, grade, real, months=1).status == "active"


def test_holds_bids_and_gates_keep_real_time(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    clocked(acme, now)
    open_auctions(now=now)
    bid_of(acme, now)
    hold_id = uuid7(now)
    opened = open_hold(id=hold_id, organization_id=acme.id, grade_ids=[grade.id], numerators=[LOT], now=now)
    assert opened.outcome == "ok"
    models: list[Any] = [Hold, LedgerHold, Bid, Auction, Entitlement]
    before = [sorted(map(repr, model.objects.values())) for model in models]
    assert all(before[:4])
    advance(acme, now + 300 * DAY, now)
    assert [sorted(map(repr, model.objects.values())) for model in models] == before
    assert sweep_holds(now=now) == 0
    expires = Hold.objects.get(pk=hold_id).expires_at
    assert now < expires < now + DAY
    # And what is used while the clock is far ahead has the hour in which it was used.
    assert void_hold(id=hold_id, now=now) == "ok"


def test_usage_while_the_clock_is_ahead_is_settled_in_real_time_and_invoiced_next(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    clocked(acme, now)
    advance(acme, now + 60 * DAY, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, 1_000 * LOT, now)
    accrue(contract, now, 600_000, now)
    settle_due_periods(now=now + DUE_AFTER)
    charge = Charge.objects.get()
    assert (charge.period_start, charge.created_at) == (now, now + DUE_AFTER)
    issue_due_documents(now=now + DUE_AFTER)
    assert not Invoice.objects.exists()
    advance(acme, now + 95 * DAY, now + DUE_AFTER)
    invoice = Invoice.objects.get()
    assert (invoice.total_micros, invoice.period_start) == (600_000, datetime(2026, 4, 1, tzinfo=UTC))
    assert_books_balance()


def test_documents_of_a_clock_leave_no_gap_and_no_disorder_in_the_others(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    other = make_party("Other", ["buyer"], now)
    for party in (acme, other):
        fund(party, FUNDS, now)
        buy(party, grade, now, months=3)
    clocked(acme, now)
    advance(acme, now + 120 * DAY, now)
    numbers = list(Invoice.objects.order_by("number").values_list("number", flat=True))
    prefix = f"TEST-{acme.id.hex[-8:]}-TY-2026"
    assert numbers == [f"{prefix}-{number:06d}" for number in range(1, len(numbers) + 1)]
    assert len(numbers) == 3
    advance_contracts(now=now + HOUR)
    settle_due_periods(now=now + HOUR)
    issue_due_documents(now=datetime(2026, 4, 2, tzinfo=UTC))
    assert Invoice.objects.get(organization=other.id).number == "TY-2026-000001"
    note = issue_credit_note(
        invoice_id=Invoice.objects.filter(organization=acme.id).latest("period_start").id,
        amounts_micros=None,
        reason="rehearsed",
        operation_id=uuid7(),
        now=now + DAY,
        actor=SYSTEM,
    )
    assert (note.created_at, note.number[:5]) == (now + 120 * DAY, "TEST-")


def test_a_providers_money_of_a_rehearsed_year_is_his_and_waits_for_real_months(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    """What acme's clock has paid for months to come is on the payable account, on no statement and in no payout."""
    settings.PAYOUT_HOLDING_S, settings.PAYOUT_RETENTION_PPM = 7 * 86_400, 50_000
    settings.PAYOUT_RETENTION_DAYS = 30
    identify(hyperion)
    Provider.objects.update(self_billing_consent_at=now, payout_destination="DE-1")
    fund(acme, FUNDS, now)
    buy(acme, grade, now, months=6)
    clocked(acme, now)
    advance(acme, now + 200 * DAY, now)
    earned = money(hyperion, "payable")
    assert earned == 6 * 5_000_000 * 95 // 100
    settle_due_periods(now=now + HOUR)
    for at in (now + DAY, datetime(2026, 4, 2, tzinfo=UTC), datetime(2026, 4, 12, tzinfo=UTC)):
        issue_due_documents(now=at)
        assert payout_status(hyperion.id, now=at).ready_micros == 0
    assert not Statement.objects.exists()
    # The first month ends in April: May states it, and pays a week later, less what is retained.
    issue_due_documents(now=datetime(2026, 5, 2, tzinfo=UTC))
    assert Statement.objects.get().net_micros == 4_750_000
    assert not Payout.objects.exists()
    issue_due_documents(now=datetime(2026, 5, 10, tzinfo=UTC))
    assert Payout.objects.get().amount_micros == 4_750_000 - 250_000
    assert money(hyperion, "payable") == earned - 4_500_000
    assert_books_balance()


def test_a_providers_clock_moves_statements_holding_time_and_destination(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.PAYOUT_HOLDING_S = 7 * 86_400
    fund(acme, FUNDS, now)
    identify(hyperion)
    give_consent(organization_id=hyperion.id, now=now, actor=SYSTEM)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, 10_000 * LOT, now)
    accrue(contract, now, 6_000_000, now)
    settle_due_periods(now=now + DUE_AFTER)
    clocked(hyperion, now)
    request_destination(
        organization_id=hyperion.id, destination="DE-89-3704", operation_id=uuid7(), now=now, actor=SYSTEM
    )
    advance(hyperion, now + 2 * DAY, now + DUE_AFTER)
    assert Provider.objects.get().payout_destination == ""
    advance(hyperion, datetime(2026, 4, 20, tzinfo=UTC), now + DUE_AFTER)
    assert Provider.objects.get().payout_destination == "DE-89-3704"
    statement = Statement.objects.get()
    assert statement.number.startswith(f"TEST-{hyperion.id.hex[-8:]}-TS-2026")
    payout = Payout.objects.get()
    assert payout.created_at == statement.payable_at == statement.created_at + 7 * DAY
    assert payout.status == "paid"
    # The buyer keeps real time.
    assert not Invoice.objects.exists()
    assert_books_balance()


def test_grants_end_and_notice_runs_by_the_clock(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=6)
    ends = GrantTerms(kind="granted", amount_micros=1_000_000, currency="USD", expires_at=now + 20 * DAY)
    give_grant(id=uuid7(), organization_id=acme.id, terms=ends, now=now, actor=SYSTEM)
    clocked(acme, now)
    advance(acme, now + 40 * DAY, now)
    grant = Grant.objects.get()
    assert (grant.status, grant.ended_at) == ("expired", now + 20 * DAY)
    with time_machine.travel(now, tick=False):
        refused = acme.api.post(
            f"/api/v1/contracts/{contract.id}/terminate",
            {"ends_at": (now + 50 * DAY).isoformat()},
            format="json",
            headers={"Idempotency-Key": "k1"},
        )
        assert (refused.status_code, refused.json()["field"]) == (422, "ends_at")
        done = acme.api.post(
            f"/api/v1/contracts/{contract.id}/terminate",
            {"ends_at": None},
            format="json",
            headers={"Idempotency-Key": "k2"},
        )
    assert done.status_code in (200, 201), done.json()
    contract.refresh_from_db()
    assert contract.ends_at == first_end(contract, now=now + 40 * DAY)


def test_what_is_bought_begins_in_the_buyers_own_time(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    clocked(acme, now)
    advance(acme, now + 90 * DAY, now)
    with pytest.raises(InvalidInput) as refused:
        buy(acme, grade, now, starts_at=now + HOUR)
    assert refused.value.field == "starts_at"
    contract = buy(acme, grade, now, starts_at=now + 90 * DAY + HOUR)
    assert (contract.status, contract.created_at) == ("active", now)


def test_its_owner_is_told_now_that_the_clock_has_arrived(acme: Party, now: datetime) -> None:
    create_endpoint(
        organization_id=acme.id,
        url="https://hooks.acme.example/clock",
        description="",
        event_types=["test_clock.ready"],
        now=now,
        actor=SYSTEM,
    )
    clocked(acme, now)
    advance(acme, now + 100 * DAY, now)
    event = WebhookEvent.objects.get()
    assert (event.type, event.occurred_at) == ("test_clock.ready", now + 100 * DAY)
    delivery = WebhookDelivery.objects.get()
    assert (delivery.next_attempt_at, delivery.give_up_at) == (now, now + timedelta(hours=72))


def test_the_page_of_what_happened_says_it_in_order(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    buy(acme, grade, now, months=2, **PREPAID)
    clocked(acme, now)
    advance(acme, now + 100 * DAY, now)
    with time_machine.travel(now, tick=False):
        shown = acme.api.get("/api/v1/test-clock").json()
        later = acme.api.get(f"/api/v1/test-clock?since={(now + 99 * DAY).date()}T00:00:00Z").json()
        bad = acme.api.get("/api/v1/test-clock?since=soon")
    assert (shown["status"], shown["progress_ppm"], shown["failure"]) == ("ready", 1_000_000, "")
    kinds = [event["kind"] for event in shown["events"]]
    assert [event["at"] for event in shown["events"]] == sorted(event["at"] for event in shown["events"])
    for kind in ("month_charged", "month_squared_up", "invoice_paid", "contract_ended", "contract_freed"):
        assert kind in kinds
    assert (kinds.count("month_charged"), kinds.count("month_squared_up")) == (2, 2)
    assert later["events"] == []
    assert (bad.status_code, bad.json()["field"]) == (422, "since")


def test_a_stop_that_fails_stops_the_clock_and_the_next_advance_goes_on_from_there(
    acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The counter of its documents has no number left."""
    fund(acme, FUNDS, now)
    buy(acme, grade, now, months=2)
    clocked(acme, now)
    series = f"TEST-{acme.id.hex[-8:]}-TY-2026"
    full = DocumentNumber.objects.create(issuer_id=operator.id, series=series, last_number=2**63 - 1)
    to = now + 100 * DAY
    assert ask(acme, "/advance", {"to": to.isoformat()}, now).status_code == 202
    assert walk_clocks(now=now) == 0
    stopped = clock_of(acme.id)
    assert (stopped.status, stopped.target_at) == ("failed", to)
    assert stopped.failure == "at 2026-04-01T00:16:00+00:00: internal error"
    assert stopped.now_at < datetime(2026, 4, 1, 0, 16, tzinfo=UTC)
    assert walk_clocks(now=now) == 0
    DocumentNumber.objects.filter(pk=full.pk).update(last_number=0)
    assert advance(acme, to, now).failure == ""
    assert Invoice.objects.count() == 2
    assert Charge.objects.filter(kind="committed_fee").count() == 2
    assert_books_balance()


def test_what_is_used_of_a_month_that_the_clock_has_left_behind_is_late_usage(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Prepaid: volume and no money. In arrears: charged, and a true-up smaller by as much."""
    fund(acme, FUNDS, now)
    credit(acme, now)
    prepaid, arrears = (buy(acme, grade, now, firm_lots=50, **terms) for terms in (PREPAID, ARREARS))
    clocked(acme, now)
    arrived = advance(acme, now + 35 * DAY, now).now_at
    assert money(acme, "prepaid") == FUNDS - 5_000_000
    assert money(acme, "receivable") == -4_000_000
    earned = money(hyperion, "payable")
    for contract in (prepaid, arrears):
        assert contract.rate is not None
        meter(contract, contract.rate, plant, 1_000 * LOT, contract.starts_at)
    assert len(settle_due_periods(now=prepaid.starts_at + DUE_AFTER).settled) == 2
    assert money(acme, "prepaid") == FUNDS - 5_000_000
    assert money(acme, "receivable") == -4_000_000
    assert money(hyperion, "payable") == earned
    changed = MonthOutcome.objects.get(contract=arrears, run=2)
    assert (changed.true_up_numerator, changed.created_at) == (7_000 * LOT, arrived)
    lines = Charge.objects.filter(contract=arrears).values_list("kind", "amount_micros")
    assert sorted(lines) == [("adjustment", -500_000), ("true_up", 4_000_000), ("usage", 500_000)]
    assert_books_balance()
