"""A provider's own account at the processor: made, opened by himself at a link, and what is still due there."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.billing.models import ProcessorAccount, ProcessorOperation
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.operations import request_operation, run_operation
from marketplace.billing.services.processor_gate import through_gate
from marketplace.errors import Conflict, InvalidInput, NotFound


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
    if not kept.exists():
        return False
    state = through_gate(processor, lambda: processor.account_state(account_id))
    kept.update(
        payouts_enabled=state.payouts_enabled,
        transfers_enabled=state.transfers_enabled,
        requirements_due=list(state.requirements_due),
        checked_at=now,
    )
    return True
