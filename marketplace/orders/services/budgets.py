"""A bid's daily budget: what was awarded today and what its next round could cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import F, Sum

from marketplace.orders.models import Trade

NO_BUDGET: Final = "The bid's daily budget does not cover its worst case any more."


def budget_reason(bid_id: UUID, *, budget_micros: int | None, worst_case_micros: int, now: datetime) -> str:
    """Why the bid's daily budget (UTC days) keeps it out of the next book; empty when it does not."""
    if budget_micros is None:
        return ""
    spent = awarded_micros([bid_id], now=now)
    return NO_BUDGET if spent.get(bid_id, 0) + worst_case_micros > budget_micros else ""


def awarded_micros(bid_ids: Sequence[UUID], *, now: datetime) -> dict[UUID, int]:
    """What each of the bids was awarded in this UTC day's periods; micros, rounded up once per bid."""
    if not bid_ids:
        return {}
    day_start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    rows = (
        Trade.objects.filter(bid_id__in=bid_ids, auction__period_start__gte=day_start)
        .values_list("bid_id")
        .annotate(total=Sum(F("lots") * F("rate_micros_per_mtok")))
        .order_by()
    )
    return {bid_id: -(-total // 1000) for bid_id, total in rows}
