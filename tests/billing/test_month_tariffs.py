"""List prices by tiers, volume and packages: a buyer's month comes to its tariff, from the hold to the books."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import Difference, Verifier
from marketplace.billing.models import Charge, Earning, Invoice, TariffMonth
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_due_periods
from marketplace.billing.verifying import verify_document
from marketplace.contracts.models import Contract, Hold
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, set_overdraft_limit
from metering.services import accept_batch, amend_event, gateway_source, ingest_batches
from metering.usage import Flag, UsageEvent, encode_event, encode_lines
from pricing.models import Grade, Rate
from pricing.tariffs import Tier, charge, graduated, package, volume
from pricing.units import Bucket
from providers.models import Host
from providers.services import announce_tariff
from tests.billing.evidence_world import settle
from tests.billing.served import FIRST_TOKEN, promise
from tests.billing.served import serve as serve_slowly
from tests.billing.test_disputes import count, next_hour, supply
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.test_list_tariffs import serve
from tests.billing.world import (
    FUNDS,
    HOUR,
    LOT,
    accrue,
    assert_books_balance,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund

SECOND = timedelta(seconds=1)
TIERS = [Tier(2 * LOT, 900_000), Tier(5 * LOT, 600_000), Tier(None, 300_000)]
FALLING = [Tier(2 * LOT, 900_000), Tier(None, 300_000)]
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def start(acme: Party, plant: Plant, now: datetime) -> datetime:
    """When the tariffs of these tests begin."""
    fund(acme, FUNDS, now)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    return now + HOUR


def announce(plant: Plant, start: datetime, kind: str, **terms: Any) -> None:
    announce_tariff(
        organization_id=plant.host.provider.organization_id,
        offering_id=plant.offering.id,
        kind=kind,
        valid_from=start,
        now=start - HOUR,
        actor=SYSTEM,
        **terms,
    )


def again(event: UsageEvent, at: datetime, tokens: int, *, flags: tuple[Flag, ...] = ()) -> UsageEvent:
    """Usage like an event's, that the gateway hands in late."""
    late = replace(event, id=UUID(int=event.id.int ^ 1), buckets={Bucket.OUTPUT: tokens}, flags=flags)
    accept_batch(source=gateway_source(at), body=encode_lines([encode_event(late)]), now=at)
    ingest_batches(now=at + SECOND)
    return late


