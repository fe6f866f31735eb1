"""What of an entitlement its providers failed, as billing settled it."""

from __future__ import annotations

from uuid import UUID

from django.db.models import F
from django.db.models.functions import Greatest, Least

from marketplace.contracts.models import Entitlement


def record_failed(*, entitlement_id: UUID, failed_numerator: int) -> None:
    """F of a settled period, in numerators; again with the same figure changes nothing.

    At most what is neither used nor held nor released: usage that is in dispute is no delivery for settlement yet, but
    it is taken from the entitlement all the same.
    """
    assert failed_numerator >= 0
    left = F("entitled_numerator") - F("held_numerator") - F("used_numerator") - F("released_numerator")
    Entitlement.objects.filter(pk=entitlement_id).update(
        failed_numerator=Greatest(0, Least(failed_numerator, left))
    )
