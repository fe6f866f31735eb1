"""Evidence of committed months: their end, an early end, firm volume that failed, released volume of arrears."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest

from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import Difference, verify
from marketplace.billing.models import Charge, Invoice
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.contracts.models import Contract, Entitlement
from marketplace.periods import settlement_period
from pricing.models import Grade
from pricing.units import Bucket
from tests.billing.evidence_world import carry, settle
from tests.billing.test_disputes import supply
from tests.billing.test_ending import end
from tests.billing.test_evidence_kinds import verified
from tests.billing.test_month_ends import buy, credit, outage
from tests.billing.world import FUNDS, HOUR
from tests.cast import Party, Plant, fund

pytestmark = pytest.mark.usefixtures("hyperion", "operator")

APRIL, MAY_20 = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 20, tzinfo=UTC)


def deliver(contract: Contract, plant: Plant, *, seconds_down: int = 0) -> Entitlement:
    """One request in the first period of a month, and the month settled to its end."""
    start = contract.starts_at
    month = Entitlement.objects.select_related("rate").get()
    charge_committed_months(now=start)
    supply(contract, plant, start)
    if seconds_down:
        outage(plant, start, seconds_down)
    carry(contract, plant, month.rate, start, {Bucket.OUTPUT: 5_001})
    settle(start)
    return month


def settle_end(month: Entitlement) -> None:
    month.refresh_from_db()
    settle(settlement_period(month.period_end - timedelta(seconds=1)).start)


def invoiced() -> Invoice:
    (invoice,) = issue_invoices(month_start=APRIL, now=MAY_20)
    return invoice


def test_a_true_up_and_a_remedy_in_arrears_are_recomputed(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now)
    contract = buy(acme, grade, now, payment="arrears")
    settle_end(deliver(contract, plant, seconds_down=150))
    kinds = set(Charge.objects.values_list("kind", flat=True))
    assert kinds == {"usage", "remedy", "true_up"}
    (told,) = verified(invoiced()).stated
    assert told.endswith("R, U and F of its month are taken as stated")


def test_a_true_up_that_was_forged_is_found(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    credit(acme, now)
    settle_end(deliver(buy(acme, grade, now, payment="arrears"), plant))
    records = list(evidence_of(invoiced()))
    forged = [record.replace(b'"take_share_ppm":800000', b'"take_share_ppm":900000') for record in records]
    assert forged != records
    with pytest.raises(Difference) as found:
        verify(BytesIO(b"".join(forged)))
    assert "R + T" in found.value.what


def test_a_prepaid_month_that_failed_and_was_ended_early_is_recomputed(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    month = deliver(contract, plant, seconds_down=150)
    end(contract, contract.starts_at + HOUR)
    settle_end(month)
    kinds = sorted(Charge.objects.values_list("kind", flat=True))
    assert kinds == ["adjustment", "committed_fee", "remedy", "remedy", "termination", "usage"]
    stated = verified(invoiced()).stated
    assert sum("its month was cut by" in told for told in stated) == 1
    assert sum("termination of" in told for told in stated) == 1
    assert sum("adjustment of" in told for told in stated) == 1
    assert sum("a remedy of" in told for told in stated) == 1
    assert len(stated) == 4
