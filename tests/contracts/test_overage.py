"""Beyond a committed contract's volume: who serves, who pays, at which rate, and when it is refused."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import F, Sum

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.holds import Opened, open_part, sweep_holds, take_rest
from marketplace.contracts.models import Accrual, Contract, Entitlement, Hold, OnDemandBucket, Payment
from marketplace.contracts.services import capture_hold, extend_hold, open_hold, request_quote, void_hold
from marketplace.contracts.spending import set_spend_cap
from marketplace.contracts.spot import set_period_rate
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import account_id, set_overdraft_limit
from metering.models import MeterSource, UsageBatch
from metering.services import accept_batch, gateway_source, ingest_batches
from metering.usage import (
    GENESIS_DIGEST,
    Finish,
    Flag,
    UsageEvent,
    decode_event,
    encode_batch,
    encode_event,
)
from pricing.models import Rate
from pricing.services import publish_rate
from pricing.units import Bucket
from providers.models import Host, HostHour, HostPeriod, Offering
from tests.cast import make_plant
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, ask, available, commit, give_money, make_world

MONEY = 10**9
# The cast's dearest token: output.
TOKEN = 10**6


@pytest.fixture
def world(db: None, now: datetime) -> World:
    return make_world(now)


def begun(world: World, now: datetime, **terms: object) -> Contract:
    """A contract of one lot a month, at its start, with a host that lives and a buyer with money."""
    give_money(world, MONEY, now)
    contract = commit(world, now, volume_lots=1, **terms)  # type: ignore[arg-type]
    Host.objects.update(last_heartbeat_at=contract.starts_at + timedelta(hours=1), ready=True)
    return contract


def publish(world: World, at: datetime, rate: int) -> UUID:
    said = set_period_rate(
        grade_id=world.grade.id,
        period_start=at,
        clearing_rate_micros_per_mtok=rate,
        overage_micros_per_mtok=rate,
        now=at,
    )
    return said.overage_rate_id


def sell_out() -> None:
    HostHour.objects.update(sold_ppm=F("sellable_ppm"))
    HostPeriod.objects.update(sold_ppm=F("sellable_ppm"))


def split(
    world: World, numerator: int, at: datetime, contract: Contract
) -> tuple[UUID, Opened, UUID, Opened]:
    """A request that takes the rest of the contract, and the part beyond it."""
    hold_id = uuid7(at)
    first = open_hold(
        id=hold_id,
        organization_id=world.acme.id,
        grade_ids=[world.grade.id],
        numerators=[numerator],
        contract_id=contract.id,
        may_split=True,
        now=at,
    )
    assert first.outcome == "ok", first
    assert first.amount_numerator is not None
    over_id = uuid7(at)
    over = open_part(
        hold_id=hold_id,
        id=over_id,
        amount_numerator=numerator - first.amount_numerator,
        is_admission=True,
        now=at,
    )
    return hold_id, first, over_id, over


def capture(hold_id: UUID, numerator: int, at: datetime) -> int:
    done = capture_hold(
        id=hold_id, numerator=numerator, event=b"{}\n", source_id=gateway_source(at).id, now=at
    )
    assert done.outcome == "ok"
    return done.captured_numerator


@pytest.mark.parametrize("named", [True, False])
def test_overage_at_spot_is_the_contracts_own_at_the_periods_rate(
    world: World, now: datetime, named: bool
) -> None:
    contract = begun(world, now, overage_policy="spot")
    start, rate_id = contract.starts_at, publish(world, contract.starts_at, 400_000)
    before = available(world)
    hold_id, opened = ask(world, 2 * LOT, start, contract_id=contract.id if named else None)
    assert (opened.outcome, opened.contract_id, opened.kind) == ("ok", contract.id, "committed")
    assert (opened.rate_id, opened.rate_micros_per_mtok) == (rate_id, 400_000)
    assert opened.offering_id == world.plant.offering.id
    held = Hold.objects.get(pk=hold_id)
    assert (held.entitlement_id, held.amount_micros) == (None, 800)
    assert available(world) == before - 800
    assert capture(hold_id, LOT, start) == LOT
    assert available(world) == before - 400
    assert Entitlement.objects.get(contract=contract).used_numerator == 0
    accrual = Accrual.objects.get()
    assert (accrual.contract_id, accrual.captured_micros, accrual.held_micros) == (contract.id, 400, 0)
    assert check_ledger() == []


def test_overage_in_arrears_draws_on_the_credit_line(world: World, now: datetime) -> None:
    receivable = account_id(
        organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now
    )
    set_overdraft_limit(account_id=receivable, limit_micros=800)
    contract = begun(world, now, overage_policy="spot", payment=Payment.ARREARS)
    publish(world, contract.starts_at, 400_000)
    before = available(world)
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert (opened.outcome, opened.contract_id, opened.amount_micros) == ("ok", contract.id, 800)
    assert available(world) == before
    assert ask(world, 2 * LOT, contract.starts_at)[1].outcome == "insufficient_funds"


def test_without_a_published_rate_overage_at_spot_costs_the_list_rate(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert (opened.outcome, opened.contract_id) == ("ok", contract.id)
    assert opened.rate_id == world.plant.offering.list_rate_id


def test_a_list_rate_below_the_overage_rate_is_the_rate(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    publish(world, contract.starts_at, 700_000)
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert (opened.rate_id, opened.rate_micros_per_mtok) == (world.plant.offering.list_rate_id, 600_000)


def test_nobody_serves_overage_below_his_floor(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    publish(world, contract.starts_at, 400_000)
    Offering.objects.update(spot_floor_micros_per_mtok=400_001)
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert opened.outcome == "capacity_unavailable"
    other = make_plant(world.hyperion, world.grade, now, name="h2", list_rate=900_000)
    Host.objects.update(last_heartbeat_at=contract.starts_at + timedelta(hours=1), ready=True)
    Offering.objects.filter(pk=other.offering.pk).update(spot_floor_micros_per_mtok=400_000)
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert (opened.outcome, opened.offering_id) == ("ok", other.offering.id)
    assert opened.rate_micros_per_mtok == 400_000


def test_overage_is_served_from_what_is_unsold(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    publish(world, contract.starts_at, 400_000)
    sell_out()
    _, opened = ask(world, 2 * LOT, contract.starts_at)
    assert opened.outcome == "capacity_unavailable"
    assert not Hold.objects.exists()


@pytest.mark.parametrize(("policy", "rate"), [("list", 600_000), ("spot", 400_000)])
def test_a_rate_above_the_contracts_highest_is_refused_and_named(
    world: World, now: datetime, policy: str, rate: int
) -> None:
    contract = begun(world, now, overage_policy=policy, max_rate_micros_per_mtok=rate - 1)
    publish(world, contract.starts_at, 400_000)
    for contract_id in (None, contract.id):
        _, opened = ask(world, 2 * LOT, contract.starts_at, contract_id=contract_id)
        assert opened.outcome == "overage_above_max_rate"
        assert (opened.rate_micros_per_mtok, opened.max_rate_micros_per_mtok) == (rate, rate - 1)
        assert opened.retry_after_ms == 300_000
    assert not Hold.objects.exists()
    Contract.objects.filter(pk=contract.pk).update(max_rate_micros_per_mtok=rate)
    assert ask(world, 2 * LOT, contract.starts_at)[1].outcome == "ok"


def test_a_highest_rate_is_one_of_overage(world: World, now: datetime) -> None:
    for policy, most in (("stop", 1), ("list", 0), ("list", 10**12 + 1), ("spot", True)):
        with pytest.raises(InvalidInput) as refused:
            request_quote(
                organization_id=world.acme.id, grade_slug="tiny-chat", firm_lots=1, volume_lots=1, months=1,
                starts_at=None, take_share_ppm=0, overage_policy=policy, payment="prepaid", now=now,
                max_rate_micros_per_mtok=most,
            )  # fmt: skip
        assert refused.value.field == "max_rate_micros_per_mtok"


def test_spend_caps_hold_for_overage_and_its_parts(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    start = contract.starts_at
    publish(world, start, 400_000)
    set_spend_cap(
        organization_id=world.acme.id, scope="organization", period="day", limit_micros=799, now=start, actor=SYSTEM
    )  # fmt: skip
    _, opened = ask(world, 2 * LOT, start)
    assert (opened.outcome, opened.spend_cap) == ("spend_cap_reached", "organization/day")
    *_, over = split(world, 3 * LOT, start, contract)
    assert over.outcome == "spend_cap_reached"
    assert Hold.objects.get().amount_numerator == LOT


@pytest.mark.parametrize("policy", ["list", "spot"])
def test_a_request_takes_the_rest_of_a_contract_and_goes_on_as_part_1(
    world: World, now: datetime, policy: str
) -> None:
    contract = begun(world, now, overage_policy=policy)
    start = contract.starts_at
    publish(world, start, 400_000)
    before = available(world)
    hold_id, first, over_id, over = split(world, 3 * LOT, start, contract)
    assert (first.amount_numerator, first.contract_id, first.rate_id) == (LOT, contract.id, contract.rate_id)
    rate = 400_000 if policy == "spot" else 600_000
    assert (over.outcome, over.rate_micros_per_mtok, over.amount_micros) == ("ok", rate, 2 * rate // 1000)
    assert (over.contract_id == contract.id) == (policy == "spot")
    assert (over.offering_id, over.period_start, over.expires_at) == (
        first.offering_id, first.period_start, first.expires_at,
    )  # fmt: skip
    parts = Hold.objects.order_by("part")
    assert [(hold.id, hold.part, hold.request_id) for hold in parts] == [
        (hold_id, 0, hold_id),
        (over_id, 1, hold_id),
    ]
    # It is one second part, whoever asks.
    again = open_part(hold_id=hold_id, id=uuid7(start), amount_numerator=LOT, now=start)
    assert again.outcome == "contract_exhausted"
    assert extend_hold(id=over_id, delta_numerator=LOT, now=start) == "ok"
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=start) == "contract_exhausted"
    assert capture(hold_id, LOT, start) == LOT
    assert capture(over_id, 5 * LOT, start) == 3 * LOT
    assert available(world) == before - 3 * rate // 1000
    assert Entitlement.objects.get(contract=contract).used_numerator == LOT
    assert check_ledger() == []


def test_part_1_costs_what_the_list_rate_was_at_admission(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="list")
    start, offering = contract.starts_at, world.plant.offering
    hold_id, _ = ask(world, LOT, start)
    raised = publish_rate(
        grade_id=world.grade.id, kind="list", micros_per_mtok=10**9, source_id=offering.id,
        now=start + timedelta(seconds=1),
    )  # fmt: skip
    Offering.objects.filter(pk=offering.pk).update(list_rate=raised)
    at = start + timedelta(seconds=2)
    over = open_part(hold_id=hold_id, id=uuid7(at), amount_numerator=LOT, now=at)
    assert (over.outcome, over.rate_id, over.rate_micros_per_mtok) == ("ok", offering.list_rate_id, 600_000)


def test_a_contract_that_has_not_begun_has_nothing_to_split(world: World, now: datetime) -> None:
    for policy, outcome in (("list", "ok"), ("spot", "contract_exhausted"), ("stop", "contract_exhausted")):
        give_money(world, MONEY, now)
        contract = commit(world, now, volume_lots=1, overage_policy=policy)
        opened = open_hold(
            id=uuid7(now), organization_id=world.acme.id, grade_ids=[world.grade.id], numerators=[LOT],
            contract_id=contract.id, may_split=True, now=now,
        )  # fmt: skip
        assert opened.outcome == outcome


def test_overage_is_bounded_also_where_the_contracts_own_hosts_are_away(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="list", max_rate_micros_per_mtok=599_999)
    own = (world.plant.offering.id,)
    make_plant(world.hyperion, world.grade, now, name="h2")
    Host.objects.update(last_heartbeat_at=contract.starts_at + timedelta(hours=1), ready=True)
    _, opened = ask(world, 2 * LOT, contract.starts_at, exclude=own)
    assert opened.outcome == "overage_above_max_rate"
    # What is still owed is not asked as overage.
    _, opened = ask(world, LOT, contract.starts_at, contract_id=contract.id, exclude=own)
    assert opened.outcome == "no_offering"


def test_under_stop_nothing_is_split_and_nothing_of_the_rest_is_taken(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="stop")
    start = contract.starts_at
    hold_id, opened = ask(world, LOT // 2, start)
    assert opened.outcome == "ok"
    assert take_rest(id=hold_id, most_numerator=LOT, now=start) == 0
    assert (
        open_part(hold_id=hold_id, id=uuid7(start), amount_numerator=LOT, now=start).outcome
        == "contract_exhausted"
    )
    refused = open_hold(
        id=uuid7(start), organization_id=world.acme.id, grade_ids=[world.grade.id], numerators=[LOT],
        may_split=True, now=start,
    )  # fmt: skip
    assert refused.outcome == "contract_exhausted"
    assert Hold.objects.count() == 1


def test_a_running_stream_takes_exactly_what_is_left(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="list")
    start = contract.starts_at
    hold_id, _ = ask(world, LOT // 3, start)
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=start) == "contract_exhausted"
    assert take_rest(id=hold_id, most_numerator=5, now=start) == 5
    assert take_rest(id=hold_id, most_numerator=LOT, now=start) == LOT - LOT // 3 - 5
    assert take_rest(id=hold_id, most_numerator=LOT, now=start) == 0
    assert Entitlement.objects.get(contract=contract).held_numerator == LOT


def test_less_than_a_token_of_a_contract_is_left_alone(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="list")
    start = contract.starts_at
    ask(world, LOT - TOKEN + 1, start)
    opened = open_hold(
        id=uuid7(start), organization_id=world.acme.id, grade_ids=[world.grade.id], numerators=[LOT],
        contract_id=contract.id, may_split=True, now=start,
    )  # fmt: skip
    assert (opened.kind, opened.amount_numerator) == ("on_demand", LOT)


def test_part_1_is_refused_where_its_host_has_nothing_unsold(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="list")
    sell_out()
    hold_id, _, _, over = split(world, 2 * LOT, contract.starts_at, contract)
    assert over.outcome == "capacity_unavailable"
    # A stream that runs already is not cut for its pace.
    running = open_part(hold_id=hold_id, id=uuid7(now), amount_numerator=LOT, now=contract.starts_at)
    assert running.outcome == "ok"
    # What it takes is a debt of what the host will have unsold: who comes after waits for it.
    assert OnDemandBucket.objects.get().level_numerator == -LOT


def test_no_stranger_pays_for_a_part(world: World, now: datetime) -> None:
    begun(world, now, overage_policy="list")
    closed = open_part(hold_id=uuid7(now), id=uuid7(now), amount_numerator=LOT, now=now)
    assert closed.outcome == "closed"


def agent_reports(world: World, first: Hold, output_tokens: int, at: datetime) -> None:
    """The host's signed count of the whole attempt, as its delivery key named it."""
    agent = MeterSource.objects.get(host_id=world.plant.host.id, kind="agent")
    event = UsageEvent(
        id=uuid7(at), sequence=1, request_id=first.request_id, attempt=first.attempt, part=0,
        contract_id=first.contract_id, offering_id=first.offering_id, grade_id=first.grade_id, rate_id=first.rate_id,
        period_start=first.period_start, occurred_at=first.opened_at, buckets={Bucket.OUTPUT: output_tokens},
        finish=Finish.STOP, bytes_in=10, bytes_out=20, duration_ms=5, first_byte_ms=1,
    )  # fmt: skip
    body = encode_batch(
        source_id=agent.pk, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=[encode_event(event)]
    )
    accept_batch(source=agent, body=body, now=at)
    ingest_batches(now=at)


