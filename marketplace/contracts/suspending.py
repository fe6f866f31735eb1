"""A committed contract without funds: suspended at once, its capacity free after a day, and how it comes back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q

from marketplace.contracts import firm_capacity
from marketplace.contracts.history import move_contract, record_event
from marketplace.contracts.models import Contract, ContractEvent, Entitlement, Payment
from marketplace.contracts.unpaid import ends_unpaid_at, in_utc
from marketplace.periods import delivery_period
from pricing.commitments import prorated_lots
from pricing.rating import lots_numerator, whole_lots

FREED_AFTER: Final = timedelta(hours=24)
RUNNING: Final = (Contract.Status.ACTIVE, Contract.Status.SUSPENDED)
_SECOND: Final = timedelta(seconds=1)


def suspend_contract(
    *,
    contract_id: UUID,
    now: datetime,
    reason: str = "its month could not be paid",
    told: str = "month_unpaid",
) -> None:
    """Nothing is delivered on it until it is paid. Doing it again changes nothing."""
    term = Contract.objects.filter(pk=contract_id, payment=Payment.PREPAID, ends_at__gt=ends_unpaid_at(now))
    move_contract(
        contract_id,
        sources=[Contract.Status.ACTIVE],
        to=Contract.Status.SUSPENDED,
        kind=ContractEvent.Kind.SUSPENDED,
        reason=reason,
        told=told,
        now=now,
        more={"ends_unpaid_at": in_utc(ends_unpaid_at(now))} if term.exists() else None,
        suspended_at=now,
    )


def resume_contract(*, contract_id: UUID, reason: str, now: datetime, told: str = "paid") -> None:
    """Active again, unless the running month is unpaid still, or in arrears one that is over is not squared up.

    A prepaid month that is over was never delivered and will not be charged: it keeps nobody from the running one.
    Doing it again changes nothing.
    """
    ahead = Q(
        contract__payment=Payment.PREPAID, period_start__lte=now, period_end__gt=now, paid_at__isnull=True
    )
    behind = Q(contract__payment=Payment.ARREARS, period_end__lte=now, settled_at__isnull=True)
    unpaid = Entitlement.objects.filter(ahead | behind, contract_id=contract_id)
    if unpaid.exists():
        return
    move_contract(
        contract_id,
        sources=[Contract.Status.SUSPENDED],
        to=Contract.Status.ACTIVE,
        kind=ContractEvent.Kind.RESUMED,
        reason=reason,
        told=told,
        now=now,
        suspended_at=None,
        freed_at=None,
    )


@transaction.atomic
def free_suspended(*, contract_id: UUID, now: datetime) -> bool:
    """Put the capacity of a prepaid contract suspended for a day back on sale, from the next whole hour on, once."""
    contract = (
        Contract.objects.select_for_update(no_key=True)
        .filter(
            pk=contract_id,
            status=Contract.Status.SUSPENDED,
            payment=Payment.PREPAID,
            suspended_at__lte=now - FREED_AFTER,
            freed_at__isnull=True,
        )
        .first()
    )
    if contract is None:
        return False
    assert contract.ends_at is not None
    firm_capacity.give_back(contract, max(now, contract.starts_at), contract.ends_at, now=now)
    Contract.objects.filter(pk=contract_id).update(freed_at=now)
    record_event(
        contract_id,
        ContractEvent.Kind.FREED,
        contract.status,
        contract.status,
        reason="suspended for 24 hours",
        now=now,
    )
    return True


@transaction.atomic
def reclaim_capacity(*, contract_id: UUID, now: datetime) -> None:
    """Take a freed contract's capacity again, for what is left of its term, and cut the running month to what is left.

    Called before the month is charged: the buyer pays for the part that he can still have, pro rata by seconds from the
    next delivery period on. Nothing where nothing was freed. Raises CapacityGone: others have it now.
    """
    contract = Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
    if contract.freed_at is None:
        return
    assert contract.ends_at is not None
    running_period = delivery_period(now)
    since = running_period.start if running_period.start == now else running_period.end
    # The hour in which it was freed stayed the contract's.
    start = max(since, firm_capacity.first_whole_hour(contract.freed_at))
    if start < contract.ends_at:
        firm_capacity.take_again(contract, start, now=now)
    Contract.objects.filter(pk=contract_id).update(freed_at=None)
    running = Entitlement.objects.filter(
        # Also one that ends before the next delivery period begins: nothing is left of it.
        Q(period_start__lt=since) & Q(period_end__gt=now),
        contract_id=contract_id,
        paid_at__isnull=True,
    ).first()
    if running is None or running.ledger_hold_id is not None:
        return
    lots = prorated_lots(
        whole_lots(running.volume_numerator),
        part_s=(running.period_end - since) // _SECOND,
        whole_s=(running.period_end - running.period_start) // _SECOND,
    )
    Entitlement.objects.filter(pk=running.pk).update(
        entitled_numerator=lots_numerator(lots) + F("rollover_numerator")
    )
