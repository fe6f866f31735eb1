"""Who sells what an ask asks: the host's provider, or the committed buyer who released it."""

from __future__ import annotations

from django.db.models import F
from django.db.models.functions import Coalesce


def seller_of(ask: str = "") -> Coalesce:
    """The selling organization's id, as an expression over asks; `ask` leads to them ("ask__" from trades)."""
    return Coalesce(F(f"{ask}release__organization_id"), F(f"{ask}offering__host__provider__organization_id"))
