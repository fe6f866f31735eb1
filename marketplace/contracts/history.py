"""Moves of a contract's state, each by compare-and-set with a row of history in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from marketplace.accounts.services import SYSTEM, Actor
from marketplace.contracts.events import tell_of_contracts
from marketplace.contracts.models import Contract, ContractEvent, ContractKind
from marketplace.ids import uuid7


@transaction.atomic
def move_contract(
    contract_id: UUID,
    *,
    sources: Sequence[Contract.Status],
    to: Contract.Status,
    kind: ContractEvent.Kind,
    reason: str,
    told: str,
    now: datetime,
    actor: Actor = SYSTEM,
    detail: Mapping[str, Any] | None = None,
    more: Mapping[str, str] | None = None,
    **changes: Any,
) -> bool:
    """Move a committed contract to `to`, with these further `changes`; False, and nothing done, from another status.

    Its owner is told, with the code `told` for the reason, and with `more` in the data.
    """
    found = (
        Contract.objects.select_for_update(no_key=True)
        .filter(pk=contract_id, kind=ContractKind.COMMITTED, status__in=sources)
        .first()
    )
    if found is None:
        return False
    Contract.objects.filter(pk=contract_id).update(status=to, **changes)
    record_event(contract_id, kind, found.status, to, reason=reason, now=now, actor=actor, detail=detail)
    tell_of_contracts([contract_id], status=to, reason=told, now=now, more=more)
    return True


def record_event(
    contract_id: UUID,
    kind: ContractEvent.Kind,
    from_status: str,
    to_status: str,
    *,
    reason: str,
    now: datetime,
    actor: Actor = SYSTEM,
    detail: Mapping[str, Any] | None = None,
    event_id: UUID | None = None,
) -> None:
    """Append one row, in the caller's transaction: what is not committed did not happen."""
    ContractEvent.objects.create(
        id=event_id or uuid7(now),
        contract_id=contract_id,
        kind=kind,
        from_status=from_status,
        to_status=to_status,
        reason=reason,
        actor_kind=actor.kind,
        actor_id=actor.id,
        detail=dict(detail or {}),
        occurred_at=now,
    )


def events_of(contract_id: UUID) -> QuerySet[ContractEvent]:
    """A contract's history, oldest first."""
    return ContractEvent.objects.filter(contract_id=contract_id).order_by("occurred_at", "id")
