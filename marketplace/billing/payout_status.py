"""What of a provider's balance can be paid out now, what is kept and until when, and why nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, F, Q, QuerySet, Sum

from marketplace.accounts.models import Organization
from marketplace.billing.models import Earning, PayoutDestinationChange, PayoutStop, Statement
from marketplace.billing.processor_selectors import account_block, dispute_block
from marketplace.billing.processors.registry import payment_processor
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import available_by_organization
from providers.models import Provider

_IDENTITY = {
    "legal_name": "legal name",
    "address": "address",
    "country": "country",
    "tax_number": "tax number",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nothing is sent: a code for programs, a sentence without its full stop for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class PayoutStatus:
    """In micros: available = unstated + held + retained + ready, unless less than these is available at all.

    `ready` is in steps of the processor's payouts what would be sent now if no reason stood against it.
    """

    available_micros: int
    unstated_micros: int
    held_micros: int
    retained_micros: int
    ready_micros: int
    next_at: datetime | None
    reasons: list[Reason]

    @property
    def kept_micros(self) -> int:
        return self.unstated_micros + self.held_micros + self.retained_micros


def payout_status(organization_id: UUID, *, now: datetime) -> PayoutStatus:
    """How a provider's payout stands at `now`."""
    currency = settings.MARKET_CURRENCY
    found = available_by_organization([organization_id], kind=AccountKind.PAYABLE, currency=currency)
    available = found[organization_id]
    statements = Statement.objects.filter(organization_id=organization_id)
    held = statements.filter(payable_at__gt=now)
    retained = statements.filter(Q(payable_at__isnull=True) | Q(payable_at__lte=now), retained_until__gt=now)
    unstated_micros = _unstated(organization_id)
    held_micros = _sum(held, "net_micros")
    retained_micros = _sum(retained, "retained_micros")
    ready = available - unstated_micros - held_micros - retained_micros
    step = payment_processor().payout_step_micros(currency)
    ready = max(0, ready) // step * step
    reasons = [*standing_reasons(organization_id)]
    if ready < max(1, settings.PAYOUT_MINIMUM_MICROS):
        reasons.append(_too_little(ready, held_micros, retained_micros))
    waits = [
        *held.values_list("payable_at", flat=True),
        *retained.filter(retained_micros__gt=0).values_list("retained_until", flat=True),
    ]
    return PayoutStatus(
        available_micros=available,
        unstated_micros=unstated_micros,
        held_micros=held_micros,
        retained_micros=retained_micros,
        ready_micros=ready,
        next_at=min((at for at in waits if at is not None), default=None),
        reasons=reasons,
    )


def standing_reasons(organization_id: UUID) -> list[Reason]:
    """What keeps any payout here until somebody does something about it; empty where nothing does."""
    stops = PayoutStop.objects.filter(organization_id=organization_id, ended_at__isnull=True)
    profiles = Provider.objects.filter(organization_id=organization_id).select_related("organization")
    provider = profiles.annotate(is_stopped=Exists(stops)).first()
    if provider is None:
        return [Reason("no_profile", "the organization has no provider profile")]
    reasons = []
    if provider.self_billing_consent_at is None:
        reasons.append(Reason("consent_missing", "the provider has not consented to self-billing"))
    if provider.organization.status == Organization.Status.SUSPENDED:
        reasons.append(Reason("suspended", "the organization is suspended"))
    if provider.is_stopped:
        reasons.append(Reason("stopped", "the operator has stopped payouts while he looks into something"))
    if not provider.payout_destination and settings.PAYMENT_PROCESSOR == "sandbox":
        waits = PayoutDestinationChange.objects.filter(organization_id=organization_id, status="pending")
        text = "the provider's payout destination is not in force yet" if waits.exists() else ""
        reasons.append(Reason("destination_missing", text or "the provider has named no payout destination"))
    at_processor = account_block(organization_id)
    if at_processor is not None:
        reasons.append(Reason("processor_requirements", at_processor))
    if settings.PAYMENT_PROCESSOR != "sandbox":
        reasons += _bank_account_changed(organization_id)
    disputed = dispute_block(organization_id)
    if disputed is not None:
        reasons.append(Reason("disputed", disputed))
    missing = missing_identity(provider.organization)
    if missing:
        reasons.append(
            Reason("identity_missing", f"the provider's legal identity lacks: {', '.join(missing)}")
        )
    return reasons


def _bank_account_changed(organization_id: UUID) -> list[Reason]:
    waiting = PayoutDestinationChange.objects.filter(
        organization_id=organization_id, status="pending"
    ).first()
    if waiting is None:
        return []
    until = f"{waiting.effective_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    text = f"the bank account at the payment processor was changed: nothing is paid out until {until}"
    return [Reason("destination_changed", text)]


def missing_identity(organization: Organization) -> list[str]:
    """What a self-billed document and a payout need to know of the provider, and do not."""
    return [words for field, words in _IDENTITY.items() if not getattr(organization, field)]


def _unstated(organization_id: UUID) -> int:
    """Net of what no statement has; below zero (remedies) it has lowered the balance already."""
    sums = Earning.objects.filter(
        organization_id=organization_id, ask__isnull=True, stated_as__isnull=True
    ).aggregate(net=Sum(F("gross_micros") - F("fee_micros")))
    return max(0, int(sums["net"] or 0))


def _sum(statements: QuerySet[Statement], field: str) -> int:
    return int(statements.aggregate(sum=Sum(field))["sum"] or 0)


def _too_little(ready: int, held: int, retained: int) -> Reason:
    if ready == 0 and held:
        return Reason("holding_time", "what was stated is still within the holding time")
    if ready == 0 and retained:
        return Reason("retained", "what is left is retained against late corrections and disputes")
    if ready == 0:
        return Reason("nothing_ready", "nothing that was stated is left to pay out")
    return Reason("below_minimum", "what is ready is less than the least payout")
