"""A host that can supply less: what is unsold goes first, then spot from the lowest bid up, then firm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import Allocation, Contract, Curtailment
from marketplace.contracts.services import (
    capture_hold,
    curtail_derated,
    derate_host,
    end_derating,
    open_spot_contract,
)
from marketplace.errors import InvalidInput, NotFound
from marketplace.gateway.refusals import refusal_of
from marketplace.ids import uuid7
from metering.services import gateway_source
from providers.models import Derating, HostHour, HostPeriod
from providers.selectors import share_ppm_of
from providers.services import (
    CapacityGone,
    list_offering,
    open_capacity,
    record_bench,
    record_heartbeat,
    take_firm_share,
    take_period_share,
)
from tests.billing.world import award
from tests.cast import make_grade
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, ask, commit, give_money, make_world

PERIOD = timedelta(minutes=5)
SELLABLE = 950_000
# The cast's host makes 255 lots in a period.
WHOLE_LOTS = 255


@pytest.fixture
def world(db: None, now: datetime) -> World:
    made = make_world(now)
    give_money(made, 10**9, now)
    return made


def beat(world: World, at: datetime, *, available_ppm: int | None = None) -> None:
    record_heartbeat(
        host_id=world.plant.host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        available_ppm=available_ppm,
        now=at,
    )


def derate(world: World, available_ppm: int, at: datetime) -> Derating:
    return derate_host(
        organization_id=world.hyperion.id,
        host_id=world.plant.host.id,
        available_ppm=available_ppm,
        now=at,
        actor=SYSTEM,
    )


def sell_spot(world: World, lots_by_bid: dict[int, int], start: datetime, now: datetime) -> list[Contract]:
    """Awards of so many lots to contracts that bid so much, and the share of the host that they take together."""
    contracts = []
    for bid, lots in lots_by_bid.items():
        contract = open_spot_contract(
            id=uuid7(),
            organization_id=world.acme.id,
            grade_id=world.grade.id,
            max_rate_micros_per_mtok=bid,
            now=now,
        )
        award(world.acme, world.grade, [(world.plant, lots)], 200_000, start, now, contract)
        contracts.append(contract)
    share = share_ppm_of(sum(lots_by_bid.values()), world.plant.offering, 300)
    take_period_share(host_id=world.plant.host.id, period_start=start, share_ppm=share)
    return contracts


def row(world: World, start: datetime) -> HostPeriod:
    return HostPeriod.objects.get(host=world.plant.host, period_start=start)


def cut_lots() -> dict[UUID, int]:
    return {one.allocation.contract_id: one.lots for one in Curtailment.objects.select_related("allocation")}


def test_what_is_unsold_leaves_the_sale_first_and_comes_back(world: World, now: datetime) -> None:
    [kept] = sell_spot(world, {300_000: 100}, now, now)
    derating = derate(world, 600_000, now)
    assert (derating.cause, derating.available_ppm, derating.ended_at) == ("provider", 600_000, None)
    assert set(HostPeriod.objects.values_list("sellable_ppm", "derated_ppm")) == {(550_000, 400_000)}
    assert not Curtailment.objects.exists()
    assert ask(world, LOT, now, contract_id=kept.id)[1].outcome == "ok"
    with pytest.raises(CapacityGone):
        take_period_share(host_id=world.plant.host.id, period_start=now + PERIOD, share_ppm=550_001)
    # An hour that is made while it lasts has no more, and nothing is sold firm beyond it.
    later = now + timedelta(hours=30)
    with pytest.raises(CapacityGone):
        take_firm_share(host_id=world.plant.host.id, hours=[later], share_ppm=550_001, now=now)
    take_firm_share(host_id=world.plant.host.id, hours=[later], share_ppm=550_000, now=now)
    # The same again is the same; it ends once.
    assert derate(world, 600_000, now + timedelta(seconds=1)).id == derating.id
    for _ in range(2):
        end_derating(
            organization_id=world.hyperion.id,
            host_id=world.plant.host.id,
            derating_id=derating.id,
            now=now + timedelta(seconds=2),
            actor=SYSTEM,
        )
    assert set(HostPeriod.objects.values_list("sellable_ppm", "derated_ppm")) == {(SELLABLE, 0)}
    assert set(HostHour.objects.values_list("sellable_ppm", "derated_ppm")) == {(SELLABLE, 0)}


def test_spot_is_curtailed_from_the_lowest_bid_up(world: World, now: datetime) -> None:
    low, middle, high = sell_spot(world, {250_000: 80, 300_000: 80, 400_000: 80}, now, now)
    at = now + timedelta(seconds=150)
    derate(world, 500_000, at)
    # 941,177 ppm are sold and 450,000 left: 126 of the 240 lots go.
    assert cut_lots() == {low.id: 80, middle.id: 46}
    period = row(world, now)
    assert (period.sellable_ppm, period.derated_ppm) == (450_000, 500_000)
    assert period.sold_ppm == share_ppm_of(114, world.plant.offering, 300) <= 450_000
    assert {one.curtailed_at for one in Curtailment.objects.all()} == {at}
    # Nothing more where a worker looks again, and more where another derating comes.
    assert curtail_derated(now=at) == 0
    derate(world, 300_000, at + timedelta(seconds=1))
    assert sum(one.lots for one in Curtailment.objects.filter(allocation__contract=middle)) == 80
    assert sum(one.lots for one in Curtailment.objects.filter(allocation__contract=high)) == 17
    assert row(world, now).sellable_ppm == 250_000


def test_admission_stops_where_it_was_curtailed_and_what_ran_is_served_and_billed(
    world: World, now: datetime
) -> None:
    low, middle, high = sell_spot(world, {250_000: 80, 300_000: 80, 400_000: 80}, now, now)
    at = now + timedelta(seconds=150)
    beat(world, at)
    running, opened = ask(world, 2 * LOT, at, contract_id=low.id)
    assert opened.outcome == "ok"
    derate(world, 500_000, at)
    _, refused = ask(world, 1, at, contract_id=low.id)
    assert (refused.outcome, refused.retry_after_ms) == ("capacity_curtailed", 150_000)
    error = refusal_of(refused)
    assert (error.status, error.code, error.headers["retry-after"]) == (429, "capacity_curtailed", "150")
    # 34 of the middle's 80 lots stay, for the half of the period that is left.
    assert ask(world, 17 * LOT + 1, at, contract_id=middle.id)[1].outcome == "capacity_curtailed"
    assert ask(world, 12 * LOT, at, contract_id=middle.id)[1].outcome == "ok"
    assert ask(world, 5 * LOT + 1, at, contract_id=middle.id)[1].outcome == "capacity_curtailed"
    assert ask(world, 5 * LOT, at, contract_id=high.id)[1].outcome == "ok"
    captured = capture_hold(
        id=running, numerator=2 * LOT, event=b"{}\n", source_id=gateway_source(at).id, now=at
    )
    assert (captured.outcome, captured.captured_numerator, captured.capped) == ("ok", 2 * LOT, False)
    # In the next period the host still has less, and nobody was sold more.
    beat(world, now + PERIOD)
    assert ask(world, LOT, now + PERIOD, contract_id=low.id)[1].outcome == "contract_exhausted"


def test_without_a_contract_named_a_curtailed_buyer_is_served_by_what_another_host_has_unsold(
    world: World, now: datetime
) -> None:
    [contract] = sell_spot(world, {250_000: 240}, now, now)
    assert ask(world, LOT, now)[1].contract_id == contract.id
    derate(world, 0, now)
    _, opened = ask(world, LOT, now)
    assert (opened.outcome, opened.kind) == ("capacity_unavailable", "on_demand")
    assert opened.retry_after_ms == 300_000


def test_firm_keeps_until_all_spot_is_gone(world: World, now: datetime) -> None:
    firm = commit(world, now, firm_lots=120, volume_lots=10_000, overage_policy="stop")
    start = firm.starts_at
    open_capacity(now=start)
    beat(world, start)
    [spot] = sell_spot(world, {400_000: 100}, start, now)
    share = share_ppm_of(120, world.plant.offering, 300)
    derate(world, 600_000, start)
    # 550,000 ppm are left: 470,589 of them firm.
    assert list(cut_lots()) == [spot.id]
    assert row(world, start).sold_ppm <= row(world, start).sellable_ppm == 550_000
    assert ask(world, LOT, start, contract_id=firm.id)[1].outcome == "ok"
    derate(world, 300_000, start + timedelta(seconds=1))
    assert cut_lots()[spot.id] > 0
    assert sum(one.lots for one in Curtailment.objects.filter(allocation__contract=spot)) == 100
    # 250,000 are left of 470,589: 57 of its 120 lots. It is slowed down, not refused.
    period = row(world, start)
    assert (period.sold_ppm, period.sellable_ppm) == (share, share)
    in_period = Curtailment.objects.filter(allocation__contract=firm, period_start=start)
    assert [(one.lots, one.kept_numerator) for one in in_period] == [(57, None)]
    assert curtail_derated(now=start + timedelta(seconds=2)) == 0
    derate(world, 0, start + timedelta(seconds=3))
    assert sum(one.lots for one in in_period.all()) == 120
    assert ask(world, LOT, start + timedelta(seconds=3), contract_id=firm.id)[1].outcome == (
        "capacity_curtailed"
    )


def test_a_later_period_is_curtailed_when_it_comes_near(world: World, now: datetime) -> None:
    firm = commit(world, now, firm_lots=200, volume_lots=10_000)
    start = firm.starts_at
    open_capacity(now=start)
    derate(world, 500_000, start)
    near = {start, start + PERIOD}
    assert set(Curtailment.objects.values_list("period_start", flat=True)) == near
    assert curtail_derated(now=start + PERIOD) == 1
    # An hour that is sold stays sold: its periods are curtailed one by one, and it is sold no further.
    with pytest.raises(CapacityGone):
        take_firm_share(
            host_id=world.plant.host.id, hours=[start.replace(minute=0)], share_ppm=1, now=start + PERIOD
        )


def test_an_award_that_is_published_after_the_derating_is_curtailed_then(world: World, now: datetime) -> None:
    start = now + PERIOD
    share = share_ppm_of(240, world.plant.offering, 300)
    take_period_share(host_id=world.plant.host.id, period_start=start, share_ppm=share)
    derate(world, 500_000, now)
    period = row(world, start)
    assert (period.sold_ppm, period.sellable_ppm) == (share, share)
    contract = award(world.acme, world.grade, [(world.plant, 240)], 200_000, start, now).contract
    assert curtail_derated(now=now + timedelta(seconds=5)) == 1
    assert cut_lots() == {contract.id: 126}
    assert row(world, start).sellable_ppm == 450_000


def bench(
    world: World, output_tokens: int, at: datetime, *, grades: tuple[str, ...] = ("tiny-chat", "tiny-chat")
) -> None:
    record_bench(
        host_id=world.plant.host.id,
        figures={
            "duration_ms": 1000,
            "requests": 8,
            "concurrency": 4,
            "input_tokens": output_tokens // 4,
            "output_tokens": output_tokens,
            "first_byte_p50_ms": 10,
            "first_byte_p95_ms": 20,
        },
        now=at,
    )
    for slug in grades:
        list_offering(
            host_id=world.plant.host.id,
            grade_slug=slug,
            spot_floor_micros_per_mtok=200_000,
            firm_rate_micros_per_mtok=500_000,
            list_rate_micros_per_mtok=600_000,
            now=at,
            actor=SYSTEM,
        )


def test_a_lower_bench_makes_what_is_sold_take_more_of_the_host(world: World, now: datetime) -> None:
    low, _ = sell_spot(world, {250_000: 100, 400_000: 100}, now, now)
    share = share_ppm_of(200, world.plant.offering, 300)
    at = now + timedelta(seconds=10)
    # Four fifths: 200 lots take 784,314 / 0.8 = 980,393 ppm, within the host though not within what is sold of one.
    bench(world, 640, at)
    assert curtail_derated(now=at) == 0
    period = row(world, now)
    assert (period.sold_ppm, period.sellable_ppm) == (share, share)
    # What nobody bought is not touched: new sales are counted by the new bench.
    assert row(world, now + PERIOD).sellable_ppm == SELLABLE
    # A half: only 127 of the lots can be made.
    bench(world, 400, at + timedelta(seconds=1))
    assert curtail_derated(now=at + timedelta(seconds=1)) == 1
    assert cut_lots() == {low.id: 73}
    period = row(world, now)
    assert period.sold_ppm == period.sellable_ppm
    assert Derating.objects.filter(cause="bench").count() == 2
    # It makes all of it again: what is left of the sale takes what it took, and the rest is unsold.
    bench(world, 800, at + timedelta(seconds=2))
    period = row(world, now)
    assert (period.need_ppm, period.derated_ppm, period.sellable_ppm) == (1_000_000, 0, SELLABLE)
    assert abs(period.sold_ppm - share_ppm_of(127, world.plant.offering, 300)) < 4_000
    assert cut_lots() == {low.id: 73}


def test_a_bench_counts_once_however_many_grades_it_is_listed_in(world: World, now: datetime) -> None:
    """The first listing by it may be that of another grade."""
    [contract] = sell_spot(world, {250_000: 200}, now, now)
    make_grade(now, slug="other", model="other")
    bench(world, 400, now + timedelta(seconds=1), grades=("other", "tiny-chat"))
    assert curtail_derated(now=now + timedelta(seconds=1)) == 1
    assert row(world, now).need_ppm == 2_000_000
    assert cut_lots() == {contract.id: 73}


def test_an_engine_says_what_it_can_supply_with_its_heartbeat(world: World, now: datetime) -> None:
    [contract] = sell_spot(world, {250_000: 200}, now, now)
    beat(world, now + timedelta(seconds=1), available_ppm=500_000)
    beat(world, now + timedelta(seconds=2), available_ppm=500_000)
    derating = Derating.objects.get()
    assert (derating.cause, derating.started_at) == ("engine", now + timedelta(seconds=1))
    assert curtail_derated(now=now + timedelta(seconds=3)) == 1
    assert cut_lots() == {contract.id: 86}
    # Of two causes the greater counts.
    derate(world, 600_000, now + timedelta(seconds=4))
    assert row(world, now).sellable_ppm == 450_000
    beat(world, now + timedelta(seconds=5), available_ppm=1_000_000)
    assert row(world, now).sellable_ppm == 550_000
    beat(world, now + timedelta(seconds=6))
    assert Derating.objects.filter(ended_at__isnull=True).count() == 1


@pytest.mark.parametrize("available_ppm", [-1, 1_000_000, 10**30])
def test_a_derating_takes_something_and_leaves_nothing_below_nothing(
    world: World, now: datetime, available_ppm: int
) -> None:
    with pytest.raises(InvalidInput) as refused:
        derate(world, available_ppm, now)
    assert refused.value.field == "available_ppm"
    assert not Derating.objects.exists()


def test_nobody_derates_anothers_host(world: World, now: datetime) -> None:
    derating = derate(world, 500_000, now)
    for call in (
        lambda: derate_host(
            organization_id=world.acme.id, host_id=world.plant.host.id, available_ppm=1, now=now, actor=SYSTEM
        ),
        lambda: end_derating(
            organization_id=world.acme.id,
            host_id=world.plant.host.id,
            derating_id=derating.id,
            now=now,
            actor=SYSTEM,
        ),
    ):
        with pytest.raises(NotFound):
            call()
    assert Derating.objects.get().ended_at is None


def test_deratings_sales_and_holds_at_once_never_sell_what_is_not_there(
    committed_db: TestDatabase, now: datetime
) -> None:
    """Real commits: derated twice, looked after, sold of and held on at the same moment, many times."""
    world = make_world(now)
    give_money(world, 10**9, now)
    start = now
    contracts = sell_spot(world, {250_000: 40, 300_000: 40, 400_000: 40}, start, now)
    host_id = world.plant.host.id
    sold_before = row(world, start).sold_ppm
    taken: list[int] = []
    outcomes: list[str] = []

    def sell() -> None:
        try:
            take_period_share(host_id=host_id, period_start=start, share_ppm=40_000)
            taken.append(40_000)
        except CapacityGone:
            pass

    def sell_firm() -> None:
        try:
            take_firm_share(host_id=host_id, hours=[start], share_ppm=30_000, now=start)
            taken.append(30_000)
        except CapacityGone:
            pass

    def hold() -> None:
        outcomes.extend([ask(world, LOT, start, contract_id=one.id)[1].outcome for one in contracts])

    work: list[Callable[[], object]] = [
        *[lambda share=share: derate(world, share, start) for share in (700_000, 400_000, 500_000)],
        *[lambda: curtail_derated(now=start)] * 3,
        *[sell] * 4,
        *[sell_firm] * 3,
        *[hold] * 4,
    ]
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], object]) -> None:
        try:
            barrier.wait()
            one()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(outcomes) <= {"ok", "capacity_curtailed"}
    # Whoever came last, one derating holds, and what is left of the sale fits into it.
    derating = Derating.objects.get(ended_at__isnull=True)
    curtail_derated(now=start)
    period = row(world, start)
    assert period.lost_ppm == 1_000_000 - derating.available_ppm
    freed = sold_before + sum(taken) - period.sold_ppm
    cut = sum(one.lots for one in Curtailment.objects.filter(period_start=start))
    offering = world.plant.offering
    assert freed == share_ppm_of(120, offering, 300) - share_ppm_of(120 - cut, offering, 300)
    unallocated = sum(taken)
    assert period.sellable_ppm == max(SELLABLE - period.lost_ppm, period.sold_ppm)
    assert period.sold_ppm <= max(SELLABLE - period.lost_ppm, unallocated)
    for allocation in Allocation.objects.all():
        assert sum(one.lots for one in allocation.curtailments.all()) <= allocation.firm_lots
