"""Prepaid committed contracts: each month is charged at its start, V x rate, and earned as it is delivered."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet, Sum

from marketplace.accounts.organization_clocks import keeping
from marketplace.billing.lines import Line, Share, Terms, delivery_shares, remainder_shares
from marketplace.billing.models import Charge, ChargeKind, Earning
from marketplace.billing.selectors import metered_usage
from marketplace.billing.services.posting import (
    books_of,
    buyer_account,
    charge_id,
    deferred_account,
    move_lines,
    new_earning,
    provider_organizations,
    record_lines,
)
from marketplace.billing.services.setting_aside import hold_tax
from marketplace.billing.services.waterfall import OWED_BY_PROVIDER
from marketplace.contracts.models import Allocation, Contract, ContractKind, Entitlement, Payment
from marketplace.contracts.services import (
    count_month,
    mark_entitlement_settled,
    mark_month_paid,
    reclaim_capacity,
    suspend_contract,
    warn_or_end_unpaid,
)
from marketplace.ids import derived_id
from marketplace.isolating import for_each
from marketplace.ledger.models import Hold
from marketplace.ledger.services import InsufficientFunds, NewTransfer, close_hold, post_transfers
from pricing.commitments import own_usage
from pricing.rating import price_of
from providers.capacity import CapacityGone

logger = logging.getLogger(__name__)

# Of a paid month's earnings, what was never part of its fee.
_BESIDE_THE_FEE: Final = (*OWED_BY_PROVIDER, ChargeKind.TERMINATION)

_LAST_MOMENT: Final = timedelta(microseconds=1)


@dataclass(slots=True)
class ChargedMonths:
    """Which months (entitlement ids) were charged now, and which could not be paid."""

    charged: list[UUID] = field(default_factory=list)
    unpaid: list[UUID] = field(default_factory=list)


def charge_committed_months(
    *, now: datetime, organization_id: UUID | None = None, real_now: datetime | None = None
) -> ChargedMonths:
    """Charge every month of a prepaid committed contract that has begun; each in a transaction of its own.

    Of all organizations that keep real time, or of one, at its own time; `real_now` is then the market's.
    A month without funds suspends its contract and is tried again at the next call, until it is over or its contract is
    ended for it (`contracts.unpaid`). One that passed while nobody charged it is charged if its price was held: it
    could be delivered all the time.
    """
    running = Q(period_end__gt=now, contract__status__in=[Contract.Status.ACTIVE, Contract.Status.SUSPENDED])
    due = (
        keeping(Entitlement.objects.all(), organization_id, field="contract__organization_id")
        .filter(
            running | Q(ledger_hold__status=Hold.Status.OPEN),
            contract__kind=ContractKind.COMMITTED,
            contract__payment=Payment.PREPAID,
            period_start__lte=now,
            paid_at__isnull=True,
        )
        .order_by("period_start", "id")
        .values_list("id", "contract_id")
    )
    result = ChargedMonths()

    def charge(month: tuple[UUID, UUID]) -> None:
        entitlement_id, contract_id = month
        try:
            if charge_month(entitlement_id=entitlement_id, now=now, real_now=real_now):
                result.charged.append(entitlement_id)
        except (InsufficientFunds, CapacityGone):
            _leave_unpaid(entitlement_id, contract_id, now)
            result.unpaid.append(entitlement_id)
            logger.warning("committed month unpaid", extra={"contract_id": str(contract_id)})

    strict = organization_id is not None
    for_each("billing.charge_month", due, charge, key=lambda month: month[0], now=now, strict=strict)
    return result


@transaction.atomic
def _leave_unpaid(entitlement_id: UUID, contract_id: UUID, now: datetime) -> None:
    locked_contract(contract_id)
    # Another worker may have charged it since: what is paid is neither suspended nor ended.
    if Entitlement.objects.filter(pk=entitlement_id, paid_at__isnull=True).exists():
        suspend_contract(contract_id=contract_id, now=now)
        warn_or_end_unpaid(contract_id=contract_id, now=now)


@transaction.atomic
def charge_month(*, entitlement_id: UUID, now: datetime, real_now: datetime | None = None) -> bool:
    """Move one month's price from prepaid to deferred, against the hold taken at acceptance if there is one.

    False when it was charged before, or its contract was ended before anybody paid. A contract whose capacity was freed
    takes it again first, and its month is cut to what is left of it. It counts under spend caps in the windows of
    `real_now`, where that is not `now`. Raises InsufficientFunds, CapacityGone.
    """
    contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
    contract = locked_contract(contract_id)
    unpaid = Entitlement.objects.filter(pk=entitlement_id, paid_at__isnull=True)
    if contract.status == Contract.Status.ENDED:
        # It was ended first. What was held all the time could be delivered, and is owed.
        unpaid = unpaid.filter(ledger_hold__status=Hold.Status.OPEN)
    if not unpaid.exists():
        return False
    reclaim_capacity(contract_id=contract_id, now=now)
    month = Entitlement.objects.select_for_update(of=("self",)).select_related("rate").get(pk=entitlement_id)
    if month.paid_at is not None:
        return False
    line = fee_line(month)
    count_month(contract, month, line.amount_micros, now=real_now or now)
    parent = month.id
    charge = charge_id(parent, line)
    hold_id = open_hold_id(month.ledger_hold_id)
    if line.amount_micros:
        post_transfers(
            [
                NewTransfer(
                    id=derived_id(charge, "committed_fee"),
                    debit_id=buyer_account(contract, now=now),
                    credit_id=deferred_account(contract, now=now),
                    amount_micros=line.amount_micros,
                    code="committed_fee",
                    hold_id=hold_id,
                    reference_id=charge,
                )
            ],
            now=now,
        )
    if hold_id is not None:
        close_hold(id=hold_id, status="posted" if line.amount_micros else "voided", now=now)
    tax_held = hold_tax(parent, [line], contract, settlement_id=None, now=now)
    record_lines(parent, [line], contract, settlement=None, tax_held=tax_held, now=now)
    mark_month_paid(entitlement_id=month.id, now=now)
    return True


def delivery_line(
    contract: Contract,
    month: Entitlement,
    kind: ChargeKind,
    terms: Terms,
    delta: dict[UUID, int],
    fee_ppm: int,
) -> Line:
    """Usage inside a paid month: nothing more for the buyer, the providers' earnings out of the deferred fee.

    `delta` is the volume by offering that no charge of the month has yet.
    """
    if month.settled_at is not None:
        # The whole fee is paid out: a count that changes now moves volume, and no money into a finished month.
        shares = {offering: Share(numerator, 0, 0) for offering, numerator in delta.items()}
        return _delivery(kind, terms, delta, shares)
    shares = delivery_shares(
        delta,
        before=_delivered_before(contract, month),
        rates={item.offering_id: item.rate_micros_per_mtok for item in firm_allocations(contract)},
        contract_rate=month.rate.micros_per_mtok,
        left_micros=left_of(month)[0],
        fee_ppm=fee_ppm,
    )
    return _delivery(kind, terms, delta, shares)


def _delivery(kind: ChargeKind, terms: Terms, delta: dict[UUID, int], shares: dict[UUID, Share]) -> Line:
    return Line(
        kind=kind,
        rate_id=terms.rate_id,
        grade_id=terms.grade_id,
        rate_micros_per_mtok=0,
        period_start=terms.period_start,
        period_end=terms.period_end,
        numerator=sum(delta.values()),
        amount_micros=0,
        shares=shares,
    )


@transaction.atomic
def close_month(*, entitlement_id: UUID, fee_ppm: int, now: datetime) -> None:
    """Pay what is left of a delivered month's fee to the allocated providers, by allocation share; once.

    Does nothing while a period of the month is not settled. The earnings belong to the month's fee charge.
    """
    contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
    contract = locked_contract(contract_id)
    month = Entitlement.objects.select_for_update(of=("self",)).select_related("rate").get(pk=entitlement_id)
    if month.settled_at is not None or month.paid_at is None:
        return
    line = fee_line(month)
    before = _delivered_before(contract, month)
    delivered = sum(share.numerator for share in before.values())
    metered = metered_usage(contract.id, month.period_start, month.period_end)
    if delivered != sum(sum(item.numerators.values()) for item in metered if item.rate_id == month.rate_id):
        return  # A period of the month is not settled yet: its delivery is paid before the remainder.
    shares = remainder_shares(
        left_of(month)[0],
        max(0, month.volume_numerator - own_usage(delivered, month.rollover_numerator)),
        {
            item.offering_id: item.firm_lots * max(1, item.rate_micros_per_mtok)
            for item in firm_allocations(contract)
        },
        fee_ppm,
    )
    if shares:
        closing = Line(
            kind=line.kind,
            rate_id=line.rate_id,
            grade_id=line.grade_id,
            rate_micros_per_mtok=line.rate_micros_per_mtok,
            period_start=line.period_start,
            period_end=line.period_end,
            numerator=line.numerator,
            amount_micros=line.amount_micros,
            shares=shares,
        )
        move_lines(month.id, [closing], books_of(contract, now=now), holds={}, now=now)
        providers = provider_organizations(set(shares))
        charge = charge_id(month.id, line)
        # Earned when the month ends: the statement of that month carries it, not that of the month it began in.
        earned_at = max(month.period_start, month.period_end - _LAST_MOMENT)
        Earning.objects.bulk_create(
            new_earning(charge, offering, share, providers[offering], earned_at, now)
            for offering, share in sorted(shares.items())
        )
    mark_entitlement_settled(entitlement_id=month.id, now=now)


def locked_contract(contract_id: UUID) -> Contract:
    """The contract, locked against a second settler; first in the order of locks (docs/locking.md)."""
    return (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .select_related("grade", "organization")
        .get(pk=contract_id)
    )


def open_hold_id(hold_id: UUID | None) -> UUID | None:
    """The hold's id while it is open: a closed one pays nothing any more."""
    if hold_id is None:
        return None
    return Hold.objects.filter(pk=hold_id, status=Hold.Status.OPEN).values_list("id", flat=True).first()


