"""Who bears what is given back keeps an account for each thing that was given back (docs/failures.md)."""

from __future__ import annotations

from datetime import datetime, timedelta

from marketplace.billing.models import Charge, Earning, MonthOutcome
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Entitlement
from marketplace.ledger.selectors import balance
from marketplace.orders.models import Bid
from pricing.models import Grade
from tests.billing.test_failures import pay_out
from tests.billing.test_month_ends import buy, outage, settle_all
from tests.billing.test_releases import settle
from tests.billing.world import DUE_AFTER, FUNDS, LOT, assert_books_balance, meter, money
from tests.cast import Party, Plant, fund, make_party
from tests.orders.test_releases import FUNDS as RESOLD_FUNDS
from tests.orders.test_releases import buy as buy_firm
from tests.orders.test_releases import let_go
from tests.orders.world import bid_of, run_round


def test_the_first_periods_remedy_comes_back_to_who_bore_it_whoever_bore_the_months_refund(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The provider bore the remedy, the market a refund of the same kind, rate and beginning: two accounts."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    outage(plant, start, 150)
    meter(contract, month.rate, plant, 20 * LOT, start)
    settle_all(month, hours=[start])
    assert MonthOutcome.objects.get().refunded_micros == 25_000
    assert money(operator, "operator") == 0
    pay_out(hyperion, operator, money(hyperion, "payable"), month.period_end)
    # An outage that is known late: its remedy and more of the refund, and he has nothing left but the fee of it.
    later = start + timedelta(hours=2)
    outage(plant, later, 150)
    settle_period(settlement_start=later, now=month.period_end + 2 * DUE_AFTER)
    borne = -money(operator, "operator")
    assert (money(hyperion, "payable"), borne) == (0, 2_450 + 25_000 - 1_250)
    # Usage of the first period that comes late: 20 of its lots failed, not 50; 10% of 0.50 for 30 lots come back, and
    # of the refund 30 x 500 with the fee of them.
    meter(contract, month.rate, plant, 60 * LOT, start)
    settle_period(settlement_start=start, now=month.period_end + 3 * DUE_AFTER)
    back = Charge.objects.get(kind="remedy", settlement__run=2, settlement__settlement_start=start)
    assert (back.amount_micros, Earning.objects.get(charge=back).gross_micros) == (1_500, 1_500)
    assert money(hyperion, "payable") == 1_500
    assert money(operator, "operator") == -(borne - (15_000 - 750))
    assert_books_balance()


def test_what_the_market_bore_for_who_resold_lots_is_not_taken_from_the_hosts_share(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """One line, two sellers of one offering: acme has spent what must go back, the host has not."""
    fund(acme, RESOLD_FUNDS, now)
    contract = buy_firm(acme, grade, now)
    let_go(contract, now)
    borealis = make_party("Borealis", ["buyer"], now)
    fund(borealis, RESOLD_FUNDS, now)
    bid_of(borealis, now, steps=((300_000, 60),))
    run_round(plant, now)
    award = Entitlement.objects.select_related("rate", "contract").get(contract=Bid.objects.get().contract)
    meter(award.contract, award.rate, plant, 60 * LOT, award.period_start)
    settle(now)
    # All that acme has is held by a bid of his own.
    free = balance(organization_id=acme.id, kind="prepaid", currency="USD").available_micros
    bid_of(acme, now, client_id="all", steps=((4_000_000, free // 4_000),))
    meter(award.contract, award.rate, plant, -30 * LOT, award.period_start)
    settle(now)
    host, borne = money(hyperion, "payable"), -money(operator, "operator")
    assert (host, borne > 0) == (1_900, True)
    # It was counted wrongly the second time: the host gets his third back, the market what it bore for acme.
    meter(award.contract, award.rate, plant, 30 * LOT, award.period_start)
    settle(now)
    assert (money(hyperion, "payable"), money(operator, "operator")) == (3_800, 0)
    assert_books_balance()