@pytest.mark.parametrize(
    ("agent", "died", "expected"),
    [
        (2_500, "before both", {0: (1_000, {Flag.SPLIT}), 1: (1_500, {Flag.SPLIT})}),
        (2_500, "between them", {1: (1_500, {Flag.SPLIT})}),
        (5_000, "before both", {0: (1_000, {Flag.SPLIT}), 1: (2_000, {Flag.SPLIT, Flag.CAPPED})}),
        (800, "before both", {0: (800, set())}),
        (800, "between them", {}),
        (2_500, "while voiding", {}),
    ],
)
@pytest.mark.parametrize("policy", ["list", "spot"])
def test_what_a_gateway_that_died_left_of_two_parts_is_captured_by_the_agents_one_count(
    world: World,
    now: datetime,
    policy: str,
    agent: int,
    died: str,
    expected: dict[int, tuple[int, set[Flag]]],
) -> None:
    contract = begun(world, now, overage_policy=policy)
    start = contract.starts_at
    publish(world, start, 400_000)
    hold_id, _, over_id, _ = split(world, 3 * LOT, start, contract)
    if died == "between them":
        capture(hold_id, min(agent * TOKEN, LOT), start)
    if died == "while voiding":
        void_hold(id=hold_id, now=start)
    UsageBatch.objects.all().delete()
    agent_reports(world, Hold.objects.get(pk=hold_id), agent, start)
    UsageBatch.objects.all().delete()
    swept = sweep_holds(now=start + timedelta(minutes=1))
    assert swept == (2 if died == "before both" else 1)
    assert not Hold.objects.filter(status="open").exists()
    events = {
        event.part: (event.buckets["output"], set(event.flags) - {Flag.RECOVERED})  # type: ignore[index]
        for event in (decode_event(bytes(batch.body).strip()) for batch in UsageBatch.objects.all())
    }
    assert events == expected
    over = Hold.objects.get(pk=over_id)
    assert over.captured_numerator == expected.get(1, (0, set()))[0] * TOKEN
    assert (over.status == "captured") == (1 in expected)
    assert sweep_holds(now=start + timedelta(hours=2)) == 0
    assert check_ledger() == []


