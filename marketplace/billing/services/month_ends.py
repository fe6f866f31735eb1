"""The end of a committed month: what was failed is given back or lowers the true-up, and what is left rolls over.

Once its last settlement period is settled, and again when a later run of one of its periods sees something else: then
with the differences. Formulas in `pricing.commitments`, with examples in docs/contracts.md.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Sum

from marketplace.accounts.organization_clocks import billing_now
from marketplace.billing.lines import Line, Share, Terms, corrections, shares_of
from marketplace.billing.models import Charge, ChargeKind, MonthOutcome
from marketplace.billing.outcomes import latest_outcomes
from marketplace.billing.selectors import metered_usage
from marketplace.billing.services.committed_months import close_month, locked_contract
from marketplace.billing.services.owing import collect_owed, let_owe
from marketplace.billing.services.posting import Movement, books_of, charge_id, move, record_lines
from marketplace.billing.services.setting_aside import hold_tax
from marketplace.contracts.models import Allocation, Contract, Entitlement, NominationShare, Payment
from marketplace.contracts.services import (
    grant_rollover,
    mark_entitlement_settled,
    record_failed,
    resume_contract,
    suspend_contract,
)
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import InsufficientFunds
from pricing.commitments import failed_of_month, own_usage, rolled_over, take_lots, true_up
from pricing.rating import fee_of, lots_numerator, price_of, whole_lots
from pricing.units import split_by_weight

logger = logging.getLogger(__name__)

_LAST_MOMENT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class MonthFigures:
    """One month's V, R, U, F and what follows from them, in numerators; R and F also by offering."""

    volume: int
    delivered: int
    released: Mapping[UUID, int]
    failed_in_periods: Mapping[UUID, int]
    failed: int
    take: int
    true_up: int

    @property
    def unused(self) -> int:
        """N: paid or not, what nobody asked for."""
        return self.volume - sum(self.released.values()) - self.delivered - self.failed


def square_month(*, entitlement_id: UUID, fee_ppm: int, now: datetime) -> None:
    """Square the month up if all of it is settled; a second time only for differences, so again changes nothing.

    An arrears buyer whose credit line does not cover his true-up is suspended, and the month is tried again at the next
    call.
    """
    try:
        with transaction.atomic():
            _square(entitlement_id, fee_ppm, now)
    except InsufficientFunds:
        contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
        suspend_contract(
            contract_id=contract_id, reason="its true-up is not covered", told="true_up_not_covered", now=now
        )
        logger.warning("true-up not covered", extra={"contract_id": str(contract_id)})


def _square(entitlement_id: UUID, fee_ppm: int, now: datetime) -> None:
    contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
    contract = locked_contract(contract_id)
    # Usage is settled in real time, also of a month that the buyer's test clock has left behind.
    now = billing_now(contract.organization_id, now)
    if contract.payment == Payment.PREPAID:
        close_month(entitlement_id=entitlement_id, fee_ppm=fee_ppm, now=now)
    month = Entitlement.objects.select_for_update(of=("self",)).select_related("rate").get(pk=entitlement_id)
    if contract.payment == Payment.PREPAID and month.settled_at is None:
        return
    figures = month_figures(contract, month)
    last = MonthOutcome.objects.filter(entitlement=month).order_by("run").last()
    desired = _desired(contract, month, figures, fee_ppm)
    charged = sum(line.amount_micros for line in desired if line.kind == ChargeKind.TRUE_UP)
    refunded = -sum(line.amount_micros for line in desired if line.kind == ChargeKind.REMEDY)
    if last is not None and _same(last, figures, charged=charged, refunded=refunded):
        return
    run = last.run + 1 if last else 1
    _post(contract, month, run, desired, now)
    rolled = last.rolled_over_numerator if last else _roll_over(contract, month, figures, now)
    MonthOutcome.objects.create(
        id=derived_id(month.id, f"outcome:{run}"),
        contract=contract,
        entitlement=month,
        run=run,
        volume_numerator=figures.volume,
        released_numerator=sum(figures.released.values()),
        delivered_numerator=figures.delivered,
        failed_numerator=figures.failed,
        unused_numerator=figures.unused,
        failed_in_periods_numerator=sum(figures.failed_in_periods.values()),
        take_numerator=figures.take,
        true_up_numerator=figures.true_up,
        rolled_over_numerator=min(rolled, figures.unused),
        rate_micros_per_mtok=month.rate.micros_per_mtok,
        charged_micros=charged,
        refunded_micros=refunded,
        created_at=now,
    )
    record_failed(entitlement_id=month.id, failed_numerator=figures.failed)
    mark_entitlement_settled(entitlement_id=month.id, now=now)
    if contract.payment == Payment.ARREARS:
        resume_contract(
            contract_id=contract.id, reason="its true-up is covered", told="true_up_covered", now=now
        )


