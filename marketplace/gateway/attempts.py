"""One dispatched attempt at a host, and what all attempts of this process share."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import aiohttp

from marketplace.contracts.holds import Opened
from marketplace.gateway.config import Config
from marketplace.gateway.store import GradeVersion, Store
from marketplace.gateway.usage import UsageMeter


class HostFailed(Exception):
    """The host, or the way to it, failed; `cause` is one of `FailedAttempt.Cause`."""

    def __init__(self, reason: str, *, cause: str = "failed_attempt") -> None:
        super().__init__(reason)
        self.cause = cause


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


@dataclass(frozen=True, slots=True)
class Means:
    """What every delivery of this process shares."""

    config: Config
    store: Store
    client: aiohttp.ClientSession
    source_id: UUID
