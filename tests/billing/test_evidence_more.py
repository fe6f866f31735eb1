"""Evidence of what is in dispute, resold in arrears, rolled over, taxed by several and reduced, or not taxed here."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from pytest_django import Settings

from marketplace.accounts.services import SYSTEM
from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import Difference, verify
from marketplace.billing.models import Charge, Invoice
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.contracts.models import Entitlement
from marketplace.contracts.services import advance_contracts
from marketplace.orders.models import Bid
from marketplace.periods import calendar_month, settlement_period
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.evidence_world import carry, settle
from tests.billing.test_disputes import MICROS, count, next_hour, supply
from tests.billing.test_disputes import rule as resolve
from tests.billing.test_evidence_kinds import verified
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.test_month_ends import buy as buy_months
from tests.billing.test_month_ends import credit
from tests.billing.world import FUNDS, HOUR, LOT, accrue, on_demand, set_tax
from tests.cast import Party, Plant, fund, make_party
from tests.orders.test_releases import FUNDS as RELEASE_FUNDS
from tests.orders.test_releases import buy, let_go
from tests.orders.world import bid_of, run_round

pytestmark = pytest.mark.usefixtures("hyperion", "operator")

MAY_20 = datetime(2026, 5, 20, tzinfo=UTC)


def records_of(invoice: Invoice) -> list[bytes]:
    return b"".join(evidence_of(invoice)).splitlines(keepends=True)


def is_refused(records: list[bytes], old: bytes, new: bytes) -> bool:
    """Whether a figure that was changed is found although the file is sealed anew, as a forger would."""
    forged = [record.replace(old, new) for record in records[:-1]]
    assert forged != records[:-1]
    end = {"t": "end", "records": len(forged), "sha256": hashlib.sha256(b"".join(forged)).hexdigest()}
    try:
        verify(BytesIO(b"".join([*forged, json.dumps(end).encode() + b"\n"])))
    except Difference as difference:
        return not difference.what.startswith("file")
    return False


def test_usage_in_dispute_is_withheld_and_a_ruling_charges_its_part(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    rate = plant.offering.list_rate
    # The gateway carried ten lots, the agent counted nine, and its record is whole.
    carry(contract, plant, rate, now, {Bucket.OUTPUT: 9_999}, {Bucket.OUTPUT: 1})
    count("agent", contract, rate, plant, 9, now)
    next_hour(rate, plant, now)
    accrue(contract, now, 10 * MICROS, now)
    settle(now)
    (march,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert march.subtotal_micros == 9 * MICROS
    verifier = verified(march)
    assert (verifier.counts["withheld"], verifier.counts["event"]) == (1, 2)
    assert (verifier.unsettled, verifier.stated) == ([], [])
    withheld = b'"withheld_numerator":1000000000'
    assert is_refused(records_of(march), withheld, b'"withheld_numerator":2000000000')
    assert is_refused(records_of(march), withheld, b'"withheld_numerator":0')
    resolve(operator, "higher")
    settle(now)
    (april,) = issue_invoices(month_start=datetime(2026, 4, 1, tzinfo=UTC), now=MAY_20)
    assert april.subtotal_micros == MICROS
    for invoice in (march, april):
        verifier = verified(invoice)
        # Both charges of the period stand in both files.
        assert (verifier.counts["charge"], verifier.unsettled, verifier.stated) == (2, [], [])


def test_resold_volume_of_a_contract_in_arrears_is_recomputed(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now)
    contract = buy(acme, grade, now, payment="arrears")
    borealis = make_party("Borealis", ["buyer"], now)
    fund(borealis, RELEASE_FUNDS, now)
    let_go(contract, now)
    bid_of(borealis, now, steps=((300_000, 60),))
    run_round(plant, now)
    won = Entitlement.objects.select_related("rate", "contract").get(contract=Bid.objects.get().contract)
    supply(won.contract, plant, now)
    carry(won.contract, plant, won.rate, won.period_start, {Bucket.OUTPUT: 45_000})
    settle(now)
    month = Entitlement.objects.get(contract=contract)
    settle(settlement_period(month.period_end - timedelta(seconds=1)).start)
    calendar = calendar_month(month.period_end)
    invoices = issue_invoices(month_start=calendar.start, now=calendar.end)
    mine = next(invoice for invoice in invoices if invoice.organization_id == acme.id)
    assert {line.kind: line.amount_micros for line in mine.lines.all()} == {
        "release": -5_700,
        "true_up": 20_000,
    }
    assert mine.amount_due_micros == 20_000
    (told,) = verified(mine).stated
    assert told.endswith("R, U and F of its month are taken as stated")
    # What was resold is recomputed from each lot's proceeds and fee, and what the take lacks from R.
    records = records_of(mine)
    assert is_refused(records, b'"released_numerator":40000000000', b'"released_numerator":39000000000')
    [resale] = [record for record in records if b'"t":"resale"' in record]
    assert is_refused(records, resale, resale.replace(b'"gross_micros":6000', b'"gross_micros":6001'))


def test_a_month_that_others_rolled_into_is_recomputed(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy_months(acme, grade, now, months=2, rollover_share_ppm=500_000, rollover_cap_lots=3_000)
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    supply(contract, plant, start)
    charge_committed_months(now=start)
    carry(contract, plant, month.rate, start, {Bucket.OUTPUT: 2_000_001})
    settle(start)
    advance_contracts(now=month.period_end)
    charge_committed_months(now=month.period_end)
    settle(settlement_period(month.period_end - timedelta(seconds=1)).start)
    second = Entitlement.objects.select_related("rate").get(period_start=month.period_end)
    assert (second.entitled_numerator, second.rollover_numerator) == (13_000 * LOT, 3_000 * LOT)
    at = second.period_start + HOUR
    carry(contract, plant, second.rate, at, {Bucket.OUTPUT: 4_000_003})
    settle(at)
    settle(settlement_period(second.period_end - timedelta(seconds=1)).start)
    invoices = [
        invoice
        for first in (MARCH, datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC))
        for invoice in issue_invoices(month_start=first, now=MAY_20 + timedelta(days=30))
    ]
    assert not Charge.objects.filter(invoiced_as__isnull=True).exists()
    assert [invoice.subtotal_micros for invoice in invoices][:2] == [5_000_000, 5_000_000]
    for invoice in invoices:
        assert verified(invoice).stated == []


def test_a_fee_of_a_month_is_for_its_own_volume_and_not_for_what_rolled_in(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    buy_months(acme, grade, now, months=2, rollover_share_ppm=500_000, rollover_cap_lots=3_000)
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=month.period_start)
    advance_contracts(now=month.period_end)
    charge_committed_months(now=month.period_end)
    settle(settlement_period(month.period_end - timedelta(seconds=1)).start)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    (april,) = issue_invoices(month_start=datetime(2026, 4, 1, tzinfo=UTC), now=MAY_20)
    assert april.subtotal_micros == 5_000_000
    verified(april)
    # Rolled over volume was paid with its own month: one that charges it once more is found.
    own, with_rolled = b'"entitled_numerator":10000000000000', b'"entitled_numerator":13000000000000'
    assert is_refused(records_of(april), own, with_rolled)


def test_reverse_charge_is_recomputed_and_taxes_nothing(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.TAX_UNION_COUNTRIES = ["DE", "FR"]
    live_in(operator, "FR", tax_number="FR12345678901")
    live_in(acme, "DE", tax_number="DE123456789")
    rule(now, reverse_charge=True)
    invoice = on_demand_invoice(acme, grade, plant, now)
    (tax,) = invoice.taxes.all()
    assert (tax.reverse_charge, tax.tax_micros, tax.base_micros) == (True, 0, invoice.subtotal_micros)
    assert verified(invoice).stated == []
    assert is_refused(records_of(invoice), b'"reverse_charge":true', b'"reverse_charge":false')


def test_several_taxes_and_discounts_are_recomputed_in_their_order(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Three rates, one of them from the second hour on, and a levy; three discounts, each on what is left."""
    live_in(acme, "DE")
    rule(now, rate_ppm=88_750)
    rule(now, code="county", title="County", rate_ppm=21_250)
    rule(now, code="city", title="City", rate_ppm=5_000, valid_from=now + timedelta(hours=1))
    rule(now, code="levy", title="Levy", kind="levy", rate_ppm=0, levy_micros_per_mtok=25_001)
    set_tax(acme, 190_000)
    given: dict[str, Any] = {
        "organization_id": acme.id,
        "valid_from": now - timedelta(days=1),
        "now": now,
        "actor": SYSTEM,
    }
    give_discount(title="Share of usage", rate_ppm=333_333, line_kind="usage", **given)
    give_discount(title="Coupon", amount_micros=123_457, **given)
    give_discount(title="Tenth of the rest", rate_ppm=100_000, **given)
    invoice = on_demand_invoice(acme, grade, plant, now)
    assert (invoice.taxes.count(), invoice.discounts.count()) == (4, 3)
    assert all(tax.tax_micros > 0 for tax in invoice.taxes.all())
    assert verified(invoice).stated == []
    records = records_of(invoice)
    for old, new in (
        (b'"rate_ppm":88750', b'"rate_ppm":88751'),
        (b'"rate_ppm":333333', b'"rate_ppm":333334'),
        (b'"levy_micros_per_mtok":25001', b'"levy_micros_per_mtok":25000'),
    ):
        assert is_refused(records, old, new)


def on_demand_invoice(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Invoice:
    """Two hours of usage: 12 and 6 units of the currency."""
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    supply(contract, plant, now)
    for at, tokens in ((now, 20_000_123), (now + HOUR, 10_000_001)):
        carry(contract, plant, plant.offering.list_rate, at, {Bucket.OUTPUT: tokens})
        accrue(contract, at, tokens * 6 // 10 + 1, at)
        settle(at)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    return invoice
