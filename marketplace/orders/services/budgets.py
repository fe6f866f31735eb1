"""A bid's daily budget: what was awarded today and what its next round could cost."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db.models import F, Sum

from marketplace.orders.models import Trade


def budget_reason(bid_id: UUID, *, budget_micros: int | None, worst_case_micros: int, now: datetime) -> str:
    """Why the bid's daily budget (UTC days) keeps it out of the next book; empty when it does not."""
    if budget_micros is None:
        return ""
    day_start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if _awarded_micros(bid_id, day_start) + worst_case_micros > budget_micros:
        return "The bid's daily budget does not cover its worst case any more."
    return ""


def _awarded_micros(bid_id: UUID, since: datetime) -> int:
    spent: int | None = Trade.objects.filter(bid_id=bid_id, auction__period_start__gte=since).aggregate(
        total=Sum(F("lots") * F("rate_micros_per_mtok"))
    )["total"]
    return -(-(spent or 0) // 1000)