def steps() -> list[tuple[str, int | None, int, int, int]]:
    """Kind, tier, standard tokens before and of each charge, and its amount."""
    rows = Charge.objects.order_by("created_at", "since_numerator", "numerator", "id")
    return [
        (one.kind, one.tier, (one.since_numerator or 0) // 10**6, one.numerator // 10**6, one.amount_micros)
        for one in rows
    ]


def assert_sound(start: datetime) -> None:
    check = check_charges(since=start)
    assert (check.unsettled, check.differences) == (0, [])
    assert_books_balance()


def test_a_graduated_month_is_charged_tier_by_tier(
    acme: Party, hyperion: Party, operator: Party, plant: Plant, start: datetime
) -> None:
    announce(plant, start, "graduated", tiers=TIERS)
    set_tax(acme, 200_000)
    first = serve(acme, plant, start, 1_500)
    hold = Hold.objects.get()
    # At the highest rate, one micro more than it is exactly, and taxed.
    assert (hold.rate.micros_per_mtok, hold.captured_micros) == (900_000, 1_351 * 12 // 10 + 1)
    settle(start)
    assert steps() == [("usage", 0, 0, 1_500, 1_350)]
    for tokens in (2_000, 2_500):
        serve(acme, plant, start + HOUR, tokens)
    settle(start + HOUR)
    assert steps()[1:] == [
        ("usage", 0, 1_500, 500, 450), ("usage", 1, 2_000, 3_000, 1_800), ("usage", 2, 5_000, 1_000, 300)
    ]  # fmt: skip
    assert [one.rate_micros_per_mtok for one in Charge.objects.order_by("since_numerator")] == [
        900_000, 900_000, 600_000, 300_000
    ]  # fmt: skip
    # What comes late is charged where it is found, whichever period it lies in.
    again(first, start + 2 * HOUR, 1_000)
    settle_due_periods(now=start + 3 * HOUR)
    assert steps()[4:] == [("adjustment", 2, 6_000, 1_000, 300)]
    total = charge(graduated(TIERS), 7 * LOT)
    assert sum(one.amount_micros for one in Charge.objects.all()) == total == 4_200
    assert sum(one.gross_micros for one in Earning.objects.all()) == total
    assert (money(hyperion, "payable"), money(operator, "fees")) == (total - 209, 209)
    assert money(acme, "prepaid") == FUNDS - total
    assert TariffMonth.objects.get().counted_numerator == 7 * LOT
    assert not Hold.objects.filter(status="open").exists()
    assert_sound(start)


def test_a_volume_price_that_falls_gives_back_what_the_month_was_charged_above_it(
    acme: Party, hyperion: Party, operator: Party, plant: Plant, start: datetime
) -> None:
    """2,000 at 0.9; the next 1,000 make all 3,000 cost 0.3: 900, and 1,800 were charged."""
    announce(plant, start, "volume", tiers=FALLING)
    serve(acme, plant, start, 2_000)
    settle(start)
    assert (money(acme, "prepaid"), money(hyperion, "payable")) == (FUNDS - 1_800, 1_710)
    event = serve(acme, plant, start + HOUR, 1_000)
    settle(start + HOUR)
    assert steps() == [
        ("usage", 0, 0, 2_000, 1_800), ("adjustment", 1, 2_000, 0, -1_200), ("usage", 1, 2_000, 1_000, 300)
    ]  # fmt: skip
    assert money(acme, "prepaid") == FUNDS - 900
    # The fee of what is given back is given back.
    assert (money(hyperion, "payable"), money(operator, "fees")) == (900 - 45, 45)
    assert_sound(start)
    # It is taken off again, and with it the lower price.
    amend_event(
        source_id=gateway_source(start).id, event_id=event.id, buckets={Bucket.OUTPUT: 0},
        reason="counted twice", actor="operator", now=start + 2 * HOUR,
    )  # fmt: skip
    settle_due_periods(now=start + 4 * HOUR)
    assert steps()[3:] == [("adjustment", 0, 3_000, -1_000, -900), ("adjustment", 0, 3_000, 0, 1_800)]
    assert money(acme, "prepaid") == FUNDS - 1_800
    assert TariffMonth.objects.get().counted_numerator == 2 * LOT
    assert_sound(start)


def test_packages_are_begun_by_the_month_and_set_aside_by_each_request(
    acme: Party, hyperion: Party, plant: Plant, start: datetime
) -> None:
    """Packages of 2 lots at 1,000 micros: three requests of 1.5 lots are three packages; each might have begun one."""
    announce(plant, start, "package", package_lots=2, package_micros=1_000)
    for hour in range(3):
        serve(acme, plant, start + hour * HOUR, 1_500)
    assert set(Hold.objects.values_list("captured_micros", flat=True)) == {1_001}
    for hour in range(3):
        settle(start + hour * HOUR)
    assert steps() == [
        ("usage", None, 0, 1_500, 1_000), ("usage", None, 1_500, 1_500, 1_000), ("usage", None, 3_000, 1_500, 1_000)
    ]  # fmt: skip
    # 0.5 lots are left of the third.
    serve(acme, plant, start + 3 * HOUR, 500)
    settle(start + 3 * HOUR)
    assert steps()[3:] == [("usage", None, 4_500, 500, 0)]
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS - 3_000, 0)
    assert money(hyperion, "payable") == 2_850
    assert_sound(start)


def test_all_contracts_of_a_buyer_count_in_one_month_and_each_month_begins_anew(
    acme: Party, plant: Plant, start: datetime
) -> None:
    announce(plant, start, "graduated", tiers=TIERS)
    Host.objects.update(last_heartbeat_at=start + timedelta(days=40))
    serve(acme, plant, start, 1_500)
    line = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=start)
    set_overdraft_limit(account_id=line, limit_micros=FUNDS)
    Organization.objects.filter(pk=acme.id).update(on_demand_payment="arrears")
    serve(acme, plant, start, 1_500)
    assert Contract.objects.filter(organization_id=acme.id).count() == 2
    settle(start)
    assert sorted(step[1:] for step in steps()) == [
        (0, 0, 1_500, 1_350), (0, 1_500, 500, 450), (1, 2_000, 1_000, 600)
    ]  # fmt: skip
    april = datetime(2026, 4, 1, tzinfo=start.tzinfo)
    for at in (april - SECOND, april):
        serve(acme, plant, at, 1_000)
    settle(april - HOUR)
    settle(april)
    assert [step[1:] for step in steps()[3:]] == [(1, 3_000, 1_000, 600), (0, 0, 1_000, 900)]
    assert sorted(TariffMonth.objects.values_list("counted_numerator", flat=True)) == [LOT, 4 * LOT]
    assert_sound(start)


