"""A prepaid contract that stays suspended: its buyer is warned, and after days without payment it is ended.

Its capacity has been on sale since a day after the suspension, so nobody stood ready for it: nothing is owed for months
that were never paid and so never delivered, and no fee for the end (docs/contracts.md, section 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace.contracts import firm_capacity
from marketplace.contracts.history import move_contract, record_event
from marketplace.contracts.models import Contract, ContractEvent, Entitlement, Payment, Renewal
from marketplace.ids import derived_id
from marketplace.ledger.models import Hold
from marketplace.periods import delivery_period
from marketplace.webhooks.services import record_event as tell

WARNED_AHEAD: Final = timedelta(days=3)
# However late a worker comes: nobody's contract ends sooner after he was warned.
LEAST_WARNING: Final = timedelta(days=1)


def ends_unpaid_at(suspended_at: datetime) -> datetime:
    """When a contract suspended since then is ended at the earliest, if it is not paid."""
    return suspended_at + timedelta(days=settings.SUSPENDED_CONTRACT_ENDS_AFTER_DAYS)


def in_utc(at: datetime) -> str:
    """As the API writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def warned_from(suspended_at: datetime) -> datetime:
    """When its buyer is warned: three days before, or when it is suspended where it ends sooner than that."""
    return max(suspended_at, ends_unpaid_at(suspended_at) - WARNED_AHEAD)


def unpaid_end_of(contract: Contract) -> datetime | None:
    """When a contract ends at the earliest if it stays unpaid; None where it does not end for that."""
    if not _may_end_unpaid(contract):
        return None
    assert contract.suspended_at is not None
    return ends_unpaid_at(contract.suspended_at)


def instants_of(contract: Contract) -> Iterator[datetime]:
    """When something becomes due here of a contract as it is now, for its buyer's test clock."""
    if not _may_end_unpaid(contract):
        return
    assert contract.suspended_at is not None
    yield warned_from(contract.suspended_at)
    yield ends_unpaid_at(contract.suspended_at)
    warned_at = _warned_at(contract)
    if warned_at is not None:
        yield warned_at + LEAST_WARNING


@transaction.atomic
def warn_or_end_unpaid(*, contract_id: UUID, now: datetime) -> bool:
    """Take the step that is due of a contract whose month could not be charged now: warn its buyer, or end it, once.

    Whoever pays it locks it too: what was paid before this is not ended, and what was ended is not charged. True where
    a step was taken.
    """
    contract = Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
    if not _may_end_unpaid(contract):
        return False
    assert contract.suspended_at is not None
    if now < warned_from(contract.suspended_at):
        return False
    warned_at = _warned_at(contract)
    ends_at = max(ends_unpaid_at(contract.suspended_at), (warned_at or now) + LEAST_WARNING)
    if warned_at is None:
        _warn(contract, ends_at, now)
        return True
    held = Entitlement.objects.filter(
        contract=contract, paid_at__isnull=True, ledger_hold__status=Hold.Status.OPEN
    )
    # A month whose price is held is as good as paid: it is charged when it begins.
    if now < ends_at or held.exists():
        return False
    _end(contract, now)
    return True


def _may_end_unpaid(contract: Contract) -> bool:
    """In arrears it keeps its capacity and owes its true-up; and what ends before that ends at its term."""
    return (
        contract.status == Contract.Status.SUSPENDED
        and contract.payment == Payment.PREPAID
        and contract.suspended_at is not None
        and contract.ends_at is not None
        and ends_unpaid_at(contract.suspended_at) < contract.ends_at
    )


def _warned_at(contract: Contract) -> datetime | None:
    """Of this suspension: who is suspended again is warned again."""
    warnings = ContractEvent.objects.filter(
        contract=contract, kind=ContractEvent.Kind.WARNED, occurred_at__gte=contract.suspended_at
    )
    return warnings.order_by("occurred_at").values_list("occurred_at", flat=True).first()


def _warn(contract: Contract, ends_at: datetime, now: datetime) -> None:
    record_event(
        contract.id,
        ContractEvent.Kind.WARNED,
        contract.status,
        contract.status,
        reason="it ends if it is not paid",
        now=now,
        detail={"ends_at": ends_at.isoformat()},
    )
    _tell(contract, "ending", ends_at, now)


def _end(contract: Contract, now: datetime) -> None:
    assert contract.suspended_at is not None
    assert contract.ends_at is not None
    end, freed_at = delivery_period(now).start, contract.freed_at
    if freed_at is None:
        # Nobody looked for a day: both steps at once.
        freed_at = now
        firm_capacity.give_back(contract, now, contract.ends_at, now=now)
    never_paid = Entitlement.objects.filter(contract=contract, paid_at__isnull=True, period_end__gt=end)
    # V of 0: what was not paid was not delivered, and is not owed.
    never_paid.update(entitled_numerator=F("rollover_numerator"))
    never_paid.filter(period_start__lt=end).update(period_end=end)
    Renewal.objects.filter(pk=contract.id, status=Renewal.Status.ON).update(
        status=Renewal.Status.OFF, next_attempt_at=None
    )
    moved = move_contract(
        contract.id,
        sources=[Contract.Status.SUSPENDED],
        to=Contract.Status.ENDED,
        kind=ContractEvent.Kind.ENDED,
        reason=f"suspended for {settings.SUSPENDED_CONTRACT_ENDS_AFTER_DAYS} days",
        told="unpaid",
        now=now,
        detail={"ends_at": end.isoformat(), "term_was": contract.ends_at.isoformat()},
        ends_at=end,
        freed_at=freed_at,
    )
    assert moved, "its row is locked"
    _tell(contract, "ended", end, now)


def _tell(contract: Contract, status: str, ends_at: datetime, now: datetime) -> None:
    tell(
        organization_id=contract.organization_id,
        event_type="contract.unpaid",
        fact_id=derived_id(contract.id, f"unpaid:{status}:{contract.suspended_at}"),
        data={
            "contract_id": str(contract.id),
            "status": status,
            "ends_at": in_utc(ends_at),
        },
        now=now,
    )
