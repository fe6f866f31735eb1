"""A provider's own account at the processor: made, opened by himself at a link, and what is still due there."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from marketplace.accounts.models import Organization
from marketplace.billing.models import ProcessorAccount, ProcessorOperation
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.bank_accounts import record_bank_account
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.processor_gate import through_gate
from marketplace.errors import Conflict, InvalidInput, NotFound

LOOK_WHILE_NOT_READY: Final = timedelta(minutes=5)
LOOK_ANYHOW: Final = timedelta(days=1)


def onboarding_link(*, organization_id: UUID, now: datetime) -> str:
    """Where the provider opens his account, or gives what is still due; good for minutes, so asked for each time.

    Raises InvalidInput (field country) while the organization's country is unknown, NotFound, ProcessorBusy,
    Conflict where the processor keeps no accounts (the sandbox).
    """
    processor = payment_processor()
    if not processor.needs_card:
        raise Conflict("this market's payment processor asks nothing of providers")
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("no such organization")
    if not organization.country:
        raise InvalidInput("say in which country the organization is first", field="country")
    account = ProcessorAccount.objects.filter(
        organization_id=organization_id, processor=processor.name
    ).first()
    if account is None:
        with transaction.atomic():
            operation = request_operation(
                kind=OperationKind.ACCOUNT,
                fact_id=organization_id,
                subject_id=organization_id,
                organization_id=organization_id,
                currency=settings.MARKET_CURRENCY,
                now=now,
            )
        operation = run_operation(operation_id=operation.id, now=now)
        if operation.status != ProcessorOperation.Status.SUCCEEDED:
            raise ProcessorBusy("the account is being made: ask again in a moment", retry_after_s=10)
        account = ProcessorAccount.objects.get(organization_id=organization_id, processor=processor.name)
    account_name = account.account_id
    page = f"{settings.PORTAL_URL}/provider/earnings"
    return through_gate(
        processor, lambda: processor.account_link(account_id=account_name, return_url=page, refresh_url=page)
    )


def payout_account_of(organization_id: UUID) -> ProcessorAccount | None:
    """The provider's account at the processor in use, as it was when we last looked."""
    return ProcessorAccount.objects.filter(
        organization_id=organization_id, processor=payment_processor().name
    ).first()


def refresh_account(*, account_id: str, now: datetime) -> bool:
    """Fetch what is due at the processor. False where the account is nobody's here. Raises ProcessorBusy."""
    processor = payment_processor()
    kept = ProcessorAccount.objects.filter(account_id=account_id, processor=processor.name)
    organization_id = kept.values_list("organization_id", flat=True).first()
    if organization_id is None:
        return False
    state = through_gate(processor, lambda: processor.account_state(account_id))
    with transaction.atomic():
        record_bank_account(
            organization_id=organization_id, processor=processor.name, seen=state.bank_account, now=now
        )
        kept.update(
            payouts_enabled=state.payouts_enabled,
            transfers_enabled=state.transfers_enabled,
            requirements_due=list(state.requirements_due),
            checked_at=now,
        )
    return True


def refresh_unsure_accounts(*, now: datetime, limit: int = 20) -> int:
    """Look at accounts about which a message may have been missed: not ready yet, or not looked at for a day.

    The processor's list of events is the market's own and does not show those of connected accounts. The longest not
    looked at come first; how many were looked at.
    """
    processor = payment_processor()
    is_ready = Q(payouts_enabled=True, transfers_enabled=True, requirements_due=[])
    unsure = ProcessorAccount.objects.filter(processor=processor.name).filter(
        (~is_ready & Q(checked_at__lte=now - LOOK_WHILE_NOT_READY)) | Q(checked_at__lte=now - LOOK_ANYHOW)
    )
    looked = 0
    for account_id in list(unsure.order_by("checked_at").values_list("account_id", flat=True)[:limit]):
        try:
            refresh_account(account_id=account_id, now=now)
        except ProcessorBusy:
            break
        looked += 1
    return looked
