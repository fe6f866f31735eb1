"""Where payouts go, and consent to self-billing: an owner's matters.

Whoever gets hold of an owner's session must not be able to lead the next payout to himself: a new destination waits
for 72 hours, all owners are told, each of them may cancel it, and meanwhile money goes to the old one, or waits. Where
the processor keeps the bank account: `bank_accounts`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Membership
from marketplace.accounts.organization_clocks import billing_now, keeping
from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.billing.models import DestinationNotice, PayoutDestinationChange
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.webhooks.services import record_event
from providers.models import Provider
from providers.services import lock_provider, set_payout_destination, set_self_billing_consent

DELAY: Final = timedelta(hours=72)
MAX_CHARACTERS: Final = 200
Status = PayoutDestinationChange.Status
Kind = DestinationNotice.Kind


@transaction.atomic
def request_destination(
    *, organization_id: UUID, destination: str, operation_id: UUID, now: datetime, actor: Actor
) -> PayoutDestinationChange:
    """Ask that payouts go to this bank reference, from 72 hours on. All owners are told. The same operation again: it.

    Raises Forbidden, InvalidInput (destination), Conflict where a change is waiting already, it goes there already, or
    the payment processor keeps the bank account itself.
    """
    text = destination.strip()
    if not 4 <= len(text) <= MAX_CHARACTERS or not text.isprintable():
        raise InvalidInput(
            f"must be 4 to {MAX_CHARACTERS} printable characters, such as an IBAN", field="destination"
        )
    provider = lock_provider(organization_id, now=now)
    now = billing_now(organization_id, now)
    _apply_due(provider, now=now)
    change_id = derived_id(operation_id, "payout_destination")
    kept = PayoutDestinationChange.objects.filter(pk=change_id).first()
    if kept is not None:
        if (kept.organization_id, kept.destination) != (organization_id, text):
            raise Conflict("this operation was begun with other terms")
        return kept
    if settings.PAYMENT_PROCESSOR != "sandbox":
        raise Conflict("the payment processor keeps the bank account: change it there", field="destination")
    if provider.payout_destination == text:
        raise Conflict("payouts go there already", field="destination")
    if PayoutDestinationChange.objects.filter(
        organization_id=organization_id, status=Status.PENDING
    ).exists():
        raise Conflict("a change of destination is waiting: cancel it first", field="destination")
    change = PayoutDestinationChange.objects.create(
        id=change_id,
        organization_id=organization_id,
        former=provider.payout_destination,
        destination=text,
        effective_at=now + DELAY,
        created_at=now,
    )
    tell_owners(change, Kind.REQUESTED, actor, now=now)
    return change


@transaction.atomic
def cancel_destination(
    *, organization_id: UUID, change_id: UUID, now: datetime, actor: Actor
) -> PayoutDestinationChange:
    """End a change that waits; payouts go on to the old destination. Again: nothing.

    Raises NotFound, Conflict where it has taken effect, or where the processor keeps the bank account: to say so here
    would only end the waiting. Changed back there, it is cancelled.
    """
    provider = lock_provider(organization_id, now=now)
    now = billing_now(organization_id, now)
    _apply_due(provider, now=now)
    change = PayoutDestinationChange.objects.filter(pk=change_id, organization_id=organization_id).first()
    if change is None:
        raise NotFound("There is no such change.")
    if change.status == Status.CANCELLED:
        return change
    if change.status != Status.PENDING:
        raise Conflict("the change has taken effect: ask for another one")
    if settings.PAYMENT_PROCESSOR != "sandbox":
        raise Conflict("the payment processor keeps the bank account: change it back there")
    end_change(change, Status.CANCELLED, now=now)
    tell_owners(change, Kind.CANCELLED, actor, now=now)
    return change


@transaction.atomic
def apply_due_destination(*, organization_id: UUID, now: datetime) -> Provider:
    """The profile, locked until the caller's transaction ends, with the destination that holds now."""
    provider = lock_provider(organization_id, now=now)
    _apply_due(provider, now=now)
    return provider


