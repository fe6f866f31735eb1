"""The auditor's recomputing: what settled periods should have come to, from the roll-ups as they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q, Sum

from marketplace.billing.lines import Line
from marketplace.billing.models import Charge, ChargeKind, MonthOutcome, Settlement, TariffMonth
from marketplace.billing.selectors import digest_of, metered_usage
from marketplace.billing.services.committed_months import locked_contract
from marketplace.billing.services.failing import have_news
from marketplace.billing.services.month_ends import month_lines_lacking
from marketplace.billing.services.period_lines import count_tiers, lines_of_run, lock_sources
from marketplace.billing.services.service_crediting import credit_lines, measure_service
from marketplace.periods import Period
from pricing.month_tiers import line_amount
from pricing.months import calendar_month
from pricing.rate_tariffs import tariffs_by_rate
from pricing.rating import price_of
from pricing.tariffs import Tariff
from pricing.tariffs import charge as charge_of

# A minimum take is the rest of a sum that was rounded once with its spot line; an adjustment is a difference.
_PLAIN_PRODUCTS: Final = (
    ChargeKind.USAGE,
    ChargeKind.OVERAGE,
    ChargeKind.SPOT,
    ChargeKind.COMMITTED_FEE,
    ChargeKind.TRUE_UP,
)


@dataclass(frozen=True, slots=True)
class ChargeDifference:
    """What the charges of a contract and settlement period lack (negative: have too much) at one rate."""

    what: str
    contract_id: UUID
    settlement_start: datetime
    rate_id: UUID
    numerator: int
    amount_micros: int


@dataclass(slots=True)
class ChargeCheck:
    """`unsettled` periods have usage that no run has seen yet: nothing can be said of them."""

    settled: int
    unsettled: int
    differences: list[ChargeDifference]


def check_charges(*, since: datetime) -> ChargeCheck:
    """Recomputes every settled period that begins at `since` or later; changes nothing.

    A period passes when one more run would have nothing to write: no volume, no amount, no share of a provider.
    Fees are left out: the market's fee may have changed since. Takes each contract's locks for a moment.
    """
    check = ChargeCheck(0, 0, [])
    latest = (
        Settlement.objects.filter(settlement_start__gte=since)
        .order_by("contract_id", "settlement_start", "-run")
        .distinct("contract_id", "settlement_start")
    )
    for contract_id, settlement_start in list(latest.values_list("contract_id", "settlement_start")):
        lines = lines_lacking(contract_id, settlement_start)
        if lines is None:
            check.unsettled += 1
            continue
        check.settled += 1
        check.differences += [
            ChargeDifference(
                "lines", contract_id, settlement_start, line.rate_id, line.numerator, line.amount_micros
            )
            for line in lines
        ]
    check.differences += _months_lacking(since)
    check.differences += _wrong_products(since)
    check.differences += _wrong_months(since)
    return check


@transaction.atomic
def lines_lacking(contract_id: UUID, settlement_start: datetime) -> list[Line] | None:
    """What one more run of a settled period would write, differences of 0 left out; changes nothing.

    Under the locks of a settler, so that no run comes between the two sides; None while usage is not settled.
    """
    contract = locked_contract(contract_id)
    last = (
        Settlement.objects.filter(contract=contract, settlement_start=settlement_start).order_by("run").last()
    )
    assert last is not None, "settlements are never deleted"
    sources = lock_sources(contract, Period(last.settlement_start, last.settlement_end))
    metered = metered_usage(contract.id, last.settlement_start, last.settlement_end)
    if last.usage_digest != digest_of(metered) or sources.unsettled_awards:
        return None
    outcomes = sources.outcomes(metered)
    if have_news(outcomes, contract):
        return None
    count_tiers(sources, metered, run=last.run + 1)
    one_more = Settlement(contract=contract, settlement_start=last.settlement_start, run=last.run + 1)
    lines = lines_of_run(one_more, sources, metered, fee_ppm=settings.MARKET_FEE_PPM)
    lines += credit_lines(sources, metered, measure_service(sources, metered, outcomes))
    return [
        line
        for line in lines
        if line.numerator
        or line.amount_micros
        or any(share.numerator or share.gross_micros for share in line.shares.values())
    ]


def _months_lacking(since: datetime) -> Iterator[ChargeDifference]:
    """Committed months that were squared up, and to something else than their periods come to now."""
    months = MonthOutcome.objects.filter(entitlement__period_start__gte=since).order_by("entitlement_id")
    for month_id in list(months.distinct("entitlement_id").values_list("entitlement_id", flat=True)):
        for line in month_lines_lacking(month_id, fee_ppm=settings.MARKET_FEE_PPM):
            if (
                line.numerator
                or line.amount_micros
                or any(item.gross_micros for item in line.shares.values())
            ):
                contract_id = MonthOutcome.objects.filter(entitlement_id=month_id).values_list(
                    "contract_id", flat=True
                )
                yield ChargeDifference(
                    "month",
                    contract_id[0],
                    line.period_start,
                    line.rate_id,
                    line.numerator,
                    line.amount_micros,
                )


def _wrong_products(since: datetime) -> Iterator[ChargeDifference]:
    """Charges whose amount is not volume times rate, rounded once, or not what their step in a month comes to."""
    charges = Charge.objects.filter(period_start__gte=since)
    charges = charges.filter(Q(kind__in=_PLAIN_PRODUCTS) | Q(tariff_month__isnull=False))
    tariffs = tariffs_by_rate(charges.filter(tariff_month__isnull=False).values_list("rate_id", flat=True))
    for charge in charges.order_by("id").iterator():
        amount = _product(charge, tariffs)
        if amount != charge.amount_micros:
            yield ChargeDifference(
                "product",
                charge.contract_id,
                charge.period_start,
                charge.rate_id,
                0,
                amount - charge.amount_micros,
            )


def _product(charge: Charge, tariffs: Mapping[UUID, Tariff]) -> int:
    if charge.since_numerator is None:
        return price_of(charge.numerator, charge.rate_micros_per_mtok)
    return line_amount(
        tariffs[charge.rate_id], tier=charge.tier, since=charge.since_numerator, numerator=charge.numerator
    )


def _wrong_months(since: datetime) -> Iterator[ChargeDifference]:
    """Calendar months of tiers whose charges are not the volume that was counted, or not what that comes to."""
    months = TariffMonth.objects.filter(month_start__gte=calendar_month(since).start).annotate(
        volume=Sum("charges__numerator", default=0), charged=Sum("charges__amount_micros", default=0)
    )
    tariffs = tariffs_by_rate(months.values_list("rate_id", flat=True))
    for month in months.order_by("id").iterator():
        volume, amount = month.counted_numerator, charge_of(tariffs[month.rate_id], month.counted_numerator)
        if (volume, amount) != (month.volume, month.charged):
            contract_id = month.charges.values_list("contract_id", flat=True).first() or month.organization_id
            yield ChargeDifference(
                "tariff month",
                contract_id,
                month.month_start,
                month.rate_id,
                volume - month.volume,
                amount - month.charged,
            )
