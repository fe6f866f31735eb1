"""Service credits: a slow settlement period gives part of the gross back, once (docs/service-levels.md)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, connection, transaction

from marketplace.billing.auditing import check_charges
from marketplace.billing.models import (
    Charge,
    DeliveryOutcome,
    Earning,
    InvoiceLine,
    ServiceFigure,
    ServicePeriod,
    StatementLine,
)
from marketplace.billing.service_periods import latest_service_periods
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import SettlementResult, settle_due_periods, settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ledger.models import AccountKind, Transfer
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.periods import settlement_period
from metering.models import UsageEvent
from metering.services import gateway_source, void_event
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.served import FIRST_TOKEN, OUTPUT_TOKEN, promise, serve
from tests.billing.test_audit_committed import buy as buy_committed
from tests.billing.test_committed import PRICE, buy
from tests.billing.test_disputes import supply
from tests.billing.test_failures import pay_out, silence
from tests.billing.test_focus import fetch, total
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    HOUR,
    LOT,
    accrue,
    assert_books_balance,
    award,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund, make_plant

FAST, SLOW = 100, 900
# 19 of 20 are the p95: two slow ones break it.
BROKEN = [FAST] * 18 + [SLOW] * 2
KEPT = [FAST] * 19 + [SLOW]


@pytest.fixture
def rich_acme(acme: Party, now: datetime) -> Party:
    fund(acme, FUNDS, now)
    return acme


@pytest.fixture
def contract(rich_acme: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    """On demand, at 600 micros a request, of a grade with both levels."""
    promise(grade, FIRST_TOKEN, OUTPUT_TOKEN)
    made = on_demand(rich_acme, grade, now)
    supply(made, plant, now)
    return made


def settle(start: datetime) -> SettlementResult:
    return settle_period(settlement_start=start, now=start + DUE_AFTER)


def charges() -> list[tuple[str, int]]:
    return list(Charge.objects.order_by("settlement__run", "kind").values_list("kind", "amount_micros"))


def assert_audited(now: datetime) -> None:
    check = check_charges(since=now)
    assert (check.unsettled, check.differences) == (0, [])
    assert_books_balance()


def test_a_slow_period_gives_the_buyer_part_of_it_back_at_the_providers_cost(
    contract: Contract, rich_acme: Party, hyperion: Party, operator: Party, plant: Plant, now: datetime
) -> None:
    """20 requests of 600 micros, the p95 at 900 ms where 500 were promised: 10% of 12,000 (the page's example)."""
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    [settled] = settle(now).settled
    assert charges() == [("service_credit", -1_200), ("usage", 12_000)]
    assert settled.amount_micros == 10_800
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 10_800, 0)
    # The market's fee is of the usage; it takes nothing of the credit and gives nothing back.
    assert (money(hyperion, "payable"), money(operator, "fees")) == (12_000 - 600 - 1_200, 600)
    assert money(operator, "operator") == 0
    earning = Earning.objects.get(charge__kind="service_credit")
    assert (earning.gross_micros, earning.fee_micros, earning.numerator) == (-1_200, 0, 0)
    assert Transfer.objects.get(code="service_credit").amount_micros == 1_200
    row = ServicePeriod.objects.get()
    assert (row.period_start, row.period_end) == (now, now + HOUR)
    assert (row.gross_micros, row.remedy_micros, row.credit_micros) == (12_000, 0, 1_200)
    figures = {
        one.level.metric: (one.requests, one.measured_us, one.is_broken)
        for one in row.figures.select_related("level")
    }
    # 1,000 ms for 999 tokens after the first.
    assert figures == {"first_token": (20, 900_000, True), "output_token": (20, 1_001, False)}
    assert_audited(now)