def apply_due_destinations(*, now: datetime, organization_id: UUID | None = None) -> int:
    """Apply every change whose 72 hours are over; how many. Of providers that keep real time, or of one."""
    due = keeping(PayoutDestinationChange.objects.all(), organization_id).filter(
        status=Status.PENDING, effective_at__lte=now
    )
    organizations = list(due.order_by("id").values_list("organization_id", flat=True))
    for due_id in organizations:
        apply_due_destination(organization_id=due_id, now=now)
    return len(organizations)


@transaction.atomic
def give_consent(*, organization_id: UUID, now: datetime, actor: Actor) -> Provider:
    """Agree that the market writes the provider's documents. Given before: it stays as of then. Raises Forbidden."""
    provider = lock_provider(organization_id, now=now)
    if provider.self_billing_consent_at is None:
        provider.self_billing_consent_at = now
        set_self_billing_consent(provider_id=provider.pk, consented_at=now)
        _audit_consent(provider, "self_billing.consented", actor, now)
    return provider


@transaction.atomic
def withdraw_consent(*, organization_id: UUID, now: datetime, actor: Actor) -> Provider:
    """Take it back: statements from now on say so, and nothing is paid out. Again: nothing. Raises Forbidden."""
    provider = lock_provider(organization_id, now=now)
    if provider.self_billing_consent_at is not None:
        provider.self_billing_consent_at = None
        set_self_billing_consent(provider_id=provider.pk, consented_at=None)
        _audit_consent(provider, "self_billing.consent_withdrawn", actor, now)
    return provider


def _apply_due(provider: Provider, *, now: datetime) -> None:
    change = PayoutDestinationChange.objects.filter(
        organization_id=provider.organization_id, status=Status.PENDING, effective_at__lte=now
    ).first()
    if change is None:
        return
    end_change(change, Status.APPLIED, now=now)
    if settings.PAYMENT_PROCESSOR != "sandbox":
        # It is the processor's to keep, and has been there since it was changed; only the waiting ends.
        tell_owners(change, Kind.APPLIED, SYSTEM, now=now)
        return
    provider.payout_destination = change.destination
    set_payout_destination(provider_id=provider.pk, destination=change.destination)
    tell_owners(change, Kind.APPLIED, SYSTEM, now=now)


def end_change(change: PayoutDestinationChange, status: str, *, now: datetime) -> None:
    """Under the profile's lock; the compare keeps it once all the same."""
    moved = PayoutDestinationChange.objects.filter(pk=change.pk, status=Status.PENDING)
    assert moved.update(status=status, ended_at=now) == 1
    change.status, change.ended_at = status, now


def tell_owners(change: PayoutDestinationChange, kind: str, actor: Actor, *, now: datetime) -> None:
    """Every owner, the organization's programs, and the trail. Programs are not told the account itself."""
    owners = Membership.objects.filter(organization_id=change.organization_id, role=Membership.Role.OWNER)
    DestinationNotice.objects.bulk_create(
        DestinationNotice(
            change=change, user_id=owner.user_id, email=owner.user.email, kind=kind, created_at=now
        )
        for owner in owners.select_related("user").order_by("id")
    )
    record_event(
        organization_id=change.organization_id,
        event_type="payout_destination.changed",
        fact_id=derived_id(change.id, kind),
        data={
            "change_id": str(change.id),
            "status": kind,
            "effective_at": change.effective_at.isoformat().replace("+00:00", "Z"),
        },
        now=now,
    )
    record_audit(
        organization_id=change.organization_id,
        actor=actor,
        action=f"payout_destination.{kind}",
        object_kind="payout_destination_change",
        object_id=change.id,
        detail={"former": change.former, "destination": change.destination},
        now=now,
    )


def _audit_consent(provider: Provider, action: str, actor: Actor, now: datetime) -> None:
    record_audit(
        organization_id=provider.organization_id,
        actor=actor,
        action=action,
        object_kind="provider",
        object_id=provider.pk,
        detail={},
        now=now,
    )
