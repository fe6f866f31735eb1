"""Tax, spot, late counts, refunds and documents of other currencies, each ending in books that balance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from marketplace.billing.models import Charge, Earning, Invoice, Payout, Statement
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.contracts.models import Entitlement
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind, Hold, LedgerAccount
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import account_id, close_hold, open_hold
from pricing.models import Grade
from pricing.rating import gross_up
from pricing.services import publish_grade
from pricing.units import Bucket, Ppm
from providers.models import Provider
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    PERIOD,
    accrue,
    assert_books_balance,
    award,
    identify,
    meter,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_plant

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL_2 = datetime(2026, 4, 2, tzinfo=UTC)
MAY_2 = datetime(2026, 5, 2, tzinfo=UTC)


def settle_hour(start: datetime, now: datetime | None = None) -> None:
    assert settle_period(settlement_start=start, now=now or start + DUE_AFTER).failed == []


def everything(currency: str = "USD") -> int:
    return sum(
        account.credits_posted_micros - account.debits_posted_micros
        for account in LedgerAccount.objects.filter(currency=currency)
    )


def open_holds() -> int:
    return Hold.objects.filter(status="open").count()


def test_spot_partly_used_with_tax_is_charged_taxed_and_invoiced(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    set_tax(acme, 190_000)
    won = award(acme, grade, [(plant, 10)], 300_001, now, now)
    assert pending(acme) == gross_up(3_001, 190_000) == 3_572
    meter(won.contract, won.rate, plant, 2 * LOT, now)
    settle_hour(now)
    lines = {charge.kind: charge for charge in Charge.objects.all()}
    assert (lines["spot"].amount_micros, lines["minimum_take"].amount_micros) == (600, 900)
    assert (lines["spot"].tax_held_micros, lines["minimum_take"].tax_held_micros) == (114, 171)
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS - 1_500, 285)
    assert Entitlement.objects.get().settled_at is not None
    assert_books_balance()
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (invoice.subtotal_micros, invoice.tax_micros, invoice.total_micros) == (1_500, 285, 0)
    assert invoice.lines.count() == 1
    # Below a cent all of it goes back, tax included; the tax itself is posted to the operator.
    assert (money(acme, "prepaid"), pending(acme), money(operator, "tax")) == (FUNDS, 0, 285)
    assert money(operator, "rounding") == -1_785
    assert (everything(), open_holds()) == (0, 0)
    assert_books_balance()


def test_a_month_with_spot_only_has_one_line_a_contract_and_day(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    first = award(acme, grade, [(plant, 100)], 500_000, now, now)
    for start in (now + PERIOD, now + timedelta(days=1), now + timedelta(days=1, hours=2)):
        won = award(acme, grade, [(plant, 100)], 500_000, start, now, contract=first.contract)
        meter(first.contract, won.rate, plant, 60 * LOT, start)
    for start in (now, now + timedelta(days=1), now + timedelta(days=1, hours=2)):
        settle_hour(start)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    lines = [(line.kind, line.amount_micros, line.period_start.day) for line in invoice.lines.all()]
    assert lines == [("spot", 25_000 + 30_000, 10), ("spot", 60_000, 11)]
    assert (invoice.total_micros, invoice.prepaid_micros, invoice.status) == (110_000, 110_000, "paid")
    assert_books_balance()


def test_late_usage_after_the_invoice_goes_to_the_next_one_with_its_tax(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    set_tax(acme, 200_000)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    accrue(contract, now, gross_up(60_000, 200_000), now)
    meter(contract, rate, plant, 100 * LOT, now)
    settle_hour(now)
    (march,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (march.subtotal_micros, march.tax_micros, march.total_micros) == (60_000, 12_000, 70_000)
    meter(contract, rate, plant, 50 * LOT, now)
    settle_hour(now, APRIL_2)
    late = Charge.objects.get(kind="adjustment")
    assert (late.amount_micros, late.tax_held_micros, late.numerator) == (30_000, 6_000, 50 * LOT)
    assert pending(acme) == 6_000
    assert issue_invoices(month_start=MARCH, now=APRIL_2) == []
    (april,) = issue_invoices(month_start=datetime(2026, 4, 1, tzinfo=UTC), now=MAY_2)
    assert (april.subtotal_micros, april.tax_micros, april.total_micros) == (30_000, 6_000, 30_000)
    assert [march.number, april.number] == ["TY-2026-000001", "TY-2026-000002"]
    assert money(operator, "tax") == 18_000
    assert money(acme, "prepaid") == FUNDS - 100_000
    assert (pending(acme), open_holds(), everything()) == (0, 0, 0)
    assert_books_balance()


def test_a_refund_after_the_invoice_waits_as_a_credit_and_gives_its_tax_back(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    set_tax(acme, 200_000)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    accrue(contract, now, gross_up(60_000, 200_000), now)
    meter(contract, rate, plant, 100 * LOT, now)
    settle_hour(now)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    meter(contract, rate, plant, -50 * LOT, now)
    settle_hour(now, APRIL_2)
    refund = Charge.objects.get(kind="adjustment")
    assert (refund.amount_micros, refund.numerator, refund.tax_held_micros) == (-30_000, -50 * LOT, 0)
    earning = Earning.objects.get(charge=refund)
    assert (earning.gross_micros, earning.fee_micros) == (-30_000, -1_500)
    assert (money(hyperion, "payable"), money(operator, "fees")) == (28_500, 1_500)
    assert issue_invoices(month_start=datetime(2026, 4, 1, tzinfo=UTC), now=MAY_2) == []
    assert not Invoice.objects.filter(status="draft").exists()
    may = datetime(2026, 5, 10, 12, tzinfo=UTC)
    accrue(contract, may, gross_up(90_000, 200_000), may)
    meter(contract, rate, plant, 150 * LOT, may)
    settle_hour(may)
    (invoice,) = issue_invoices(
        month_start=datetime(2026, 5, 1, tzinfo=UTC), now=datetime(2026, 6, 2, tzinfo=UTC)
    )
    assert (invoice.subtotal_micros, invoice.tax_micros, invoice.total_micros) == (60_000, 12_000, 70_000)
    assert invoice.number == "TY-2026-000002"
    assert money(operator, "tax") == 24_000
    assert (pending(acme), open_holds(), everything()) == (0, 0, 0)
    assert_books_balance()


def test_a_refund_that_the_provider_cannot_cover_comes_from_the_operator(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    identify(hyperion)
    Provider.objects.filter(organization_id=hyperion.id).update(
        self_billing_consent_at=now, payout_destination="iban-1"
    )
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    accrue(contract, now, 60_000, now)
    meter(contract, rate, plant, 100 * LOT, now)
    settle_hour(now)
    (statement,) = issue_statements(month_start=MARCH, now=APRIL_2)
    assert (statement.gross_micros, statement.net_micros) == (60_000, 57_000)
    (payout,) = pay_out_statements(now=APRIL_2)
    assert (payout.amount_micros, payout.status) == (50_000, "paid")
    assert money(hyperion, "payable") == 7_000
    meter(contract, rate, plant, -50 * LOT, now)
    settle_hour(now, APRIL_2)
    assert money(acme, "prepaid") == FUNDS - 30_000
    # 30,000 back: 7,000 of his, 1,500 of the fee, the rest the operator's.
    assert (money(hyperion, "payable"), money(operator, "fees")) == (0, 1_500)
    assert money(operator, "operator") == -21_500
    assert_books_balance()


def test_on_demand_over_two_settlement_periods_is_two_accruals_and_two_charges(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    for start, lots in ((now, 3), (now + HOUR, 5)):
        accrue(contract, start, lots * 600, now)
        meter(contract, rate, plant, lots * LOT, start)
    settle_hour(now)
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS - 1_800, 3_000)
    settle_hour(now + HOUR)
    charges = Charge.objects.order_by("period_start").values_list(
        "period_start", "period_end", "amount_micros"
    )
    assert list(charges) == [(now, now + HOUR, 1_800), (now + HOUR, now + 2 * HOUR, 3_000)]
    assert pending(acme) == 0
    assert_books_balance()


@pytest.mark.parametrize(
    ("currency", "minor", "whole"),
    [("JPY", 1_000_000, 61_000_000), ("KWD", 1_000, 61_230_000), ("USD", 10_000, 61_230_000)],
)
def test_documents_and_payouts_are_in_whole_units_of_the_currency(
    acme: Party,
    hyperion: Party,
    operator: Party,
    now: datetime,
    settings: Any,
    currency: str,
    minor: int,
    whole: int,
) -> None:
    settings.MARKET_CURRENCY = currency
    grade = publish_grade(
        slug="tiny-money",
        title="Tiny money",
        model="tiny-money",
        precision_floor="fp16",
        context_tokens=2048,
        region="eu",
        service_class="standard",
        currency=currency,
        tokenizer_digest="bytes",
        weights_ppm={Bucket.OUTPUT: Ppm(1_000_000), Bucket.UNCACHED_INPUT: Ppm(1_000_000)},
        kappa_ppm={Bucket.OUTPUT: Ppm(1_000_000), Bucket.UNCACHED_INPUT: Ppm(1_000_000)},
        max_request_s=15,
        max_output_tokens=2048,
        template_overhead_tokens=64,
        spot_minimum_take_ppm=500_000,
        reference_rate_micros_per_mtok=61_230_000,
        now=now,
    )
    plant = make_plant(
        hyperion, grade, now, list_rate=61_230_567, firm_rate=50_000_000, spot_floor=20_000_000
    )
    identify(hyperion)
    Provider.objects.filter(organization_id=hyperion.id).update(
        self_billing_consent_at=now, payout_destination="iban-1"
    )
    fund(acme, 1_000_000_000, now)
    assert balance(organization_id=acme.id, kind="prepaid", currency=currency).posted_micros == 1_000_000_000
    contract = on_demand(acme, grade, now)
    accrue(contract, now, 61_230_567, now)
    meter(contract, plant.offering.list_rate, plant, 1000 * LOT, now)
    settle_hour(now)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert (invoice.currency, invoice.subtotal_micros, invoice.total_micros) == (currency, 61_230_567, whole)
    assert invoice.rounding_micros == 61_230_567 - whole
    (statement,) = issue_statements(month_start=MARCH, now=APRIL_2)
    net = 61_230_567 - 3_061_528
    assert (statement.currency, statement.net_micros) == (currency, net)
    (payout,) = pay_out_statements(now=APRIL_2)
    assert payout.amount_micros == net // minor * minor
    held = balance(organization_id=hyperion.id, kind="payable", currency=currency)
    assert held.posted_micros == net % minor
    assert everything(currency) == 0
    assert_books_balance()


def test_a_payout_waits_for_consent_and_destination_and_is_sent_once(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    accrue(contract, now, 60_000, now)
    meter(contract, rate, plant, 100 * LOT, now)
    settle_hour(now)
    issue_statements(month_start=MARCH, now=APRIL_2)
    identify(hyperion)
    profile = Provider.objects.filter(organization_id=hyperion.id)
    profile.update(self_billing_consent_at=None, payout_destination="iban-1")
    assert pay_out_statements(now=APRIL_2) == []
    profile.update(self_billing_consent_at=timezone.now(), payout_destination="")
    assert pay_out_statements(now=APRIL_2) == []
    profile.update(payout_destination="iban-1")
    assert len(pay_out_statements(now=APRIL_2)) == 1
    assert pay_out_statements(now=APRIL_2) == []
    assert (Payout.objects.count(), Statement.objects.count()) == (1, 1)
    assert (money(hyperion, "payable"), pending(hyperion, "payable")) == (7_000, 0)
    assert_books_balance()


def test_a_spot_award_whose_late_usage_finds_no_money_fails_alone_and_is_settled_after_a_top_up(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000, now)
    won = award(acme, grade, [(plant, 10)], 300_000, now, now)
    settle_hour(now)
    rest = balance(organization_id=acme.id, kind="prepaid", currency="USD").available_micros
    assert rest == 10_000 - 1_500
    spent = account_id(organization_id=acme.id, kind=AccountKind.PREPAID, currency="USD", now=now)
    blocking = uuid7()
    open_hold(id=blocking, account_id=spent, amount_micros=rest, code="test", now=now)
    meter(won.contract, won.rate, plant, 9 * LOT, now)
    result = settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert len(result.failed) == 1
    assert "insufficient_funds" in result.failed[0][1]
    assert_books_balance()
    close_hold(id=blocking, status="voided", now=now)
    settle_hour(now)
    assert money(acme, "prepaid") == 10_000 - 2_700
    assert_books_balance()
