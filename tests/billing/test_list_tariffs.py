"""Usage across a window of a list tariff: a line for each rate, from the hold to invoice, evidence and export."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from io import BytesIO

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import verify
from marketplace.billing.models import Charge, Earning
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.verifying import verify_document
from marketplace.contracts.models import Contract, Hold
from marketplace.contracts.services import capture_hold, open_hold
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from metering.services import gateway_source, ingest_batches
from metering.usage import UsageEvent, encode_event
from pricing.models import Grade
from pricing.tariffs import Window
from pricing.units import Bucket
from providers.models import Host
from providers.services import announce_tariff
from tests.billing.evidence_world import settle
from tests.billing.served import request
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.world import FUNDS, LOT
from tests.cast import Party, Plant, fund

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
pytestmark = pytest.mark.usefixtures("operator")


def serve(buyer: Party, plant: Plant, at: datetime, tokens: int) -> UsageEvent:
    """A request as the gateway carries it: held, captured, metered; a thousand tokens are a lot."""
    hold_id = uuid7(at)
    opened = open_hold(
        id=hold_id,
        organization_id=buyer.id,
        grade_ids=[plant.offering.grade_id],
        numerators=[LOT * 10],
        contract_id=None,
        exclude=(),
        now=at,
    )
    assert opened.outcome == "ok"
    assert opened.rate_id is not None
    assert opened.contract_id is not None
    event = request(
        Contract.objects.get(pk=opened.contract_id),
        plant,
        at,
        first_ms=1,
        rate_id=opened.rate_id,
        period_start=opened.period_start,
        api_key_id=buyer.api_key_id,
        buckets={Bucket.OUTPUT: tokens},
    )
    source = gateway_source(at)
    captured = capture_hold(
        id=hold_id, numerator=tokens * 10**6, event=encode_event(event) + b"\n", source_id=source.id, now=at
    )
    assert captured[0] == "ok"
    ingest_batches(now=at + SECOND)
    return event


def test_a_window_ends_inside_a_settlement_period_and_each_rate_is_a_line(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """12:00 to 13:00 at 600,000 as listed; from 13:00 at 900,000, but 13:30 to 02:00 at 300,000."""
    fund(acme, FUNDS, now)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    announce_tariff(
        organization_id=hyperion.id,
        offering_id=plant.offering.id,
        kind="time_of_use",
        valid_from=now + HOUR,
        rate_micros_per_mtok=900_000,
        windows=[Window(13 * 3_600 + 1_800, 2 * 3_600, 300_000)],
        now=now,
        actor=SYSTEM,
    )
    noon, one, half_past = now, now + HOUR, now + HOUR + HOUR / 2
    served = [
        serve(acme, plant, at, tokens)
        for at, tokens in (
            (noon, 1_000), (one - SECOND, 501), (one, 1_001), (half_past - SECOND, 2_000), (half_past, 3_003)
        )
    ]  # fmt: skip
    assert len({event.rate_id for event in served}) == 3
    settle(noon)
    settle(one)
    charges = Charge.objects.order_by("period_start", "-rate_micros_per_mtok")
    figures = [
        (charge.period_start, charge.rate_micros_per_mtok, charge.numerator, charge.amount_micros)
        for charge in charges
    ]
    # 1,501 x 0.6 = 900.6; 3,001 x 0.9 = 2,700.9; 3,003 x 0.3 = 900.9, each rounded once.
    assert figures == [
        (noon, 600_000, 1_501 * 10**6, 901),
        (one, 900_000, 3_001 * 10**6, 2_701),
        (one, 300_000, 3_003 * 10**6, 901),
    ]
    assert sum(earning.gross_micros for earning in Earning.objects.all()) == 901 + 2_701 + 901
    assert not Hold.objects.filter(status="open").exists()
    assert check_ledger() == []

    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert sorted(line.amount_micros for line in invoice.lines.all()) == [901, 901, 2_701]
    verify(BytesIO(b"".join(evidence_of(invoice))))
    assert invoice.number is not None
    verify_document(number=invoice.number)
    answer = acme.api.get("/api/v1/exports/focus", {"invoice_id": str(invoice.id), "format": "ndjson"})
    rows = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    used = [row for row in rows if row["x_ChargeKind"] == "usage"]
    # The list price of each row is that of its time.
    assert sorted(Decimal(row["ListUnitPrice"]) for row in used) == [
        Decimal("0.3"), Decimal("0.6"), Decimal("0.9")
    ]  # fmt: skip
    assert {row["PricingCategory"] for row in used} == {"Standard"}
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(invoice.total_micros) / 10**6