@transaction.atomic
def month_lines_lacking(entitlement_id: UUID, *, fee_ppm: int) -> list[Line]:
    """For the auditor: what one more run of a month that is squared up would have to write; changes nothing."""
    contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
    contract = locked_contract(contract_id)
    month = Entitlement.objects.select_related("rate").get(pk=entitlement_id)
    last = MonthOutcome.objects.filter(entitlement=month).order_by("run").last()
    assert last is not None, "outcomes are never deleted"
    return _corrections(
        _desired(contract, month, month_figures(contract, month), fee_ppm), _recorded(month, last.run)
    )


def month_figures(contract: Contract, month: Entitlement) -> MonthFigures:
    """What a month came to by what is metered, resold and recorded as failed now; reads only."""
    metered = metered_usage(contract.id, month.period_start, month.period_end)
    used = sum(sum(item.numerators.values()) for item in metered if item.rate_id == month.rate_id)
    released = _released(contract, month)
    rows = (
        latest_outcomes()
        .filter(contract=contract, period_start__gte=month.period_start, period_start__lt=month.period_end)
        .values("offering_id")
        .annotate(sum=Sum("failed_numerator"))
    )
    failed_in_periods = {row["offering_id"]: int(row["sum"]) for row in rows if row["sum"]}
    volume, gone = month.volume_numerator, sum(released.values())
    # Usage above the volume is nothing that a month was sold: no request is admitted for it.
    delivered = min(own_usage(used, month.rollover_numerator), volume - gone)
    failed = failed_of_month(
        volume=volume, released=gone, delivered=delivered, failed=sum(failed_in_periods.values())
    )
    assert contract.take_share_ppm is not None
    lots = whole_lots(volume)
    owed = 0
    if contract.payment == Payment.ARREARS:
        owed = true_up(
            volume_lots=lots,
            take_share_ppm=contract.take_share_ppm,
            released=gone,
            delivered=delivered,
            failed=failed,
        )
    take = lots_numerator(take_lots(lots, contract.take_share_ppm))
    return MonthFigures(volume, delivered, released, failed_in_periods, failed, take, owed)


def _released(contract: Contract, month: Entitlement) -> dict[UUID, int]:
    rows = (
        NominationShare.objects.filter(nomination__contract=contract, nomination__entitlement=month)
        .values("offering_id")
        .annotate(lots=Sum("resold_lots"))
    )
    return {row["offering_id"]: lots_numerator(row["lots"]) for row in rows}


def _desired(contract: Contract, month: Entitlement, figures: MonthFigures, fee_ppm: int) -> list[Line]:
    rate = month.rate
    terms = Terms(rate.id, rate.grade_id, rate.micros_per_mtok, month.period_start, month.period_end)
    if contract.payment == Payment.PREPAID:
        refund = _refund_line(terms, figures, fee_ppm)
        return [refund] if refund.amount_micros else []
    line = _true_up_line(contract, month, terms, figures, fee_ppm)
    return [line] if line.numerator else []


def _refund_line(terms: Terms, figures: MonthFigures, fee_ppm: int) -> Line:
    """F x rate, rounded once, from who failed by what each failed; the market gives back its fee of it."""
    amount = price_of(figures.failed, terms.rate_micros_per_mtok)
    offerings = sorted(figures.failed_in_periods)
    parts = split_by_weight(amount, [figures.failed_in_periods[offering] for offering in offerings])
    shares = {
        offering: Share(0, -part, fee_of(-part, fee_ppm))
        for offering, part in zip(offerings, parts, strict=True)
        if part
    }
    return _line(ChargeKind.REMEDY, terms, 0, -amount, shares)


def _true_up_line(
    contract: Contract, month: Entitlement, terms: Terms, figures: MonthFigures, fee_ppm: int
) -> Line:
    """R + T at the contract's rate: R to whose lots were resold, T by what each stood ready for, at their own rates."""
    allocations = list(Allocation.objects.filter(contract=contract, period_start__isnull=True))
    periods = (month.period_end - month.period_start) // timedelta(seconds=settings.DELIVERY_PERIOD_S)
    ready = {
        item.offering_id: max(
            0,
            lots_numerator(item.firm_lots) * periods
            - figures.released.get(item.offering_id, 0)
            - figures.failed_in_periods.get(item.offering_id, 0),
        )
        for item in allocations
    }
    offerings = sorted(ready)
    volumes: dict[UUID, int] = defaultdict(int)
    for offering, part in zip(
        offerings, split_by_weight(figures.true_up, [ready[one] for one in offerings]), strict=True
    ):
        volumes[offering] += part
    for offering, volume in figures.released.items():
        volumes[offering] += volume
    numerator = sum(volumes.values())
    amount = price_of(numerator, terms.rate_micros_per_mtok)
    rates = {item.offering_id: item.rate_micros_per_mtok for item in allocations}
    return _line(ChargeKind.TRUE_UP, terms, numerator, amount, shares_of(amount, volumes, fee_ppm, rates))


