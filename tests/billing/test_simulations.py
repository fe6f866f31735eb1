"""What a contract would have cost on real usage: as a real one was charged, to the micro, and of nobody else's."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.cache import cache
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, MonthOutcome
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_period
from marketplace.billing.simulations import MOST_PER_WINDOW, Simulation, simulate_contract
from marketplace.contracts.models import Contract, Entitlement, Quote
from marketplace.contracts.quoting import NotOffered
from marketplace.contracts.services import advance_contracts, set_period_rate
from marketplace.errors import DomainError, InvalidInput, NotFound
from marketplace.orders.asking import TooManyQuestions
from metering.models import Discrepancy, DisputedUsage
from pricing.commitments import take_lots
from pricing.models import Grade, Rate
from pricing.simulating import Refusal
from pricing.tariffs import Tier
from providers.models import Offering
from providers.services import announce_tariff, list_offering
from tests.billing.test_month_ends import buy, credit
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, LOT, PERIOD, accrue, meter, on_demand
from tests.cast import Party, Plant, fund, make_grade, make_plant
from tests.house import row_counts

ODD = 123_456_789
MONTH = timedelta(days=31)


@pytest.fixture(autouse=True)
def unasked() -> None:
    cache.clear()


def ask(buyer: Party, now: datetime, **terms: Any) -> Simulation:
    wanted: dict[str, Any] = {"grade_slug": "tiny-chat", "firm_lots": 100, "volume_lots": 10_000}
    return simulate_contract(organization_id=buyer.id, now=now, **(wanted | terms))


def of_contract(contract: Contract) -> dict[str, Any]:
    """The terms of a real contract, as the simulator takes them."""
    assert contract.rate is not None
    return {
        "firm_lots": contract.firm_lots,
        "volume_lots": contract.volume_lots,
        "rate_micros_per_mtok": contract.rate.micros_per_mtok,
        "payment": contract.payment,
        "take_share_ppm": contract.take_share_ppm,
        "rollover_share_ppm": contract.rollover_share_ppm,
        "rollover_cap_lots": contract.rollover_cap_lots,
        "overage_policy": contract.overage_policy,
        "starts_at": contract.starts_at,
        "months": contract.entitlements.count(),
    }


def charged(contract: Contract, since: datetime, until: datetime) -> dict[str, int]:
    rows = Charge.objects.filter(contract=contract, period_start__gte=since, period_start__lt=until)
    sums = rows.values_list("kind").annotate(sum=Sum("amount_micros")).order_by()
    return {kind: amount for kind, amount in sums if amount}


def use(contract: Contract, rate: Rate, plant: Plant, start: datetime, numerators: list[int]) -> datetime:
    """One delivery period after the other; all of it settled. Returns when it is."""
    for number, numerator in enumerate(numerators):
        meter(contract, rate, plant, numerator, start + number * PERIOD)
    end = start + len(numerators) * PERIOD
    hour = start
    while hour < end:
        settle_period(settlement_start=hour, now=end + DUE_AFTER)
        hour += HOUR
    return end + DUE_AFTER


def finish(month: Entitlement) -> None:
    """Its last settlement period, and with it the month."""
    settle_period(settlement_start=month.period_end - HOUR, now=month.period_end + DUE_AFTER)


def test_a_prepaid_contract_with_rollover_is_simulated_as_it_was_charged(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(
        acme, grade, now, months=2, volume_lots=2_000, rollover_share_ppm=333_333, rollover_cap_lots=300
    )
    charge_committed_months(now=contract.starts_at)
    first = Entitlement.objects.select_related("rate").get()
    use(contract, first.rate, plant, contract.starts_at, [100 * LOT, 7 * LOT + ODD, 0, 99 * LOT + ODD] * 4)
    finish(first)
    advance_contracts(now=first.period_end)
    charge_committed_months(now=first.period_end)
    second = Entitlement.objects.select_related("rate").get(period_start=first.period_end)
    use(contract, second.rate, plant, second.period_start, [100 * LOT] * 21 + [50 * LOT + 1])
    finish(second)
    answer = ask(acme, second.period_end + timedelta(days=1), **of_contract(contract))
    assert [month.period_start for month in answer.by_month] == [first.period_start, second.period_start]
    outcomes = MonthOutcome.objects.order_by("entitlement__period_start")
    assert len(outcomes) == 2
    for month, outcome in zip(answer.total.months, outcomes, strict=True):
        assert (month.unused, month.rolled_out) == (outcome.unused_numerator, outcome.rolled_over_numerator)
        assert month.delivered - month.rolled_in_used == outcome.delivered_numerator
    for row in answer.by_month:
        real = charged(contract, row.period_start, row.period_end)
        assert real == {"committed_fee": 1_000_000}
        assert row.amount_micros == row.paid_micros == sum(real.values())
        assert row.saving_micros == 0
    assert (outcomes[0].rolled_over_numerator, answer.total.months[1].rolled_in_used) == (
        300 * LOT,
        300 * LOT,
    )
    assert answer.total.refused == {}


def test_a_contract_in_arrears_is_simulated_as_it_was_charged_line_by_line(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now)
    contract = buy(acme, grade, now, payment="arrears", months=2, volume_lots=2_000)
    month = Entitlement.objects.select_related("rate").get()
    for hour in range(5):
        use(
            contract, month.rate, plant, contract.starts_at + hour * HOUR, [hour * LOT + ODD, 31 * LOT + hour]
        )
    finish(month)
    answer = ask(acme, month.period_end + timedelta(days=1), **of_contract(contract))
    [simulated] = answer.total.months
    real = charged(contract, month.period_start, month.period_end)
    assert (simulated.usage_micros, simulated.true_up_micros) == (real["usage"], real["true_up"])
    assert Charge.objects.filter(kind="usage").count() == 5
    assert answer.total.amount_micros == answer.total.paid_micros == sum(real.values())
    # The lines were rounded one by one: their sum is not the sum rounded.
    assert simulated.true_up == take_lots(2_000, 800_000) * LOT - simulated.used
    assert {note.code for note in answer.notes} == {"pace", "capacity", "failures", "tax", "routing"}


def test_overage_at_list_is_simulated_as_the_on_demand_contract_charged_it(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, overage_policy="list", volume_lots=1_000)
    start = contract.starts_at
    charge_committed_months(now=start)
    month = Entitlement.objects.select_related("rate").get()
    demand = on_demand(acme, grade, now)
    for hour in range(2):
        meter(demand, plant.offering.list_rate, plant, 13 * LOT + ODD, start + hour * HOUR)
        accrue(demand, start + hour * HOUR, 10_000, start)
    use(contract, month.rate, plant, start, [100 * LOT] + [0] * 11 + [100 * LOT])
    finish(month)
    answer = ask(acme, month.period_end + timedelta(days=1), **of_contract(contract))
    assert answer.total.paid == {
        "committed_fee": 500_000,
        "usage": charged(demand, start, month.period_end)["usage"],
    }
    assert answer.total.sums["overage"] == 2 * (13 * LOT + ODD)
    assert answer.total.sums["overage_micros"] == answer.total.paid["usage"]
    assert answer.total.saving_micros == 0
    assert "list_rate" in {note.code for note in answer.notes}


def test_overage_at_list_prices_of_tiers_is_simulated_as_it_was_charged(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, overage_policy="list", volume_lots=1_000)
    start = contract.starts_at
    announce_tariff(
        organization_id=plant.host.provider.organization_id, offering_id=plant.offering.id, kind="graduated",
        valid_from=start, tiers=[Tier(10 * LOT, 500_001), Tier(20 * LOT, 300_001), Tier(None, 100_001)], now=now,
        actor=SYSTEM,
    )  # fmt: skip
    tiers = Rate.objects.get(tariff__isnull=False)
    charge_committed_months(now=start)
    month = Entitlement.objects.select_related("rate").get()
    demand = on_demand(acme, grade, now)
    for hour in range(2):
        meter(demand, tiers, plant, 13 * LOT + ODD, start + hour * HOUR)
        accrue(demand, start + hour * HOUR, 10_000, start)
    use(contract, month.rate, plant, start, [100 * LOT] + [0] * 11 + [100 * LOT])
    finish(month)
    answer = ask(acme, month.period_end + timedelta(days=1), **of_contract(contract))
    assert answer.total.paid["usage"] == charged(demand, start, month.period_end)["usage"] == 8_625
    assert answer.total.sums["overage_micros"] == 8_625


@pytest.fixture
def used(acme: Party, grade: Grade, plant: Plant, now: datetime) -> datetime:
    """Acme used 150, 40 and 60 lots on demand at 0.60 in the first hour; returns the end of a month from then."""
    fund(acme, FUNDS, now)
    demand = on_demand(acme, grade, now)
    accrue(demand, now, 1_000_000, now)
    use(demand, plant.offering.list_rate, plant, now, [150 * LOT, 40 * LOT, 60 * LOT])
    return now + MONTH


def test_what_was_paid_stands_beside_it_and_what_would_have_been_refused_is_named(
    acme: Party, used: datetime, now: datetime
) -> None:
    answer = ask(acme, used + HOUR, volume_lots=180, rate_micros_per_mtok=400_000)
    total = answer.total
    assert (total.period_start, total.period_end) == (now, used)
    assert (total.paid, total.amount_micros, total.saving_micros) == ({"usage": 150_000}, 72_000, 78_000)
    # Of 150, 40, 60 lots are 50 beyond f, and of the other 200 lots 20 beyond V.
    assert (total.refused, total.sums["beyond_firm"]) == ({Refusal.STOP: 70 * LOT}, 50 * LOT)
    assert (total.served, total.per_mtok_micros, total.paid_per_mtok_micros) == (180 * LOT, 400_000, 600_000)
    assert "refused" in {note.code for note in answer.notes}


def test_spot_overage_is_at_the_rate_that_its_period_had(
    acme: Party, grade: Grade, plant: Plant, used: datetime, now: datetime
) -> None:
    for number, rate in ((0, 330_000), (2, 550_000)):
        set_period_rate(
            grade_id=grade.id,
            period_start=now + number * PERIOD,
            clearing_rate_micros_per_mtok=300_000,
            overage_micros_per_mtok=rate,
            now=now,
        )
    spot = {"volume_lots": 150, "rate_micros_per_mtok": 400_000, "overage_policy": "spot"}
    answer = ask(acme, used + HOUR, **spot)
    # 50 beyond f at 0.33; then 10 of the volume are left for the last period: 50 at 0.55.
    assert answer.total.sums["overage_micros"] == 16_500 + 27_500
    assert "no_period_rate" not in {note.code for note in answer.notes}
    capped = ask(acme, used + HOUR, max_rate_micros_per_mtok=549_999, **spot)
    assert capped.total.sums["overage_micros"] == 16_500
    assert capped.total.refused == {Refusal.MAX_RATE: 50 * LOT}
    # With the volume gone sooner the middle period has none on record: the list rate of then, which has moved since.
    list_offering(
        host_id=plant.host.id,
        grade_slug=grade.family.slug,
        spot_floor_micros_per_mtok=200_000,
        firm_rate_micros_per_mtok=500_000,
        list_rate_micros_per_mtok=900_000,
        now=now + HOUR,
        actor=SYSTEM,
    )
    sooner = ask(acme, used + HOUR, **(spot | {"volume_lots": 110}))
    assert sooner.total.sums["overage_micros"] == 16_500 + 30 * 600 + 60 * 550
    assert "no_period_rate" in {note.code for note in sooner.notes}
    Offering.objects.update(status=Offering.Status.WITHDRAWN)
    assert ask(acme, used + HOUR, **(spot | {"volume_lots": 110})).total.refused == {
        Refusal.NO_RATE: 30 * LOT
    }


def test_a_fee_of_another_month_than_the_window_counts_by_time(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=2, volume_lots=2_000)
    charge_committed_months(now=contract.starts_at)
    first = Entitlement.objects.get()
    advance_contracts(now=first.period_end)
    charge_committed_months(now=first.period_end)
    since = contract.starts_at + timedelta(days=10)
    answer = ask(
        acme,
        first.period_end + timedelta(days=30),
        **(of_contract(contract) | {"starts_at": since, "months": 1}),
    )
    # 21 of 31 days of the first month, 10 of 30 of the second: 20 March 13:00 to 20 April 13:00.
    assert answer.total.paid == {"committed_fee": 677_419 + 333_333}
    assert "prorated" in {note.code for note in answer.notes}


def test_without_a_rate_it_is_todays_price_and_no_quote_is_written(
    acme: Party, used: datetime, plant: Plant
) -> None:
    before = row_counts()
    answer = ask(acme, used + HOUR)
    assert (answer.is_quoted, answer.terms.rate) == (True, 500_000)
    assert ask(acme, used + HOUR, rate_micros_per_mtok=1).is_quoted is False
    with pytest.raises(NotOffered) as refused:
        ask(acme, used + HOUR, firm_lots=10_000)
    assert refused.value.field == "firm_lots"
    assert row_counts() == before
    assert Quote.objects.count() == 0


def test_todays_price_in_arrears_is_not_that_of_ones_own_host(
    acme: Party, used: datetime, plant: Plant
) -> None:
    """As of a quote: no grant may pay who it was given to (docs/spending.md)."""
    acme.organization.roles = ["buyer", "provider"]
    acme.organization.save()
    make_plant(acme, plant.offering.grade, used, name="own", firm_rate=100_000)
    assert ask(acme, used + HOUR).terms.rate == 100_000
    assert ask(acme, used + HOUR, payment="arrears").terms.rate == 500_000


def test_the_default_window_is_the_last_whole_months_that_are_settled(
    acme: Party, used: datetime, now: datetime
) -> None:
    """The first request was on 10 March at 12:00; an hour is settled 75 s after its end."""

    def window(at: datetime, **asked: Any) -> tuple[datetime, int]:
        answer = ask(acme, at, rate_micros_per_mtok=1, **asked)
        return answer.total.period_start, len(answer.by_month)

    with pytest.raises(InvalidInput) as early:
        window(used + timedelta(seconds=74))
    assert early.value.field == "starts_at"
    assert "2026-04-10T12:00:00+00:00" in early.value.detail
    assert window(used + timedelta(seconds=75)) == (now, 1)
    may = datetime.fromisoformat("2026-05-20T07:30:00Z")
    assert window(may) == (datetime.fromisoformat("2026-03-20T07:00:00Z"), 2)
    assert window(may, months=1) == (datetime.fromisoformat("2026-04-20T07:00:00Z"), 1)
    assert window(may, starts_at=now) == (now, 2)
    august = datetime.fromisoformat("2026-08-31T07:30:00Z")
    assert window(august) == (datetime.fromisoformat("2026-05-31T07:00:00Z"), 3)
    assert window(august, months=5)[1] == 5


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({"grade_slug": "nothing"}, "grade"),
        ({"firm_lots": 0}, "firm_lots"),
        ({"firm_lots": 10**9 + 1}, "firm_lots"),
        ({"volume_lots": 0}, "volume_lots"),
        ({"volume_lots": 100 * 31 * 288 + 1}, "volume_lots"),
        ({"months": 13}, "months"),
        ({"months": 0}, "months"),
        ({"months": 2}, "months"),
        ({"starts_at": datetime.fromisoformat("2026-03-10T11:00:00Z")}, "starts_at"),
        ({"starts_at": datetime.fromisoformat("2026-03-10T12:05:00Z")}, "starts_at"),
        ({"starts_at": datetime.fromisoformat("2026-03-10T12:00:00")}, "starts_at"),
        ({"starts_at": datetime.fromisoformat("2026-03-10T13:00:00Z")}, "starts_at"),
        ({"starts_at": datetime.fromisoformat("9999-12-31T00:00:00Z")}, "starts_at"),
        ({"rate_micros_per_mtok": 0}, "rate_micros_per_mtok"),
        ({"rate_micros_per_mtok": 10**12 + 1}, "rate_micros_per_mtok"),
        ({"payment": "later"}, "payment"),
        ({"take_share_ppm": -1}, "take_share_ppm"),
        ({"overage_policy": "more"}, "overage_policy"),
        ({"max_rate_micros_per_mtok": 1}, "max_rate_micros_per_mtok"),
        ({"rollover_share_ppm": 1}, "rollover_cap_lots"),
        ({"rollover_share_ppm": 1, "rollover_cap_lots": 1, "payment": "arrears"}, "rollover_share_ppm"),
    ],
)
def test_what_cannot_be_tried_is_named(
    acme: Party, used: datetime, terms: dict[str, Any], named: str
) -> None:
    with pytest.raises(DomainError) as refused:
        ask(acme, used + timedelta(minutes=2), **({"rate_micros_per_mtok": 1} | terms))
    assert isinstance(refused.value, InvalidInput | NotFound)
    assert refused.value.field == named


def test_nobody_elses_usage_is_counted(
    acme: Party, mallory: Party, hyperion: Party, grade: Grade, plant: Plant, used: datetime, now: datetime
) -> None:
    with pytest.raises(InvalidInput) as nothing:
        ask(mallory, used + HOUR, rate_micros_per_mtok=1)
    assert nothing.value.field == "grade"
    fund(mallory, FUNDS, now)
    demand = on_demand(mallory, grade, now)
    accrue(demand, now + HOUR, 100_000, now)
    use(demand, plant.offering.list_rate, plant, now + HOUR, [10 * LOT])
    hers = ask(mallory, used + HOUR, rate_micros_per_mtok=1).total
    assert (hers.sums["used"], hers.paid) == (10 * LOT, {"usage": 6_000})
    assert ask(acme, used + HOUR, rate_micros_per_mtok=1).total.sums["used"] == 250 * LOT
    with pytest.raises(DomainError) as seller:
        ask(hyperion, used + HOUR)
    assert seller.value.http_status == 403


def test_another_grade_and_usage_outside_the_window_are_not_counted(
    acme: Party, grade: Grade, plant: Plant, used: datetime, now: datetime
) -> None:
    other = make_grade(now, slug="tiny-other", model="tiny-other")
    on_demand(acme, other, now)
    assert ask(acme, used + HOUR, rate_micros_per_mtok=1, grade_slug="tiny-other").total.paid == {}
    later = ask(acme, used + timedelta(days=2), rate_micros_per_mtok=1, starts_at=now + HOUR)
    assert (later.total.sums["used"], later.total.paid) == (0, {})
    assert later.total.paid_per_mtok_micros is None


def test_what_meters_disagree_about_is_on_neither_side(
    acme: Party, grade: Grade, plant: Plant, used: datetime, now: datetime
) -> None:
    found = Discrepancy.objects.create(host_id=plant.host.id, settlement_start=now, created_at=now)
    contract = Contract.objects.get(kind="on_demand")
    DisputedUsage.objects.create(
        discrepancy=found,
        contract_id=contract.id,
        rate_id=plant.offering.list_rate_id,
        offering_id=plant.offering.id,
        period_start=now,
        gateway_numerator=150 * LOT,
        lower_numerator=100 * LOT,
        withheld_numerator=50 * LOT,
    )
    assert ask(acme, used + HOUR, rate_micros_per_mtok=1).total.sums["used"] == 200 * LOT


def test_more_usage_asks_no_more_queries(
    acme: Party, grade: Grade, plant: Plant, used: datetime, now: datetime
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as seen:
            ask(acme, used + HOUR, overage_policy="list")
        return len(seen)

    before = queries()
    demand = Contract.objects.get(kind="on_demand")
    for number in range(50):
        meter(demand, plant.offering.list_rate, plant, LOT, now + HOUR + number * PERIOD)
    assert queries() == before


def test_it_is_answered_only_so_often(acme: Party, used: datetime) -> None:
    for _ in range(MOST_PER_WINDOW):
        ask(acme, used + HOUR, rate_micros_per_mtok=1)
    with pytest.raises(TooManyQuestions):
        ask(acme, used + HOUR, rate_micros_per_mtok=1)


REST = "/api/v1/contract-simulations"
BODY = {"grade": "tiny-chat", "firm_lots": 100, "volume_lots": 180, "rate_micros_per_mtok": 400_000}


def test_rest_tells_the_months_their_sum_and_what_is_not_in_them(
    acme: Party, used: datetime, now: datetime
) -> None:
    with time_machine.travel(used + HOUR, tick=False):
        answer = acme.api.post(REST, BODY, format="json")
    assert answer.status_code == 200, answer.content
    told = answer.json()
    assert (told["grade"], told["currency"], told["rate_micros_per_mtok"], told["is_quoted"]) == (
        "tiny-chat",
        "USD",
        400_000,
        False,
    )
    [month] = told["by_month"]
    assert (
        month
        == told["total"]
        == {
            "period_start": "2026-03-10T12:00:00Z",
            "period_end": "2026-04-10T12:00:00Z",
            "used_numerator": str(250 * LOT),
            "delivered_numerator": str(180 * LOT),
            "rolled_in_numerator": "0",
            "rolled_in_used_numerator": "0",
            "unused_numerator": "0",
            "rolled_out_numerator": "0",
            "true_up_numerator": "0",
            "beyond_firm_numerator": str(50 * LOT),
            "overage_numerator": "0",
            "refused": [{"reason": "stop", "numerator": str(70 * LOT)}],
            "committed_fee_micros": 72_000,
            "usage_micros": 0,
            "true_up_micros": 0,
            "overage_micros": 0,
            "simulated_micros": 72_000,
            "simulated_micros_per_mtok": 400_000,
            "paid": [{"kind": "usage", "amount_micros": 150_000}],
            "paid_micros": 150_000,
            "paid_micros_per_mtok": 600_000,
            "saving_micros": 78_000,
        }
    )
    assert [note["code"] for note in told["notes"]] == ["pace", "capacity", "failures", "tax", "refused"]


def test_rest_names_the_field_and_mallory_is_told_of_her_own_usage_alone(
    acme: Party, mallory: Party, hyperion: Party, used: datetime
) -> None:
    before = row_counts()
    with time_machine.travel(used + HOUR, tick=False):
        bad = acme.api.post(REST, {**BODY, "starts_at": "2026-03-10T12:05:00Z"}, format="json")
        hers = mallory.api.post(REST, BODY, format="json")
        sellers = hyperion.api.post(REST, BODY, format="json")
    assert (bad.status_code, bad.json()["field"]) == (422, "starts_at")
    assert (hers.status_code, hers.json()["field"]) == (422, "grade")
    assert (sellers.status_code, sellers.json()["code"]) == (403, "scope_missing")
    assert row_counts() == before
