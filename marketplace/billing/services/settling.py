"""Squares contracts up, one settlement period at a time: charge the buyer, credit the providers, take the fee.

One transaction for each contract and period. A run that finds nothing new writes nothing; late usage makes the next
run, whose adjustment lines carry the differences.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace.billing.documents import tax_share
from marketplace.billing.lines import Line, LineKey
from marketplace.billing.models import Charge, Settlement
from marketplace.billing.selectors import (
    RECONCILED_WITHIN,
    Due,
    Metered,
    digest_of,
    metered_usage,
    unreconciled,
    unsettled_contracts,
    waiting_reasons,
)
from marketplace.billing.services.committed_months import (
    charge_committed_months,
    firm_allocations,
    locked_contract,
    open_hold_id,
)
from marketplace.billing.services.failing import AwardOutcome, have_news, record_outcomes
from marketplace.billing.services.identity import id_at
from marketplace.billing.services.month_ends import square_month
from marketplace.billing.services.owing import collect_owed, let_owe
from marketplace.billing.services.period_lines import (
    Sources,
    count_tiers,
    hold_has_captures,
    lines_of_run,
    lock_sources,
    waiting_amount,
)
from marketplace.billing.services.posting import (
    Movement,
    books_of,
    hold_of,
    lock_movements,
    move,
    record_lines,
)
from marketplace.billing.services.reselling import credit_resellers, record_refunds, refunds_of
from marketplace.billing.services.service_crediting import (
    OfferingService,
    credit_lines,
    measure_service,
    record_service,
)
from marketplace.billing.services.setting_aside import dispute_hold_id, hold_disputed, hold_tax
from marketplace.billing.services.settlement_batches import (
    JOB,
    SettledContract,
    batches_of,
    job_key,
    settle_together,
)
from marketplace.billing.services.tariff_months import record_counted
from marketplace.billing.services.waterfall import OWED_BY_PROVIDER
from marketplace.contracts.models import Allocation, Contract
from marketplace.contracts.services import mark_entitlement_settled, record_failed
from marketplace.errors import DomainError
from marketplace.isolating import for_each
from marketplace.jobs import claim_job, finish_job
from marketplace.ledger.grants import draw_grants
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.services import InsufficientFunds, close_hold
from marketplace.periods import settlement_period
from metering.selectors import is_corrected
from metering.validating import RETENTION
from providers.reconciling import reconcile_period
from providers.services import record_attempt_outages

logger = logging.getLogger(__name__)

LATE_USAGE_JOB: Final = "billing.settle_late_usage"
_RECENT: Final = timedelta(hours=1)


class ChargeExceedsHold(DomainError):
    """A charge came out above what was held for it: the two roundings disagree, nothing was posted."""

    code = "charge_exceeds_hold"
    http_status = 500
    title = "Charge above its hold"


@dataclass(slots=True)
class SettlementResult:
    """What one call settled, what has to wait and why, and what failed and why (the others went on)."""

    settled: list[SettledContract] = field(default_factory=list)
    waiting: list[tuple[Due, str]] = field(default_factory=list)
    failed: list[tuple[Due, str]] = field(default_factory=list)


def settle_due_periods(*, now: datetime) -> SettlementResult:
    """Charge committed months that began, then settle whatever is due; late usage of any age once an hour."""
    charge_committed_months(now=now)
    hour = now.replace(minute=0, second=0, microsecond=0)
    looks_back = claim_job(job=LATE_USAGE_JOB, period_start=hour, now=now)
    recent = max(_RECENT, 4 * timedelta(seconds=settings.SETTLEMENT_PERIOD_S + settings.MAX_REQUEST_S))
    since = now - (RETENTION if looks_back else recent)
    result = _settle(unsettled_contracts(since=since, until=now), now=now)
    if looks_back:
        collect_what_is_owed(now=now)
        finish_job(job=LATE_USAGE_JOB, period_start=hour, now=now)
    return result


def settle_period(*, settlement_start: datetime, now: datetime) -> SettlementResult:
    """Settle every contract in the one settlement period that begins then; again changes nothing.

    Waits for a contract that another worker is settling.
    """
    period = settlement_period(settlement_start)
    charge_committed_months(now=now)
    due = unsettled_contracts(since=period.start, until=period.end)
    return _settle([item for item in due if item.settlement_start == period.start], now=now, waits=True)


def _settle(due: list[Due], *, now: datetime, waits: bool = False) -> SettlementResult:
    """What is ordinary in batches, the rest one by one; `waits` for what another worker has, or leaves it to him."""
    result = SettlementResult()
    reconciled: set[datetime] = set()

    def settle(item: Due) -> None:
        try:
            settled = settle_contract(
                contract_id=item.contract_id, settlement_start=item.settlement_start, now=now
            )
        except DomainError as error:
            # Foreseen, such as late usage without cover: it waits for what would cover it.
            logger.exception("contract not settled", extra={"contract_id": str(item.contract_id)})
            result.failed.append((item, f"{error.code}: {error.detail}"))
            return
        if settled is not None:
            result.settled.append(settled)

    for batch in batches_of(due) if due else [[]]:
        reasons = _reasons_to_wait(batch, reconciled, now=now)
        together = settle_together([item for item in batch if item not in reasons], now=now)
        result.waiting += [(item, reasons[item]) for item in batch if item in reasons]
        result.settled += together.settled
        singly = [*together.singly, *together.taken] if waits else together.singly
        result.waiting += [(item, "another_settles") for item in together.taken if not waits]
        # One contract that cannot be charged must not keep the others from being settled.
        for_each(JOB, singly, settle, key=job_key, now=now)
    result.settled.sort(key=lambda one: (one.settlement_start, one.contract_id))
    return result


def _reasons_to_wait(batch: list[Due], reconciled: set[datetime], *, now: datetime) -> dict[Due, str]:
    """Why contracts of one period cannot be settled yet; the meters of the period are compared first, once for all.

    A comparison that fails stops money for ten minutes, not for good: what it finds later becomes an adjustment.
    """
    reasons = waiting_reasons(batch, now=now)
    ready = [item for item in batch if item not in reasons]
    if not ready:
        return reasons
    start = ready[0].settlement_start
    if start not in reconciled:
        reconciled.add(start)
        try:
            reconcile_period(settlement_start=start, now=now)
        except Exception:
            logger.exception("meters not compared", extra={"period_start": start.isoformat()})
    patient = [item for item in ready if now < item.due_at + RECONCILED_WITHIN]
    found = unreconciled([item.contract_id for item in patient], start)
    return reasons | {item: "unreconciled" for item in patient if item.contract_id in found}


@transaction.atomic
def settle_contract(
    *, contract_id: UUID, settlement_start: datetime, now: datetime
) -> SettledContract | None:
    """Settle one contract in one period. None when an earlier run saw the same usage.

    Raises InsufficientFunds (late usage without cover), ChargeExceedsHold.
    """
    contract = locked_contract(contract_id)
    period = settlement_period(settlement_start)
    earlier = (
        Settlement.objects.filter(contract=contract, settlement_start=period.start).order_by("run").last()
    )
    sources = lock_sources(contract, period)
    metered = metered_usage(contract.id, period.start, period.end)
    usage, digest = sum(sum(item.numerators.values()) for item in metered), digest_of(metered)
    outcomes = sources.outcomes(metered)
    settled = None
    if (
        earlier is None
        or earlier.usage_digest != digest
        or sources.unsettled_awards
        or have_news(outcomes, contract)
    ):
        run = earlier.run + 1 if earlier else 1
        settlement = Settlement.objects.create(
            id=id_at(contract.id, period.start, f"settlement:{run}"),
            contract=contract,
            settlement_start=period.start,
            settlement_end=period.end,
            run=run,
            usage_numerator=usage,
            usage_digest=digest,
            created_at=now,
        )
        count_tiers(sources, metered, run=run)
        service = measure_service(sources, metered, outcomes)
        charges = _run(settlement, earlier, sources, metered, outcomes, service, now=now)
        record_service(settlement, service, contract, now=now)
        _keep_outcomes(settlement, sources, outcomes, now=now)
        amount = sum(charge.amount_micros for charge in charges)
        settled = SettledContract(contract.id, period.start, run, len(charges), amount)
    _close_sources(sources, now=now)
    for month in sources.committed_months:
        ends_here = month.settled_at is None and period.start < month.period_end <= period.end
        if ends_here or (month.settled_at is not None and settled is not None):
            square_month(entitlement_id=month.id, fee_ppm=settings.MARKET_FEE_PPM, now=now)
    return settled


def _run(
    settlement: Settlement,
    earlier: Settlement | None,
    sources: Sources,
    metered: list[Metered],
    outcomes: Sequence[AwardOutcome],
    service: Sequence[OfferingService],
    *,
    now: datetime,
) -> list[Charge]:
    lines = lines_of_run(settlement, sources, metered, fee_ppm=settings.MARKET_FEE_PPM)
    lines += credit_lines(sources, metered, service)
    holds = sources.holds_for(lines)
    exceeds = _exceeds_accrual(sources, lines, holds)
    books = books_of(sources.contract, now=now)
    refunds = refunds_of(settlement, outcomes, sources.resold, now=now) if sources.resold else []
    movements = [Movement(settlement.id, line, books, hold_of(line, holds)) for line in lines]
    movements += [refund.movement for refund in refunds]
    record_counted(lines)
    disputed = open_hold_id(dispute_hold_id(earlier.id)) if earlier is not None else None
    # A month that ends here is squared up in this transaction too, with all who supply it.
    firm = firm_allocations(sources.contract) if sources.committed_months else Allocation.objects.none()
    lock_movements(
        movements,
        sources.contract,
        books=books,
        offerings=firm.values_list("offering_id", flat=True),
        holds=[*sources.open_holds, *([disputed] if disputed else [])],
        now=now,
    )
    if disputed is not None:
        # What the last run kept for a ruling pays for it now; this run keeps again what still waits.
        close_hold(id=disputed, status="voided", now=now)
    _draw_grants(sources, lines, holds, now=now)
    if exceeds:
        movements = _from_balance(sources, movements, now=now)
    _move(movements, sources.contract, now=now)
    record_refunds(refunds, now=now)
    if sources.resold:
        credit_resellers(settlement, lines, now=now)
    # The rest of a hold is free before the tax is set aside: it was grossed up for exactly that.
    _close_sources(sources, now=now)
    tax_held = hold_tax(settlement.id, lines, sources.contract, settlement_id=settlement.id, now=now)
    waiting = waiting_amount(sources, metered, fee_ppm=settings.MARKET_FEE_PPM)
    hold_disputed(settlement.id, waiting, sources.contract, now=now)
    return record_lines(
        settlement.id, lines, sources.contract, settlement=settlement, tax_held=tax_held, now=now
    )


def _move(movements: Sequence[Movement], contract: Contract, *, now: datetime) -> None:
    """Post a run's lines. What remedies and service credits became smaller by the buyer owes where he has not got it.

    Usage that he has no cover for still waits, and raises InsufficientFunds.
    """
    try:
        with transaction.atomic():
            move(movements, now=now)
    except InsufficientFunds:
        shrunk = [
            one
            for one in movements
            if one.line.kind in OWED_BY_PROVIDER
            and one.line.amount_micros > 0
            and one.books.contract_id == contract.id
        ]
        if not shrunk:
            raise
        account = let_owe(contract, sum(one.line.amount_micros for one in shrunk), now=now)
        owed = [replace(one, books=one.books.owed_by_buyer(account), hold_id=None) for one in shrunk]
        move([*(one for one in movements if one not in shrunk), *owed], now=now)
    collect_owed(contract, now=now)


def collect_what_is_owed(*, now: datetime) -> int:
    """`collect_owed` for every contract on which something is owed, each in a transaction of its own, in micros.

    One that fails is recorded, and the others are collected.
    """
    owing = LedgerAccount.objects.filter(
        kind=AccountKind.RECEIVABLE,
        reference_id__isnull=False,
        debits_posted_micros__gt=F("credits_posted_micros"),
    ).values("reference_id")
    collected: list[int] = []

    def collect(contract_id: UUID) -> None:
        with transaction.atomic():
            amount = collect_owed(locked_contract(contract_id), now=now)
        collected.append(amount)

    contracts = Contract.objects.filter(pk__in=owing).order_by("id").values_list("id", flat=True)
    for_each("billing.collect_owed", list(contracts), collect, key=str, now=now)
    return sum(collected)


def _draw_grants(
    sources: Sources, lines: Sequence[Line], holds: Mapping[LineKey, UUID], *, now: datetime
) -> None:
    """Grants that the accrual holds pay first, tax included; what they do not pay goes back to them."""
    if sources.accrual is None or sources.accrual.ledger_hold_id not in sources.open_holds:
        return
    accrued, tax_ppm = sources.accrual.ledger_hold_id, sources.contract.organization.tax_ppm
    amount = sum(
        line.amount_micros + tax_share(line.amount_micros, tax_ppm)
        for line in lines
        if hold_of(line, holds) == accrued and line.amount_micros > 0
    )
    draw_grants(hold_id=accrued, amount_micros=amount, now=now)


def _keep_outcomes(
    settlement: Settlement, sources: Sources, outcomes: Sequence[AwardOutcome], *, now: datetime
) -> None:
    """Show what the awards came to where people look: on the outcomes, on the entitlements, among the outages."""
    record_outcomes(settlement, outcomes, sources.contract, now=now)
    record_attempt_outages(sources.evidence.down, now=now)
    failed: dict[UUID, int] = defaultdict(int)
    awards = {award.id for award in sources.awards}
    for outcome in outcomes:
        if outcome.award.id not in awards:
            continue  # A committed month's F is known at its end: until then he may use his volume later.
        failed[outcome.award.id] += outcome.parts.failed
    for entitlement_id, failed_numerator in failed.items():
        record_failed(entitlement_id=entitlement_id, failed_numerator=failed_numerator)


def _exceeds_accrual(sources: Sources, lines: Sequence[Line], holds: Mapping[LineKey, UUID]) -> bool:
    """Whether the lines that the accrual pays come to more than was captured, because usage was corrected upwards.

    Awards have holds of their own, remedies and service credits give back. Each request was captured rounded up, so
    what was captured covers its sum rounded once, and what a month of tiers comes to, of which each has set aside
    strictly more than its price. So anything else is two roundings that disagree: raises ChargeExceedsHold.
    """
    if sources.accrual is None or not holds:
        return False
    accrued, period = sources.accrual.ledger_hold_id, sources.period
    amount = sum(
        line.amount_micros
        for line in lines
        if holds.get(line.key) == accrued and line.kind not in OWED_BY_PROVIDER
    )
    if amount <= sources.accrual.captured_micros:
        return False
    if not is_corrected(sources.contract.id, period.start, period.end):
        raise ChargeExceedsHold(f"charge of {amount} micros, captured {sources.accrual.captured_micros}")
    return True


def _from_balance(sources: Sources, movements: Sequence[Movement], *, now: datetime) -> list[Movement]:
    """Let the balance pay, like late usage, what the accrual would have: its hold ends before it is charged."""
    assert sources.accrual is not None
    accrued = sources.accrual.ledger_hold_id
    close_hold(id=accrued, status="voided", now=now)
    sources.open_holds.discard(accrued)
    return [replace(one, hold_id=None) if one.hold_id == accrued else one for one in movements]


def _close_sources(sources: Sources, *, now: datetime) -> None:
    """Void what is left of the holds of a settled period; again is a no-op."""
    for hold_id in sources.take_open_holds():
        close_hold(id=hold_id, status="posted" if hold_has_captures(hold_id) else "voided", now=now)
    for award in sources.unsettled_awards:
        mark_entitlement_settled(entitlement_id=award.id, now=now)
    sources.unsettled_awards.clear()
