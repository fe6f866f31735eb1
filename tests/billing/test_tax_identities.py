"""What was bought is taxed by what the buyer was then; a number makes a business once the operator has verified it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.accounts.models import Organization, TaxIdentity
from marketplace.accounts.services import SYSTEM, update_organization, verify_tax_number
from marketplace.billing.models import Invoice
from marketplace.billing.services.invoicing import issue_invoices, reissue_invoice
from marketplace.billing.services.taxes import refresh_holding_rates
from marketplace.errors import Conflict, InvalidInput
from pricing.models import Grade
from tests.billing.test_invoicing import APRIL_2, MARCH, use
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.world import FUNDS, LOT, assert_books_balance, set_tax
from tests.cast import Party, Plant, fund

HOUR = timedelta(hours=1)
NUMBER = "FR12345678901"


def change(party: Party, now: datetime, **changes: str) -> None:
    update_organization(organization_id=party.id, changes=changes, now=now, actor=SYSTEM)


def taxes_of(invoice: Invoice) -> list[tuple[str, int, int, bool]]:
    return [
        (tax.jurisdiction, tax.base_micros, tax.tax_micros, tax.reverse_charge) for tax in invoice.taxes.all()
    ]


def invoice_of(acme: Party) -> Invoice:
    return Invoice.objects.exclude(status="void").get(organization_id=acme.id)


def test_who_leaves_a_country_with_rules_has_the_operators_rate_again(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    rule(now - HOUR, rate_ppm=190_000)
    change(acme, now - HOUR, country="DE")
    refresh_holding_rates(now=now)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 190_000
    change(acme, now, country="US")
    assert refresh_holding_rates(now=now) == 1
    assert Organization.objects.get(pk=acme.id).tax_ppm == 0
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT * 100, now, 300_000)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    assert taxes_of(invoice_of(acme)) == []
    set_tax(acme, 70_000)
    rule(now, jurisdiction="US", code="sales", rate_ppm=10_000)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 10_000
    change(acme, now + HOUR, country="CA")
    refresh_holding_rates(now=now + HOUR)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 70_000


def test_a_move_counts_from_its_moment_and_takes_no_tax_off_what_was_bought_before(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    rule(now - HOUR, rate_ppm=190_000)
    rule(now - HOUR, jurisdiction="FR", rate_ppm=200_000)
    change(acme, now - HOUR, country="DE")
    fund(acme, FUNDS, now)
    refresh_holding_rates(now=now)
    use(acme, grade, plant, LOT * 100, now, 300_000)
    change(acme, now + HOUR, country="FR")
    refresh_holding_rates(now=now + HOUR)
    use(acme, grade, plant, LOT * 200, now + HOUR, 300_000)
    change(acme, now + 5 * HOUR, country="US")
    refresh_holding_rates(now=now + 5 * HOUR)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    assert taxes_of(invoice_of(acme)) == [("DE", 60_000, 11_400, False), ("FR", 120_000, 24_000, False)]
    assert_books_balance()


def test_an_invented_number_takes_no_tax_off_and_a_verified_one_does_from_when_it_was_given(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, settings: Any
) -> None:
    settings.TAX_UNION_COUNTRIES = ["DE", "FR"]
    live_in(operator, "DE", tax_number="DE123456789")
    rule(now - HOUR, jurisdiction="FR", rate_ppm=200_000, reverse_charge=True)
    change(acme, now - HOUR, country="FR")
    fund(acme, FUNDS, now)
    refresh_holding_rates(now=now)
    use(acme, grade, plant, LOT * 100, now, 300_000)
    change(acme, now + HOUR, tax_number=NUMBER)
    assert refresh_holding_rates(now=now + HOUR) == 0
    use(acme, grade, plant, LOT * 200, now + HOUR, 300_000)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    old = invoice_of(acme)
    assert taxes_of(old) == [("FR", 180_000, 36_000, False)]

    verify_tax_number(organization_id=acme.id, tax_number=NUMBER, now=APRIL_2, actor=SYSTEM)
    verify_tax_number(organization_id=acme.id, tax_number=NUMBER, now=APRIL_2, actor=SYSTEM)
    assert TaxIdentity.objects.filter(organization_id=acme.id, is_verified=True).count() == 1
    reissue_invoice(invoice_id=old.id, reason="a business since", now=APRIL_2, actor=SYSTEM)
    assert taxes_of(invoice_of(acme)) == [("FR", 180_000, 0, True)]
    assert_books_balance()


def test_what_a_business_bought_before_it_gave_its_number_stays_taxed(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, settings: Any
) -> None:
    settings.TAX_UNION_COUNTRIES = ["DE", "FR"]
    live_in(operator, "DE", tax_number="DE123456789")
    rule(now - HOUR, jurisdiction="FR", rate_ppm=200_000, reverse_charge=True)
    fund(acme, FUNDS, now)
    use(acme, grade, plant, LOT * 100, now, 300_000)
    # Filled in for the first time: it counts for what was bought before it, too.
    change(acme, now + HOUR / 2, country="FR")
    change(acme, now + HOUR, tax_number=NUMBER)
    verify_tax_number(organization_id=acme.id, tax_number=NUMBER, now=now + 5 * HOUR, actor=SYSTEM)
    use(acme, grade, plant, LOT * 200, now + HOUR, 300_000)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    assert sorted(taxes_of(invoice_of(acme))) == [("FR", 60_000, 12_000, False), ("FR", 120_000, 0, True)]
    assert_books_balance()


def test_the_operator_verifies_the_number_that_he_looked_at(
    acme: Party, operator: Party, mallory: Party
) -> None:
    path = f"/api/v1/organizations/{acme.id}/verify-tax-number"
    acme.api.patch("/api/v1/organization", {"country": "FR", "tax_number": NUMBER}, format="json")
    for other in (acme, mallory):
        assert other.api.post(path, {"tax_number": NUMBER}, format="json").status_code == 403
    stale = operator.api.post(path, {"tax_number": "FR10987654321"}, format="json")
    assert (stale.status_code, stale.json()["code"], stale.json()["field"]) == (409, "conflict", "tax_number")
    assert operator.api.post(path, {"tax_number": NUMBER}, format="json").status_code == 200
    assert acme.api.get("/api/v1/organization").json()["tax_number_verified_at"] is not None
    acme.api.patch("/api/v1/organization", {"legal_name": "Acme SA"}, format="json")
    assert acme.api.get("/api/v1/organization").json()["tax_number_verified_at"] is not None
    acme.api.patch("/api/v1/organization", {"tax_number": "FR10987654321"}, format="json")
    assert acme.api.get("/api/v1/organization").json()["tax_number_verified_at"] is None
    with pytest.raises(Conflict):
        verify_tax_number(organization_id=acme.id, tax_number="", now=MARCH, actor=SYSTEM)


def test_a_regions_rules_stack_on_its_countrys_and_stand_in_for_those_of_the_same_code(
    acme: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    rule(now, jurisdiction="CA", code="gst", rate_ppm=50_000)
    rule(now, jurisdiction="CA-QC", code="qst", rate_ppm=99_750)
    rule(now, jurisdiction="CA-ON", code="gst", rate_ppm=130_000)
    fund(acme, FUNDS, now)
    change(acme, now, country="CA", region="CA-QC")
    refresh_holding_rates(now=now)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 149_750
    use(acme, grade, plant, LOT * 100, now, 300_000)
    change(acme, now + HOUR, region="CA-ON")
    refresh_holding_rates(now=now + HOUR)
    assert Organization.objects.get(pk=acme.id).tax_ppm == 130_000
    use(acme, grade, plant, LOT * 200, now + HOUR, 300_000)
    issue_invoices(month_start=MARCH, now=APRIL_2)
    invoice = invoice_of(acme)
    assert sorted(taxes_of(invoice)) == [
        ("CA", 60_000, 3_000, False),
        ("CA-ON", 120_000, 15_600, False),
        ("CA-QC", 60_000, 5_985, False),
    ]
    assert invoice.parties["buyer"]["region"] == "CA-ON"
    assert_books_balance()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"country": "US", "region": "CA-QC"}, "region"),
        ({"region": "US-NY"}, "region"),
        ({"country": "US", "region": "US-ny"}, "region"),
        ({"country": "US", "region": "US-"}, "region"),
    ],
)
def test_a_region_that_is_none_of_the_country_is_refused(
    acme: Party, now: datetime, changes: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        change(acme, now, **changes)
    assert caught.value.field == field
    assert Organization.objects.get(pk=acme.id).country == ""


def test_who_moves_to_another_country_leaves_its_region(acme: Party, now: datetime) -> None:
    change(acme, now, country="US", region="US-NY")
    change(acme, now + HOUR, country="CA")
    assert Organization.objects.get(pk=acme.id).region == ""
    rows = TaxIdentity.objects.filter(organization_id=acme.id).order_by("valid_from", "id")
    assert [(row.country, row.region) for row in rows] == [("", ""), ("US", "US-NY"), ("CA", "")]
