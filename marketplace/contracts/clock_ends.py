"""Contracts that their buyer's test clock ended before their delivery periods came: real capacity that nobody owes."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.contracts import firm_capacity
from marketplace.contracts.history import record_event
from marketplace.contracts.models import Contract, ContractEvent, ContractKind


def give_back_undelivered(*, organization_id: UUID, now: datetime, own_now: datetime) -> int:
    """Put what contracts ended by the clock still hold of the hours after `now`, which is real, back on sale; how many.

    Nothing is delivered on an ended contract, so from then on its hosts owe nothing either (`delivers_until`).
    `own_now` is the organization's time, for its history. Again changes nothing.
    """
    ended = Contract.objects.filter(
        organization_id=organization_id,
        kind=ContractKind.COMMITTED,
        status=Contract.Status.ENDED,
        ends_at__gt=now,
        delivers_until__isnull=True,
    )
    return sum(
        _give_back(contract_id, now, own_now)
        for contract_id in list(ended.order_by("id").values_list("id", flat=True))
    )


@transaction.atomic
def _give_back(contract_id: UUID, now: datetime, own_now: datetime) -> bool:
    contract = Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
    if contract.delivers_until is not None:
        return False
    assert contract.ends_at is not None
    since, until = max(now, contract.starts_at), contract.ends_at
    if contract.freed_at is not None:
        # Suspended for a day before its end: the hours from then on are on sale since.
        freed = firm_capacity.first_whole_hour(max(contract.freed_at, contract.starts_at))
        until = min(until, freed)
    firm_capacity.give_back(contract, since, until, now=now)
    Contract.objects.filter(pk=contract_id).update(delivers_until=since)
    record_event(
        contract_id,
        ContractEvent.Kind.FREED,
        contract.status,
        contract.status,
        reason="ended by its test clock",
        now=own_now,
        detail={"since": since.isoformat()},
    )
    return True