@pytest.mark.parametrize(
    ("kind", "terms", "tariff"),
    [
        ("graduated", {"tiers": TIERS}, graduated(TIERS)),
        ("volume", {"tiers": FALLING}, volume(FALLING)),
        ("package", {"package_lots": 1, "package_micros": 7}, package(LOT, 7)),
    ],
)
def test_every_settlement_is_covered_by_what_its_requests_set_aside(
    acme: Party, plant: Plant, start: datetime, kind: str, terms: dict[str, Any], tariff: Any
) -> None:
    """Requests of a few tokens, whose prices are fractions of a micro, hour by hour."""
    announce(plant, start, kind, **terms)
    sizes: Sequence[int] = (1, 1, 5, 555, 1_666, 2, 1_111, 3, 1, 1, 2_777, 1)
    for hour, tokens in enumerate(sizes):
        at = start + hour * HOUR
        serve(acme, plant, at, tokens)
        serve(acme, plant, at + SECOND, tokens % 3 + 1)
        settle(at)
        so_far = sum(one + one % 3 + 1 for one in sizes[: hour + 1])
        assert sum(one.amount_micros for one in Charge.objects.all()) == charge(tariff, so_far * 10**6)
        assert pending(acme) == 0
    assert_sound(start)


def test_an_estimate_is_counted_and_comes_true_without_a_movement(
    acme: Party, plant: Plant, start: datetime
) -> None:
    announce(plant, start, "volume", tiers=FALLING)
    served = serve(acme, plant, start, 1_500)
    settle(start)
    estimate = again(served, start + HOUR, 500, flags=(Flag.ESTIMATED,))
    settle_due_periods(now=start + 3 * HOUR)
    late = Charge.objects.get(kind="adjustment")
    assert (late.numerator, late.amount_micros, late.estimated_numerator) == (LOT // 2, 450, LOT // 2)
    amend_event(
        source_id=gateway_source(start).id, event_id=estimate.id, buckets={Bucket.OUTPUT: 500},
        reason="the engine's own count", actor="operator", now=start + 3 * HOUR,
    )  # fmt: skip
    settle_due_periods(now=start + 5 * HOUR)
    last = Charge.objects.get(estimated_numerator=-LOT // 2)
    assert (last.numerator, last.amount_micros) == (0, 0)
    assert_sound(start)


def test_what_is_in_dispute_waits_at_what_the_month_would_come_to(
    acme: Party, grade: Grade, plant: Plant, start: datetime
) -> None:
    """9 of 10 lots are agreed on: 4,800; the tenth would be 300 more."""
    announce(plant, start, "graduated", tiers=TIERS)
    rate = Rate.objects.get(tariff__isnull=False)
    contract = on_demand(acme, grade, start)
    count("gateway", contract, rate, plant, 10, start)
    count("agent", contract, rate, plant, 9, start)
    next_hour(rate, plant, start)
    accrue(contract, start, 9_001, start)
    settle(start)
    assert sum(one.amount_micros for one in Charge.objects.all()) == 4_800
    assert (money(acme, "prepaid"), pending(acme)) == (FUNDS - 4_800, 300)
    assert_sound(start)


def test_a_service_credit_is_of_what_the_tiers_came_to(
    acme: Party, grade: Grade, plant: Plant, start: datetime
) -> None:
    """20 requests of a lot, the p95 too slow: 10% of 1,800 + 1,800 + 4,500, and not of 18,000 at the highest rate."""
    announce(plant, start, "graduated", tiers=TIERS)
    promise(grade, FIRST_TOKEN)
    rate = Rate.objects.get(tariff__isnull=False)
    contract = on_demand(acme, grade, start)
    supply(contract, plant, start)
    serve_slowly(contract, plant, start, [100] * 18 + [900] * 2, rate_id=rate.id)
    accrue(contract, start, 20 * 901, start)
    settle(start)
    assert Charge.objects.get(kind="service_credit").amount_micros == -810
    assert money(acme, "prepaid") == FUNDS - 8_100 + 810
    assert_sound(start)


def bill(start: datetime) -> Invoice:
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    return invoice


def evidence(invoice: Invoice) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(evidence_of(invoice)).splitlines()]


@pytest.mark.parametrize(
    ("kind", "terms", "printed"),
    [
        (
            "graduated", {"tiers": TIERS},
            {
                "Usage, on-demand, Tiny chat, 0.90 USD per Mtok": (2_000, 1_800),
                "Usage, on-demand, Tiny chat, 0.60 USD per Mtok": (3_000, 1_800),
                "Usage, on-demand, Tiny chat, 0.30 USD per Mtok": (1_000, 300),
                "Adjustment, on-demand, Tiny chat, 0.30 USD per Mtok": (500, 150),
            },
        ),
        (
            "volume", {"tiers": FALLING},
            {
                "Usage, on-demand, Tiny chat, 0.90 USD per Mtok": (1_500, 1_350),
                "Volume price of 0.30 USD per Mtok for what was used before, on-demand, Tiny chat": (0, -900),
                "Usage, on-demand, Tiny chat, 0.30 USD per Mtok": (4_500, 1_350),
                "Adjustment, on-demand, Tiny chat, 0.30 USD per Mtok": (500, 150),
            },
        ),
        (
            "package", {"package_lots": 2, "package_micros": 1_000},
            {
                "Usage, on-demand, Tiny chat, in packages": (6_000, 3_000),
                "Adjustment, on-demand, Tiny chat, in packages": (500, 1_000),
            },
        ),
    ],
)  # fmt: skip
def test_an_invoice_prints_tiers_and_is_recomputed_from_its_evidence(
    acme: Party, plant: Plant, start: datetime, kind: str, terms: dict[str, Any], printed: dict[str, Any]
) -> None:
    announce(plant, start, kind, **terms)
    set_tax(acme, 190_000)
    first = serve(acme, plant, start, 1_500)
    settle(start)
    serve(acme, plant, start + HOUR, 4_500)
    settle(start + HOUR)
    again(first, start + 2 * HOUR, 500)
    settle_due_periods(now=start + 3 * HOUR)
    invoice = bill(start)
    assert {
        line.description: (line.numerator // 10**6, line.amount_micros) for line in invoice.lines.all()
    } == printed
    assert invoice.number is not None
    found = verify_document(number=invoice.number)
    assert (found.difference, found.unsettled, found.stated) == (None, [], [])
    answer = acme.api.get("/api/v1/exports/focus", {"invoice_id": str(invoice.id), "format": "ndjson"})
    rows = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(invoice.total_micros) / 10**6
    for row in rows:
        if row["ContractedUnitPrice"] is None:
            assert row["ContractedCost"] == row["BilledCost"]
        else:
            price, quantity = Decimal(row["ContractedUnitPrice"]), Decimal(row["PricingQuantity"])
            assert Decimal(row["ContractedCost"]) == price * quantity
            assert abs(price * quantity - Decimal(row["BilledCost"])) < Decimal("0.000002")
    metered = [row for row in rows if row["ChargeCategory"] == "Usage"]
    assert sum(Decimal(row["x_StandardTokens"]) for row in metered) == 6_500


def recompute(records: list[dict[str, Any]]) -> Verifier:
    """As the verifier reads a file of these records, whose end was made to agree with them."""
    verifier = Verifier()
    for record in records[:-1]:
        verifier.read(json.dumps(record).encode() + b"\n")
    end = {"t": "end", "records": verifier.records, "sha256": verifier.digest.hexdigest()}
    verifier.read(json.dumps(end).encode() + b"\n")
    verifier.finish()
    return verifier


def _cheaper(record: dict[str, Any]) -> None:
    record["tiers"][0]["micros_per_mtok"] -= 1


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("charge", lambda record: record.update(amount_micros=record["amount_micros"] + 1), "of its month"),
        ("charge", lambda record: record.update(since_numerator=0), "complete record"),
        ("charge", lambda record: record.pop("since_numerator"), "charge"),
        ("charge", lambda record: record.update(tier=0), "rate"),
        ("charge", lambda record: record.update(month_start="2026-02-01T00:00:00+00:00"), "month"),
        ("tariff", _cheaper, "its highest rate"),
        ("tariff", lambda record: record.update(kind="volume"), "all its charges"),
        ("tariff", lambda record: record["tiers"].pop(), "tariff"),
    ],
)
def test_evidence_that_was_changed_does_not_come_out(
    acme: Party, plant: Plant, start: datetime, kind: str, change: Callable[[Any], Any], told: str
) -> None:
    announce(plant, start, "graduated", tiers=TIERS)
    serve(acme, plant, start, 2_500)
    settle(start)
    invoice = bill(start)
    records = evidence(invoice)
    recompute(records)
    change(next(one for one in records if one["t"] == kind and one.get("since_numerator") != 0))
    with pytest.raises(Difference, match=told):
        recompute(records)


