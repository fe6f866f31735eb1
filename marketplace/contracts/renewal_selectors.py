"""Reads of renewals, always of one organization."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.contracts.models import Contract, ContractKind, Renewal
from marketplace.contracts.renewing import decided_from, decided_until
from marketplace.contracts.selectors import contract_of
from marketplace.errors import NotFound


@dataclass(frozen=True, slots=True)
class RenewalShown:
    """What is set on a contract, and what came of it."""

    contract_id: UUID
    status: str
    max_rate_micros_per_mtok: int | None
    decided_from: datetime
    decided_until: datetime
    next_attempt_at: datetime | None
    problem: str
    problem_detail: str
    successor_id: UUID | None

    @property
    def renews(self) -> bool:
        return self.status in (Renewal.Status.ON, Renewal.Status.RENEWED)


def renewal_of(*, organization_id: UUID, contract_id: UUID) -> RenewalShown:
    """Raises NotFound, also for another organization's contract, and for one that is not committed."""
    contract = contract_of(organization_id=organization_id, contract_id=contract_id)
    if contract.kind != ContractKind.COMMITTED:
        raise NotFound("Only a committed contract can renew.")
    found = Renewal.objects.filter(pk=contract.pk).first()
    return RenewalShown(
        contract_id=contract.id,
        status=found.status if found else Renewal.Status.OFF,
        max_rate_micros_per_mtok=found.max_rate_micros_per_mtok if found else None,
        decided_from=decided_from(contract),
        decided_until=decided_until(contract),
        next_attempt_at=found.next_attempt_at if found else None,
        problem=found.problem if found else "",
        problem_detail=found.problem_detail if found else "",
        successor_id=Contract.objects.filter(renews=contract).values_list("id", flat=True).first(),
    )
