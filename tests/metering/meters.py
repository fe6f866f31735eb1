"""A grade, a contract and two meters of one host, and the events they report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marketplace.ids import uuid7
from metering.models import MeterSource, UsageBatch, UsageEvent, UsageRollup
from metering.services import accept_batch, add_meter_point, gateway_source, register_source
from metering.usage import (
    GENESIS_DIGEST,
    Finish,
    digest_batch,
    encode_batch,
    encode_event,
    encode_lines,
)
from metering.usage import UsageEvent as WireEvent
from pricing.services import publish_rate
from pricing.units import Bucket
from tests.cast import make_grade

API_KEY_ID = UUID(int=77)
COUNTS: dict[Bucket, int | None] = {Bucket.UNCACHED_INPUT: 12, Bucket.CACHE_READ: 0, Bucket.OUTPUT: 30}


@dataclass(frozen=True)
class Meters:
    """What the market knows of one contract that one host supplies."""

    now: datetime
    private_key: Ed25519PrivateKey
    gateway: MeterSource
    agent: MeterSource
    grade_id: UUID
    rate_id: UUID
    # From when the host may supply its contracts.
    valid_from: datetime
    contract_id: UUID = field(default_factory=uuid7)
    offering_id: UUID = field(default_factory=uuid7)

    @property
    def host_id(self) -> UUID:
        assert self.agent.host_id is not None
        return self.agent.host_id

    def event(self, **changes: Any) -> WireEvent:
        event = WireEvent(
            id=uuid7(self.now),
            sequence=1,
            request_id=uuid7(self.now),
            attempt=0,
            part=0,
            contract_id=self.contract_id,
            offering_id=self.offering_id,
            grade_id=self.grade_id,
            rate_id=self.rate_id,
            period_start=self.now,
            occurred_at=self.now + timedelta(seconds=1),
            buckets=COUNTS,
            finish=Finish.STOP,
            bytes_in=120,
            bytes_out=4_000,
            duration_ms=40,
        )
        return msgspec.structs.replace(event, **changes)

    def report(self, events: Iterable[WireEvent]) -> UsageBatch:
        """Event lines in the gateway's way: no header."""
        return accept_batch(source=self.gateway, body=self.lines(events), now=self.now)

    @staticmethod
    def lines(events: Iterable[WireEvent]) -> bytes:
        return encode_lines([encode_event(event) for event in events])

    def sent(
        self, events: Iterable[WireEvent], *, first: int = 1, previous_digest: str = GENESIS_DIGEST
    ) -> bytes:
        """A batch in the agent's way: numbered and chained."""
        lines = [
            encode_event(msgspec.structs.replace(event, sequence=number))
            for number, event in enumerate(events, first)
        ]
        return encode_batch(
            source_id=self.agent.id, sequence_from=first, previous_digest=previous_digest, lines=lines
        )

    def batch_of(self, lines: Sequence[bytes]) -> bytes:
        """A first batch of the agent with these lines, whatever they say."""
        return encode_batch(
            source_id=self.agent.id, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=lines
        )

    def other_contract(self) -> Meters:
        """Another contract on the same host, as legitimate as this one."""
        other = replace(self, contract_id=uuid7(), offering_id=uuid7())
        other.add_point()
        return other

    def add_point(self) -> None:
        add_meter_point(
            contract_id=self.contract_id,
            offering_id=self.offering_id,
            host_id=self.host_id,
            grade_id=self.grade_id,
            valid_from=self.valid_from,
        )


def make_meters(now: datetime, *, valid_from: datetime | None = None) -> Meters:
    grade = make_grade(now - timedelta(days=100))
    rate = publish_rate(
        grade_id=grade.id,
        kind="list",
        micros_per_mtok=600_000,
        source_id=uuid7(),
        now=now - timedelta(days=100),
    )
    private_key, agent = _make_agent(now)
    meters = Meters(
        now,
        private_key,
        gateway_source(now),
        agent,
        grade.id,
        rate.id,
        now if valid_from is None else valid_from,
    )
    meters.add_point()
    return meters


def make_host(meters: Meters) -> Meters:
    """Another host with a contract of its own in the same grade."""
    private_key, agent = _make_agent(meters.now)
    other = replace(meters, private_key=private_key, agent=agent, contract_id=uuid7(), offering_id=uuid7())
    other.add_point()
    return other


def _make_agent(now: datetime) -> tuple[Ed25519PrivateKey, MeterSource]:
    private_key = Ed25519PrivateKey.generate()
    public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return private_key, register_source(kind="agent", host_id=uuid7(), public_key=public_key, now=now)


def digest_of(batch: bytes, previous_digest: str = GENESIS_DIGEST) -> str:
    return digest_batch(previous_digest, batch.partition(b"\n")[2])


RollupKey = tuple[str, str, str]


def rollups() -> dict[RollupKey, tuple[int, int, int]]:
    """(contract, bucket, meter) to (events, native tokens, numerator), over all periods and keys."""
    found: dict[RollupKey, tuple[int, int, int]] = {}
    for row in UsageRollup.objects.all():
        key = (str(row.contract_id), row.bucket, row.meter)
        before = found.get(key, (0, 0, 0))
        found[key] = (
            before[0] + row.events,
            before[1] + row.native_tokens,
            before[2] + row.numerator,
        )
    return found


def totals() -> tuple[int, int, int]:
    """Stored events, their numerators, and the numerators of all roll-ups: the last two are always equal."""
    numerators = list(UsageEvent.objects.values_list("numerator", flat=True))
    return len(numerators), sum(numerators), sum(UsageRollup.objects.values_list("numerator", flat=True))
