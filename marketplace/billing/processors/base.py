"""What the market asks of whoever moves the money: collect from a buyer, pay out to a provider. Nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class OutcomeStatus(StrEnum):
    SUCCEEDED = "succeeded"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the processor says happened; `reference` is its own name of the movement, `reason` why it failed."""

    status: OutcomeStatus
    reference: str
    reason: str = ""


class PaymentProcessor(Protocol):
    """Every call carries the market's own id: the same id again answers what the first call answered.

    Called outside of database transactions where the caller can: a network may stand behind it.
    """

    @property
    def name(self) -> str: ...

    def collect(
        self, *, movement_id: UUID, organization_id: UUID, amount_micros: int, currency: str
    ) -> Outcome:
        """Take whole minor units from the buyer."""
        ...

    def pay_out(self, *, movement_id: UUID, destination: str, amount_micros: int, currency: str) -> Outcome:
        """Send whole minor units to the provider's destination."""
        ...
