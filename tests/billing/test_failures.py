"""A host that was down for part of a period: who pays what, once, whatever comes twice or late (docs/failures.md)."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, DeliveryOutcome, Earning, Settlement
from marketplace.billing.outcomes import latest_outcomes
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import (
    SettlementResult,
    settle_contract,
    settle_due_periods,
    settle_period,
)
from marketplace.billing.services.statements import issue_statements
from marketplace.contracts.models import Entitlement
from marketplace.contracts.services import set_period_rate
from marketplace.ids import uuid7
from marketplace.ledger.models import Transfer
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from metering.models import UsageRollup
from metering.services import accept_batch, gateway_source, ingest_batches
from metering.usage import Finish, Flag, UsageEvent, encode_event, encode_lines
from pricing.models import Grade
from pricing.units import Bucket
from providers.models import FailedAttempt, Outage
from providers.services import check_heartbeats, pause_host, record_heartbeat, resume_host
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    PERIOD,
    accrue,
    assert_books_balance,
    award,
    meter,
    money,
    on_demand,
    pending,
)
from tests.cast import Party, Plant, fund, make_plant

RATE = 300_000


@pytest.fixture
def rich_acme(acme: Party, now: datetime) -> Party:
    fund(acme, FUNDS, now)
    return acme


def settle(start: datetime) -> SettlementResult:
    return settle_period(settlement_start=start, now=start + DUE_AFTER)


def beat(plant: Plant, at: datetime, *, ready: bool = True) -> None:
    record_heartbeat(
        host_id=plant.host.id,
        boot_id="boot-1",
        ready=ready,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=at,
    )


def silence(plant: Plant, start: datetime, *, first_s: int, last_s: int) -> None:
    """Heartbeats, but none for 15 s up to `first_s` and on to `last_s`; the sweep finds it."""
    for second in range(0, first_s - 15, 10):
        beat(plant, start + timedelta(seconds=second))
    beat(plant, start + timedelta(seconds=first_s - 15))
    check_heartbeats(now=start + timedelta(seconds=first_s))
    beat(plant, start + timedelta(seconds=last_s))


def amounts() -> dict[str, int]:
    return {charge.kind: charge.amount_micros for charge in Charge.objects.all()}


def pay_out(party: Party, operator: Party, amount_micros: int, now: datetime) -> None:
    """The provider's money leaves his payable account, as a payout does."""
    post_transfers(
        [
            NewTransfer(
                id=uuid7(now),
                debit_id=account_id(organization_id=party.id, kind="payable", currency="USD", now=now),
                credit_id=account_id(organization_id=operator.id, kind="processor", currency="USD", now=now),
                amount_micros=amount_micros,
                code="payout",
            )
        ],
        now=now,
    )