def firm_allocations(contract: Contract) -> QuerySet[Allocation]:
    """Who supplies a committed contract, for the whole of its term."""
    return Allocation.objects.filter(contract=contract, period_start__isnull=True)


def fee_line(month: Entitlement) -> Line:
    """V x rate of a month as it is now."""
    rate = month.rate
    return Line(
        kind=ChargeKind.COMMITTED_FEE,
        rate_id=rate.id,
        grade_id=rate.grade_id,
        rate_micros_per_mtok=rate.micros_per_mtok,
        period_start=month.period_start,
        period_end=month.period_end,
        numerator=month.volume_numerator,
        amount_micros=price_of(month.volume_numerator, rate.micros_per_mtok),
        shares={},
    )


def _delivered_before(contract: Contract, month: Entitlement) -> dict[UUID, Share]:
    rows = (
        Earning.objects.filter(
            charge__contract=contract,
            charge__rate_id=month.rate_id,
            charge__settlement__isnull=False,
            charge__period_start__gte=month.period_start,
            charge__period_start__lt=month.period_end,
        )
        # What he gives back for failure or slowness he has earned all the same; ending early delivers nothing.
        .exclude(charge__kind__in=_BESIDE_THE_FEE)
        .values("offering_id")
        .annotate(numerator_sum=Sum("numerator"), gross_sum=Sum("gross_micros"), fee_sum=Sum("fee_micros"))
    )
    return {row["offering_id"]: Share(row["numerator_sum"], row["gross_sum"], row["fee_sum"]) for row in rows}


