"""A provider's profile as a debtor and creditor: where his money goes, what he agreed to, and the lock of both.

Part of this room's services: `providers.services` exports it. What these changes wait for is billing's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db import connection

from marketplace.accounts.models import Organization
from providers.hosting import ensure_provider
from providers.models import Provider


def lock_providers(organization_ids: Iterable[UUID]) -> list[Provider]:
    """The profiles of these organizations, locked until the caller's transaction ends, in id order.

    Who sells firm, moves a bond or pays out asks for it first, so that none of them reads what another is changing.
    """
    assert connection.in_atomic_block
    found = Provider.objects.select_for_update(no_key=True).filter(organization_id__in=list(organization_ids))
    return list(found.order_by("id"))


def lock_provider(organization_id: UUID, *, now: datetime) -> Provider:
    """One organization's profile, locked, and made now where there is none. Raises Forbidden: it cannot sell."""
    found = lock_providers([organization_id])
    if not found:
        organization = Organization.objects.filter(pk=organization_id).first()
        name = organization.name[:120] if organization is not None else "unknown"
        ensure_provider(organization_id=organization_id, display_name=name, now=now)
        found = lock_providers([organization_id])
    return found[0]


def set_self_billing_consent(*, provider_id: UUID, consented_at: datetime | None) -> None:
    """In the caller's transaction, which holds the profile's lock."""
    Provider.objects.filter(pk=provider_id).update(self_billing_consent_at=consented_at)


def set_payout_destination(*, provider_id: UUID, destination: str) -> None:
    """In the caller's transaction, which holds the profile's lock."""
    Provider.objects.filter(pk=provider_id).update(payout_destination=destination)
