"""What the market asks of whoever moves the money, and in what words it answers. No database behind this line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from marketplace.errors import DomainError


class OutcomeStatus(StrEnum):
    SUCCEEDED = "succeeded"
    PENDING = "pending"
    FAILED = "failed"
    ACTION_REQUIRED = "action_required"
    # Nobody knows whether it happened: look it up before asking again.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One thing to do. `key` makes a repetition safe, `operation_id` is written into the object to find it by.

    `terms` are the processor's own names of what it concerns: payer, payment_method, payment, charge, destination,
    transfer, account; and success_url, cancel_url, description, country.
    """

    operation_id: UUID
    kind: str
    key: str
    organization_id: UUID
    amount_micros: int
    currency: str
    sent_at: datetime | None = None
    reference: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the processor says happened. `reference` is its name of the object, `reason` a code of why not.

    `charge` names the charge behind a payment; `facts` say what else was learnt (the saved card). `remembered`: the
    answer is one that the processor repeats under this key for ever.
    """

    status: OutcomeStatus
    reference: str = ""
    reason: str = ""
    action_url: str = ""
    charge: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class AccountState:
    account_id: str
    payouts_enabled: bool
    transfers_enabled: bool
    requirements_due: tuple[str, ...]
    # Where its payouts go: the processor's name of the bank account and its last digits; empty where there is none.
    bank_account: str = ""


@dataclass(frozen=True, slots=True)
class DisputeState:
    """`status` is open, won or lost; `funds_taken` once the money has left the balance."""

    reference: str
    charge: str
    amount_micros: int
    currency: str
    status: str


@dataclass(frozen=True, slots=True)
class Notice:
    """An event of the processor's: that something happened to an object, never what it is like now."""

    event_id: str
    event_type: str
    object_id: str
    account_id: str
    operation_id: UUID | None
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Movement:
    """One line of the processor's own books: `amount_micros` signed, `fee_micros` what it kept."""

    reference: str
    kind: str
    source: str
    amount_micros: int
    fee_micros: int
    currency: str
    occurred_at: datetime


# Asked before each request that leaves; set by whoever keeps the budget. False: there was none in time.
_EACH_REQUEST: ContextVar[Callable[[], bool] | None] = ContextVar("each_request", default=None)


def spend_call() -> bool:
    """Take one request out of the budget of the call under way, waiting for it; True where nobody keeps one."""
    spend = _EACH_REQUEST.get()
    return spend is None or spend()


@contextmanager
def within_budget(spend: Callable[[], bool]) -> Iterator[None]:
    """Every request that leaves inside is asked of `spend` first."""
    before = _EACH_REQUEST.set(spend)
    try:
        yield
    finally:
        _EACH_REQUEST.reset(before)


class ProcessorBusy(DomainError):
    """The processor cannot be asked now (budget, breaker, its own limit). Nothing happened; ask again later."""

    code = "processor_busy"
    http_status = 503
    title = "The payment processor cannot be reached"


class PaymentProcessor(Protocol):
    """Never called inside a database transaction: a network stands behind it. Calls last at most 15 s.

    `perform`, `find` and `state_of` raise ProcessorBusy where nothing was done; everything else is an Outcome.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_card(self) -> bool:
        """Whether a payment needs a saved card, or else the processor's own page."""
        ...

    def step_micros(self, currency: str, /) -> int:
        """What every amount but a payout to a bank is a multiple of."""
        ...

    def payout_step_micros(self, currency: str, /) -> int:
        """What a payout to a bank is a multiple of; itself a multiple of `step_micros`."""
        ...

    def charge_bounds_micros(self, currency: str, /) -> tuple[int, int]:
        """The least and the most that is charged at once, both multiples of `step_micros`."""
        ...

    def perform(self, instruction: Instruction) -> Outcome: ...

    def find(self, instruction: Instruction) -> Outcome | None:
        """The object this instruction made, by the id written into it; None where it made none."""
        ...

    def state_of(self, instruction: Instruction) -> Outcome:
        """What has become of the object `instruction.reference`."""
        ...

    def close_page(self, instruction: Instruction) -> Outcome:
        """Let nobody pay on the page `instruction.reference` any more; where he has, or it has run out, that counts."""

    def cancel(self, instruction: Instruction) -> Outcome:
        """End a charge that waits for its buyer, and what has become of it: what has succeeded stays so."""
        ...

    def account_state(self, account_id: str) -> AccountState: ...

    def account_link(self, *, account_id: str, return_url: str, refresh_url: str) -> str:
        """Where the provider says who he is; good once, for minutes."""
        ...

    def forget_card(self, payment_method: str) -> None:
        """Let go of a saved card; one that is gone already is gone."""
        ...

    def dispute(self, reference: str) -> DisputeState: ...

    def notices(self, *, since: datetime) -> Iterator[Notice]:
        """Newest first."""
        ...

    def movements(self, *, since: datetime) -> Iterator[Movement]:
        """Newest first."""
        ...

    def balance_micros(self, currency: str) -> int | None:
        """All that lies at the processor, available or not yet; None where nothing lies anywhere."""
        ...