def test_half_a_period_down_lowers_the_minimum_take_and_gives_a_remedy(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Ten lots at 0.30, down for 150 s of 300, two used: five failed, three unused (the example of the page)."""
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    meter(entitlement.contract, entitlement.rate, plant, 2 * LOT, now)
    result = settle(now)
    # max(U, ceil(50% x (A - F))) = 2.5 lots; the remedy is 10% of the rate for 4.9 lots.
    assert amounts() == {"spot": 600, "minimum_take": 150, "remedy": -147}
    assert [item.amount_micros for item in result.settled] == [603]
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.entitled_numerator, outcome.delivered_numerator) == (10 * LOT, 2 * LOT)
    assert (outcome.failed_numerator, outcome.unused_numerator) == (5 * LOT, 3 * LOT)
    assert (outcome.down_ms, outcome.remedy_micros, outcome.replaced_numerator) == (150_000, 147, 0)
    remedy = Earning.objects.get(charge__kind="remedy")
    assert (remedy.gross_micros, remedy.fee_micros, remedy.numerator) == (-147, 0, 0)
    assert money(rich_acme, "prepaid") == FUNDS - 603
    assert pending(rich_acme) == 0
    # 30 of the spot line and 7 of the minimum take are the market's; it takes nothing of the remedy.
    assert (money(hyperion, "payable"), money(operator, "fees")) == (750 - 37 - 147, 37)
    assert money(operator, "operator") == 0
    assert Entitlement.objects.get().failed_numerator == 5 * LOT
    assert_books_balance()


def test_settling_again_changes_nothing(rich_acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    settle(now)
    before = money(rich_acme, "prepaid"), DeliveryOutcome.objects.count(), Transfer.objects.count()
    assert settle(now).settled == []
    assert settle_due_periods(now=now + 2 * DUE_AFTER).settled == []
    assert before == (money(rich_acme, "prepaid"), DeliveryOutcome.objects.count(), Transfer.objects.count())
    check = check_charges(since=now)
    assert (check.settled, check.unsettled, check.differences) == (1, 0, [])


def test_a_host_that_is_up_owes_nothing_for_what_nobody_asked_for(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    settle(now)
    assert amounts() == {"minimum_take": 1_500}
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.failed_numerator, outcome.unused_numerator) == (0, 10 * LOT)
    assert (outcome.remedy_micros, outcome.remedy_cap_micros) == (0, None)


def test_a_host_that_never_came_back_is_paid_nothing_and_the_market_pays_what_it_cannot(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Payable, then operator: the provider has nothing, and his account does not go below zero."""
    award(rich_acme, grade, [(plant, 10)], RATE, now + PERIOD, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    settle(now)
    assert amounts() == {"remedy": -297}
    assert money(rich_acme, "prepaid") == FUNDS + 297
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, -297)
    assert Transfer.objects.filter(code="remedy").count() == 1
    assert_books_balance()


def test_what_a_provider_has_pays_first(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """An earlier award earns 1,425; all but 100 is paid out before the next one fails."""
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=15, last_s=16)
    settle(now)
    left = 100
    pay_out(hyperion, operator, money(hyperion, "payable") - left, now)
    later = now + timedelta(hours=1)
    award(rich_acme, grade, [(plant, 10)], RATE, later, now)
    check_heartbeats(now=later)
    settle(later)
    assert Charge.objects.get(kind="remedy", period_start=later).amount_micros == -297
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, left - 297)
    assert_books_balance()


