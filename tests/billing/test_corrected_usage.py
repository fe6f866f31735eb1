"""Amend, void and backfill after a period was settled: adjustment lines, whatever the age inside retention."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge
from marketplace.billing.services.settling import settle_due_periods, settle_period
from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from metering.auditing import check_usage
from metering.services import (
    accept_batch,
    amend_event,
    backfill_event,
    gateway_source,
    ingest_batches,
    void_event,
)
from metering.usage import UsageEvent, encode_event, encode_lines
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.test_disputes import event_of, supply
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    accrue,
    assert_books_balance,
    money,
    on_demand,
    pending,
)
from tests.cast import Party, Plant, fund

WHY: Any = {"reason": "the engine counted twice", "actor": "operator"}


def carry(*events: UsageEvent, at: datetime) -> None:
    """The gateway meters them, and they are counted."""
    body = encode_lines([encode_event(event) for event in events])
    accept_batch(source=gateway_source(at), body=body, now=at)
    ingest_batches(now=at)


def backfill(contract: Contract, plant: Plant, period_start: datetime, tokens: int, *, at: datetime) -> None:
    """Output that no meter has reported."""
    backfill_event(
        contract_id=contract.id,
        offering_id=plant.offering.id,
        rate_id=plant.offering.list_rate_id,
        api_key_id=None,
        period_start=period_start,
        occurred_at=period_start + timedelta(seconds=2),
        buckets={Bucket.OUTPUT: tokens},
        request_id=uuid7(period_start),
        **WHY,
        now=at,
    )


@pytest.mark.parametrize("age", [timedelta(hours=3), timedelta(days=399)])
def test_corrections_of_a_settled_period_are_adjustment_lines(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, age: timedelta
) -> None:
    """One token is one standard token, 600 micros a thousand; the provider keeps 95%."""
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    amended, voided = (event_of(contract, plant, now, 6_000) for _ in range(2))
    carry(amended, voided, at=now)
    accrue(contract, now, 7_200, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert money(acme, "prepaid") == FUNDS - 7_200

    later = now + age
    source_id = gateway_source(now).id
    buckets = {Bucket.OUTPUT: 5_000}
    amend_event(source_id=source_id, event_id=amended.id, buckets=buckets, **WHY, now=later)
    void_event(source_id=source_id, event_id=voided.id, **WHY, now=later)
    assert [item.amount_micros for item in settle_due_periods(now=later).settled] == [-4_200]
    backfill(contract, plant, now, 2_000, at=later)
    # Age beyond the last hours is looked at once an hour.
    settled = settle_due_periods(now=later + timedelta(hours=1)).settled
    assert [item.amount_micros for item in settled] == [1_200]

    lines = Charge.objects.order_by("settlement__run").values_list("kind", "numerator", "amount_micros")
    assert list(lines) == [
        ("usage", 12 * LOT, 7_200),
        ("adjustment", -7 * LOT, -4_200),
        ("adjustment", 2 * LOT, 1_200),
    ]
    assert (money(acme, "prepaid"), money(hyperion, "payable")) == (FUNDS - 4_200, 3_990)
    assert check_usage(since=now) == []
    assert check_charges(since=now).differences == []
    assert_books_balance()


@pytest.mark.parametrize("funds", [FUNDS, 960_000])
def test_usage_corrected_upwards_before_it_is_settled_is_paid_like_late_usage(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, funds: int
) -> None:
    """600 lots were captured, 800 were carried and as many again came by no meter: 960,000 micros, 360,000 held."""
    fund(acme, funds, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    event = event_of(contract, plant, now, 600_000)
    carry(event, at=now)
    accrue(contract, now, 360_000, now)
    source_id = gateway_source(now).id
    amend_event(source_id=source_id, event_id=event.id, buckets={Bucket.OUTPUT: 800_000}, **WHY, now=now)
    backfill(contract, plant, now, 800_000, at=now + timedelta(seconds=3))
    [settled] = settle_period(settlement_start=now, now=now + DUE_AFTER).settled
    assert settled.amount_micros == 960_000
    assert (money(acme, "prepaid"), pending(acme), money(hyperion, "payable")) == (
        funds - 960_000,
        0,
        912_000,
    )
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_usage_corrected_above_the_balance_waits_and_loses_nothing(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 470_000, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    event = event_of(contract, plant, now, 600_000)
    carry(event, at=now)
    accrue(contract, now, 360_000, now)
    source_id = gateway_source(now).id
    amend_event(source_id=source_id, event_id=event.id, buckets={Bucket.OUTPUT: 800_000}, **WHY, now=now)
    result = settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert [reason.partition(":")[0] for _, reason in result.failed] == ["insufficient_funds"]
    assert (money(acme, "prepaid"), pending(acme), Charge.objects.count()) == (470_000, 360_000, 0)
    fund(acme, 10_000, now)
    later = now + DUE_AFTER + timedelta(hours=1)
    assert [item.amount_micros for item in settle_due_periods(now=later).settled] == [480_000]
    assert (money(acme, "prepaid"), pending(acme)) == (0, 0)
    assert_books_balance()
