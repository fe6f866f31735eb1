"""The built-in payment processor: no network, no money; every movement succeeds at once, the same way each time."""

from __future__ import annotations

from uuid import UUID

from marketplace.billing.processors.base import Outcome, OutcomeStatus
from pricing.units import micros_per_minor_unit


class SandboxProcessor:
    """References are made of the market's id, so a repeated call answers the same without remembering anything."""

    name = "sandbox"

    def collect(
        self, *, movement_id: UUID, organization_id: UUID, amount_micros: int, currency: str
    ) -> Outcome:
        return self._moved("in", movement_id, amount_micros, currency)

    def pay_out(self, *, movement_id: UUID, destination: str, amount_micros: int, currency: str) -> Outcome:
        assert destination, "a payout needs a destination"
        return self._moved("out", movement_id, amount_micros, currency)

    def _moved(self, direction: str, movement_id: UUID, amount_micros: int, currency: str) -> Outcome:
        assert amount_micros > 0
        assert amount_micros % micros_per_minor_unit(currency) == 0
        return Outcome(OutcomeStatus.SUCCEEDED, f"sandbox_{direction}_{movement_id.hex}")