@dataclass(frozen=True, slots=True)
class Paid:
    """What was paid ahead for a month, less what was given back when it was cut; the volume, the amount."""

    numerator: int
    amount_micros: int


def left_of(month: Entitlement) -> tuple[int, Paid]:
    """What of a month's fee no provider has earned yet, and the fee."""
    same = Q(
        contract_id=month.contract_id,
        rate_id=month.rate_id,
        period_start=month.period_start,
        settlement__isnull=True,
    )
    sums = Charge.objects.filter(same, kind__in=[ChargeKind.COMMITTED_FEE, ChargeKind.ADJUSTMENT]).aggregate(
        numerator=Sum("numerator"), amount=Sum("amount_micros")
    )
    paid = Paid(int(sums["numerator"] or 0), int(sums["amount"] or 0))
    earned = (
        Earning.objects.filter(
            charge__contract_id=month.contract_id,
            charge__rate_id=month.rate_id,
            charge__period_start__gte=month.period_start,
            charge__period_start__lt=month.period_end,
        )
        # What a provider gives back goes to the buyer's balance, not into the fee; the fee for an early end comes from
        # there.
        .exclude(charge__kind__in=_BESIDE_THE_FEE)
        .aggregate(total=Sum("gross_micros"))["total"]
        or 0
    )
    left = paid.amount_micros - earned
    assert left >= 0, "providers earned more than the month's fee"
    return left, paid
