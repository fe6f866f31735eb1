"""The FOCUS export: every mandatory column and rule of version 1.2, and sums that meet the books exactly."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
import time_machine
from hypothesis import given
from hypothesis import strategies as st

from marketplace.accounts.services import SYSTEM, create_api_key
from marketplace.api.exporting import export
from marketplace.billing.focus.charges import Billed, Month, charge_rows
from marketplace.billing.focus.rows import COLUMNS, Document, Good, Used
from marketplace.billing.models import Charge, ChargeKind, Invoice, Statement
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.contracts.models import Contract, Entitlement
from marketplace.periods import calendar_month, settlement_period
from metering.models import UsageRollup
from pricing.models import Grade, Rate
from pricing.rating import price_of
from pricing.units import Bucket, decimal_string
from tests.billing.test_committed import PRICE, buy
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, PERIOD, accrue, award, on_demand, set_tax
from tests.cast import Party, Plant, fund

MANDATORY_NOT_NULL = {
    "BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
    "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost",
    "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
}  # fmt: skip
MANDATORY = MANDATORY_NOT_NULL | {
    "BillingAccountName", "ChargeClass", "ChargeDescription", "PricingQuantity", "PricingUnit",
}  # fmt: skip
CONDITIONAL = {
    "BillingAccountType", "CapacityReservationId", "CapacityReservationStatus", "CommitmentDiscountCategory",
    "CommitmentDiscountId", "CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountStatus",
    "CommitmentDiscountType", "CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedUnitPrice",
    "ListUnitPrice", "PricingCategory", "PricingCurrency", "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice", "RegionId", "RegionName", "ResourceId",
    "ResourceName", "ResourceType", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId",
    "SubAccountName", "SubAccountType", "Tags",
}  # fmt: skip
RECOMMENDED = {"AvailabilityZone", "ChargeFrequency", "InvoiceId", "ServiceSubcategory"}
NUMBERS = {
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "ListUnitPrice", "ContractedUnitPrice",
    "PricingQuantity", "ConsumedQuantity", "CommitmentDiscountQuantity", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice", "x_StandardTokens",
    "x_EstimatedStandardTokens",
}  # fmt: skip
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "CommitmentDiscountCategory": {"Spend", "Usage"},
    "CommitmentDiscountStatus": {"Used", "Unused"},
    "CapacityReservationStatus": {"Used", "Unused"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
}
PPM = {"uncached_input": 250_000, "cache_read": 25_000, "output": 1_000_000}
Row = dict[str, Any]
SOME_KEY = UUID(int=1)
PURE_KINDS = sorted(set(ChargeKind.values) - {"committed_fee", "remedy", "service_credit"})


def check(row: Row) -> None:
    """The rules of FOCUS 1.2 for one row, as NDJSON has it."""
    assert set(row) == set(COLUMNS)
    assert [name for name in MANDATORY_NOT_NULL if row[name] is None] == []
    for name, allowed in ALLOWED.items():
        assert row[name] is None or row[name] in allowed, name
    for name in NUMBERS:
        assert row[name] is None or (isinstance(row[name], str) and Decimal(row[name]).is_finite()), name
        assert row[name] is None or "e" not in row[name].lower()
    for name in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"):
        assert row[name].endswith("Z"), name
    assert row["BillingPeriodStart"] < row["BillingPeriodEnd"]
    assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    category, correction = row["ChargeCategory"], row["ChargeClass"] == "Correction"
    priced = category in ("Usage", "Purchase") and not correction
    if category == "Tax":
        for name in (
            "PricingQuantity",
            "PricingUnit",
            "SkuId",
            "SkuPriceId",
            "ListUnitPrice",
            "PricingCategory",
        ):
            assert row[name] is None, name
    if priced:
        assert row["PricingQuantity"] is not None
        assert row["SkuId"] is not None
    assert (row["PricingQuantity"] is None) == (row["PricingUnit"] is None)
    assert (row["ConsumedQuantity"] is None) == (row["ConsumedUnit"] is None)
    if category != "Usage" or row["CommitmentDiscountStatus"] == "Unused":
        assert row["ConsumedQuantity"] is None
    elif not correction:
        assert Decimal(row["ConsumedQuantity"]) >= 0
    for price, cost in (("ContractedUnitPrice", "ContractedCost"), ("ListUnitPrice", "ListCost")):
        if row[price] is not None:
            assert Decimal(row[price]) >= 0
            assert Decimal(row[price]) * Decimal(row["PricingQuantity"]) == Decimal(row[cost]), price
    if row["SkuPriceId"] is None:
        assert row["SkuPriceDetails"] is None
    committed = row["CommitmentDiscountId"] is not None
    for name in ("CommitmentDiscountCategory", "CommitmentDiscountType", "CommitmentDiscountUnit"):
        assert (row[name] is not None) == committed, name
    assert (row["CommitmentDiscountStatus"] is not None) == (committed and category == "Usage")
    assert (row["CapacityReservationStatus"] is None) == (row["CapacityReservationId"] is None)
    if committed and category == "Purchase":
        assert Decimal(row["EffectiveCost"]) == 0
    assert row["PricingCurrency"] == row["BillingCurrency"]
    assert isinstance(row["Tags"], dict)


def fetch(party: Party, **parameters: str) -> list[Row]:
    """As NDJSON, checked; the CSV of the same question says the same."""
    answer = party.api.get("/api/v1/exports/focus", {**parameters, "format": "ndjson"})
    assert answer.status_code == 200, answer.getvalue()
    rows = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    for row in rows:
        check(row)
    text = party.api.get("/api/v1/exports/focus", parameters).getvalue().decode()
    table = list(csv.reader(io.StringIO(text)))
    assert table[0] == list(COLUMNS)
    assert len(table) == len(rows) + 1
    for line, row in zip(table[1:], rows, strict=True):
        for name, cell in zip(COLUMNS, line, strict=True):
            assert cell == cell_of(row[name]), name
    return rows


def cell_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return f"'{value}" if str(value)[:1] in tuple("=+@") else str(value)


def total(rows: Iterable[Row], name: str = "BilledCost") -> Decimal:
    return sum((Decimal(row[name]) for row in rows if row[name] is not None), Decimal(0))


def money(micros: int) -> Decimal:
    return Decimal(decimal_string(micros, 6))


def use(
    contract: Contract, rate: Rate, plant: Plant, at: datetime, *, key: UUID = SOME_KEY, **tokens: int
) -> int:
    """Roll-ups of the gateway as ingestion leaves them; the numerator they add."""
    numerators = {bucket: count * PPM[bucket] for bucket, count in tokens.items()}
    for bucket, count in tokens.items():
        UsageRollup.objects.create(
            contract_id=contract.id,
            rate_id=rate.id,
            api_key_id=key,
            offering_id=plant.offering.id,
            bucket=bucket,
            meter="gateway",
            period_start=at,
            grade_id=rate.grade_id,
            events=1,
            native_tokens=count,
            numerator=numerators[bucket],
        )
    return sum(numerators.values())


MONTH = {"since": "2026-03-01T00:00:00Z", "until": "2026-04-01T00:00:00Z"}


def test_the_columns_are_those_of_the_specification() -> None:
    assert set(COLUMNS) >= MANDATORY | CONDITIONAL | RECOMMENDED
    assert len(set(COLUMNS)) == len(COLUMNS)
    own = set(COLUMNS) - MANDATORY - CONDITIONAL - RECOMMENDED
    assert [name for name in own if not name.startswith("x_")] == []


def test_on_demand_usage_is_one_row_per_bucket_and_project_and_sums_to_its_charge(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    keys = [
        create_api_key(
            organization_id=acme.id, label="", project=name, scopes=["read"], now=now, actor=SYSTEM
        )[0].id
        for name in ("=research()", "")
    ]
    use(contract, rate, plant, now, key=keys[0], uncached_input=333_333, output=77_777)
    use(contract, rate, plant, now + PERIOD, key=keys[1], uncached_input=1, cache_read=3, output=1)
    accrue(contract, now, 1_000_000, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    charge = Charge.objects.get()
    rows = fetch(acme, **MONTH)
    assert len(rows) == 5
    assert total(rows) == total(rows, "EffectiveCost") == money(charge.amount_micros)
    assert total(rows, "x_StandardTokens") * 10**6 == charge.numerator
    assert abs(total(rows, "ContractedCost") - money(charge.amount_micros)) < Decimal("0.000001")
    output = next(row for row in rows if row["x_TokenBucket"] == "output" and row["SubAccountId"])
    # 0.60 a million standard tokens; an output token counts for one.
    assert (output["ContractedUnitPrice"], output["PricingQuantity"]) == ("0.6", "0.077777")
    assert (output["ConsumedQuantity"], output["ConsumedUnit"], output["PricingUnit"]) == (
        "77777", "Tokens", "1000000 Tokens",
    )  # fmt: skip
    assert (output["SubAccountId"], output["SubAccountType"]) == ("=research()", "Project")
    assert output["Tags"] == {"project": "=research()"}
    assert output["PricingCategory"] == "Standard"
    assert output["SkuPriceDetails"]["TokenDirection"] == "Output"
    cached = next(row for row in rows if row["x_TokenBucket"] == "cache_read")
    assert (cached["ContractedUnitPrice"], cached["SkuMeter"]) == ("0.015", "Cache Read Input Tokens")
    details = cached["SkuPriceDetails"]
    assert (details["TokenDirection"], details["TokenCacheAction"], details["TokenType"]) == (
        "Input", "Read", "CacheRead",
    )  # fmt: skip
    assert {row["InvoiceId"] for row in rows} == {None}
    assert {row["x_ModelId"] for row in rows} == {"tiny-chat"}


def test_late_usage_is_a_correction_only_once_its_month_was_invoiced(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    use(contract, rate, plant, now, uncached_input=100_000, output=50_000)
    accrue(contract, now, 1_000_000, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    use(contract, rate, plant, now + PERIOD, uncached_input=1_001, output=777)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    before = fetch(acme, **MONTH)
    adjusted = [row for row in before if row["x_IsAdjustment"]]
    assert {row["ChargeClass"] for row in before} == {None}
    assert len(adjusted) == 2
    charges = {str(charge.id): charge for charge in Charge.objects.all()}
    for charge_id, charge in charges.items():
        own = [row for row in before if row["x_ChargeId"] == charge_id]
        assert total(own) == money(charge.amount_micros)
        assert total(own, "x_StandardTokens") * 10**6 == charge.numerator
    # Quantities of usage and adjustment together are what was metered.
    assert total((row for row in before if row["x_TokenBucket"] == "output"), "ConsumedQuantity") == 50_777
    assert total((row for row in before if row["x_TokenBucket"] != "output"), "ConsumedQuantity") == 101_001
    april = datetime(2026, 4, 1, 1, tzinfo=UTC)
    [invoice] = issue_invoices(month_start=datetime(2026, 3, 1, tzinfo=UTC), now=april)
    use(contract, rate, plant, now + 2 * PERIOD, output=333_333)
    settle_period(settlement_start=now, now=april)
    after = fetch(acme, **MONTH)
    corrections = [row for row in after if row["ChargeClass"] == "Correction"]
    assert {row["x_IsAdjustment"] for row in corrections} == {True}
    assert {row["BillingPeriodStart"] for row in corrections} == {"2026-04-01T00:00:00Z"}
    assert {row["ChargePeriodStart"] for row in corrections} == {"2026-03-10T12:00:00Z"}
    assert {row["InvoiceId"] for row in corrections} == {None}
    billed = [row for row in after if row["InvoiceId"] == invoice.number]
    assert total(billed) == money(invoice.total_micros)
    assert not any(row["ChargeClass"] for row in billed)
    assert total(corrections) == money(Charge.objects.order_by("created_at").last().amount_micros)  # type: ignore[union-attr]


def test_an_invoice_exported_alone_sums_to_its_total_with_tax_and_rounding(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 190_000)
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    use(contract, rate, plant, now, uncached_input=123_457, output=7_654_321)
    accrue(contract, now, 10_000_000, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    april = datetime(2026, 4, 1, 1, tzinfo=UTC)
    [invoice] = issue_invoices(month_start=datetime(2026, 3, 1, tzinfo=UTC), now=april)
    invoice = Invoice.objects.get(pk=invoice.pk)
    assert invoice.tax_micros
    assert invoice.rounding_micros
    rows = fetch(acme, invoice_id=str(invoice.id))
    assert total(rows) == money(invoice.total_micros)
    by_category = defaultdict(list)
    for row in rows:
        by_category[row["ChargeCategory"]].append(row)
    assert total(by_category["Tax"]) == money(invoice.tax_micros)
    assert total(by_category["Adjustment"]) == -money(invoice.rounding_micros)
    assert {row["InvoiceId"] for row in rows} == {invoice.number}
    assert {row["InvoiceIssuerName"] for row in rows} == {"Operator"}
    refused = mallory.api.get("/api/v1/exports/focus", {"invoice_id": str(invoice.id)})
    assert refused.status_code == 404


def test_a_prepaid_month_is_a_purchase_whose_cost_its_usage_bears(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    start = now + HOUR
    contract = buy(acme, grade, now, start)
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    for number in range(3):
        use(contract, month.rate, plant, start + number * HOUR, uncached_input=333 + number, output=1_234_567)
        settle_period(settlement_start=start + number * HOUR, now=start + number * HOUR + DUE_AFTER)
    wide = {"since": "2026-03-01T00:00:00Z", "until": "2026-05-01T00:00:00Z"}
    rows = fetch(acme, **wide)
    [purchase] = [row for row in rows if row["ChargeCategory"] == "Purchase"]
    assert (purchase["BilledCost"], purchase["EffectiveCost"], purchase["ChargeFrequency"]) == (
        "5",
        "0",
        "Recurring",
    )
    assert purchase["CommitmentDiscountQuantity"] == "10"
    usage = [row for row in rows if row["ChargeCategory"] == "Usage"]
    assert len(usage) == 6
    assert {row["CommitmentDiscountStatus"] for row in usage} == {"Used"}
    assert {row["PricingCategory"] for row in usage} == {"Committed"}
    assert total(usage) == 0
    last = settlement_period(month.period_end - timedelta(seconds=1))
    settle_period(settlement_start=last.start, now=last.start + DUE_AFTER)
    rows = fetch(acme, **wide)
    [unused] = [row for row in rows if row["CommitmentDiscountStatus"] == "Unused"]
    used = total(
        (row for row in rows if row["CommitmentDiscountStatus"] == "Used"), "CommitmentDiscountQuantity"
    )
    assert Decimal(unused["CommitmentDiscountQuantity"]) + used == 10
    # Amortised cost of the month is its price, to the micro.
    assert total(rows, "EffectiveCost") == money(PRICE)
    assert total(rows) == money(PRICE)
    # What it cost does not depend on which part of the month is asked for.
    part = {"since": "2026-03-10T14:00:00Z", "until": "2026-03-10T15:00:00Z"}
    assert fetch(acme, **part) == [row for row in rows if row["ChargePeriodStart"] == "2026-03-10T14:00:00Z"]


def test_a_spot_award_is_a_reservation_used_and_unused(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    won = award(acme, grade, [(plant, 10)], 400_000, now, now)
    use(won.contract, won.rate, plant, now, output=2_000)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    rows = fetch(acme, **MONTH)
    kinds = {row["x_ChargeKind"]: row for row in rows}
    assert set(kinds) == {"spot", "minimum_take"}
    assert {row["PricingCategory"] for row in rows} == {"Dynamic"}
    spot, kept = kinds["spot"], kinds["minimum_take"]
    assert (spot["CapacityReservationStatus"], kept["CapacityReservationStatus"]) == ("Used", "Unused")
    assert (kept["ConsumedQuantity"], kept["PricingQuantity"]) == ("0", "0.003")
    assert kept["PricingUnit"] == "1000000 Standard Tokens"
    assert total(rows) == money(sum(charge.amount_micros for charge in Charge.objects.all()))


def test_a_provider_gets_the_mirror_of_his_statement_and_no_buyer(
    acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract, rate = on_demand(acme, grade, now), plant.offering.list_rate
    key = create_api_key(
        organization_id=acme.id, label="", project="secret-project", scopes=["read"], now=now, actor=SYSTEM
    )[0].id
    use(contract, rate, plant, now, key=key, uncached_input=123_457, output=7_654_321)
    accrue(contract, now, 10_000_000, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    april = datetime(2026, 4, 1, 1, tzinfo=UTC)
    [statement] = issue_statements(month_start=datetime(2026, 3, 1, tzinfo=UTC), now=april)
    statement = Statement.objects.get(pk=statement.pk)
    rows = fetch(hyperion, statement_id=str(statement.id))
    assert fetch(hyperion, **MONTH) == rows
    assert total(rows) == -money(statement.net_micros)
    [fee] = [row for row in rows if row["SkuMeter"] == "Market fee"]
    assert Decimal(fee["BilledCost"]) == money(statement.fee_micros)
    supplied = {row["x_TokenBucket"]: row for row in rows if row["x_TokenBucket"]}
    assert supplied["output"]["ConsumedQuantity"] == "7654321"
    assert Decimal(supplied["output"]["BilledCost"]) < 0
    assert {row["InvoiceId"] for row in rows} == {statement.number}
    assert {row["ResourceId"] for row in rows} == {str(plant.offering.id)}
    text = json.dumps(rows)
    secrets = ("Acme", str(acme.id), str(contract.id), str(key), "secret-project", str(rate.id))
    assert [word for word in secrets if word in text] == []
    assert fetch(mallory, role="provider", **MONTH) == fetch(mallory, role="buyer", **MONTH) == []
    other = mallory.api.get("/api/v1/exports/focus", {"role": "provider", "statement_id": str(statement.id)})
    assert other.status_code == 404


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"since": "2026-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, "since"),
        ({"since": "2024-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, "since"),
        ({"since": "yesterday"}, "since"), ({"format": "json"}, "format"), ({"format": "xml"}, "format"),
        ({"role": "operator"}, "role"), ({"colour": "red"}, "colour"), ({"invoice_id": "7"}, "invoice_id"),
        ({"statement_id": "00000000-0000-0000-0000-000000000000"}, "statement_id"),
    ],
)  # fmt: skip
def test_a_bad_question_names_its_field(acme: Party, terms: dict[str, Any], field: str) -> None:
    answer = acme.api.get("/api/v1/exports/focus", terms)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_only_who_pays_or_earns_has_something_to_export(acme: Party, operator: Party) -> None:
    assert operator.api.get("/api/v1/exports/focus").json()["code"] == "role_missing"
    assert acme.api.get("/api/v1/exports/focus", {"role": "provider"}).json()["code"] == "role_missing"


def test_the_default_is_the_month_that_runs(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    with time_machine.travel(now, tick=False):
        answer = acme.api.get("/api/v1/exports/focus")
    assert answer["Content-Disposition"] == 'attachment; filename="focus-20260301-20260310.csv"'
    assert answer.getvalue().decode() == ",".join(COLUMNS) + "\r\n"


# Pure -------------------------------------------------------------------------------------------------------------

GOOD = Good(UUID(int=1), "tiny-chat", 1, "Tiny chat", "tiny-chat", "eu", 500_000, PPM)


def document(currency: str = "USD") -> Document:
    month = calendar_month(datetime(2026, 3, 10, tzinfo=UTC))
    return Document(UUID(int=2), "Acme", "Buyer", "Market", currency, month.start, month.end, None)


def charge(**changes: Any) -> Billed:
    terms: dict[str, Any] = {
        "id": UUID(int=3), "kind": "usage", "contract_id": UUID(int=4), "contract_kind": "on_demand",
        "rate_id": UUID(int=5), "rate_kind": "list", "rate_micros_per_mtok": 600_000, "is_contract_rate": False,
        "period_start": datetime(2026, 3, 10, tzinfo=UTC), "period_end": datetime(2026, 3, 10, 1, tzinfo=UTC),
        "numerator": 0, "amount_micros": 0, "is_correction": False,
    }  # fmt: skip
    return Billed(**(terms | changes))


def as_json(rows: Iterable[Any]) -> list[Row]:
    sent = export(rows, columns=COLUMNS, form="ndjson", filename="x").getvalue().decode()
    return [json.loads(line) for line in sent.splitlines()]


@given(
    tokens=st.lists(
        st.tuples(st.sampled_from(sorted(PPM)), st.sampled_from(["", "a", "b"]), st.integers(0, 10**12)),
        min_size=1, max_size=9, unique_by=lambda item: item[:2],
    ),
    cuts=st.lists(st.integers(0, 10**6), max_size=4),
    amount=st.integers(-(10**12), 10**12),
    kind=st.sampled_from(PURE_KINDS),
)  # fmt: skip
def test_the_parts_of_any_charge_sum_to_it(
    tokens: list[tuple[str, str, int]], cuts: list[int], amount: int, kind: str
) -> None:
    used = [Used(bucket, project, count, count * PPM[bucket], 0) for bucket, project, count in tokens]
    whole = sum(item.numerator for item in used)
    places = [0, *sorted(whole * cut // 10**6 for cut in cuts), whole]
    found: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for before, after in pairwise(places):
        billed = charge(kind=kind, numerator=after - before, before=before, amount_micros=amount)
        rows = as_json(charge_rows(billed, used, GOOD, document()))
        for row in rows:
            check(row)
            if row["x_TokenBucket"]:
                found[row["x_TokenBucket"], row["SubAccountId"] or ""] += Decimal(row["ConsumedQuantity"])
        assert total(rows) == money(amount)
        assert total(rows, "x_StandardTokens") * 10**6 == after - before
    if found:
        assert found == {item[:2]: Decimal(item[2]) for item in tokens}


@given(
    entitled=st.integers(1, 10**15),
    shares=st.lists(st.integers(0, 10**6), max_size=6),
    rate=st.integers(0, 10**9),
)
def test_a_month_costs_what_was_paid_for_it_however_it_was_used(
    entitled: int, shares: list[int], rate: int
) -> None:
    numerators = [entitled * share // 10**6 for share in shares]
    delivered = sum(numerators)
    fee = price_of(entitled, rate)
    terms = {
        "contract_kind": "committed", "is_contract_rate": True, "rate_kind": "contracted",
        "rate_micros_per_mtok": rate,
    }  # fmt: skip
    rows = as_json(
        charge_rows(
            charge(
                kind="committed_fee", numerator=entitled, amount_micros=fee,
                month=Month(entitled, 0, delivered, True), **terms,
            ),
            [], GOOD, document(),
        )
    )  # fmt: skip
    before = 0
    for numerator in numerators:
        month = Month(entitled, before, delivered, True)
        used = [Used(Bucket.OUTPUT.value, "", numerator // 10**6, numerator, 0)]
        rows += as_json(
            charge_rows(charge(numerator=numerator, month=month, **terms), used, GOOD, document())
        )
        before += numerator
    for row in rows:
        assert Decimal(row["EffectiveCost"]) >= 0
    assert total(rows, "EffectiveCost") == total(rows) == money(fee)


@pytest.mark.parametrize("currency", ["JPY", "USD", "KWD"])
def test_costs_are_exact_in_any_currency(currency: str) -> None:
    used = [Used("output", "", 1, 10**6, 0)]
    [row] = as_json(charge_rows(charge(numerator=10**6, amount_micros=1), used, GOOD, document(currency)))
    assert (row["BilledCost"], row["BillingCurrency"]) == ("0.000001", currency)
    # One token at 0.60 a million: less than a micro, and still exact.
    assert row["ContractedCost"] == "0.0000006"


def test_credits_are_negative_and_carry_no_price() -> None:
    [row] = as_json(charge_rows(charge(kind="remedy", numerator=0, amount_micros=-7), [], GOOD, document()))
    check(row)
    assert (row["ChargeCategory"], row["BilledCost"], row["ContractedUnitPrice"]) == (
        "Credit",
        "-0.000007",
        None,
    )


def test_text_is_never_a_formula_and_numbers_stay_numbers() -> None:
    used = [Used("output", "-2+3", 1, 10**6, 0)]
    rows = charge_rows(charge(numerator=-(10**6), amount_micros=-5), used, GOOD, document())
    line = export(rows, columns=COLUMNS, form="csv", filename="x").getvalue().decode().splitlines()[1]
    cells = dict(zip(COLUMNS, next(csv.reader([line])), strict=True))
    assert cells["SubAccountId"] == "'-2+3"
    assert cells["BilledCost"] == "-0.000005"
