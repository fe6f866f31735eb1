"""Who a document is between, as it reads on the day it is issued."""

from __future__ import annotations

from marketplace.accounts.models import Organization


def party(organization: Organization) -> dict[str, str]:
    """A side of a document, frozen: later changes of name or address do not reach it."""
    return {
        "organization_id": str(organization.id),
        "name": organization.name,
        "legal_name": organization.legal_name or organization.name,
        "address": organization.address,
        "country": organization.country,
        "region": organization.region,
        "tax_number": organization.tax_number,
    }
