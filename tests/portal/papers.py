"""Rows of the operator's own making, for the pages of billing: a tax rule, a discount and a grant."""

from __future__ import annotations

from uuid import UUID

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Discount, TaxRule
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.taxes import add_tax_rule
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant
from tests.portal.world import Day


def papers(day: Day) -> dict[str, UUID]:
    """Made at the first call; of a country where nobody buys, and for acme."""
    if not TaxRule.objects.exists():
        acme_id = day.bid.organization_id
        add_tax_rule(
            jurisdiction="ZZ",
            code="vat",
            title="VAT",
            kind="percent",
            rate_ppm=190_000,
            valid_from=day.now,
            now=day.now,
            actor=SYSTEM,
        )
        give_discount(
            organization_id=acme_id,
            title="Welcome",
            rate_ppm=100_000,
            valid_from=day.now,
            now=day.now,
            actor=SYSTEM,
        )
        terms = GrantTerms("purchased", 8_000_000, "USD", cost_basis_ppm=500_000)
        give_grant(id=uuid7(day.now), organization_id=acme_id, terms=terms, now=day.now)
    return {
        "rule_id": TaxRule.objects.get().id,
        "discount_id": Discount.objects.get().id,
        "grant_id": Grant.objects.get().id,
    }
