"""Another bank account at the processor: the same 72 hours and the same notices as another bank reference here.

The processor keeps the bank account and lets whoever signs in there change it at once. Payouts to banks are asked for
by the market, so the market waits: none is sent while a change is waiting.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import PayoutDestinationChange, ProcessorAccount
from marketplace.billing.services.payout_destinations import DELAY, Kind, Status, end_change, tell_owners
from marketplace.ids import derived_id
from providers.services import lock_provider


def is_held(organization_id: UUID, *, now: datetime) -> bool:
    """Whether a change of the bank account keeps payouts of the processor's from being sent."""
    return (
        settings.PAYMENT_PROCESSOR != "sandbox"
        and PayoutDestinationChange.objects.filter(
            organization_id=organization_id, status=Status.PENDING, effective_at__gt=now
        ).exists()
    )


@transaction.atomic
def record_bank_account(*, organization_id: UUID, processor: str, seen: str, now: datetime) -> None:
    """Write down which bank account the processor says payouts go to; a change of it waits, and owners are told.

    The first one is taken as it is: it came with the account's opening. That one is gone is no news until there is
    another: to remove and to add is a change like any other. Back to the one in force ends the waiting.
    """
    if not seen:
        return
    lock_provider(organization_id, now=now)
    account = ProcessorAccount.objects.select_for_update().get(
        organization_id=organization_id, processor=processor
    )
    known = account.bank_account
    if known == seen:
        return
    account.bank_account = seen
    account.save(update_fields=["bank_account"])
    if not known:
        return
    waiting = PayoutDestinationChange.objects.filter(
        organization_id=organization_id, status=Status.PENDING
    ).first()
    in_force = known
    if waiting is not None and waiting.effective_at > now:
        in_force = waiting.former
        end_change(waiting, Status.CANCELLED, now=now)
        tell_owners(waiting, Kind.CANCELLED, SYSTEM, now=now)
    elif waiting is not None:
        end_change(waiting, Status.APPLIED, now=now)
        tell_owners(waiting, Kind.APPLIED, SYSTEM, now=now)
    if seen == in_force:
        return
    count = PayoutDestinationChange.objects.filter(organization_id=organization_id).count()
    change = PayoutDestinationChange.objects.create(
        id=derived_id(account.id, f"bank:{count}:{seen}"),
        organization_id=organization_id,
        former=in_force,
        destination=seen,
        effective_at=now + DELAY,
        created_at=now,
    )
    tell_owners(change, Kind.REQUESTED, SYSTEM, now=now)
