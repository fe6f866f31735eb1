"""Stopping a provider's payouts, and letting them go on: the operator's, at once, and on record."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction

from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import PayoutStop
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from providers.models import Provider
from providers.services import lock_provider

MAX_CHARACTERS: Final = 200


def is_stopped(organization_id: UUID) -> bool:
    return PayoutStop.objects.filter(organization_id=organization_id, ended_at__isnull=True).exists()


@transaction.atomic
def stop_payouts(
    *, organization_id: UUID, reason: str, operation_id: UUID, now: datetime, actor: Actor
) -> PayoutStop:
    """Let no payout of the provider's begin from now on, and none that is under way leave for his bank.

    What he earns goes on being his. Behind the lock of his profile, as payouts begin: one that is first has begun. The
    same operation again: the same stop. Raises NotFound (organization_id), InvalidInput (reason), Conflict where they
    are stopped already.
    """
    reason = reason.strip()
    if not 0 < len(reason) <= MAX_CHARACTERS or not reason.isprintable():
        raise InvalidInput(f"say why, in at most {MAX_CHARACTERS} printable characters", field="reason")
    if not Provider.objects.filter(organization_id=organization_id).exists():
        raise NotFound("There is no such provider.", field="organization_id")
    lock_provider(organization_id, now=now)
    stop_id = derived_id(operation_id, "payout_stop")
    kept = PayoutStop.objects.filter(pk=stop_id).first()
    if kept is not None:
        if (kept.organization_id, kept.reason) != (organization_id, reason):
            raise Conflict("this operation was begun with other terms")
        return kept
    if is_stopped(organization_id):
        raise Conflict("his payouts are stopped already", field="organization_id")
    made = PayoutStop.objects.create(
        id=stop_id, organization_id=organization_id, reason=reason, created_at=now
    )
    _audit(made, "payouts.stopped", actor, now)
    return made


@transaction.atomic
def release_payouts(*, stop_id: UUID, now: datetime, actor: Actor) -> PayoutStop:
    """Let the provider's payouts go on, with the next run. Again changes nothing. Raises NotFound."""
    stop = PayoutStop.objects.select_for_update().filter(pk=stop_id).first()
    if stop is None:
        raise NotFound("There is no such stop.")
    if stop.ended_at is None:
        stop.ended_at = now
        stop.save(update_fields=["ended_at"])
        _audit(stop, "payouts.released", actor, now)
    return stop


def _audit(stop: PayoutStop, action: str, actor: Actor, now: datetime) -> None:
    """In the operator's trail: the provider reads his own."""
    record_audit(
        organization_id=operator_organization().id,
        actor=actor,
        action=action,
        object_kind="payout_stop",
        object_id=stop.id,
        detail={"provider": str(stop.organization_id), "reason": stop.reason},
        now=now,
    )
