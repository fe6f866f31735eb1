"""The part of an agent that the market asks, for tests of the market's side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from marketplace.ids import uuid7
from metering.models import MeterSource
from metering.services import add_meter_point
from metering.usage import UsageEvent as WireEvent
from pricing.models import Grade
from providers.agent.asked import Asked
from providers.agent.clock import AgentClock
from providers.agent.errors import EngineUnreachable
from providers.agent.spool import Batch, Spool
from tests.cast import Party, Plant, make_plant
from tests.engine import free_port
from tests.metering.meters import COUNTS
from tests.metering.test_usage import EVENT
from tests.providers.agent_rig import LoopThread

REGISTERS = {
    "prompt_tokens_total": 500,
    "cached_tokens_total": 20,
    "output_tokens_total": 90,
    "engine_boot": "e1",
    "bench_input_tokens": 40,
    "bench_output_tokens": 16,
}


@dataclass
class Agent:
    """The part of an agent that the market asks, on a real socket, with a real spool."""

    plant: Plant
    spool: Spool
    port: int
    now: datetime
    thread: LoopThread = field(default_factory=LoopThread)
    registers: dict[str, Any] = field(
        default_factory=lambda: {"registers": REGISTERS, "energy_millijoules": 7}
    )
    asked: list[str] = field(default_factory=list)
    wrap: Callable[[web.Request, web.StreamResponse], web.StreamResponse] | None = None
    engine_answers: bool = True
    _runner: web.AppRunner | None = None

    @property
    def source(self) -> MeterSource:
        assert self.plant.host.source_id is not None
        return MeterSource.objects.get(pk=self.plant.host.source_id)

    def start(self, private_key: Ed25519PrivateKey | None = None) -> None:
        host = self.plant.host
        assert host.source_id is not None

        async def registers() -> dict[str, Any]:
            if not self.engine_answers:
                raise EngineUnreachable("no engine answers")
            return self.registers

        asked = Asked(
            base_url=host.base_url,
            host_id=host.id,
            source_id=host.source_id,
            private_key=private_key or self.plant.private_key,
            market_key=Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY).public_key(),
            clock=AgentClock(),
            spool=self.spool,
            registers=registers,
        )

        @web.middleware
        async def note(request: web.Request, handler: Any) -> web.StreamResponse:
            answer: web.StreamResponse = await handler(request)
            self.asked.append(request.path_qs)
            return answer if self.wrap is None else self.wrap(request, answer)

        async def run() -> None:
            application = web.Application(middlewares=[note])
            asked.add_routes(application.router)
            self._runner = web.AppRunner(application)
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

        self.thread.run(run())

    def stop(self) -> None:
        if self._runner is not None:
            self.thread.run(self._runner.cleanup())
            self._runner = None

    def meter(self, events: int) -> Batch:
        """Meters so many requests and freezes them as a batch that the agent takes for acknowledged."""
        for _ in range(events):
            self.spool.append(self.event()).result(5)
        assert self.plant.host.source_id is not None
        batch: Batch = self.thread.run(self.spool.next_batch(self.plant.host.source_id))
        self.thread.run(self.spool.acknowledge(batch))
        return batch

    def event(self) -> WireEvent:
        offering = self.plant.offering
        return WireEvent(
            id=uuid7(self.now),
            sequence=1,
            request_id=uuid7(self.now),
            attempt=0,
            part=0,
            contract_id=EVENT.contract_id,
            offering_id=offering.id,
            grade_id=offering.grade_id,
            rate_id=offering.list_rate_id,
            period_start=self.now,
            occurred_at=self.now,
            buckets=COUNTS,
            finish=EVENT.finish,
            bytes_in=1,
            bytes_out=1,
            duration_ms=1,
        )


@pytest.fixture
def agent(hyperion: Party, grade: Grade, now: datetime, tmp_path: Path) -> Iterator[Agent]:
    port = free_port()
    plant = make_plant(hyperion, grade, now, base_url=f"http://127.0.0.1:{port}")
    add_meter_point(
        contract_id=EVENT.contract_id,
        offering_id=plant.offering.id,
        host_id=plant.host.id,
        grade_id=grade.id,
        valid_from=now,
    )
    agent = Agent(plant, Spool(tmp_path / "spool"), port, now)
    agent.start()
    yield agent
    agent.stop()
    agent.thread.close()
    agent.spool.close()
