"""Committed contracts where the money gets awkward: two providers, arrears, unpaid months, month ends, late counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db.models import F

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, Earning
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_due_periods, settle_period
from marketplace.contracts.models import Accrual, Allocation, Contract, Entitlement
from marketplace.contracts.services import (
    accept_quote,
    advance_contracts,
    capture_hold,
    open_hold,
    request_quote,
)
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.periods import settlement_period
from metering.models import UsageBatch
from metering.services import gateway_source
from pricing.models import Grade
from providers.models import Outage
from providers.services import record_heartbeat
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    assert_books_balance,
    meter,
    money,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant

VOLUME = 10_000


def buy(
    buyer: Party,
    grade: Grade,
    now: datetime,
    start: datetime,
    *,
    firm_lots: int = 100,
    volume_lots: int = VOLUME,
    months: int = 1,
    payment: str = "prepaid",
) -> Contract:
    quote = request_quote(
        organization_id=buyer.id,
        grade_slug=grade.family.slug,
        firm_lots=firm_lots,
        volume_lots=volume_lots,
        months=months,
        starts_at=start,
        take_share_ppm=0,
        overage_policy="stop",
        payment=payment,
        now=now,
    )
    return accept_quote(
        organization_id=buyer.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=SYSTEM
    )


def beat(plant: Plant, now: datetime) -> None:
    record_heartbeat(
        host_id=plant.host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=now,
    )


def settle_hour(start: datetime) -> None:
    settle_period(settlement_start=start, now=start + DUE_AFTER)


def settle_last_hour(month: Entitlement) -> None:
    settle_hour(settlement_period(month.period_end - timedelta(seconds=1)).start)


@pytest.fixture
def zenith(db: None, operator: Party, now: datetime) -> Party:
    """A second provider, dearer than hyperion."""
    return make_party("Zenith", ["provider"], now)


def deliver(contract: Contract, plant: Plant, other: Plant, lots: int, at: datetime) -> str:
    """One request through the hold functions at `plant` alone, captured whole; its usage goes into the roll-ups."""
    beat(plant, at)
    beat(other, at)
    hold_id = uuid7(at)
    opened = open_hold(
        id=hold_id,
        organization_id=contract.organization_id,
        grade_ids=[contract.grade_id],
        numerators=[lots * LOT],
        contract_id=contract.id,
        exclude=[other.offering.id],
        now=at,
    )
    if opened.outcome != "ok":
        return opened.outcome
    captured = capture_hold(
        id=hold_id, numerator=lots * LOT, event=b"{}\n", source_id=gateway_source(at).id, now=at
    )
    assert captured.outcome == "ok"
    # The event is a stand-in here: its roll-up is written beside it.
    UsageBatch.objects.filter(status="pending").update(status="stored", stored_at=at)
    assert contract.rate is not None
    meter(contract, contract.rate, plant, lots * LOT, at.replace(second=0, microsecond=0))
    return "ok"


@pytest.mark.parametrize("payment", ["prepaid", "arrears"])
def test_two_providers_each_get_their_own_rate_and_the_buyer_pays_the_average(
    acme: Party, hyperion: Party, zenith: Party, grade: Grade, now: datetime, operator: Party, payment: str
) -> None:
    cheap = make_plant(hyperion, grade, now, name="cheap", firm_rate=400_000)
    dear = make_plant(zenith, grade, now, name="dear", firm_rate=500_000)
    fund(acme, FUNDS, now)
    limit = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=limit, limit_micros=FUNDS)
    start = now + HOUR
    # 242 lots fit on the first host (255 less the operating margin), 158 on the second.
    contract = buy(acme, grade, now, start, firm_lots=400, volume_lots=400, payment=payment)
    shares = {item.offering_id: item.firm_lots for item in Allocation.objects.filter(contract=contract)}
    assert shares == {cheap.offering.id: 242, dear.offering.id: 158}
    assert contract.rate is not None
    average = contract.rate.micros_per_mtok
    assert average == (242 * 400_000 + 158 * 500_000) // 400 == 439_500
    charge_committed_months(now=start)
    # In the shares of the allocation, in four requests below the bucket's depth of a minute (80 lots).
    for number, (plant, other, lots) in enumerate([(cheap, dear, 121), (dear, cheap, 79)] * 2):
        at = start + timedelta(minutes=10 * number)
        assert deliver(contract, plant, other, lots, at) == "ok"
    # Both hosts were up between the requests: their heartbeats are left out here, so what is missing is no time.
    Outage.objects.update(ended_at=F("started_at") + timedelta(microseconds=1))
    settle_hour(start)
    price = 400 * average // 1000
    source = "prepaid" if payment == "prepaid" else "receivable"
    assert money(acme, source) == (FUNDS - price if payment == "prepaid" else -price)
    gross = {earning.offering_id: 0 for earning in Earning.objects.all()}
    for earning in Earning.objects.all():
        gross[earning.offering_id] += earning.gross_micros
    assert gross == {cheap.offering.id: 242 * 400, dear.offering.id: 158 * 500}
    assert sum(gross.values()) == price
    assert money(hyperion, "payable") + money(zenith, "payable") + money(operator, "fees") == price
    assert pending(acme, source) == 0
    assert money(acme, "deferred") == 0
    assert_books_balance()


def test_arrears_when_the_dearer_host_served_more_still_conserves_money(
    acme: Party, hyperion: Party, zenith: Party, operator: Party, grade: Grade, now: datetime
) -> None:
    cheap = make_plant(hyperion, grade, now, name="cheap", firm_rate=400_000)
    dear = make_plant(zenith, grade, now, name="dear", firm_rate=500_000)
    limit = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=limit, limit_micros=FUNDS)
    start = now + HOUR
    contract = buy(acme, grade, now, start, firm_lots=400, volume_lots=400, payment="arrears")
    assert deliver(contract, dear, cheap, 77, start) == "ok"
    settle_hour(start)
    charge = Charge.objects.get()
    assert (charge.kind, charge.amount_micros) == ("usage", 33_842)  # 77 x 439.5 = 33,841.5, to even
    assert money(zenith, "payable") + money(operator, "fees") == 33_842
    # Late usage of the cheap host: the runs together come to the totals of both.
    assert contract.rate is not None
    meter(contract, contract.rate, cheap, 3 * LOT, start)
    settle_hour(start)
    total = sum(charge.amount_micros for charge in Charge.objects.all())
    assert total == 80 * 439_500 // 1000
    assert money(zenith, "payable") + money(hyperion, "payable") + money(operator, "fees") == total
    assert money(acme, "receivable") == -total
    assert_books_balance()


def test_arrears_needs_a_credit_line_and_stays_within_it(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, operator: Party
) -> None:
    set_tax(acme, 200_000)
    start = now + HOUR
    contract = buy(acme, grade, now, start, payment="arrears")
    assert Entitlement.objects.get().ledger_hold is None

    def request(lots: int) -> str:
        beat(plant, start)
        return open_hold(
            id=uuid7(),
            organization_id=acme.id,
            grade_ids=[grade.id],
            numerators=[lots * LOT],
            contract_id=contract.id,
            now=start,
        ).outcome

    assert request(1) == "insufficient_funds"
    limit = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    assert request(1) == "insufficient_funds"
    assert Entitlement.objects.get().held_numerator == 0
    set_overdraft_limit(account_id=limit, limit_micros=6_000)  # ten lots at 500, and a fifth of tax on top
    hold_id = uuid7()
    beat(plant, start)
    opened = open_hold(
        id=hold_id,
        organization_id=acme.id,
        grade_ids=[grade.id],
        numerators=[10 * LOT],
        contract_id=contract.id,
        now=start,
    )
    assert (opened.outcome, opened.amount_micros) == ("ok", 6_000)
    assert request(1) == "insufficient_funds"
    capture_hold(id=hold_id, numerator=8 * LOT, event=b"{}\n", source_id=gateway_source(start).id, now=start)
    UsageBatch.objects.update(status="stored", stored_at=start)
    assert contract.rate is not None
    meter(contract, contract.rate, plant, 8 * LOT, start)
    assert Accrual.objects.get().captured_micros == 4_800
    settle_hour(start)
    charge = Charge.objects.get()
    assert (charge.amount_micros, charge.tax_held_micros) == (4_000, 800)
    assert (money(acme, "receivable"), pending(acme, "receivable")) == (-4_000, 800)
    assert (money(hyperion, "payable"), money(operator, "fees")) == (3_800, 200)
    assert_books_balance()


def test_a_month_that_cannot_be_paid_suspends_and_a_top_up_revives(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 5_000_000, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start, months=3)
    charge_committed_months(now=start)
    first = Entitlement.objects.get()
    advance_contracts(now=first.period_end)
    second = Entitlement.objects.get(period_start=first.period_end)
    assert second.ledger_hold is None
    assert charge_committed_months(now=second.period_start).unpaid == [second.id]
    contract.refresh_from_db()
    assert contract.status == "suspended"
    at = second.period_start + timedelta(minutes=10)
    beat(plant, at)

    def request() -> str:
        return open_hold(
            id=uuid7(),
            organization_id=acme.id,
            grade_ids=[grade.id],
            numerators=[LOT],
            contract_id=contract.id,
            now=at,
        ).outcome

    assert request() == "contract_suspended"
    fund(acme, 5_000_000, at)
    assert charge_committed_months(now=at).charged == [second.id]
    contract.refresh_from_db()
    assert contract.status == "active"
    assert request() == "ok"
    assert (money(acme, "prepaid"), money(acme, "deferred")) == (0, 10_000_000)
    assert_books_balance()


def test_a_month_never_paid_does_not_keep_the_next_paid_one_from_being_delivered(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 5_000_000, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start, months=3)
    charge_committed_months(now=start)
    first = Entitlement.objects.get()
    advance_contracts(now=first.period_end)
    charge_committed_months(now=first.period_end)
    second = Entitlement.objects.get(period_start=first.period_end)
    advance_contracts(now=second.period_end)
    fund(acme, 5_000_000, second.period_end)
    third = Entitlement.objects.get(period_start=second.period_end)
    assert charge_committed_months(now=third.period_start).charged == [third.id]
    contract.refresh_from_db()
    assert contract.status == "active"
    assert Entitlement.objects.get(pk=second.id).paid_at is None
    for month in (first, second, third):
        settle_last_hour(month)
    assert (money(acme, "deferred"), money(hyperion, "payable")) == (0, 9_500_000)
    assert_books_balance()


def test_months_of_a_contract_from_31_january_meet_at_the_month_ends(db: None, operator: Party) -> None:
    now = datetime(2026, 1, 31, 8, 0, tzinfo=UTC)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    plant = make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    # Half past: the month's end lies inside a settlement period.
    start = datetime(2026, 1, 31, 10, 30, tzinfo=UTC)
    contract = buy(acme, grade, now, start, months=3)
    ends = [datetime(2026, 2, 28, 10, 30, tzinfo=UTC), datetime(2026, 3, 31, 10, 30, tzinfo=UTC)]
    ends.append(datetime(2026, 4, 30, 10, 30, tzinfo=UTC))
    charge_committed_months(now=start)
    for end in ends:
        advance_contracts(now=end)
        charge_committed_months(now=end)
    months = list(Entitlement.objects.order_by("period_start"))
    assert [month.period_end for month in months] == ends
    assert [month.period_start for month in months] == [start, *ends[:-1]]
    contract.refresh_from_db()
    assert (contract.status, contract.ends_at) == ("ended", ends[-1])
    # One hour with usage of two months: each month earns its own.
    assert contract.rate is not None
    meter(contract, contract.rate, plant, 300 * LOT, ends[0] - timedelta(minutes=5))
    meter(contract, contract.rate, plant, 500 * LOT, ends[0])
    settle_hour(ends[0].replace(minute=0))
    usage = Charge.objects.filter(kind="usage").order_by("period_start")
    assert [(line.period_start, line.period_end, line.numerator // LOT) for line in usage] == [
        (ends[0].replace(minute=0), ends[0], 300),
        (ends[0], ends[0] + timedelta(minutes=30), 500),
    ]
    # The first month is over and paid out whole, the second has 500 of 10,000 lots delivered.
    assert money(acme, "deferred") == 10_000_000 - 250_000
    for month in months[1:]:
        settle_last_hour(month)
    assert money(acme, "deferred") == 0
    assert money(acme, "prepaid") == FUNDS - 15_000_000
    assert money(hyperion, "payable") == 14_250_000
    assert money(operator, "fees") == 750_000
    assert settle_due_periods(now=ends[-1] + 2 * DUE_AFTER).settled == []
    assert_books_balance()


def test_counts_that_change_after_the_month_was_closed_leave_nothing_in_deferred(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start)
    month = Entitlement.objects.get()
    charge_committed_months(now=start)
    assert contract.rate is not None
    meter(contract, contract.rate, plant, 2_000 * LOT, start)
    settle_hour(start)
    settle_last_hour(month)
    paid = money(hyperion, "payable")
    for change in (100, -500):
        meter(contract, contract.rate, plant, change * LOT, start)
        assert len(settle_period(settlement_start=start, now=month.period_end + DUE_AFTER).settled) == 1
        assert (money(acme, "deferred"), money(hyperion, "payable")) == (0, paid)
        assert_books_balance()
    assert sum(earning.gross_micros for earning in Earning.objects.all()) == 5_000_000


def test_counts_that_shrink_within_the_month_go_back_to_deferred(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start)
    charge_committed_months(now=start)
    assert contract.rate is not None
    meter(contract, contract.rate, plant, 2_000 * LOT, start)
    settle_hour(start)
    meter(contract, contract.rate, plant, -1_000 * LOT, start)
    settle_hour(start)
    assert (money(acme, "deferred"), money(hyperion, "payable")) == (4_500_000, 475_000)
    settle_last_hour(Entitlement.objects.get())
    assert (money(acme, "deferred"), money(hyperion, "payable")) == (0, 4_750_000)
    assert_books_balance()