def test_parts_nobody_reported_are_voided_before_their_period_is_settled(world: World, now: datetime) -> None:
    contract = begun(world, now, overage_policy="spot")
    start = contract.starts_at
    before = available(world)
    split(world, 3 * LOT, start, contract)
    assert sweep_holds(now=start + timedelta(minutes=20)) == 0
    assert sweep_holds(now=start + timedelta(hours=2)) == 2
    assert set(Hold.objects.values_list("status", flat=True)) == {"voided"}
    assert available(world) == before
    assert check_ledger() == []


def test_a_hundred_requests_at_the_volumes_end_use_it_up_exactly(
    committed_db: TestDatabase, now: datetime
) -> None:
    world = make_world(now)
    contract = begun(world, now, overage_policy="spot", firm_lots=30)
    start, source_id = contract.starts_at, gateway_source(now).id
    publish(world, start, 400_000)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE providers_offering SET dependable_numerator_per_s = 1000000000000")
    asked = LOT // 30 + 7

    def one(_: int) -> Counter[str]:
        """A stream that begins with half of what it needs, grows at the volume's end, and uses all it holds."""
        try:
            held = {}
            hold_id, opened = ask(world, asked // 2, start, contract_id=contract.id)
            assert opened.outcome == "ok", opened
            assert opened.amount_numerator is not None
            held[hold_id], missing = opened.amount_numerator, asked - asked // 2
            if extend_hold(id=hold_id, delta_numerator=missing, now=start) == "ok":
                held[hold_id] += missing
            else:
                taken = take_rest(id=hold_id, most_numerator=missing, now=start)
                held[hold_id] += taken
                if taken < missing:
                    over_id = uuid7(start)
                    over = open_part(hold_id=hold_id, id=over_id, amount_numerator=missing - taken, now=start)
                    # One that began beyond the contract just grows.
                    assert over.outcome == "ok", over
                    held[over_id] = missing - taken
            for one_id, amount in held.items():
                capture_hold(id=one_id, numerator=amount, event=b"{}\n", source_id=source_id, now=start)
            return Counter({str(len(held)): 1})
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        requests = sum(pool.map(one, range(100)), Counter())
    assert requests.total() == 100
    entitlement = Entitlement.objects.get(contract=contract)
    assert (entitlement.held_numerator, entitlement.used_numerator) == (0, LOT)
    by_part = {
        of: Hold.objects.filter(entitlement__isnull=of == "beyond").aggregate(sum=Sum("captured_numerator"))[
            "sum"
        ]
        for of in ("within", "beyond")
    }
    assert by_part == {"within": LOT, "beyond": 100 * asked - LOT}
    assert not Hold.objects.filter(status="open").exists()
    assert Rate.objects.get(pk=Hold.objects.filter(part=1)[0].rate_id).kind == "overage"
    assert check_ledger() == []
