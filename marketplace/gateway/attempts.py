"""One dispatched attempt at a host, and what all attempts of this process share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import aiohttp

from marketplace.contracts.holds import Opened
from marketplace.gateway.config import Config
from marketplace.gateway.store import GradeVersion, Store
from marketplace.gateway.usage import UsageMeter
from pricing.units import Bucket


class HostFailed(Exception):
    """The host, or the way to it, failed; `cause` is one of `FailedAttempt.Cause`."""

    def __init__(self, reason: str, *, cause: str = "failed_attempt") -> None:
        super().__init__(reason)
        self.cause = cause


@dataclass(slots=True)
class Over:
    """Part 1 of an attempt: the hold of what it takes beyond its contract's volume. It is the one that grows then."""

    hold_id: UUID
    opened: Opened
    amount_numerator: int


@dataclass(frozen=True, slots=True)
class Portion:
    """What one hold pays for."""

    part: int
    hold_id: UUID
    opened: Opened
    counts: Mapping[Bucket, int]


@dataclass(slots=True)
class Attempt:
    """One dispatched attempt with its open hold; `amount_numerator` grows with extensions."""

    number: int
    hold_id: UUID
    opened: Opened
    grade: GradeVersion
    meter: UsageMeter
    limit: int
    amount_numerator: int
    response: aiohttp.ClientResponse
    first: bytes
    # From admission to the first chunk with output; None while there was none. A role alone is no output.
    first_byte_ms: int | None = None
    # How long the buyer kept us waiting before he took what there was for him.
    reader_s: float = 0.0
    no_more: bool = False
    over: Over | None = None

    @property
    def covered_numerator(self) -> int:
        """What both holds cover, however the tokens fall: of the first, what is less than a token stays unused."""
        if self.over is None:
            return self.amount_numerator
        return self.amount_numerator + self.over.amount_numerator - self.meter.token_numerator

    @property
    def excess_numerator(self) -> int:
        """How much more its holds must cover for all that was counted; zero or less where they do."""
        counted = self.meter.numerator()
        if self.over is None:
            return counted - self.amount_numerator
        _, rest = self.meter.split(self.amount_numerator)
        return self.meter.numerator_of(rest) - self.over.amount_numerator

    def portions(self) -> list[Portion]:
        """Which hold pays for what of the counts: of two, the first as far as it covers whole tokens."""
        if self.over is None:
            return [Portion(0, self.hold_id, self.opened, self.meter.counts())]
        first, rest = self.meter.split(self.amount_numerator)
        return [
            Portion(0, self.hold_id, self.opened, first),
            Portion(1, self.over.hold_id, self.over.opened, rest),
        ]


@dataclass(frozen=True, slots=True)
class Means:
    """What every delivery of this process shares."""

    config: Config
    store: Store
    client: aiohttp.ClientSession
    source_id: UUID
