"""Prepaid committed months: charged at their start, earned as delivered, the rest by allocation at their end."""

from __future__ import annotations

from datetime import datetime, timedelta

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, Earning
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract, Entitlement
from marketplace.contracts.services import accept_quote, request_quote
from marketplace.ids import uuid7
from marketplace.periods import settlement_period
from pricing.models import Grade
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
from tests.cast import Party, Plant, fund

VOLUME = 10_000
PRICE = 5_000_000  # 10,000 lots = 10 Mtok at 0.50


def buy(buyer: Party, grade: Grade, now: datetime, start: datetime) -> Contract:
    quote = request_quote(
        organization_id=buyer.id,
        grade_slug=grade.family.slug,
        firm_lots=100,
        volume_lots=VOLUME,
        months=1,
        starts_at=start,
        take_share_ppm=0,
        overage_policy="stop",
        payment="prepaid",
        now=now,
    )
    return accept_quote(
        organization_id=buyer.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=SYSTEM
    )


def test_a_month_is_charged_once_at_its_start_out_of_its_hold(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 100_000)
    fund(acme, 6_000_000, now)
    start = now + HOUR
    buy(acme, grade, now, start)
    assert (money(acme, "prepaid"), pending(acme)) == (6_000_000, 5_500_000)
    assert charge_committed_months(now=now).charged == []
    assert len(charge_committed_months(now=start).charged) == 1
    assert charge_committed_months(now=start).charged == []
    fee = Charge.objects.get()
    assert (fee.kind, fee.amount_micros, fee.tax_held_micros) == ("committed_fee", PRICE, 500_000)
    assert (money(acme, "prepaid"), pending(acme), money(acme, "deferred")) == (1_000_000, 500_000, PRICE)
    assert Entitlement.objects.get().paid_at == start
    assert_books_balance()


def test_delivery_is_earned_and_the_month_end_pays_the_rest(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start)
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    meter(contract, month.rate, plant, 2_000 * LOT, start)
    settle_period(settlement_start=start, now=start + DUE_AFTER)
    usage = Charge.objects.get(kind="usage")
    assert (usage.numerator, usage.amount_micros, usage.rate_micros_per_mtok) == (2_000 * LOT, 0, 0)
    assert (money(acme, "deferred"), money(hyperion, "payable"), money(operator, "fees")) == (
        PRICE - 1_000_000,
        950_000,
        50_000,
    )
    assert settle_period(settlement_start=start, now=start + DUE_AFTER).settled == []
    last = settlement_period(month.period_end - timedelta(seconds=1))
    settle_period(settlement_start=last.start, now=last.start + DUE_AFTER)
    assert (money(acme, "deferred"), money(hyperion, "payable"), money(operator, "fees")) == (
        0,
        4_750_000,
        250_000,
    )
    assert money(acme, "prepaid") == FUNDS - PRICE
    assert sum(earning.gross_micros for earning in Earning.objects.all()) == PRICE
    assert Entitlement.objects.get().settled_at is not None
    settle_period(settlement_start=last.start, now=last.start + 2 * DUE_AFTER)
    assert money(hyperion, "payable") == 4_750_000
    assert_books_balance()