def _line(kind: ChargeKind, terms: Terms, numerator: int, amount: int, shares: Mapping[UUID, Share]) -> Line:
    return Line(
        kind=kind,
        rate_id=terms.rate_id,
        grade_id=terms.grade_id,
        rate_micros_per_mtok=terms.rate_micros_per_mtok,
        period_start=terms.period_start,
        period_end=terms.period_end,
        numerator=numerator,
        amount_micros=amount,
        shares=shares,
    )


def _post(contract: Contract, month: Entitlement, run: int, desired: Sequence[Line], now: datetime) -> None:
    """Move and write what the runs before have not charged or given back."""
    recorded = _recorded(month, run - 1)
    lines = desired if run == 1 else _corrections(desired, recorded)
    if not lines:
        return
    parent = _parent(month, run)
    books = books_of(contract, now=now, to_balance=True)
    if contract.payment == Payment.PREPAID and sum(line.amount_micros for line in lines) > _available(
        contract
    ):
        # He has spent what turns out to be too much.
        returned = sum(line.amount_micros for line in lines)
        books = books.owed_by_buyer(let_owe(contract, returned, now=now))
    # As the rest of a month is: the statement of the month it ends in carries it.
    earned_at = max(month.period_start, month.period_end - _LAST_MOMENT)
    move([Movement(parent, line, books, is_run=False, earned_at=earned_at) for line in lines], now=now)
    collect_owed(contract, now=now)
    tax_held = hold_tax(
        parent,
        [line for line in lines if line.amount_micros > 0],
        contract,
        settlement_id=None,
        now=now,
    )
    record_lines(parent, lines, contract, settlement=None, tax_held=tax_held, now=now, earned_at=earned_at)


def _corrections(desired: Sequence[Line], recorded: Sequence[Line]) -> list[Line]:
    """A refund stays a refund when it changes; all else is adjusted."""
    return [
        line
        for kind, is_refund in ((ChargeKind.ADJUSTMENT, False), (ChargeKind.REMEDY, True))
        for line in corrections(
            [line for line in desired if (line.kind == ChargeKind.REMEDY) == is_refund],
            [line for line in recorded if (line.kind == ChargeKind.REMEDY) == is_refund],
            kind=kind,
        )
    ]


def _recorded(month: Entitlement, runs: int) -> list[Line]:
    """What earlier runs wrote of the month, by the ids that they derived."""
    rate = month.rate
    terms = Terms(rate.id, rate.grade_id, rate.micros_per_mtok, month.period_start, month.period_end)
    ids = [
        charge_id(_parent(month, run), _line(kind, terms, 0, 0, {}))
        for run in range(1, runs + 1)
        for kind in (ChargeKind.TRUE_UP, ChargeKind.ADJUSTMENT, ChargeKind.REMEDY)
    ]
    charges = Charge.objects.filter(id__in=ids).prefetch_related("earnings").order_by("id")
    return [
        _line(
            ChargeKind(charge.kind),
            terms,
            charge.numerator,
            charge.amount_micros,
            {
                earning.offering_id: Share(earning.numerator, earning.gross_micros, earning.fee_micros)
                for earning in charge.earnings.all()
            },
        )
        for charge in charges
    ]


def _parent(month: Entitlement, run: int) -> UUID:
    return derived_id(month.id, f"end:{run}")


def _available(contract: Contract) -> int:
    return balance(
        organization_id=contract.organization_id, kind=AccountKind.PREPAID, currency=contract.currency
    ).available_micros


def _roll_over(contract: Contract, month: Entitlement, figures: MonthFigures, now: datetime) -> int:
    """Once, at the first run: what is granted is not taken back when a later count differs."""
    if contract.payment != Payment.PREPAID or not contract.rollover_share_ppm:
        return 0
    numerator = rolled_over(
        unused=figures.unused,
        share_ppm=contract.rollover_share_ppm,
        cap_lots=contract.rollover_cap_lots or 0,
    )
    return grant_rollover(contract_id=contract.id, month_start=month.period_end, numerator=numerator, now=now)


def _same(last: MonthOutcome, figures: MonthFigures, *, charged: int, refunded: int) -> bool:
    return (
        last.delivered_numerator,
        last.released_numerator,
        last.failed_numerator,
        last.failed_in_periods_numerator,
        last.charged_micros,
        last.refunded_micros,
    ) == (
        figures.delivered,
        sum(figures.released.values()),
        figures.failed,
        sum(figures.failed_in_periods.values()),
        charged,
        refunded,
    )