def test_settling_again_changes_nothing(
    contract: Contract, rich_acme: Party, plant: Plant, now: datetime
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    before = (Transfer.objects.count(), ServicePeriod.objects.count(), ServiceFigure.objects.count())
    assert settle(now).settled == []
    assert settle_due_periods(now=now + 2 * DUE_AFTER).settled == []
    assert before == (Transfer.objects.count(), ServicePeriod.objects.count(), ServiceFigure.objects.count())
    assert charges() == [("service_credit", -1_200), ("usage", 12_000)]


@pytest.mark.parametrize(
    ("first_ms", "why"),
    [
        (KEPT, "one in twenty may be slow"),
        ([SLOW] * 19, "nineteen say nothing"),
        ([500] * 20, "the limit holds"),
    ],
)
def test_no_credit_without_a_broken_level(
    contract: Contract, plant: Plant, now: datetime, first_ms: list[int], why: str
) -> None:
    serve(contract, plant, now, first_ms)
    accrue(contract, now, 12_000, now)
    settle(now)
    assert [kind for kind, _ in charges()] == ["usage"], why
    row = ServicePeriod.objects.get()
    assert (row.credit_micros, row.figures.filter(is_broken=True).exists()) == (0, False)
    assert_audited(now)


def test_both_levels_broken_add_up_and_the_sum_is_rounded_once(
    contract: Contract, plant: Plant, now: datetime
) -> None:
    """30 s for 999 tokens are 30,030 us each: 15% of 20 x 600 micros."""
    serve(contract, plant, now, [SLOW] * 20, duration_ms=30_900)
    accrue(contract, now, 12_000, now)
    settle(now)
    assert ("service_credit", -1_800) in charges()


def test_a_grade_without_levels_is_not_measured(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    supply(contract, plant, now)
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    assert charges() == [("usage", 12_000)]
    assert not ServicePeriod.objects.exists()


def test_late_usage_settles_the_credit_again_by_its_difference(
    contract: Contract, rich_acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    # Two more slow ones: 4 of 22; 10% of 13,200.
    serve(contract, plant, now, [SLOW] * 2)
    settle(now)
    assert charges()[2:] == [("adjustment", 1_200), ("service_credit", -120)]
    # Fast ones mend the period: the credit is taken back, out of the balance.
    serve(contract, plant, now, [FAST] * 78)
    settle(now)
    assert charges()[4:] == [("adjustment", 46_800), ("service_credit", 1_320)]
    assert money(rich_acme, "prepaid") == FUNDS - 60_000
    assert money(hyperion, "payable") == 57_000
    rows = ServicePeriod.objects.order_by("run")
    assert list(rows.values_list("run", "gross_micros", "credit_micros")) == [
        (1, 12_000, 1_200),
        (2, 13_200, 1_320),
        (3, 60_000, 0),
    ]
    assert latest_service_periods().get().run == 3
    assert_audited(now)


def test_usage_that_is_voided_takes_its_credit_with_it(
    contract: Contract, rich_acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    for event in UsageEvent.objects.all():
        void_event(
            source_id=gateway_source(now).id, event_id=event.id, reason="a test", actor="operator", now=now
        )
    settle(now)
    assert (money(rich_acme, "prepaid"), money(hyperion, "payable")) == (FUNDS, 0)
    latest = latest_service_periods().get()
    assert (latest.run, latest.gross_micros, latest.credit_micros) == (2, 0, 0)
    assert list(latest.figures.values_list("requests", "measured_us")) == [(0, None), (0, None)]
    assert_audited(now)


def test_each_offering_is_measured_and_pays_for_itself(
    contract: Contract, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    other = make_plant(hyperion, grade, now, name="h2")
    supply(contract, other, now)
    serve(contract, plant, now, [FAST] * 20)
    serve(contract, other, now, [SLOW] * 20)
    accrue(contract, now, 24_000, now)
    settle(now)
    rows = dict(ServicePeriod.objects.values_list("offering_id", "credit_micros"))
    assert rows == {plant.offering.id: 0, other.offering.id: 1_200}
    [earning] = Earning.objects.filter(charge__kind="service_credit")
    assert earning.offering_id == other.offering.id
    assert_audited(now)


def test_long_requests_are_not_measured_where_the_level_says_so(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """A buyer cannot break a level with prompts that it never spoke of."""
    promise(grade, replace(FIRST_TOKEN, max_input_tokens=512))
    contract = on_demand(rich_acme, grade, now)
    supply(contract, plant, now)
    serve(contract, plant, now, [FAST] * 20)
    long = {Bucket.UNCACHED_INPUT: 500, Bucket.CACHE_READ: 13, Bucket.OUTPUT: 1_000}
    serve(contract, plant, now, [SLOW] * 20, buckets=long)
    accrue(contract, now, 50_000, now)
    settle(now)
    assert [kind for kind, _ in charges()] == ["usage"]
    assert ServiceFigure.objects.get().requests == 20


def test_the_market_pays_what_the_provider_cannot_and_is_repaid_first(
    contract: Contract, rich_acme: Party, hyperion: Party, operator: Party, plant: Plant, now: datetime
) -> None:
    """The credit grows by what nobody was paid for: a payable account never goes below zero."""
    serve(contract, plant, now, [FAST] * 20)
    accrue(contract, now, 12_000, now)
    settle(now)
    pay_out(hyperion, operator, 11_400, now)
    # One slow request more makes 570 net; 20 of them are slow at once when three are: 10% of 13,200.
    serve(contract, plant, now, [SLOW] * 2)
    settle(now)
    assert charges()[1:] == [("adjustment", 1_200), ("service_credit", -1_320)]
    assert (money(hyperion, "payable"), money(operator, "operator")) == (0, 1_140 - 1_320)
    serve(contract, plant, now, [FAST] * 38)
    settle(now)
    assert charges()[3:] == [("adjustment", 22_800), ("service_credit", 1_320)]
    assert money(operator, "operator") == 0
    assert money(hyperion, "payable") == (22_800 - 1_140) + 1_140
    assert_audited(now)


def test_a_remedy_for_the_same_period_is_not_doubled(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """60 lots at 0.30, down for half the period: 29.4 lots' penalty. 20 slow lots of 300 micros: 10% of 6,000.

    The remedy is 882 and the credit would have been 600: the buyer has the larger one. 20 more lots, late, leave 19.4
    for the penalty and make 10% of 12,000: the buyer has that altogether.
    """
    promise(grade, FIRST_TOKEN)
    first = award(rich_acme, grade, [(plant, 60)], 300_000, now, now)
    silence(plant, now, first_s=60, last_s=210)
    spot = {"rate_id": first.rate_id}
    serve(first.contract, plant, now, [SLOW] * 20, **spot)
    settle(now)
    assert dict(charges())["remedy"] == -882
    assert "service_credit" not in dict(charges())
    row = ServicePeriod.objects.get()
    assert (row.gross_micros, row.remedy_micros, row.credit_micros) == (6_000, 882, 0)
    assert row.figures.get().is_broken
    assert_audited(now)

    serve(first.contract, plant, now, [SLOW] * 20, **spot)
    settle(now)
    latest = latest_service_periods().get()
    remedy = sum(DeliveryOutcome.objects.order_by("-run").values_list("remedy_micros", flat=True)[:1])
    assert (latest.gross_micros, latest.remedy_micros) == (12_000, remedy)
    assert latest.credit_micros == 1_200 - remedy
    total = sum(
        Charge.objects.filter(kind__in=["remedy", "service_credit"]).values_list("amount_micros", flat=True)
    )
    assert total == -1_200
    assert_audited(now)


def test_a_paid_month_gives_its_credit_to_the_balance_and_still_ends_at_nothing(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """20 of 10,000 lots at 0.50, all slow: 10% of 10,000 micros, not out of what was paid ahead."""
    promise(grade, FIRST_TOKEN)
    fund(acme, FUNDS, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start)
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    serve(contract, plant, start, [SLOW] * 20, rate_id=month.rate_id)
    settle(start)
    assert (money(acme, "prepaid"), money(acme, "deferred")) == (FUNDS - PRICE + 1_000, PRICE - 10_000)
    assert money(hyperion, "payable") == 9_500 - 1_000
    assert settle(start).settled == []
    last = settlement_period(month.period_end - timedelta(seconds=1))
    settle_period(settlement_start=last.start, now=last.start + DUE_AFTER)
    assert (money(acme, "deferred"), money(operator, "fees")) == (0, 250_000)
    assert money(hyperion, "payable") == 4_750_000 - 1_000
    # Late and slow, into a month whose fee is paid out: no usage is charged, and the credit grows.
    serve(contract, plant, start, [SLOW] * 20, rate_id=month.rate_id)
    settle(start)
    assert money(acme, "prepaid") == FUNDS - PRICE + 2_000
    assert money(acme, "deferred") == 0
    assert_audited(now)


def test_in_arrears_the_credit_lowers_what_is_owed(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    promise(grade, FIRST_TOKEN)
    limit = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=limit, limit_micros=FUNDS)
    start = now + HOUR
    contract = buy_committed(acme, grade, now, start, payment="arrears")
    assert contract.rate is not None
    serve(contract, plant, start, [SLOW] * 20, rate_id=contract.rate_id)
    settle(start)
    assert dict(charges()) == {"usage": 10_000, "service_credit": -1_000}
    assert money(acme, "receivable") == -9_000
    assert money(hyperion, "payable") == 9_500 - 1_000
    assert_audited(now)


def test_invoice_and_statement_carry_the_credit(
    contract: Contract, rich_acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    set_tax(rich_acme, 200_000)
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 14_400, now)
    settle(now)
    [invoice] = issue_invoices(month_start=now.replace(day=1, hour=0), now=now + DUE_AFTER, early=True)
    line = InvoiceLine.objects.get(invoice=invoice, kind="service_credit")
    assert (line.amount_micros, line.numerator) == (-1_200, 0)
    assert line.description.startswith("Service credit")
    # The tax is of what is left: 20% of 10,800.
    assert (invoice.subtotal_micros, invoice.tax_micros) == (10_800, 2_160)
    [statement] = issue_statements(month_start=now.replace(day=1, hour=0), now=now + DUE_AFTER, early=True)
    stated = StatementLine.objects.get(statement=statement, description__startswith="Service credit")
    assert (stated.gross_micros, stated.fee_micros) == (-1_200, 0)
    assert statement.net_micros == 12_000 - 600 - 1_200
    assert_audited(now)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing_serviceperiod SET credit_micros = 0",
        "DELETE FROM billing_servicefigure",
        "UPDATE pricing_servicelevel SET limit_us = 1",
        "DELETE FROM pricing_servicelevel",
    ],
)
def test_what_was_promised_and_measured_stays(
    contract: Contract, plant: Plant, now: datetime, statement: str
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_lots_are_what_a_request_is() -> None:
    """The figures of this file rest on it: 1,000 output tokens at 1.0 standard tokens each."""
    assert LOT == 1_000 * 1_000_000


def test_buyer_and_provider_read_what_was_measured_and_mallory_nothing(
    contract: Contract, rich_acme: Party, hyperion: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    for start in (now, now + HOUR):
        serve(contract, plant, start, BROKEN)
        accrue(contract, start, 12_000, now)
        settle(start)
    path = f"/api/v1/service-periods?contract_id={contract.id}"
    for party in (rich_acme, hyperion):
        first = party.api.get(f"{path}&page_size=1").json()
        [item] = first["items"]
        assert (item["period_start"], item["credit_micros"]) == ("2026-03-10T13:00:00Z", 1_200)
        assert item["figures"][0] == {
            "metric": "first_token",
            "percentile": 95,
            "limit_us": 500_000,
            "credit_ppm": 100_000,
            "minimum_requests": 20,
            "max_input_tokens": None,
            "requests": 20,
            "measured_us": 900_000,
            "is_broken": True,
        }
        rest = party.api.get(f"{path}&page_size=1&cursor={first['next']}").json()
        assert [item["period_start"] for item in rest["items"]] == ["2026-03-10T12:00:00Z"]
        assert rest["next"] is None
    assert mallory.api.get(path).json()["items"] == []
    assert mallory.api.get("/api/v1/service-periods").json()["items"] == []
    for query, field in (("offering_id=nothing", "offering_id"), ("contract=x", "contract")):
        answer = rich_acme.api.get(f"/api/v1/service-periods?{query}")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_the_focus_export_shows_a_credit_and_still_sums_to_the_charges(
    contract: Contract, rich_acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    serve(contract, plant, now, BROKEN)
    accrue(contract, now, 12_000, now)
    settle(now)
    # To the provider a credit is a cost, as what he earns is the opposite of one.
    for party, cost, sum_micros in ((rich_acme, "-0.0012", 10_800), (hyperion, "0.0012", -10_200)):
        rows = fetch(party, since="2026-03-01T00:00:00Z", until="2026-04-01T00:00:00Z")
        [credit] = [row for row in rows if row["x_ChargeKind"] == "service_credit"]
        assert (credit["BilledCost"], credit["ChargeCategory"]) == (
            cost,
            "Credit" if party is rich_acme else "Usage",
        )
        assert total(rows) == Decimal(sum_micros) / 10**6
