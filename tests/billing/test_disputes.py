"""Money in dispute: the lower count settles, the rest waits, and comes or goes with the ruling."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, Invoice, InvoiceLine, Settlement
from marketplace.billing.selectors import RECONCILED_WITHIN, find_invoice, metered_usage
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import SettlementResult, settle_due_periods, settle_period
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from marketplace.ledger.services import InsufficientFunds, change_hold
from marketplace.periods import calendar_month
from metering.models import (
    Discrepancy,
    DisputedUsage,
    MeterSource,
    Reconciliation,
    UsageBatch,
    UsageCorrection,
    UsageRollup,
)
from metering.services import (
    accept_batch,
    accept_discrepancy,
    add_meter_point,
    gateway_source,
    ingest_batches,
)
from metering.usage import GENESIS_DIGEST, Finish, Flag, UsageEvent, encode_batch, encode_event, encode_lines
from pricing.models import Grade, Rate
from pricing.units import Bucket
from providers.reconciling import reconcile_hosts
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

# What one lot costs at the plant's list rate.
MICROS = 600


@pytest.fixture
def rich_acme(acme: Party, now: datetime) -> Party:
    fund(acme, FUNDS, now)
    return acme


def count(
    meter: str,
    contract: Contract | None,
    rate: Rate,
    plant: Plant,
    lots: int,
    period_start: datetime,
    estimated_lots: int = 0,
) -> None:
    """What one meter has counted of an offering in a delivery period, in the place of what it had."""
    key = {
        "contract_id": contract.id if contract else UUID(int=2),
        "rate_id": rate.id,
        "api_key_id": UUID(int=1),
        "offering_id": plant.offering.id,
        "bucket": "output",
        "meter": meter,
        "period_start": period_start,
    }
    counts = {
        "events": lots + 1,
        "native_tokens": lots * 1_000,
        "numerator": lots * LOT,
        "estimated_events": min(1, estimated_lots),
        "estimated_numerator": estimated_lots * LOT,
    }
    _, made = UsageRollup.objects.get_or_create(**key, defaults={"grade_id": rate.grade_id, **counts})
    if not made:
        UsageRollup.objects.filter(**key).update(**counts)


def next_hour(rate: Rate, plant: Plant, now: datetime) -> None:
    """Both meters count something of another contract's: the agent's record of the hour before has no end missing."""
    for meter in ("gateway", "agent"):
        count(meter, None, rate, plant, 1, now + HOUR)


def settle(start: datetime, *, after: timedelta = DUE_AFTER) -> SettlementResult:
    return settle_period(settlement_start=start, now=start + after)


def disputed_hour(buyer: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    """The gateway carried 10 lots, the agent counted 9, and its record is whole; 10 were captured."""
    contract = on_demand(buyer, grade, now)
    rate = plant.offering.list_rate
    count("gateway", contract, rate, plant, 10, now)
    count("agent", contract, rate, plant, 9, now)
    next_hour(rate, plant, now)
    accrue(contract, now, 10 * MICROS, now)
    return contract


def rule(operator: Party, ruling: str, **more: object) -> None:
    found = Discrepancy.objects.get()
    answer = operator.api.post(
        f"/api/v1/discrepancies/{found.pk}/resolve",
        {"ruling": ruling, "reason": "The engine's log.", **more},
        format="json",
    )
    assert answer.status_code == 200, answer.content


def test_the_lower_count_settles_and_the_rest_waits_in_a_hold(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    assert [(item.run, item.amount_micros) for item in settle(now).settled] == [(1, 9 * MICROS)]
    charge = Charge.objects.get()
    assert (charge.numerator, charge.amount_micros) == (9 * LOT, 9 * MICROS)
    assert money(rich_acme, "prepaid") == FUNDS - 9 * MICROS
    assert pending(rich_acme) == MICROS
    assert money(hyperion, "payable") == 9 * MICROS * 95 // 100
    assert settle(now).settled == []
    assert_books_balance()
    assert check_charges(since=now).differences == []


@pytest.mark.parametrize(
    ("ruling", "more", "charged"), [("higher", {}, 10), ("lower", {}, 9), ("numbers", {"numerator": 95}, 95)]
)
def test_a_ruling_charges_what_it_frees_and_drops_the_rest(
    rich_acme: Party,
    operator: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
    ruling: str,
    more: dict[str, int],
    charged: int,
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    settle(now)
    numerators = {}
    micros = charged * MICROS
    if more:
        row = DisputedUsage.objects.get()
        numerators = {"numerators": [{"id": str(row.pk), "numerator": str(charged * LOT // 10)}]}
        micros //= 10
    rule(operator, ruling, **numerators)
    assert [item.run for item in settle(now).settled] == [2]
    adjustments = list(Charge.objects.filter(kind="adjustment").values_list("amount_micros", flat=True))
    assert adjustments == ([micros - 9 * MICROS] if micros > 9 * MICROS else [])
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - micros, 0)
    assert settle(now).settled == []
    assert settle_due_periods(now=now + 3 * HOUR).settled == []
    assert_books_balance()
    assert check_charges(since=now).differences == []


def test_a_buyer_who_spends_all_else_still_pays_what_was_in_dispute(
    rich_acme: Party, operator: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    set_tax(rich_acme, 190_000)
    contract = disputed_hour(rich_acme, grade, plant, now)
    # Grossed up by tax, as the gateway captures.
    accrual = contract.accruals.get()
    change_hold(id=accrual.ledger_hold_id, delta_micros=1_140, now=now)
    settle(now)
    assert pending(rich_acme) == 714 + 9 * 114
    other = accrue(contract, now + 5 * HOUR, FUNDS - 9 * MICROS - pending(rich_acme), now)
    with pytest.raises(InsufficientFunds):
        change_hold(id=other.ledger_hold_id, delta_micros=1, now=now)
    rule(operator, "higher")
    assert [item.amount_micros for item in settle(now).settled] == [MICROS]
    assert money(hyperion, "payable") == 10 * MICROS * 95 // 100
    assert_books_balance()


def test_the_provider_accepts_and_the_buyer_has_his_money_back(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    settle(now)
    found = Discrepancy.objects.get()
    answer = hyperion.api.post(
        f"/api/v1/discrepancies/{found.pk}/accept", {"reason": "Our driver counted twice."}, format="json"
    )
    assert answer.status_code == 200, answer.content
    assert answer.json()["status"] == "accepted"
    assert [item.charges for item in settle(now).settled] == [0]
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 9 * MICROS, 0)


def test_after_ten_days_the_lower_stands_by_itself(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    settle(now)
    at = now + timedelta(days=10) + DUE_AFTER
    reconcile_hosts(now=at)
    assert Discrepancy.objects.get().status == "resolved"
    settle_due_periods(now=at)
    assert pending(rich_acme) == 0
    assert money(rich_acme, "prepaid") == FUNDS - 9 * MICROS


def test_a_lower_count_that_comes_after_settlement_is_given_back(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    count("gateway", contract, rate, plant, 10, now)
    count("agent", contract, rate, plant, 10, now)
    accrue(contract, now, 10 * MICROS, now)
    settle(now)
    count("agent", contract, rate, plant, 9, now)
    next_hour(rate, plant, now)
    at = now + 2 * DUE_AFTER
    assert reconcile_hosts(now=at) == 1
    assert [item.amount_micros for item in settle_due_periods(now=at).settled] == [-MICROS]
    # Given back, and kept until the ruling.
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 9 * MICROS, MICROS)
    assert money(hyperion, "payable") == 9 * MICROS * 95 // 100
    rule(operator, "higher")
    assert [item.amount_micros for item in settle_due_periods(now=at).settled] == [MICROS]
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 10 * MICROS, 0)
    assert_books_balance()


@pytest.mark.parametrize("ruled", [True, False], ids=["accepted", "open"])
@pytest.mark.parametrize(
    ("carried", "billed", "waiting"),
    [(100, 90, 10), (95, 90, 5), (90, 90, 0), (80, 80, 0), (130, 120, 10)],
    ids=["unchanged", "amended half way", "amended to the lower", "amended below it", "late usage"],
)
def test_a_count_that_is_corrected_after_the_dispute_is_not_lowered_twice(
    rich_acme: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
    carried: int,
    billed: int,
    waiting: int,
    ruled: bool,
) -> None:
    """10 lots carried, 9 counted; afterwards the gateway's sum is another (tenths of a lot)."""
    contract = disputed_hour(rich_acme, grade, plant, now)
    assert reconcile_hosts(now=now + DUE_AFTER) == 1
    if ruled:
        found = Discrepancy.objects.get()
        accept_discrepancy(discrepancy_id=found.pk, reason="Yes.", closed_by="hyperion", now=now)
    rollups = UsageRollup.objects.filter(contract_id=contract.id, meter="gateway")
    rollups.update(numerator=carried * LOT // 10)
    [metered] = metered_usage(contract.id, now, now + HOUR)
    assert metered.numerators == {plant.offering.id: billed * LOT // 10}
    left = {plant.offering.id: waiting * LOT // 10} if waiting and not ruled else {}
    assert metered.waiting == left


def test_what_spot_has_in_dispute_is_first_covered_by_the_minimum_take(
    rich_acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """10 lots awarded, half of them to be taken at least: 6 carried and 3 counted pay for 5."""
    entitlement = award(rich_acme, grade, [(plant, 10)], 300_000, now, now)
    contract, rate = entitlement.contract, entitlement.rate
    count("gateway", contract, rate, plant, 6, now)
    count("agent", contract, rate, plant, 3, now)
    next_hour(rate, plant, now)
    settle(now)
    assert {charge.kind: charge.amount_micros for charge in Charge.objects.all()} == {
        "spot": 900, "minimum_take": 600,
    }  # fmt: skip
    assert pending(rich_acme) == 300
    rule(operator, "higher")
    assert [item.amount_micros for item in settle(now).settled] == [300]
    assert (money(rich_acme, "prepaid"), pending(rich_acme)) == (FUNDS - 1_800, 0)
    assert_books_balance()


def test_usage_that_moves_between_providers_is_settled_anew(
    rich_acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The sum is what it was; who delivered is not."""
    second = make_plant(mallory, grade, now, name="h2")
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    count("gateway", contract, rate, plant, 6, now)
    count("gateway", contract, rate, second, 4, now)
    accrue(contract, now, 10 * MICROS, now)
    settle(now)
    count("gateway", contract, rate, plant, 5, now)
    count("gateway", contract, rate, second, 5, now)
    assert [(item.run, item.amount_micros) for item in settle(now).settled] == [(2, 0)]
    assert (money(hyperion, "payable"), money(mallory, "payable")) == (2_850, 2_850)
    assert settle(now).settled == []
    assert_books_balance()


# Waiting for the meters ----------------------------------------------------------------------------------------


def test_settling_compares_the_meters_first(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    assert not Reconciliation.objects.exists()
    settle(now)
    assert Reconciliation.objects.get(settlement_start=now).outcome == "disputed"


def test_usage_that_the_host_has_handed_in_is_waited_for_and_not_for_ever(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    count("gateway", contract, plant.offering.list_rate, plant, 1, now)
    accrue(contract, now, MICROS, now)
    supply(contract, plant, now)
    UsageBatch.objects.create(
        source=agent_of(plant),
        sequence_from=1,
        sequence_to=1,
        body=b"{}\n",
        body_bytes=3,
        received_at=now + HOUR,
    )
    assert [reason for _, reason in settle(now).waiting] == ["agents_usage_pending"]
    late = HOUR + timedelta(seconds=75) + RECONCILED_WITHIN
    assert [reason for _, reason in settle(now, after=late - timedelta(seconds=1)).waiting] == [
        "agents_usage_pending"
    ]
    assert len(settle(now, after=late).settled) == 1


def test_a_comparison_that_fails_stops_money_for_ten_minutes_only(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    # A bucket that nobody knows: comparing fails on it, whoever tries.
    UsageRollup.objects.filter(meter="agent", period_start=now).update(bucket="noise")
    assert [reason for _, reason in settle(now).waiting] == ["unreconciled"]
    assert "meters not compared" in caplog.text
    late = HOUR + timedelta(seconds=75) + RECONCILED_WITHIN
    assert [item.amount_micros for item in settle(now, after=late).settled] == [10 * MICROS]
    UsageRollup.objects.filter(meter="agent", period_start=now).update(bucket="output")
    reconcile_hosts(now=now + late)
    assert [item.amount_micros for item in settle(now, after=late).settled] == [-MICROS]


# Estimates -----------------------------------------------------------------------------------------------------


def supply(contract: Contract, plant: Plant, now: datetime) -> None:
    add_meter_point(
        contract_id=contract.id,
        offering_id=plant.offering.id,
        host_id=plant.host.id,
        grade_id=plant.offering.grade_id,
        valid_from=now,
    )


def agent_of(plant: Plant) -> MeterSource:
    return MeterSource.objects.get(host_id=plant.host.id, kind="agent")


def event_of(contract: Contract, plant: Plant, now: datetime, tokens: int, *flags: Flag) -> UsageEvent:
    return UsageEvent(
        id=uuid7(now),
        sequence=1,
        request_id=UUID(int=7),
        attempt=0,
        part=0,
        contract_id=contract.id,
        offering_id=plant.offering.id,
        grade_id=plant.offering.grade_id,
        rate_id=plant.offering.list_rate_id,
        period_start=now,
        occurred_at=now + timedelta(seconds=1),
        buckets={Bucket.OUTPUT: tokens},
        finish=Finish.STOP,
        bytes_in=1,
        bytes_out=1,
        duration_ms=5,
        flags=flags,
    )


def test_an_estimate_is_called_so_on_charge_and_invoice_until_the_agents_count_replaces_it(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """6,000 tokens of output were estimated, 5,000 were made: one token is a standard token, 600 micros a thousand."""
    contract = on_demand(rich_acme, grade, now)
    supply(contract, plant, now)
    estimate = event_of(contract, plant, now, 6_000, Flag.ESTIMATED)
    accept_batch(source=gateway_source(now), body=encode_lines([encode_event(estimate)]), now=now)
    ingest_batches(now=now)
    accrue(contract, now, 3_600, now)
    settle(now)
    [charge] = rich_acme.api.get("/api/v1/charges").json()["items"]
    assert (charge["estimated_numerator"], charge["is_estimated"]) == (str(6 * LOT), True)
    issue_invoices(month_start=calendar_month(now).start, now=now + 2 * HOUR, early=True)
    invoice = Invoice.objects.get()
    assert shown(rich_acme, invoice) == [(str(6 * LOT), True)]
    # The agent was away; its count comes a day later.
    later = now + timedelta(days=1)
    actual = encode_event(event_of(contract, plant, now, 5_000))
    agent = agent_of(plant)
    body = encode_batch(source_id=agent.pk, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=[actual])
    accept_batch(source=agent, body=body, now=later)
    ingest_batches(now=later)
    assert reconcile_hosts(now=later) == 0
    assert UsageCorrection.objects.get().actor == "vee"
    assert [item.amount_micros for item in settle_due_periods(now=later).settled] == [-600]
    adjustment = Charge.objects.get(kind="adjustment")
    assert (adjustment.numerator, adjustment.estimated_numerator) == (-LOT, -6 * LOT)
    charges = rich_acme.api.get("/api/v1/charges").json()["items"]
    assert [one["is_estimated"] for one in charges] == [False, False]
    assert shown(rich_acme, invoice) == [(str(6 * LOT), False)]
    assert Discrepancy.objects.count() == 0
    assert Reconciliation.objects.get().outcome == "agreed"
    assert_books_balance()


def shown(buyer: Party, invoice: Invoice) -> list[tuple[str, bool]]:
    lines = buyer.api.get(f"/api/v1/invoices/{invoice.id}").json()["lines"]
    printed = find_invoice(buyer.id, invoice.id).lines.values_list("id", flat=True)
    assert [str(line) for line in printed] == [line["id"] for line in lines]
    return [(line["estimated_numerator"], line["is_estimated"]) for line in lines]


def test_an_estimate_that_comes_true_moves_no_money_and_is_called_so_no_more(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    count("gateway", contract, rate, plant, 5, now, estimated_lots=2)
    accrue(contract, now, 5 * MICROS, now)
    settle(now)
    assert Charge.objects.get().estimated_numerator == 2 * LOT
    count("gateway", contract, rate, plant, 5, now)
    settle(now)
    adjustment = Charge.objects.get(kind="adjustment")
    assert (adjustment.numerator, adjustment.amount_micros, adjustment.estimated_numerator) == (
        0,
        0,
        -2 * LOT,
    )
    assert Settlement.objects.count() == 2
    assert settle(now).settled == []


def test_an_invoice_of_both_sums_to_no_estimate(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(rich_acme, grade, now)
    rate = plant.offering.list_rate
    count("gateway", contract, rate, plant, 5, now, estimated_lots=2)
    accrue(contract, now, 5 * MICROS, now)
    settle(now)
    count("gateway", contract, rate, plant, 4, now)
    settle(now)
    issue_invoices(month_start=calendar_month(now).start, now=now + 2 * HOUR, early=True)
    assert sum(InvoiceLine.objects.values_list("estimated_numerator", flat=True)) == 0
    assert {left for _, left in shown(rich_acme, Invoice.objects.get())} == {False}


# Who sees it ---------------------------------------------------------------------------------------------------


def test_each_side_sees_what_concerns_it(
    rich_acme: Party,
    hyperion: Party,
    operator: Party,
    mallory: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
) -> None:
    fund(mallory, FUNDS, now)
    disputed_hour(rich_acme, grade, plant, now)
    other = disputed_hour(mallory, grade, plant, now)
    settle(now)
    found = Discrepancy.objects.get()
    address = f"/api/v1/discrepancies/{found.pk}"
    buyer, provider, ruler = (one.api.get(address).json() for one in (rich_acme, hyperion, operator))
    assert [len(one["usage"]) for one in (buyer, provider, ruler)] == [1, 2, 2]
    assert (buyer["host_id"], buyer["evidence"], buyer["withheld_numerator"]) == (None, None, str(LOT))
    assert str(other.id) not in str(buyer)
    assert provider["host_id"] == str(plant.host.id)
    assert provider["evidence"]["gateway"]["output_tokens"] == 20_000
    assert {row["contract_id"] for row in provider["usage"]} == {None}
    assert {row["contract_id"] for row in ruler["usage"]} >= {str(other.id)}
    [listed] = rich_acme.api.get("/api/v1/discrepancies").json()["items"]
    assert (listed["id"], listed["withheld_numerator"]) == (str(found.pk), str(LOT))
    assert "usage" not in listed
    charge = Charge.objects.get(organization_id=rich_acme.id)
    detail = rich_acme.api.get(f"/api/v1/charges/{charge.id}").json()
    assert sum(int(row["numerator"]) for row in detail["rollups"]) == charge.numerator + LOT
    assert detail["withheld_numerator"] == str(LOT)


def test_only_the_provider_accepts_and_only_the_operator_rules(
    rich_acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    disputed_hour(rich_acme, grade, plant, now)
    settle(now)
    address = f"/api/v1/discrepancies/{Discrepancy.objects.get().pk}"
    for who, verb in (
        (rich_acme, "accept"),
        (rich_acme, "resolve"),
        (hyperion, "resolve"),
        (operator, "accept"),
    ):
        body = {"reason": "Mine.", **({"ruling": "lower"} if verb == "resolve" else {})}
        answer = who.api.post(f"{address}/{verb}", body, format="json")
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    assert Discrepancy.objects.get().status == "open"
    refused: list[tuple[dict[str, object], str]] = [
        ({"ruling": "lower"}, "reason"),
        ({"ruling": "most", "reason": "x"}, "ruling"),
        ({"ruling": "numbers", "reason": "x"}, "numerators"),
        (
            {"ruling": "numbers", "reason": "x", "numerators": [{"id": "1", "numerator": "5"}]},
            "numerators.0.id",
        ),
        ({"ruling": "lower", "reason": "x", "sum": 1}, "sum"),
    ]
    for ruling, field in refused:
        answer = operator.api.post(f"{address}/resolve", ruling, format="json")
        assert answer.status_code == 422, answer.content
        assert field in str(answer.json()), answer.content
    rule(operator, "lower")
    answer = operator.api.post(f"{address}/resolve", {"ruling": "higher", "reason": "x"}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "discrepancy_closed")


def test_the_operator_sets_what_a_grades_text_comes_to(operator: Party, grade: Grade) -> None:
    body = {"grade_id": str(grade.id), "baseline_ppm": 262_500, "reason": "Sampled text."}
    assert operator.api.post("/api/v1/recount-baselines", body, format="json").status_code == 201
    [row] = operator.api.get("/api/v1/recount-baselines").json()["items"]
    assert (row["grade_id"], row["baseline_ppm"]) == (str(grade.id), 262_500)
    unknown = operator.api.post(
        "/api/v1/recount-baselines", {**body, "grade_id": str(uuid7())}, format="json"
    )
    assert unknown.status_code == 404
