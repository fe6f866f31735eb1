"""What contracts' owners are told, in the transaction that moves a contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from marketplace.contracts.models import Contract
from marketplace.ids import derived_id
from marketplace.webhooks.services import Fact, record_events

_TYPES: Final = {
    Contract.Status.ACTIVE: "contract.activated",
    Contract.Status.SUSPENDED: "contract.suspended",
    Contract.Status.ENDED: "contract.ended",
}


def tell_of_contracts(
    contract_ids: Sequence[UUID],
    *,
    status: Contract.Status,
    reason: str,
    now: datetime,
    more: Mapping[str, str] | None = None,
) -> None:
    """Contracts that have just come to `status`, by a step that whoever comes second does not take; `more` goes into
    the data.

    Spot contracts are left out: they begin and end with their bid, which the buyer places and ends himself.
    """
    facts = [
        Fact(
            contract.organization_id,
            derived_id(contract.id, f"{status}:{now.isoformat()}"),
            {"contract_id": str(contract.id), "kind": contract.kind, "reason": reason, **(more or {})},
        )
        for contract in Contract.objects.filter(pk__in=contract_ids).order_by("id")
    ]
    record_events(facts, event_type=_TYPES[status], now=now)
