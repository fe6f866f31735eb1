"""Credits that shrink after the buyer has spent them: he owes it, nobody waits, and what comes next pays it."""

from __future__ import annotations

from datetime import datetime, timedelta

from marketplace.billing.models import Charge
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import collect_what_is_owed, settle_due_periods, settle_period
from marketplace.contracts.models import Entitlement
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, open_hold
from pricing.models import Grade
from tests.billing.test_month_ends import PRICE, buy, outage, settle_all
from tests.billing.world import DUE_AFTER, FUNDS, LOT, assert_books_balance, meter, money
from tests.cast import Party, Plant, fund


def spend_all(party: Party, now: datetime) -> int:
    """All that is in the balance is held by something else."""
    prepaid = account_id(organization_id=party.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    there = money(party, "prepaid")
    open_hold(id=uuid7(), account_id=prepaid, amount_micros=there, code="test", now=now)
    return there


def test_a_remedy_that_shrinks_after_it_was_spent_is_owed_and_paid_by_what_comes_next(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    meter(contract, month.rate, plant, 20 * LOT, start)
    settle_period(settlement_start=start, now=start + DUE_AFTER)
    had = spend_all(acme, now)
    assert had == FUNDS - PRICE + 2_450
    earned = money(hyperion, "payable")
    # 20 lots failed, not 50: 1,500 of the remedy and 60 lots more of the fee for the host.
    meter(contract, month.rate, plant, 60 * LOT, start)
    result = settle_period(settlement_start=start, now=start + 2 * DUE_AFTER)
    assert (len(result.settled), result.failed) == (1, [])
    assert sum(Charge.objects.filter(kind="remedy").values_list("amount_micros", flat=True)) == -950
    assert money(hyperion, "payable") == earned + 1_500 + 30_000 * 95 // 100
    assert (money(acme, "prepaid"), money(acme, "receivable"), money(operator, "operator")) == (
        had,
        -1_500,
        0,
    )
    assert_books_balance()
    assert settle_period(settlement_start=start, now=start + 2 * DUE_AFTER).settled == []
    fund(acme, 10_000, now)
    settle_due_periods(now=start + timedelta(hours=4))
    assert (money(acme, "prepaid"), money(acme, "receivable")) == (had + 8_500, 0)
    assert collect_what_is_owed(now=start + timedelta(hours=5)) == 0
    assert_books_balance()


def test_a_months_refund_that_shrinks_after_it_was_spent_is_owed_and_no_period_waits(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, volume_lots=200)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    settle_all(month, hours=[start])
    assert Charge.objects.get(kind="remedy", settlement__isnull=True).amount_micros == -25_000
    had, earned, borne = spend_all(acme, now), money(hyperion, "payable"), money(operator, "operator")
    # All of the volume but 10 lots is used in the end.
    later = start + timedelta(hours=2)
    meter(contract, month.rate, plant, 190 * LOT, later)
    assert settle_period(settlement_start=later, now=month.period_end + 2 * DUE_AFTER).failed == []
    assert (money(acme, "prepaid"), money(acme, "receivable")) == (had, -20_000)
    assert (money(hyperion, "payable"), money(operator, "operator")) == (earned + 19_000, borne)
    fund(acme, 30_000, now)
    assert collect_what_is_owed(now=month.period_end + 3 * DUE_AFTER) == 20_000
    assert (money(acme, "prepaid"), money(acme, "receivable")) == (had + 10_000, 0)
    assert_books_balance()
