"""The running agent: serves, meters, uploads, heartbeats; benches and lists its offerings once the engine
answers.
"""

import asyncio
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import aiohttp
import msgspec
from aiohttp import web

from providers.agent.admission import Gatekeeper
from providers.agent.asked import Asked
from providers.agent.bench import bench_engine
from providers.agent.clock import AgentClock
from providers.agent.config import Config, OfferingTerms
from providers.agent.engines import Engine, wait_for_engine
from providers.agent.enrolment import enrol
from providers.agent.errors import CannotStart, EngineUnreachable, MarketRefused, MarketUnreachable
from providers.agent.hardware import energy_millijoules
from providers.agent.market import Market
from providers.agent.registers import Registers
from providers.agent.serving import Serving
from providers.agent.spool import Spool
from providers.agent.state import BenchRecord, Enrolment, State
from providers.agent.uploader import Uploader

logger = logging.getLogger(__name__)

_LISTING_PAUSE_S = 5.0
_FLUSH_S = 10.0
_DAY_S = 24 * 3_600
_MIB = 1024 * 1024
_BENCH_VALID_S = 7 * _DAY_S


async def run_agent(config: Config, state: State) -> None:
    """Runs until SIGTERM or SIGINT, then finishes running requests and flushes the spool. Raises CannotStart."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock = AgentClock(test_offset_s=config.test_clock_offset_s)
    async with _http_session() as http:
        enrolment = state.enrolment()
        if enrolment is None:
            enrolment = await _unless_stopped(enrol(http, config, state, clock=clock), stop)
            if enrolment is None:
                return
        elif enrolment.market_url.rstrip("/") != config.market_url.rstrip("/"):
            raise CannotStart(
                "state",
                f"{state.directory} belongs to the market at {enrolment.market_url}",
                "give this market's agent a state_dir of its own",
            )
        spool = Spool(
            state.spool_path,
            keep_sent_s=config.keep_sent_days * _DAY_S,
            keep_sent_bytes=config.keep_sent_mib * _MIB,
            time_s=lambda: clock.now().timestamp(),
        )
        try:
            await _Agent(config, state, enrolment, http, spool, clock).run(stop)
        finally:
            spool.close()


def _http_session() -> aiohttp.ClientSession:
    # No limit on connections: the engine queues by itself. No proxies from the environment: usage goes
    # direct. A connection for each request: llama.cpp closes one after a stream without saying so, and a POST sent
    # into it is lost; connecting on loopback costs less than a tenth of a millisecond.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, connect=5),
        trust_env=False,
        auto_decompress=True,
    )


async def _unless_stopped(work: Any, stop: asyncio.Event) -> Any:
    """The result of `work`, or None when `stop` came first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, stopped):
            unfinished.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


