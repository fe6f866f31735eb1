"""A small honest market for fault tests: acme buys on demand what two hosts of hyperion's supply, metered twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from marketplace.contracts.services import ensure_on_demand_contract
from marketplace.ids import uuid7
from metering.models import MeterSource
from metering.services import gateway_source
from metering.usage import UsageEvent
from pricing.units import Bucket
from tests.cast import Party, fund, make_grade, make_party, make_plant
from tests.metering.meters import Meters, digest_of

FUNDS = 100_000_000


@dataclass(frozen=True)
class World:
    """`hosts` are two agents' meters on one contract; both share the gateway's."""

    now: datetime
    acme: Party
    hyperion: Party
    hosts: tuple[Meters, Meters]

    @property
    def gateway(self) -> MeterSource:
        return self.hosts[0].gateway


def make_world(now: datetime) -> World:
    make_party("Operator", ["operator"], now)
    acme = make_party("Acme", ["buyer"], now)
    hyperion = make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    fund(acme, FUNDS, now)
    contract = ensure_on_demand_contract(organization_id=acme.id, grade_id=grade.id, now=now)
    hosts = []
    for name in ("h1", "h2"):
        plant = make_plant(hyperion, grade, now, name=name)
        meters = Meters(
            now=now,
            private_key=plant.private_key,
            gateway=gateway_source(now),
            agent=MeterSource.objects.get(host_id=plant.host.id),
            grade_id=grade.id,
            rate_id=plant.offering.list_rate_id,
            valid_from=now,
            contract_id=contract.id,
            offering_id=plant.offering.id,
        )
        meters.add_point()
        hosts.append(meters)
    return World(now, acme, hyperion, (hosts[0], hosts[1]))


@dataclass
class Sent:
    """The distinct events that meters have sent and that must be counted, by source; and each source's chain."""

    world: World
    events: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    by_agents: list[tuple[Meters, list[UsageEvent]]] = field(default_factory=list)
    _chains: dict[UUID, tuple[int, str]] = field(default_factory=dict)

    def by_gateway(self, events: Iterable[UsageEvent]) -> bytes:
        """A body in the gateway's way."""
        events = list(events)
        self.events[self.world.gateway.id] |= {event.id for event in events}
        return Meters.lines(events)

    def by_agent(self, meters: Meters, events: Iterable[UsageEvent], *, counted: bool = True) -> bytes:
        """The agent's next batch, numbered and chained; its request ids are the gateway's."""
        events = list(events)
        if counted:
            self.events[meters.agent.id] |= {event.id for event in events}
            self.by_agents.append((meters, events))
        first, digest = self._chains.get(meters.agent.id, (1, "0" * 64))
        body = meters.sent(events, first=first, previous_digest=digest)
        self._chains[meters.agent.id] = (first + len(events), digest_of(body, digest))
        return body


def make_events(meters: Meters, count: int, *, at: datetime | None = None) -> list[UsageEvent]:
    """Events of different sizes, all of the hour that `at` (else the world's time) is in."""
    now = at or meters.now
    hour = now.replace(minute=0, second=0, microsecond=0)
    return [
        meters.event(
            id=uuid7(now),
            request_id=uuid7(now),
            period_start=hour,
            occurred_at=max(hour, now - timedelta(seconds=1)),
            buckets={
                Bucket.UNCACHED_INPUT: 100 + index,
                Bucket.CACHE_READ: index % 3,
                Bucket.OUTPUT: 7 * index,
            },
            recount_o200k=index,
        )
        for index in range(count)
    ]


def as_agent_saw(events: Iterable[UsageEvent]) -> list[UsageEvent]:
    """The same requests under the agent's own event ids."""
    return [msgspec.structs.replace(event, id=uuid7(event.occurred_at)) for event in events]
