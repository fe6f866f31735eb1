"""Claims a host with a one-time code: the agent's public key and what it found on this machine go to the
market.
"""

import asyncio
import logging
from pathlib import PurePath
from typing import Any
from uuid import UUID

import aiohttp
import msgspec

from providers.agent.clock import AgentClock
from providers.agent.config import Config
from providers.agent.engines import wait_for_engine
from providers.agent.errors import CannotStart, EngineUnreachable, MarketRefused, MarketUnreachable
from providers.agent.hardware import detect_hardware
from providers.agent.market import Market
from providers.agent.state import Enrolment, State

logger = logging.getLogger(__name__)

_MARKET_WAIT_S = 60.0


async def enrol(http: aiohttp.ClientSession, config: Config, state: State, *, clock: AgentClock) -> Enrolment:
    """Enrols with `config.enrolment_code` and keeps the answer. Raises CannotStart."""
    if not config.enrolment_code:
        raise CannotStart(
            "enrolment",
            "this agent is not enrolled and has no code",
            "create a host in the portal and give its one-time code (enroll --code, or enrolment_code)",
        )
    try:
        engine = await wait_for_engine(http, config)
    except EngineUnreachable as error:
        raise CannotStart("engine", str(error), "start the engine or correct engine_url") from None
    market = Market(http, url=config.market_url, private_key=state.private_key, host_id="", clock=clock)
    request = {
        "code": config.enrolment_code,
        "public_key": state.public_key,
        "base_url": config.base_url,
        "hardware": await asyncio.to_thread(detect_hardware),
        "engine": msgspec.to_builtins(engine) | {"model": _public_name(engine.model)},
    }
    enrolment = _enrolment(config, await _post_patiently(market, request))
    state.keep_enrolment(enrolment)
    logger.info(
        "enrolled", extra={"host_id": enrolment.host_id, "engine": engine.kind, "model": engine.model}
    )
    return enrolment


def _public_name(model: str) -> str:
    """llama.cpp calls a model by its path; the market need not know this machine's folders."""
    return PurePath(model).name if model.startswith("/") else model


async def _post_patiently(market: Market, request: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _MARKET_WAIT_S
    while True:
        try:
            return await market.post("/agent/enrol", request)
        except MarketRefused as refusal:
            raise CannotStart(
                "enrolment", str(refusal), "get a new code in the portal; a code works once"
            ) from None
        except MarketUnreachable as error:
            if loop.time() >= deadline:
                raise CannotStart("market", str(error), "check market_url and the network") from None
            await asyncio.sleep(1.0)


def _enrolment(config: Config, answer: dict[str, Any]) -> Enrolment:
    try:
        enrolment = Enrolment(
            market_url=config.market_url,
            host_id=UUID(str(answer["host_id"])),
            source_id=UUID(str(answer["source_id"])),
            market_public_key=str(answer["market_public_key"]),
        )
        enrolment.market_key()
    except (KeyError, ValueError):
        raise CannotStart(
            "enrolment", "the market's answer is not an enrolment", "check market_url"
        ) from None
    return enrolment
