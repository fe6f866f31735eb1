"""How far what was bought is used up, and usage over time: drawn from what the rooms below report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings

from marketplace.contracts.models import Contract, Entitlement
from marketplace.contracts.selectors import entitlements_in_force
from marketplace.periods import delivery_period, period_at
from marketplace.portal import figures
from marketplace.portal.charts import Chart, Column, Segment, column_chart, share_bar
from metering.selectors import usage_over_time
from pricing.rating import exact_price

_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Holding:
    """A contract and what its period in force entitles to; no entitlement: on demand, or nothing awarded now."""

    contract: Contract
    entitlement: Entitlement | None
    bar: str

    @property
    def left_numerator(self) -> int:
        assert self.entitlement is not None
        return (
            self.entitlement.entitled_numerator
            - self.entitlement.used_numerator
            - self.entitlement.held_numerator
        )


def holdings_of(contracts: Sequence[Contract], now: datetime) -> list[Holding]:
    entitlements = entitlements_in_force(contract_ids=[contract.id for contract in contracts], at=now)
    return [
        Holding(contract, entitlement, burn_down(entitlement) if entitlement else "")
        for contract in contracts
        for entitlement in [entitlements.get(contract.id)]
    ]


def burn_down(entitlement: Entitlement) -> str:
    """Used and held of what the period entitles to."""
    used, held = entitlement.used_numerator, entitlement.held_numerator
    lots = figures.lots_of
    whole = lots(entitlement.entitled_numerator)
    return share_bar(
        [
            Segment("used", used, f"{lots(used)} lots used"),
            Segment("held", held, f"{lots(held)} lots held by running requests"),
        ],
        whole=max(1, entitlement.entitled_numerator),
        title=f"{lots(used)} of {whole} lots used, {lots(held)} held",
    )


def usage_chart(contract_ids: list[UUID], *, span: str, now: datetime) -> Chart:
    """Standard tokens metered by the gateway: `day` by hour, `hour` by delivery period."""
    if span == "hour":
        length = timedelta(seconds=settings.DELIVERY_PERIOD_S)
        last = delivery_period(now).start
        starts = [last - length * back for back in reversed(range(int(_HOUR / length)))]
        rows = usage_over_time(contract_ids, since=starts[0], until=now, slice_by="period")
        title = "Standard tokens metered per delivery period over the last hour"
    else:
        last = period_at(now, 3_600).start
        starts = [last - _HOUR * back for back in reversed(range(24))]
        rows = usage_over_time(contract_ids, since=starts[0], until=now, slice_by="hour")
        title = "Standard tokens metered per hour over the last 24 hours"
    used = dict(rows)
    columns = [
        Column(
            f"{figures.day_time(start)}: {figures.standard_tokens(used.get(start, 0))} standard tokens",
            (used.get(start, 0),),
        )
        for start in starts
    ]
    labels = (figures.clock_time(starts[0]), figures.clock_time(starts[len(starts) // 2]), "now")
    return column_chart(columns, title=title, y_label=figures.axis_tokens, x_labels=labels)


def exact_amount(numerator: int, micros_per_mtok: int) -> str:
    """Numerator times rate before any rounding, for the eye that recomputes a charge."""
    return figures.grouped(exact_price(numerator, micros_per_mtok))
