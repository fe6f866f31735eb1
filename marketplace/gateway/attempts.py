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
    first_byte_ms: int
    no_more: bool = False


@dataclass(frozen=True, slots=True)
class Means:
    """What every delivery of this process shares."""

    config: Config
    store: Store
    client: aiohttp.ClientSession
    source_id: UUID