class _Agent:
    def __init__(
        self,
        config: Config,
        state: State,
        enrolment: Enrolment,
        http: aiohttp.ClientSession,
        spool: Spool,
        clock: AgentClock,
    ) -> None:
        self._config = config
        self._state = state
        self._clock = clock
        self._http = http
        self._spool = spool
        self._boot_id = secrets.token_hex(16)
        self._market = Market(
            http,
            url=config.market_url,
            private_key=state.private_key,
            host_id=str(enrolment.host_id),
            clock=clock,
        )
        self._gatekeeper = Gatekeeper(
            market_key=enrolment.market_key(), offering_ids=set(state.offerings().values())
        )
        self._serving = Serving(
            config=config, http=http, spool=spool, gatekeeper=self._gatekeeper, clock=clock
        )
        self._asked = Asked(
            base_url=config.base_url,
            host_id=enrolment.host_id,
            source_id=enrolment.source_id,
            private_key=state.private_key,
            market_key=enrolment.market_key(),
            clock=clock,
            spool=spool,
            registers=self._read_registers,
        )
        self._uploader = Uploader(
            spool=spool,
            market=self._market,
            source_id=enrolment.source_id,
            interval_s=config.upload_interval_ms / 1000,
        )
        self._registers: Registers | None = None
        self._become_ready = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        # Cancelling handlers is how a gateway that hangs up stops the engine.
        application = self._serving.application()
        self._asked.add_routes(application.router)
        runner = web.AppRunner(
            application,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=self._config.shutdown_grace_s,
        )
        await runner.setup()
        site = web.TCPSite(runner, self._config.listen_host, self._config.listen_port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            where = f"{self._config.listen_host}:{self._config.listen_port}"
            raise CannotStart(
                "http", f"cannot listen on {where}: {error.strerror}", "change listen_port"
            ) from None
        tasks = [
            asyncio.create_task(self._forever(work), name=work.__name__)
            for work in (self._uploader.run, self._heartbeat, self._prepare)
        ]
        logger.info("serving", extra={"listen": self._config.listen_port, "base_url": self._config.base_url})
        await stop.wait()
        await self._shut_down(runner, tasks)

    async def _shut_down(self, runner: web.AppRunner, tasks: list["asyncio.Task[None]"]) -> None:
        logger.info("stopping", extra={"in_flight": self._serving.in_flight})
        self._serving.draining = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._beat_once(quietly=True)
        await runner.cleanup()  # Waits `shutdown_timeout` for running requests, then cancels them.
        try:
            async with asyncio.timeout(_FLUSH_S):
                flushed = await self._uploader.flush()
        except TimeoutError:
            flushed = False
        logger.info("stopped", extra={"events_left": 0 if flushed else await self._spool.pending()})

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """A fault in one loop must not stop the others, and never silently."""
        while True:
            try:
                await work()
                return
            except Exception:
                logger.exception("a part of the agent failed and starts again", extra={"part": work.__name__})
                await asyncio.sleep(1.0)

    async def _prepare(self) -> None:
        """Engine, bench, offerings: each tried until it works, because the host earns nothing before."""
        while True:
            try:
                engine = await wait_for_engine(self._http, self._config)
                self._registers = Registers(
                    self._http, self._config, engine, bench_tokens=self._state.bench_tokens
                )
                self._serving.engine = engine
                self._serving.engine_answers = True
                await self._bench(engine)
                await self._list_offerings()
            except EngineUnreachable as error:
                logger.error("engine not usable", extra={"reason": str(error)})
            except (MarketRefused, MarketUnreachable) as error:
                logger.error("not listed yet", extra={"reason": str(error)})
            else:
                self._become_ready.set()
                return
            await asyncio.sleep(_LISTING_PAUSE_S)

    async def _bench(self, engine: Engine) -> None:
        """Once per engine and configuration; a restart under load would measure what is left over."""
        record = self._state.bench()
        now_s = int(self._clock.now().timestamp())
        if (
            record is not None
            and record.engine_fingerprint == engine.fingerprint
            and now_s - record.measured_at_s < _BENCH_VALID_S
        ):
            return
        figures = await bench_engine(self._http, self._config, engine, note=self._note_bench)
        await self._market.post("/agent/bench", figures)
        self._state.keep_bench(BenchRecord(engine_fingerprint=engine.fingerprint, measured_at_s=now_s))
        logger.info("benched", extra=msgspec.to_builtins(figures))

    def _note_bench(self, input_tokens: int, output_tokens: int) -> None:
        if input_tokens or output_tokens:
            self._state.add_bench_tokens(input_tokens=input_tokens, output_tokens=output_tokens)

    async def _list_offerings(self) -> None:
        offerings: dict[str, UUID] = {}
        for terms in self._config.offerings:
            offerings[terms.grade] = await self._list_offering(terms)
        self._state.keep_offerings(offerings)
        self._gatekeeper.offering_ids = set(offerings.values())
        logger.info("listed", extra={"grades": sorted(offerings)})

    async def _list_offering(self, terms: OfferingTerms) -> UUID:
        answer = await self._market.post("/agent/offerings", terms)
        try:
            return UUID(str(answer.get("offering_id") or answer.get("id")))
        except ValueError:
            raise MarketUnreachable(f"the market gave no offering id for {terms.grade}") from None

    async def _heartbeat(self) -> None:
        while True:
            await self._beat_once()
            try:
                async with asyncio.timeout(self._config.heartbeat_s):
                    await self._become_ready.wait()
                    # The first heartbeat after listing goes out at once: the market waits for it.
                    self._become_ready.clear()
            except TimeoutError:
                continue

    async def _beat_once(self, *, quietly: bool = False) -> None:
        try:
            registers = await self._read_registers()
        except EngineUnreachable as error:
            registers = {}
            logger.warning("engine does not answer", extra={"reason": str(error)})
        beat = {
            "boot_id": self._boot_id,
            "ready": self._serving.ready,
            "in_flight": self._serving.in_flight,
            # This machine's own clock, so that the market sees how far it is off.
            "at": self._clock.machine_now(),
            **registers,
        }
        try:
            await self._market.post("/agent/heartbeat", beat)
        except (MarketRefused, MarketUnreachable) as error:
            if not quietly:
                logger.warning("heartbeat not taken", extra={"reason": str(error)})

    async def _read_registers(self) -> dict[str, Any]:
        """`registers` and `energy_millijoules` now. Raises EngineUnreachable."""
        energy = await asyncio.to_thread(energy_millijoules)
        if self._registers is None:
            return {"registers": {}, "energy_millijoules": energy}
        try:
            registers = await self._registers.read()
        except EngineUnreachable:
            self._serving.engine_answers = False
            raise
        self._serving.engine_answers = True
        return {"registers": registers, "energy_millijoules": energy}