def test_only_the_offering_that_failed_pays_and_only_the_other_shares_the_minimum_take(
    rich_acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(mallory, grade, now, name="h2")
    award(rich_acme, grade, [(plant, 5), (second, 5)], RATE, now + PERIOD, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    beat(second, now + timedelta(seconds=21))
    Outage.objects.filter(host=second.host).update(ended_at=now + timedelta(seconds=21))
    settle(now)
    # theta x (10 - 5) lots, all of it to the offering that stood ready.
    assert amounts() == {"minimum_take": 750, "remedy": -148}
    takes = {e.offering_id: e.gross_micros for e in Earning.objects.filter(charge__kind="minimum_take")}
    assert takes == {second.offering.id: 750}
    assert money(mallory, "payable") == 750 - 37
    failed = {row.offering_id: row.failed_numerator for row in DeliveryOutcome.objects.all()}
    assert failed == {plant.offering.id: 5 * LOT, second.offering.id: 0}
    assert_books_balance()


def test_what_was_bought_elsewhere_is_replaced_at_the_difference(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Two lots on demand from another host while this one was down, at an overage rate of 0.60."""
    second = make_plant(hyperion, grade, now, name="h2")
    start = now + PERIOD
    set_period_rate(
        grade_id=grade.id,
        period_start=start,
        clearing_rate_micros_per_mtok=RATE,
        overage_micros_per_mtok=600_000,
        now=now,
    )
    award(rich_acme, grade, [(plant, 10)], RATE, start, now)
    contract = on_demand(rich_acme, grade, now)
    meter(contract, second.offering.list_rate, second, 2 * LOT, start)
    # The failing host's own sale is not elsewhere.
    meter(contract, plant.offering.list_rate, plant, LOT, start)
    accrue(contract, now, 1_800, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    settle(now)
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.failed_numerator, outcome.replaced_numerator) == (10 * LOT, 2 * LOT)
    assert outcome.replacement_micros_per_mtok == 600_000
    # 2 lots x 0.30 of difference and 10% of 9.9 lots.
    assert outcome.remedy_micros == 600 + 297
    assert amounts()["remedy"] == -897
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_late_usage_on_demand_that_replaces_more_settles_the_failure_again(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The spot contract's own usage stays as it was: what was bought elsewhere came late, and then was corrected."""
    second = make_plant(hyperion, grade, now, name="h2")
    start = now + PERIOD
    set_period_rate(
        grade_id=grade.id,
        period_start=start,
        clearing_rate_micros_per_mtok=RATE,
        overage_micros_per_mtok=600_000,
        now=now,
    )
    spot = award(rich_acme, grade, [(plant, 10)], RATE, start, now).contract
    check_heartbeats(now=now + timedelta(seconds=20))
    settle(now)
    assert amounts() == {"remedy": -297}
    contract = on_demand(rich_acme, grade, now)
    meter(contract, second.offering.list_rate, second, 2 * LOT, start)
    assert check_charges(since=now).unsettled == 1
    later = now + DUE_AFTER + timedelta(minutes=10)
    settled = {one.contract_id: one for one in settle_due_periods(now=later).settled}
    # 2 lots x 0.30 of difference.
    assert (settled[spot.id].run, settled[spot.id].amount_micros) == (2, -600)
    assert latest_outcomes().get().replaced_numerator == 2 * LOT
    check = check_charges(since=now)
    assert (check.unsettled, check.differences) == (0, [])
    # Seen and counted: no run looks at it again, until it falls.
    assert settle_due_periods(now=later + timedelta(minutes=1)).settled == []
    UsageRollup.objects.filter(contract_id=contract.id).update(numerator=LOT)
    settled = {one.contract_id: one for one in settle_due_periods(now=later + timedelta(minutes=2)).settled}
    assert settled[spot.id].amount_micros == 300
    assert check_charges(since=now).unsettled == 0
    assert_books_balance()


def test_a_negative_adjustment_that_comes_back_repays_the_market_first(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The provider was paid out before a correction took usage off: the market bore it, and gets it back first."""
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    meter(contract, rate, plant, 10 * LOT, now)
    accrue(contract, now, 10_000, now)
    settle(now)
    gross = rate.micros_per_mtok * 10 // 1_000
    fee = gross // 20
    pay_out(hyperion, operator, gross - fee, now)
    row = UsageRollup.objects.filter(contract_id=contract.id)
    row.update(numerator=0)
    settle(now)
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, fee - gross)
    # Two lots after all: all that is left of them after their fee is the market's.
    row.update(numerator=2 * LOT)
    settle(now)
    back = gross // 5
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, fee - gross + back - back // 20)
    assert money(operator, "fees") == back // 20
    row.update(numerator=12 * LOT)
    settle(now)
    whole = gross * 12 // 10
    assert money(operator, "operator") == 0
    assert money(hyperion, "payable") == whole - whole // 20 - (gross - fee)
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_a_replacement_is_counted_for_one_failure_only(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    second = make_plant(hyperion, grade, now, name="h2")
    start = now + PERIOD
    for _ in range(2):
        award(rich_acme, grade, [(plant, 2)], RATE, start, now)
    contract = on_demand(rich_acme, grade, now)
    meter(contract, second.offering.list_rate, second, 3 * LOT, start)
    accrue(contract, now, 1_800, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    assert settle(now).failed == []
    replaced = sorted(row.replaced_numerator for row in DeliveryOutcome.objects.all())
    assert replaced == [LOT, 2 * LOT]
    assert settle(now).settled == []
    assert check_charges(since=now).unsettled == 0


def test_remedies_stay_within_a_months_gross(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """A replacement at a hundred times the rate: the provider owes what the award would have earned, and no more."""
    second = make_plant(hyperion, grade, now, name="h2", list_rate=30_000_000)
    start = now + PERIOD
    set_period_rate(
        grade_id=grade.id,
        period_start=start,
        clearing_rate_micros_per_mtok=RATE,
        overage_micros_per_mtok=30_000_000,
        now=now,
    )
    award(rich_acme, grade, [(plant, 10)], RATE, start, now)
    contract = on_demand(rich_acme, grade, now)
    meter(contract, second.offering.list_rate, second, 10 * LOT, start)
    check_heartbeats(now=now + timedelta(seconds=20))
    Outage.objects.filter(host=second.host).update(ended_at=now + timedelta(seconds=21))
    # The spot contract alone: what the on-demand sale earned is not settled yet, and does not count.
    spot = Entitlement.objects.get().contract_id
    settle_contract(contract_id=spot, settlement_start=now, now=now + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert outcome.replaced_numerator == 10 * LOT
    assert (outcome.remedy_micros, outcome.remedy_cap_micros) == (3_000, 3_000)


def test_late_usage_lowers_the_remedy_by_a_new_row(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    settle(now)
    assert amounts() == {"minimum_take": 750, "remedy": -147}
    first = money(rich_acme, "prepaid")
    # Eight lots in the half that was left: only two can have failed, and no minimum take is left.
    meter(entitlement.contract, entitlement.rate, plant, 8 * LOT, now)
    assert [item.run for item in settle(now).settled] == [2]
    late = {charge.kind: charge.amount_micros for charge in Charge.objects.filter(settlement__run=2)}
    assert late == {"adjustment": 2_400 - 750, "remedy": 147 - 57}
    assert money(rich_acme, "prepaid") == first - 1_650 - 90
    outcome = latest_outcomes().get()
    assert (outcome.run, outcome.failed_numerator, outcome.remedy_micros) == (2, 2 * LOT, 57)
    assert DeliveryOutcome.objects.count() == 2
    assert settle(now).settled == []
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_a_remedy_that_shrinks_repays_the_market_first(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now + PERIOD, now)
    check_heartbeats(now=now + timedelta(seconds=20))
    settle(now)
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, -297)
    # It had delivered after all, as far as anybody knows now; the outage stands.
    meter(entitlement.contract, entitlement.rate, plant, 4 * LOT, now + PERIOD)
    settle(now)
    assert latest_outcomes().get().remedy_micros == 177
    assert (money(hyperion, "payable"), money(operator, "operator")) == (1_200 - 60, -177)
    meter(entitlement.contract, entitlement.rate, plant, 6 * LOT, now + PERIOD)
    settle(now)
    assert latest_outcomes().get().remedy_micros == 0
    assert (money(hyperion, "payable"), money(operator, "operator")) == (3_000 - 150, 0)
    assert money(rich_acme, "prepaid") == FUNDS - 3_000
    assert settle(now).settled == []
    assert_books_balance()


def test_an_outage_that_is_recorded_late_makes_a_new_run(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    settle(now)
    assert amounts() == {"minimum_take": 1_500}
    recorded_at = now + DUE_AFTER + timedelta(minutes=1)
    Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.HEARTBEAT,
        started_at=now,
        ended_at=now + PERIOD,
        created_at=recorded_at,
    )
    [settled] = settle_due_periods(now=recorded_at + timedelta(minutes=1)).settled
    assert (settled.run, settled.amount_micros) == (2, -1_500 - 297)
    assert money(rich_acme, "prepaid") == FUNDS + 297
    assert settle_due_periods(now=recorded_at + timedelta(minutes=2)).settled == []
    assert Settlement.objects.count() == 2
    assert_books_balance()


def fail_attempt(plant: Plant, at: datetime) -> UUID:
    made = FailedAttempt.objects.create(
        id=uuid7(at), offering=plant.offering, cause=FailedAttempt.Cause.REFUSED, occurred_at=at
    )
    return made.id


def test_refused_attempts_count_to_the_end_of_their_own_period(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = award(rich_acme, grade, [(plant, 10)], RATE, now, now).contract
    award(rich_acme, grade, [(plant, 10)], RATE, now + PERIOD, now, contract)
    for second in (0, *range(10, 600, 10)):
        beat(plant, now + timedelta(seconds=second))
    fail_attempt(plant, now + timedelta(seconds=60))
    fail_attempt(plant, now + timedelta(seconds=70))
    settle(now)
    failed = dict(DeliveryOutcome.objects.values_list("period_start", "failed_numerator"))
    assert failed == {now: 8 * LOT, now + PERIOD: 0}
    outage = Outage.objects.get(offering=plant.offering)
    assert (outage.kind, outage.started_at, outage.ended_at) == (
        "refused",
        now + timedelta(seconds=60),
        now + PERIOD,
    )
    assert settle(now).settled == []
    assert Outage.objects.filter(offering=plant.offering).count() == 1


def serve(entitlement: Entitlement, plant: Plant, at: datetime, *, flags: tuple[Flag, ...] = ()) -> None:
    """A request of the award as the gateway meters it: 8 input and 32 output tokens, admitted `at`, a second long."""
    event = UsageEvent(
        id=uuid7(at),
        sequence=1,
        request_id=uuid7(at),
        attempt=0,
        part=0,
        contract_id=entitlement.contract_id,
        offering_id=plant.offering.id,
        grade_id=entitlement.rate.grade_id,
        rate_id=entitlement.rate_id,
        period_start=entitlement.period_start,
        occurred_at=at,
        buckets={Bucket.UNCACHED_INPUT: 8, Bucket.OUTPUT: 32},
        finish=Finish.STOP,
        bytes_in=120,
        bytes_out=4_000,
        duration_ms=1_000,
        api_key_id=UUID(int=1),
        flags=flags,
    )
    accept_batch(source=gateway_source(at), body=encode_lines([encode_event(event)]), now=at)
    ingest_batches(now=at)


def test_down_from_the_attempt_that_broke_off_to_the_next_request_that_was_served(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    for second in range(0, 300, 10):
        beat(plant, now + timedelta(seconds=second))
    serve(entitlement, plant, now + timedelta(seconds=30))
    serve(entitlement, plant, now + timedelta(seconds=59), flags=(Flag.UPSTREAM_FAILED,))
    fail_attempt(plant, now + timedelta(seconds=90))
    serve(entitlement, plant, now + timedelta(seconds=120))
    settle(now)
    outcome = DeliveryOutcome.objects.get()
    # Broken off at 60 s, served again at 120 s: 2 of the 10 lots.
    assert (outcome.down_ms, outcome.failed_numerator) == (60_000, 2 * LOT)
    assert outcome.delivered_numerator == 3 * (8 + 32 * 4) * 250_000
    outage = Outage.objects.get(offering=plant.offering)
    assert outage.kind == "failed_attempt"
    assert (outage.started_at, outage.ended_at) == (
        now + timedelta(seconds=60),
        now + timedelta(seconds=120),
    )
    # A success that was metered late ends it earlier.
    serve(entitlement, plant, now + timedelta(seconds=75))
    settle(now)
    assert latest_outcomes().get().down_ms == 15_000 + 30_000
    shown = Outage.objects.filter(offering=plant.offering).order_by("started_at")
    assert [(row.ended_at - row.started_at).seconds for row in shown if row.ended_at] == [15, 30]


def test_a_pause_is_a_failure_and_a_planned_outage_is_none(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    at = now + timedelta(seconds=30)
    pause_host(organization_id=hyperion.id, host_id=plant.host.id, now=at, actor=SYSTEM)
    at = now + timedelta(seconds=90)
    resume_host(organization_id=hyperion.id, host_id=plant.host.id, now=at, actor=SYSTEM)
    Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.PLANNED,
        started_at=now + timedelta(seconds=60),
        ended_at=now + PERIOD,
        created_at=now,
    )
    settle(now)
    assert DeliveryOutcome.objects.get().down_ms == 30_000


def test_a_host_that_says_it_is_not_ready_is_down(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    for second in range(5, 300, 5):
        beat(plant, now + timedelta(seconds=second), ready=not 100 <= second < 160)
    settle(now)
    assert DeliveryOutcome.objects.get().down_ms == 60_000


def test_a_late_beat_tells_of_the_silence_that_no_sweep_saw(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    beat(plant, now + timedelta(seconds=75))
    outage = Outage.objects.get()
    assert (outage.started_at, outage.ended_at) == (
        now + timedelta(seconds=15),
        now + timedelta(seconds=75),
    )
    beat(plant, now + timedelta(seconds=80))
    assert Outage.objects.count() == 1
    settle(now)
    assert DeliveryOutcome.objects.get().down_ms == 60_000


def test_two_outages_of_a_kind_never_overlap(plant: Plant, now: datetime) -> None:
    def outage(first_s: int, last_s: int) -> None:
        Outage.objects.create(
            host=plant.host,
            kind=Outage.Kind.WITHDRAWN,
            started_at=now + timedelta(seconds=first_s),
            ended_at=now + timedelta(seconds=last_s),
            created_at=now,
        )

    outage(10, 20)
    outage(20, 30)
    with pytest.raises(DatabaseError, match="providers_outage_apart"), transaction.atomic():
        outage(25, 40)


@pytest.mark.parametrize("table", ["billing_deliveryoutcome", "providers_failedattempt"])
def test_outcomes_and_their_evidence_are_append_only(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime, table: str
) -> None:
    award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    fail_attempt(plant, now + timedelta(seconds=60))
    settle(now)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table}")


def test_buyer_and_provider_see_what_failed_and_mallory_sees_nothing(
    rich_acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    settle(now)
    for party in (rich_acme, hyperion):
        [item] = party.api.get("/api/v1/delivery-outcomes").json()["items"]
        assert (item["failed_numerator"], item["unused_numerator"]) == (str(5 * LOT), str(5 * LOT))
        assert (item["remedy_micros"], item["down_ms"]) == (147, 150_000)
    path = f"/api/v1/delivery-outcomes?contract_id={entitlement.contract_id}"
    assert len(rich_acme.api.get(path).json()["items"]) == 1
    assert mallory.api.get(path).json()["items"] == []
    answer = rich_acme.api.get("/api/v1/delivery-outcomes?offering_id=nothing")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "offering_id")
    [remedy] = [c for c in rich_acme.api.get("/api/v1/charges").json()["items"] if c["kind"] == "remedy"]
    assert (remedy["amount_micros"], remedy["numerator"]) == (-147, "0")


def test_an_invoice_carries_the_remedy_as_a_line_of_its_own(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    meter(entitlement.contract, entitlement.rate, plant, 2 * LOT, now)
    settle(now)
    month = now.replace(day=1, hour=0)
    [invoice] = issue_invoices(month_start=month, now=now + DUE_AFTER, early=True)
    lines = {line.kind: line.amount_micros for line in invoice.lines.all()}
    assert lines == {"spot": 750, "remedy": -147}
    assert invoice.subtotal_micros == 603
    issue_statements(month_start=month, now=now + DUE_AFTER, early=True)
    span = f"since={now:%Y-%m-%dT%H:%M:%SZ}&until={now + PERIOD:%Y-%m-%dT%H:%M:%SZ}"
    # To the provider a remedy is a cost, as what he earns is the opposite of one.
    for party, role, cost in ((rich_acme, "buyer", "-0.000147"), (hyperion, "provider", "0.000147")):
        rows = party.api.get(f"/api/v1/exports/focus?role={role}&format=ndjson&{span}").getvalue().decode()
        [row] = [row for row in map(json.loads, rows.splitlines()) if row["x_ChargeKind"] == "remedy"]
        assert row["BilledCost"] == cost


def test_pages_show_what_failed_to_buyer_and_provider(
    rich_acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    silence(plant, now, first_s=60, last_s=210)
    settle(now)
    for party, path in (
        (rich_acme, f"/buyer/contracts/{entitlement.contract_id}"),
        (hyperion, "/provider/earnings"),
    ):
        client = Client()
        client.force_login(party.user)
        text = client.get(path).content.decode()
        assert "What awards came to" in text
        assert '<td class="n"><b>5</b></td><td class="n">5</td>' in text
    client = Client()
    client.force_login(mallory.user)
    assert "What awards came to" not in client.get("/provider/earnings").content.decode()
