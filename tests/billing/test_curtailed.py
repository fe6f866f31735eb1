"""What was curtailed is the provider's failure; what the buyer's own mix took of the host is not."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, DeliveryOutcome
from marketplace.billing.outcomes import latest_outcomes
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Curtailment, Entitlement
from marketplace.contracts.services import derate_host
from metering.models import UsageRollup
from pricing.models import Grade
from providers.selectors import share_ppm_of
from providers.services import check_heartbeats, record_bench, record_heartbeat, take_period_share
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    PERIOD,
    assert_books_balance,
    award,
    meter,
    money,
)
from tests.cast import Party, Plant, fund

RATE = 300_000


@pytest.fixture
def rich_acme(acme: Party, now: datetime) -> Party:
    fund(acme, FUNDS, now)
    return acme


def beat(plant: Plant, at: datetime) -> None:
    record_heartbeat(
        host_id=plant.host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=at,
    )


def alive(plant: Plant, start: datetime) -> None:
    for second in range(0, 301, 10):
        beat(plant, start + timedelta(seconds=second))


def sell(buyer: Party, grade: Grade, plant: Plant, lots: int, now: datetime) -> Entitlement:
    take_period_share(
        host_id=plant.host.id, period_start=now, share_ppm=share_ppm_of(lots, plant.offering, 300)
    )
    return award(buyer, grade, [(plant, lots)], RATE, now, now)


def derate(provider: Party, plant: Plant, available_ppm: int, at: datetime) -> None:
    derate_host(
        organization_id=provider.id,
        host_id=plant.host.id,
        available_ppm=available_ppm,
        now=at,
        actor=SYSTEM,
    )


def test_what_is_curtailed_at_half_time_has_failed_for_the_rest_of_the_period(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Of 200 lots 86 are curtailed after 150 s: 43 have failed. The 60 that were delivered are billed."""
    entitlement = sell(rich_acme, grade, plant, 200, now)
    alive(plant, now)
    derate(hyperion, plant, 500_000, now + timedelta(seconds=150))
    assert Curtailment.objects.get().lots == 86
    meter(entitlement.contract, entitlement.rate, plant, 60 * LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert (outcome.failed_numerator, outcome.curtailed_numerator) == (43 * LOT, 86 * LOT)
    assert (outcome.unused_numerator, outcome.down_ms) == ((200 - 60 - 43) * LOT, 0)
    # Half of the 157 that could be had, 60 of them used; 10% of the rate for 43 less 2 lots.
    amounts = {charge.kind: charge.amount_micros for charge in Charge.objects.all()}
    assert amounts == {"spot": 18_000, "minimum_take": 5_550, "remedy": -1_230}
    assert money(rich_acme, "prepaid") == FUNDS - 18_000 - 5_550 + 1_230
    assert settle_period(settlement_start=now, now=now + DUE_AFTER).settled == []
    check = check_charges(since=now)
    assert (check.unsettled, check.differences) == (0, [])
    shown = rich_acme.api.get("/api/v1/delivery-outcomes").json()["items"][0]
    assert (shown["curtailed_numerator"], shown["excused_numerator"]) == (str(86 * LOT), "0")
    assert_books_balance()


def test_a_host_that_is_down_after_it_curtailed_fails_each_lot_once(
    rich_acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    sell(rich_acme, grade, plant, 200, now)
    for second in range(0, 211, 10):
        beat(plant, now + timedelta(seconds=second))
    derate(hyperion, plant, 500_000, now + timedelta(seconds=150))
    check_heartbeats(now=now + timedelta(seconds=226))
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    # Silent from 225 s on: 86 lots for 150 s and the other 114 for 75 s.
    assert outcome.down_ms == 75_000
    assert outcome.failed_numerator == 43 * LOT + 114 * LOT // 4


def bench(plant: Plant, at: datetime) -> None:
    """Input and output alike (0.25 x 4 = 1 of output), and of the host's second a fifth for the input."""
    record_bench(
        host_id=plant.host.id,
        figures={
            "duration_ms": 1000,
            "requests": 10,
            "concurrency": 5,
            "input_tokens": 1_600,
            "output_tokens": 400,
            "first_byte_p50_ms": 100,
            "first_byte_p95_ms": 200,
        },
        now=at,
    )


@pytest.mark.parametrize(
    ("bucket", "failed_lots", "excused_lots"), [("output", 2, 3), ("uncached_input", 5, 0)]
)
def test_a_mix_that_took_the_hosts_time_excuses_the_rest(
    rich_acme: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
    bucket: str,
    failed_lots: int,
    excused_lots: int,
) -> None:
    """Ten lots, down for the second half, five delivered, as output at 1.6 times the mix's time: 8 lots."""
    bench(plant, now)
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    for second in range(0, 136, 10):
        beat(plant, now + timedelta(seconds=second))
    beat(plant, now + timedelta(seconds=135))
    check_heartbeats(now=now + timedelta(seconds=151))
    meter(entitlement.contract, entitlement.rate, plant, 5 * LOT, now, bucket=bucket)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    outcome = DeliveryOutcome.objects.get()
    assert outcome.down_ms == 150_000
    assert (outcome.failed_numerator, outcome.excused_numerator) == (failed_lots * LOT, excused_lots * LOT)
    assert outcome.unused_numerator == excused_lots * LOT
    # A bench that comes later does not speak for this period.
    bench(plant, now + PERIOD)
    assert settle_period(settlement_start=now, now=now + DUE_AFTER).settled == []
    assert_books_balance()


def test_a_mix_that_turns_out_otherwise_is_settled_again(
    rich_acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    bench(plant, now)
    entitlement = award(rich_acme, grade, [(plant, 10)], RATE, now, now)
    check_heartbeats(now=now + timedelta(seconds=16))
    meter(entitlement.contract, entitlement.rate, plant, 4 * LOT, now, bucket="output")
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert latest_outcomes().get().failed_numerator == (100 - 64) * LOT // 10
    UsageRollup.objects.update(numerator=5 * LOT)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    outcome = latest_outcomes().get()
    assert (outcome.failed_numerator, outcome.excused_numerator) == (2 * LOT, 3 * LOT)
