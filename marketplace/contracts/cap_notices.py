"""Who is near a spend cap is told once in its window, before requests are refused; beside the path of requests."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace.contracts.models import SpendCap, SpendCounter
from marketplace.contracts.spending import spend_window
from marketplace.ids import derived_id
from marketplace.webhooks.services import Fact, record_events

# Told at nine tenths: what is held is the worst case, so a request may be refused well before the last tenth is used.
NEAR_TENTHS: Final = 9


@transaction.atomic
def tell_of_near_caps(*, now: datetime) -> int:
    """Tell of each cap of which nine tenths are spent or held in the window of now; how many there are.

    Again tells nothing more in the same window, until the limit is changed. A cap of zero is not near: it is closed.
    """
    starts = {period: spend_window(period, now).start for period in SpendCap.Period.values}
    facts: list[Fact] = []
    for period, start in starts.items():
        near = SpendCounter.objects.filter(
            window_start=start,
            cap__period=period,
            cap__limit_micros__gt=0,
            spent_micros__gte=F("cap__limit_micros") * NEAR_TENTHS / 10,
        ).select_related("cap__api_key")
        for counter in near.order_by("cap_id"):
            cap = counter.cap
            facts.append(
                Fact(
                    cap.organization_id,
                    derived_id(cap.id, f"near:{start.isoformat()}:{cap.limit_micros}"),
                    _data(cap, counter.spent_micros),
                )
            )
    record_events(facts, event_type="spend_cap.near", now=now)
    return len(facts)


def _data(cap: SpendCap, spent_micros: int) -> dict[str, Any]:
    assert cap.limit_micros is not None
    subject = {
        SpendCap.Scope.ORGANIZATION: "the organization",
        SpendCap.Scope.PROJECT: f"the project {cap.project}",
        SpendCap.Scope.API_KEY: f"the API key {cap.api_key.label if cap.api_key else ''}",
    }[SpendCap.Scope(cap.scope)]
    return {
        "spend_cap_id": str(cap.id),
        "subject": subject,
        "period": cap.period,
        "limit_micros": cap.limit_micros,
        "spent_micros": spent_micros,
        "currency": settings.MARKET_CURRENCY,
    }
