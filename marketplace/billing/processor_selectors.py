"""Why the payment processor, or a dispute of a payment, keeps a provider's money in payable."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings

from marketplace.billing.processor_models import DisputeShare, PaymentDispute, ProcessorAccount


def account_block(organization_id: UUID) -> str | None:
    """Why the processor would not pay this provider; None where it would."""
    if settings.PAYMENT_PROCESSOR == "sandbox":
        return None
    account = ProcessorAccount.objects.filter(
        organization_id=organization_id, processor=settings.PAYMENT_PROCESSOR
    ).first()
    if account is None:
        return "the provider has no account at the payment processor yet"
    if account.requirements_due:
        due = ", ".join(str(one) for one in account.requirements_due[:5])
        return f"the payment processor still asks the provider for: {due}"
    if not (account.transfers_enabled and account.payouts_enabled):
        return "the payment processor does not pay out to the provider's account yet"
    return None


def dispute_block(organization_id: UUID) -> str | None:
    """Why disputes keep a provider's money here; None where none does."""
    shares = DisputeShare.objects.filter(organization_id=organization_id)
    if shares.filter(dispute__status=PaymentDispute.Status.OPEN).exists():
        return "a payment that part of his money came from is in dispute"
    if shares.filter(status=DisputeShare.Status.OWED).exists():
        return "the provider owes the market for a disputed payment"
    return None