def test_volume_that_is_charged_twice_is_found_in_the_evidence(
    acme: Party, plant: Plant, start: datetime
) -> None:
    announce(plant, start, "graduated", tiers=[Tier(LOT, 900_000), Tier(None, 300_000)])
    for hour in range(3):
        serve(acme, plant, start + hour * HOUR, 1_000)
        settle(start + hour * HOUR)
    records = evidence(bill(start))
    # The third lot is charged as the second was, which is the same price.
    [third] = [one for one in records if one.get("since_numerator") == 2 * LOT]
    third["since_numerator"] = LOT
    with pytest.raises(Difference, match="charged twice"):
        recompute(records)


def test_late_usage_on_the_next_invoice_says_that_the_month_stands_on_two(
    acme: Party, plant: Plant, start: datetime
) -> None:
    announce(plant, start, "graduated", tiers=TIERS)
    event = serve(acme, plant, start, 1_500)
    settle(start)
    bill(start)
    again(event, APRIL_2, 1_000)
    settle_due_periods(now=APRIL_2 + 3 * HOUR)
    (second,) = issue_invoices(month_start=APRIL, now=APRIL + timedelta(days=32))
    assert second.number is not None
    found = verify_document(number=second.number)
    assert (found.difference, found.stated) == (None, [])
    assert [line.amount_micros for line in second.lines.order_by("amount_micros")] == [300, 450]


def test_a_broken_month_is_named(acme: Party, plant: Plant, start: datetime) -> None:
    announce(plant, start, "graduated", tiers=TIERS)
    serve(acme, plant, start, 1_500)
    settle(start)
    TariffMonth.objects.update(counted_numerator=LOT)
    [found] = check_charges(since=start).differences
    assert (found.what, found.numerator, found.amount_micros) == ("tariff month", -LOT // 2, -450)
