"""The end of a committed month: refund of F, true-up in arrears, rollover; once, and with differences when late."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, DeliveryOutcome, Earning, MonthOutcome
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_due_periods, settle_period
from marketplace.contracts.models import Contract, ContractEvent, Curtailment, Entitlement
from marketplace.contracts.services import accept_quote, advance_contracts, request_quote
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.periods import delivery_period, settlement_period
from pricing.models import Grade
from providers.models import HostHour, Outage
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    assert_books_balance,
    meter,
    money,
    pending,
)
from tests.cast import Party, Plant, fund

VOLUME = 10_000
PRICE = 5_000_000  # 10,000 lots at 0.50


def buy(buyer: Party, grade: Grade, now: datetime, **terms: object) -> Contract:
    wanted: dict[str, object] = {
        "firm_lots": 100,
        "volume_lots": VOLUME,
        "months": 1,
        "starts_at": now + HOUR,
        "take_share_ppm": 800_000,
        "overage_policy": "stop",
        "payment": "prepaid",
    }
    quote = request_quote(organization_id=buyer.id, grade_slug=grade.family.slug, now=now, **(wanted | terms))  # type: ignore[arg-type]
    return accept_quote(
        organization_id=buyer.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=SYSTEM
    )


def credit(buyer: Party, now: datetime, limit_micros: int = FUNDS) -> None:
    account = account_id(organization_id=buyer.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=account, limit_micros=limit_micros)


def outage(plant: Plant, start: datetime, seconds: int, *, created_at: datetime | None = None) -> Outage:
    return Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.HEARTBEAT,
        started_at=start,
        ended_at=start + timedelta(seconds=seconds),
        created_at=created_at or start,
    )


def settle_all(month: Entitlement, *, hours: list[datetime]) -> None:
    last = settlement_period(month.period_end - timedelta(seconds=1)).start
    for start in [*hours, last]:
        settle_period(settlement_start=start, now=max(start + DUE_AFTER, month.period_end + DUE_AFTER))


def test_a_prepaid_month_gives_back_what_failed_from_who_failed_it(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Down for 150 s of 300: 50 of 100 lots of a period failed. The penalty at once, F x rate at the month's end."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    meter(contract, month.rate, plant, 20 * LOT, start)
    assert len(settle_period(settlement_start=start, now=start + DUE_AFTER).settled) == 1
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.entitled_numerator, outcome.delivered_numerator) == (100 * LOT, 20 * LOT)
    assert (outcome.failed_numerator, outcome.unused_numerator) == (50 * LOT, 30 * LOT)
    # 10% of 0.50 per Mtok for 49 lots.
    assert Charge.objects.get(kind="remedy").amount_micros == -2_450
    assert money(acme, "prepaid") == FUNDS - PRICE + 2_450
    settle_all(month, hours=[])
    found = MonthOutcome.objects.get()
    assert (found.delivered_numerator, found.failed_numerator) == (20 * LOT, 50 * LOT)
    assert (found.unused_numerator, found.refunded_micros) == (9_930 * LOT, 25_000)
    assert (found.true_up_numerator, found.charged_micros) == (0, 0)
    assert money(acme, "prepaid") == FUNDS - PRICE + 2_450 + 25_000
    # The market gives back its fee of what it gave back; it keeps none of a remedy.
    assert money(acme, "deferred") == 0
    assert money(hyperion, "payable") == (PRICE - 25_000) * 95 // 100 - 2_450
    assert money(operator, "fees") == (PRICE - 25_000) * 5 // 100
    assert Entitlement.objects.get().failed_numerator == 50 * LOT
    assert settle_due_periods(now=month.period_end + 2 * DUE_AFTER).settled == []
    assert MonthOutcome.objects.count() == 1
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_what_was_delivered_of_a_paid_month_did_not_fail_and_gives_no_remedy(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """80 of a period's 100 lots used: 20 failed however long the host was down; 10% of 0.50 for 19 of them."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    meter(contract, month.rate, plant, 80 * LOT, start)
    settle_period(settlement_start=start, now=start + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.failed_numerator, outcome.remedy_micros) == (20 * LOT, 950)
    assert Charge.objects.get(kind="remedy").amount_micros == -950
    # And 20 more that come late: nothing failed.
    meter(contract, month.rate, plant, 20 * LOT, start)
    settle_period(settlement_start=start, now=start + 2 * DUE_AFTER)
    assert sum(Charge.objects.filter(kind="remedy").values_list("amount_micros", flat=True)) == 0
    assert money(acme, "prepaid") == FUNDS - PRICE
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_an_outage_alone_makes_a_committed_period_due(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    charge_committed_months(now=start)
    outage(plant, start + timedelta(minutes=5), 300)
    result = settle_due_periods(now=start + DUE_AFTER)
    assert [(one.contract_id, one.settlement_start) for one in result.settled] == [(contract.id, start)]
    assert DeliveryOutcome.objects.get().failed_numerator == 100 * LOT
    assert settle_due_periods(now=start + DUE_AFTER + timedelta(minutes=1)).settled == []


def test_late_usage_makes_the_refund_smaller_by_a_line_of_its_own(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """All of the volume but 10 lots is used in the end: no more than those can have failed the month."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, volume_lots=200)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    settle_all(month, hours=[start])
    assert MonthOutcome.objects.get().refunded_micros == 50 * 500
    later = start + timedelta(hours=2)
    meter(contract, month.rate, plant, 190 * LOT, later)
    settle_period(settlement_start=later, now=month.period_end + 2 * DUE_AFTER)
    latest = MonthOutcome.objects.order_by("-run").first()
    assert latest is not None
    assert (latest.run, latest.failed_numerator, latest.refunded_micros) == (2, 10 * LOT, 5_000)
    refunds = Charge.objects.filter(kind="remedy", settlement__isnull=True)
    assert sorted(refunds.values_list("amount_micros", flat=True)) == [-25_000, 20_000]
    assert money(acme, "prepaid") == FUNDS - 100_000 + 5_000 + 2_450
    settle_period(settlement_start=later, now=month.period_end + 3 * DUE_AFTER)
    assert MonthOutcome.objects.count() == 2
    assert_books_balance()


def test_nothing_fails_once_the_volume_is_used_up(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, volume_lots=120)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    meter(contract, month.rate, plant, 100 * LOT, start)
    outage(plant, start + timedelta(minutes=5), 300)
    settle_period(settlement_start=start, now=start + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.entitled_numerator, outcome.failed_numerator) == (20 * LOT, 20 * LOT)


def test_arrears_are_trued_up_to_the_take_less_what_failed(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Take 8,000 lots; 1,000 used, 50 failed: 6,950 are charged at 0.50, and no refund: nothing was paid for F."""
    credit(acme, now)
    contract = buy(acme, grade, now, payment="arrears")
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    outage(plant, start, 150)
    meter(contract, month.rate, plant, 1_000 * LOT, start + HOUR)
    settle_all(month, hours=[start, start + HOUR])
    found = MonthOutcome.objects.get()
    assert (found.take_numerator, found.true_up_numerator) == (8_000 * LOT, 6_950 * LOT)
    assert (found.charged_micros, found.refunded_micros) == (3_475_000, 0)
    charge = Charge.objects.get(kind="true_up")
    assert (charge.numerator, charge.amount_micros) == (6_950 * LOT, 3_475_000)
    assert money(acme, "receivable") == -(500_000 + 3_475_000 - 2_450)
    earned = Earning.objects.get(charge=charge)
    assert (earned.gross_micros, earned.fee_micros) == (3_475_000, 173_750)
    assert earned.period_start < month.period_end
    # Usage that comes late takes the place of true-up.
    meter(contract, month.rate, plant, 100 * LOT, start + HOUR)
    settle_period(settlement_start=start + HOUR, now=month.period_end + 2 * DUE_AFTER)
    adjusted = Charge.objects.get(kind="adjustment", settlement__isnull=True)
    assert (adjusted.numerator, adjusted.amount_micros) == (-100 * LOT, -50_000)
    assert money(acme, "receivable") == -(500_000 + 3_475_000 - 2_450)
    assert settle_due_periods(now=month.period_end + 3 * DUE_AFTER).settled == []
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_a_true_up_beyond_the_credit_line_suspends_and_is_charged_when_there_is_room(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now, 1_000)
    contract = buy(acme, grade, now, payment="arrears", months=2)
    month = Entitlement.objects.get()
    advance_contracts(now=month.period_end)
    settle_all(month, hours=[])
    contract.refresh_from_db()
    assert (contract.status, MonthOutcome.objects.count()) == ("suspended", 0)
    credit(acme, now)
    settle_due_periods(now=month.period_end + 2 * DUE_AFTER)
    contract.refresh_from_db()
    assert (contract.status, MonthOutcome.objects.get().charged_micros) == ("active", 4_000_000)
    kinds = (
        ContractEvent.objects.filter(contract=contract).order_by("occurred_at").values_list("kind", flat=True)
    )
    assert list(kinds) == ["created", "suspended", "resumed"]
    assert_books_balance()


def test_half_of_what_was_paid_and_not_used_rolls_over_and_is_burned_first(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=2, rollover_share_ppm=500_000, rollover_cap_lots=3_000)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    meter(contract, month.rate, plant, 2_000 * LOT, start)
    advance_contracts(now=month.period_end)
    charge_committed_months(now=month.period_end)
    settle_all(month, hours=[start])
    second = Entitlement.objects.get(period_start=month.period_end)
    # Half of 8,000 is 4,000: the cap is 3,000.
    assert (second.entitled_numerator, second.rollover_numerator) == (13_000 * LOT, 3_000 * LOT)
    settle_due_periods(now=month.period_end + 2 * DUE_AFTER)
    assert Entitlement.objects.get(pk=second.id).rollover_numerator == 3_000 * LOT
    # 4,000 lots: 3,000 of them rolled over, so 1,000 of the month's own; and no third month to roll into.
    meter(contract, month.rate, plant, 4_000 * LOT, second.period_start + HOUR)
    settle_all(second, hours=[second.period_start + HOUR])
    found = MonthOutcome.objects.get(entitlement=second)
    assert (found.volume_numerator, found.delivered_numerator) == (10_000 * LOT, 1_000 * LOT)
    assert (found.unused_numerator, found.rolled_over_numerator) == (9_000 * LOT, 0)
    assert money(acme, "prepaid") == FUNDS - 2 * PRICE
    assert (money(acme, "deferred"), money(hyperion, "payable")) == (0, 2 * PRICE * 95 // 100)
    assert_books_balance()


def sold(plant: Plant, hour: datetime) -> int:
    return HostHour.objects.get(host=plant.host, hour_start=hour.replace(minute=0)).sold_ppm


def test_capacity_of_a_contract_without_funds_is_free_after_a_day_and_comes_back_with_the_money(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, PRICE, now)
    contract = buy(acme, grade, now, months=2)
    charge_committed_months(now=contract.starts_at)
    first = Entitlement.objects.get()
    end = first.period_end
    advance_contracts(now=end)
    charge_committed_months(now=end)
    later = end + timedelta(days=2)
    taken = sold(plant, later)
    assert taken > 0
    advance_contracts(now=end + timedelta(hours=23))
    assert sold(plant, later) == taken
    advance_contracts(now=end + timedelta(hours=24))
    advance_contracts(now=end + timedelta(hours=25))
    assert (sold(plant, later), sold(plant, end + timedelta(hours=23))) == (0, taken)
    fund(acme, PRICE, later)
    assert len(charge_committed_months(now=later).charged) == 1
    assert (sold(plant, later), sold(plant, later - HOUR)) == (taken, 0)
    contract.refresh_from_db()
    assert (contract.status, contract.suspended_at, contract.freed_at) == ("active", None, None)
    # The month is cut to what is left of it, by seconds, and so is its price.
    second = Entitlement.objects.get(period_start=end)
    whole, left = second.period_end - end, second.period_end - later
    lots = VOLUME * (left // timedelta(seconds=1)) // (whole // timedelta(seconds=1))
    assert second.entitled_numerator == lots * LOT
    assert Charge.objects.get(period_start=end).amount_micros == lots * 500
    kinds = (
        ContractEvent.objects.filter(contract=contract).order_by("occurred_at").values_list("kind", flat=True)
    )
    assert list(kinds) == ["created", "suspended", "freed", "resumed"]
    assert pending(acme) == 0
    assert_books_balance()


def test_of_a_month_in_its_last_moments_nothing_is_left_to_pay_for(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Freed long ago, and the money comes in the month's last delivery period: the next one is the next month's."""
    fund(acme, PRICE, now)
    contract = buy(acme, grade, now, months=3)
    charge_committed_months(now=contract.starts_at)
    end = Entitlement.objects.get().period_end
    advance_contracts(now=end)
    charge_committed_months(now=end)
    advance_contracts(now=end + timedelta(hours=25))
    second = Entitlement.objects.get(period_start=end)
    last = second.period_end - timedelta(seconds=1)
    fund(acme, PRICE, last)
    advance_contracts(now=last)
    assert charge_committed_months(now=last).charged == [second.id]
    second.refresh_from_db()
    assert (second.entitled_numerator, Charge.objects.get(period_start=end).amount_micros) == (0, 0)
    advance_contracts(now=second.period_end)
    assert len(charge_committed_months(now=second.period_end).charged) == 1
    assert money(acme, "prepaid") == 0
    contract.refresh_from_db()
    assert (contract.status, contract.freed_at) == ("active", None)
    assert sold(plant, second.period_end) > 0 == sold(plant, second.period_end - HOUR)
    assert_books_balance()


def test_a_month_that_passed_while_nobody_charged_it_is_charged_out_of_its_hold(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    month = Entitlement.objects.get()
    back = month.period_end + timedelta(days=3)
    advance_contracts(now=back)
    contract.refresh_from_db()
    assert contract.status == "ended"
    assert charge_committed_months(now=back).charged == [month.id]
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS - PRICE, 0)
    settle_due_periods(now=back)
    assert money(hyperion, "payable") == PRICE * 95 // 100
    assert charge_committed_months(now=back).charged == []
    assert_books_balance()


def test_firm_lots_that_are_curtailed_have_failed_from_that_moment_on(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """A host that supplies nothing from half of a period on: half of its 100 lots failed, and nothing was down."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    charge_committed_months(now=start)
    Curtailment.objects.create(
        allocation=contract.allocations.get(),
        period_start=start,
        period_end=delivery_period(start).end,
        lots=100,
        kept_numerator=0,
        curtailed_at=start + timedelta(seconds=150),
    )
    result = settle_due_periods(now=start + DUE_AFTER)
    assert [(one.contract_id, one.settlement_start) for one in result.settled] == [(contract.id, start)]
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.curtailed_numerator, outcome.failed_numerator) == (100 * LOT, 50 * LOT)
    assert (outcome.down_ms, Charge.objects.get(kind="remedy").amount_micros) == (0, -2_450)
    assert settle_due_periods(now=start + DUE_AFTER + timedelta(minutes=1)).settled == []
    assert check_charges(since=now).differences == []
    assert_books_balance()


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"payment": "arrears", "rollover_share_ppm": 1, "rollover_cap_lots": 1}, "rollover_share_ppm"),
        ({"rollover_share_ppm": 1_000_001, "rollover_cap_lots": 1}, "rollover_share_ppm"),
        ({"rollover_share_ppm": 1}, "rollover_cap_lots"),
        ({"rollover_cap_lots": -1}, "rollover_cap_lots"),
    ],
)
def test_only_what_is_paid_can_roll_over_and_within_a_cap(
    acme: Party, grade: Grade, plant: Plant, now: datetime, terms: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        buy(acme, grade, now, **terms)
    assert refused.value.field == field
    assert not Contract.objects.exists()
