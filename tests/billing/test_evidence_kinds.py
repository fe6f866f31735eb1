"""Evidence of what is charged in other ways: in arrears, with tax that is due, and resold volume."""

from __future__ import annotations

from datetime import datetime, timedelta
from io import BytesIO

import pytest

from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import Verifier, verify
from marketplace.billing.models import Invoice
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.verifying import verify_document
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.orders.models import Bid
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.evidence_world import carry, settle
from tests.billing.test_disputes import supply
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.world import FUNDS, on_demand, set_tax
from tests.cast import Party, Plant, fund, make_party
from tests.orders.test_releases import FUNDS as RELEASE_FUNDS
from tests.orders.test_releases import buy, let_go
from tests.orders.world import bid_of, run_round

pytestmark = pytest.mark.usefixtures("hyperion", "operator")


def verified(invoice: Invoice) -> Verifier:
    verifier, sums = verify(BytesIO(b"".join(evidence_of(invoice))))
    assert sums["amount_due"] == invoice.amount_due_micros
    assert verify_document(number=str(invoice.number)).difference is None
    return verifier


def test_arrears_are_recomputed_with_what_is_due(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = on_demand(acme, grade, now)
    contract.payment = "arrears"
    contract.save(update_fields=["payment"])
    line = account_id(organization_id=acme.id, kind="receivable", currency="USD", now=now)
    set_overdraft_limit(account_id=line, limit_micros=FUNDS)
    set_tax(acme, 190_001)
    supply(contract, plant, now)
    carry(contract, plant, plant.offering.list_rate, now, {Bucket.OUTPUT: 20_000_123})
    settle(now)
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert invoice.amount_due_micros > 0
    assert verified(invoice).stated == []


def test_resold_volume_is_recomputed_for_its_seller_and_its_buyer(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, RELEASE_FUNDS, now)
    committed: Contract = buy(acme, grade, now)
    borealis = make_party("Borealis", ["buyer"], now)
    fund(borealis, RELEASE_FUNDS, now)
    let_go(committed, now)
    bid_of(borealis, now, steps=((300_000, 60),))
    run_round(plant, now)
    won = Entitlement.objects.select_related("rate", "contract").get(contract=Bid.objects.get().contract)
    supply(won.contract, plant, now)
    carry(won.contract, plant, won.rate, won.period_start, {Bucket.OUTPUT: 45_001})
    charge_committed_months(now=now + timedelta(hours=1))
    settle(now)
    invoices = issue_invoices(month_start=MARCH, now=APRIL_2)
    kinds = {invoice.organization_id: {line.kind for line in invoice.lines.all()} for invoice in invoices}
    assert kinds == {acme.id: {"committed_fee", "release"}, borealis.id: {"spot"}}
    for invoice in invoices:
        assert verified(invoice).stated == []
