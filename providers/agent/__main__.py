"""The Tokenyard agent: wraps an inference engine, sells its capacity on a market, meters what it serves.

enroll  claim a host of the market with the one-time code from the portal
run     serve (enrols first, if a code is configured and this agent is not enrolled yet)
detect  print what would be reported of this machine and its engine
"""

import argparse
import asyncio
import sys
from pathlib import Path

import aiohttp
import msgspec

from providers.agent.clock import AgentClock
from providers.agent.config import Config, load_config
from providers.agent.daemon import run_agent
from providers.agent.engines import detect_engine
from providers.agent.enrolment import enrol
from providers.agent.errors import CannotStart, EngineUnreachable
from providers.agent.hardware import detect_hardware
from providers.agent.logs import configure_logging
from providers.agent.state import State


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m providers.agent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("enroll", "run", "detect"):
        command = commands.add_parser(name)
        command.add_argument(
            "--config", type=Path, help="TOML file, see example.toml; the environment overrides it"
        )
        command.add_argument("--state", help="state directory (state_dir)")
        if name == "enroll":
            command.add_argument("--url", required=True, help="the market's address (market_url)")
            command.add_argument("--code", required=True, help="one-time enrolment code")
    chosen = parser.parse_args(arguments)
    overrides = {"state_dir": chosen.state} if chosen.state else {}
    if chosen.command == "enroll":
        overrides |= {"market_url": chosen.url, "enrolment_code": chosen.code}
    try:
        config = load_config(chosen.config, **overrides)
        configure_logging(config.log_level)
        if chosen.command == "detect":
            return asyncio.run(_detect(config))
        return asyncio.run(_with_state(chosen.command, config))
    except CannotStart as error:
        print(f"agent: cannot start. {error}", file=sys.stderr)
        return 1


async def _with_state(command: str, config: Config) -> int:
    state = State.open(Path(config.state_dir))
    try:
        if command == "run":
            await run_agent(config, state)
            return 0
        known = state.enrolment()
        if known is not None:
            raise CannotStart(
                "enrolment",
                f"{state.directory} is enrolled as host {known.host_id}",
                "run it, or use another --state",
            )
        async with aiohttp.ClientSession() as http:
            clock = AgentClock(test_offset_s=config.test_clock_offset_s)
            enrolment = await enrol(http, config, state, clock=clock)
        print(
            f"Enrolled as host {enrolment.host_id}. Start with: python -m providers.agent run --config FILE"
        )
        return 0
    finally:
        state.close()


async def _detect(config: Config) -> int:
    async with aiohttp.ClientSession() as http:
        try:
            engine = msgspec.to_builtins(await detect_engine(http, config))
        except EngineUnreachable as error:
            raise CannotStart("engine", str(error), "start the engine or correct engine_url") from None
    found = {"hardware": detect_hardware(), "engine": engine}
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
