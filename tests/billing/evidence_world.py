"""A buyer's month with something of everything, and all of its usage really metered: from events to an invoice."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from msgspec.structs import replace

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Invoice
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ids import uuid7
from metering.services import accept_batch, amend_event, gateway_source, ingest_batches
from metering.usage import Flag, encode_event, encode_lines
from pricing.models import Grade, Rate
from pricing.units import Bucket
from providers.models import Outage
from tests.billing.test_committed import buy
from tests.billing.test_disputes import event_of, supply
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, PERIOD, accrue, award, on_demand, set_tax
from tests.cast import Party, Plant, fund


def carry(
    contract: Contract,
    plant: Plant,
    rate: Rate,
    at: datetime,
    *counts: dict[Bucket, int],
    flags: tuple[Flag, ...] = (),
) -> list[tuple[object, object]]:
    """The gateway meters one request for each of `counts`, and they are counted; (source, event id) of each."""
    source = gateway_source(at)
    events = [
        replace(
            event_of(contract, plant, at, 0, *flags),
            rate_id=rate.id,
            request_id=uuid7(at),
            buckets=dict(buckets),
        )
        for buckets in counts
    ]
    accept_batch(source=source, body=encode_lines([encode_event(event) for event in events]), now=at)
    ingest_batches(now=at)
    return [(source.id, event.id) for event in events]


def settle(start: datetime) -> None:
    result = settle_period(settlement_start=start, now=start + DUE_AFTER)
    assert result.failed == []


def whole_month(acme: Party, grade: Grade, plant: Plant, now: datetime, *, notes: bool = True) -> Invoice:
    """On demand with an amended and an estimated count, spot with minimum take and a failure, a committed month; two
    taxes, two discounts, and (with `notes`) two credit notes."""
    live_in(acme, "DE")
    rule(now)
    rule(now, code="levy", title="Transit levy", kind="levy", rate_ppm=0, levy_micros_per_mtok=1_234_567)
    set_tax(acme, 190_000)
    fund(acme, FUNDS, now)
    for terms in (
        {"rate_ppm": 123_457, "line_kind": "usage", "title": "Launch"},
        {"amount_micros": 54_321, "title": "Coupon"},
    ):
        give_discount(
            organization_id=acme.id,
            valid_from=now - timedelta(days=1),
            now=now,
            actor=SYSTEM,
            **terms,  # type: ignore[arg-type]
        )
    _on_demand(acme, grade, plant, now)
    _spot(acme, grade, plant, now + 2 * HOUR)
    _committed(acme, grade, plant, now + 3 * HOUR)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    if notes:
        lines = {line.kind: line for line in invoice.lines.order_by("amount_micros")}
        issue_credit_note(
            invoice_id=invoice.id,
            amounts_micros={lines["usage"].id: 1_234_567, lines["committed_fee"].id: 98_765},
            reason="counted twice",
            operation_id=uuid4(),
            now=APRIL_2,
            actor=SYSTEM,
        )
        issue_credit_note(
            invoice_id=invoice.id,
            amounts_micros={lines["committed_fee"].id: 333_333},
            reason="as agreed",
            operation_id=uuid4(),
            now=APRIL_2 + HOUR,
            actor=SYSTEM,
        )
    return invoice


def _on_demand(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    rate = plant.offering.list_rate
    full = {Bucket.UNCACHED_INPUT: 1_234_567, Bucket.CACHE_READ: 76_543, Bucket.OUTPUT: 4_321_098}
    first, _ = carry(contract, plant, rate, now, full, {Bucket.UNCACHED_INPUT: 17, Bucket.OUTPUT: 1_001})
    carry(contract, plant, rate, now + PERIOD, {Bucket.REASONING: 777_777, Bucket.CACHE_WRITE: 3})
    accrue(contract, now, 9_000_000, now)
    settle(now)
    source_id, event_id = first
    amend_event(
        source_id=source_id,  # type: ignore[arg-type]
        event_id=event_id,  # type: ignore[arg-type]
        buckets={**full, Bucket.OUTPUT: 4_300_000},
        reason="the engine counted twice",
        actor="operator",
        now=now + HOUR,
    )
    settle(now)
    late = now + HOUR
    carry(contract, plant, rate, late, {Bucket.OUTPUT: 12_345}, flags=(Flag.ESTIMATED,))
    accrue(contract, late, 60_000, late)
    settle(late)


def _spot(acme: Party, grade: Grade, plant: Plant, at: datetime) -> None:
    won = award(acme, grade, [(plant, 1_000)], 333_333, at, at)
    supply(won.contract, plant, at)
    carry(won.contract, plant, won.rate, at, {Bucket.OUTPUT: 123_456})
    lost = award(acme, grade, [(plant, 500)], 222_223, at + PERIOD, at, won.contract)
    Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.HEARTBEAT,
        started_at=at + PERIOD,
        ended_at=at + 2 * PERIOD,
        created_at=at + 2 * PERIOD,
    )
    carry(won.contract, plant, lost.rate, at + PERIOD, {Bucket.OUTPUT: 1_000})
    settle(at)


def _committed(acme: Party, grade: Grade, plant: Plant, start: datetime) -> None:
    contract = buy(acme, grade, start - HOUR, start)
    supply(contract, plant, start)
    charge_committed_months(now=start)
    month = Entitlement.objects.select_related("rate").get(contract=contract)
    carry(contract, plant, month.rate, start, {Bucket.UNCACHED_INPUT: 65_432, Bucket.OUTPUT: 54_321})
    settle(start)
