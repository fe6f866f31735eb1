"""The built-in payment processor: no network, no money; everything succeeds at once, the same way each time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from marketplace.billing.processors.base import (
    AccountState,
    DisputeState,
    Instruction,
    Movement,
    Notice,
    Outcome,
    OutcomeStatus,
)
from pricing.units import micros_per_minor_unit

_PREFIXES: Final = {"charge": "in", "transfer": "out", "refund": "back", "reversal": "reversed"}


# A million dollars, a hundred million yen.
_MOST_UNITS: Final = 10**8


class SandboxProcessor:
    """References are made of the market's id, so a repeated call answers the same without remembering anything."""

    name = "sandbox"
    needs_card = False

    def step_micros(self, currency: str, /) -> int:
        return micros_per_minor_unit(currency)

    def payout_step_micros(self, currency: str, /) -> int:
        return micros_per_minor_unit(currency)

    def charge_bounds_micros(self, currency: str, /) -> tuple[int, int]:
        minor = micros_per_minor_unit(currency)
        return minor, _MOST_UNITS * minor

    def perform(self, instruction: Instruction) -> Outcome:
        assert instruction.amount_micros % micros_per_minor_unit(instruction.currency) == 0
        prefix = _PREFIXES.get(instruction.kind, instruction.kind)
        reference = f"sandbox_{prefix}_{instruction.operation_id.hex}"
        charge = reference if instruction.kind == "charge" else ""
        return Outcome(OutcomeStatus.SUCCEEDED, reference, charge=charge)

    def find(self, instruction: Instruction) -> Outcome | None:
        return self.perform(instruction)

    def state_of(self, instruction: Instruction) -> Outcome:
        return self.perform(instruction)

    def close_page(self, instruction: Instruction) -> Outcome:
        raise AssertionError("the sandbox has no pages")

    def cancel(self, instruction: Instruction) -> Outcome:
        return self.perform(instruction)

    def account_state(self, account_id: str) -> AccountState:
        return AccountState(account_id, payouts_enabled=True, transfers_enabled=True, requirements_due=())

    def account_link(self, *, account_id: str, return_url: str, refresh_url: str) -> str:
        return return_url

    def forget_card(self, payment_method: str) -> None:
        raise AssertionError("the sandbox keeps no card")

    def dispute(self, reference: str) -> DisputeState:
        raise AssertionError("nobody disputes a sandbox payment")

    def notices(self, *, since: datetime) -> Iterator[Notice]:
        return iter(())

    def movements(self, *, since: datetime) -> Iterator[Movement]:
        return iter(())

    def balance_micros(self, currency: str) -> int | None:
        return None
