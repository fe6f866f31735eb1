"""The market's own periods, of configured lengths; what is pure about periods is `pricing.months`."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings

from pricing.months import Period, calendar_month, contract_month, period_at

__all__ = [
    "Period",
    "calendar_month",
    "contract_month",
    "delivery_period",
    "period_at",
    "settlement_period",
]


def delivery_period(at: datetime) -> Period:
    """When it is supplied (DELIVERY_PERIOD_S)."""
    return period_at(at, settings.DELIVERY_PERIOD_S)


def settlement_period(at: datetime) -> Period:
    """When it is squared up (SETTLEMENT_PERIOD_S)."""
    return period_at(at, settings.SETTLEMENT_PERIOD_S)
