"""What an operation says to the processor, gathered once, right before it is first sent."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings

from marketplace.accounts.models import Organization
from marketplace.billing.models import ProcessorAccount, ProcessorOperation, ProcessorPayer
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.registry import processor_named

_OF_A_PAYER = (OperationKind.SAVE_CARD, OperationKind.CHECKOUT, OperationKind.CHARGE)
_OF_AN_ACCOUNT = (OperationKind.TRANSFER, OperationKind.PAYOUT)


class NotReady(Exception):
    """Something that this operation needs is not there yet; the sweeper comes again."""


def terms_of(operation: ProcessorOperation, *, now: datetime) -> dict[str, str]:
    """Raises NotReady."""
    if not processor_named(operation.processor).needs_card:
        return {}
    of_invoice = operation.purpose == ProcessorOperation.Purpose.INVOICE
    page = f"{settings.PORTAL_URL}/buyer/{'invoices' if of_invoice else 'top-up'}"
    pages = {
        "success_url": page,
        "cancel_url": page,
        "description": f"Tokenyard {operation.get_purpose_display() or operation.kind}",
    }
    if operation.kind in _OF_A_PAYER:
        payer = ProcessorPayer.objects.filter(
            organization_id=operation.organization_id, processor=operation.processor
        ).first()
        if payer is None:
            raise NotReady("the buyer is not known to the processor yet")
        if operation.kind == OperationKind.CHARGE:
            if not payer.payment_method_id:
                raise NotReady("there is no saved card")
            return pages | {"payer": payer.payer_id, "payment_method": payer.payment_method_id}
        return pages | {"payer": payer.payer_id}
    if operation.kind in _OF_AN_ACCOUNT:
        account = ProcessorAccount.objects.filter(
            organization_id=operation.organization_id, processor=operation.processor
        ).first()
        if account is None:
            raise NotReady("the provider has no account at the processor yet")
        return {"destination": account.account_id}
    if operation.kind == OperationKind.ACCOUNT:
        country = Organization.objects.values_list("country", flat=True).get(pk=operation.organization_id)
        if not country:
            raise NotReady("the provider's country is not known yet")
        return {"country": country}
    return {}
