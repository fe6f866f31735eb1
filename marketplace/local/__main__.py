"""The market on this machine: `python -m marketplace.local run | stop | reset | status | wait`."""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

from marketplace.local.environment import read_environment
from marketplace.local.installation import is_data_directory, open_directory
from marketplace.local.leftovers import end_leftovers
from marketplace.local.paths import data_directory
from marketplace.local.postgres import CannotStart
from marketplace.local.run import AlreadyRunning, only_run_of, run, say
from marketplace.local.wait import DEFAULT_TIMEOUT_S, trouble_with, wait_for

_STOP_TIMEOUT_S = 150


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m marketplace.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="start everything in the foreground; Ctrl-C stops it")
    commands.add_parser("stop", help="stop what runs, or what a killed run left behind")
    commands.add_parser("reset", help="stop, then delete this market's data and credentials")
    commands.add_parser("status", help="print as JSON what is ready; exit 1 when something is not")
    wait = commands.add_parser("wait", help="wait until parts are ready, then become the command after --")
    wait.add_argument("--for", dest="parts", required=True, help="comma-separated: postgres,redis,web,...")
    wait.add_argument("--timeout-s", type=float, default=DEFAULT_TIMEOUT_S)
    wait.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args(arguments)
    directory = data_directory()
    try:
        if options.command == "wait":
            return _wait_then_become(options.parts.split(","), options.timeout_s, options.program)
        if options.command == "run":
            open_directory(directory)
            with only_run_of(directory):
                return run(directory)
        if options.command == "status":
            return _status(directory)
        return _stop(directory) or (_reset(directory) if options.command == "reset" else 0)
    except CannotStart as problem:
        print(f"Cannot start: {problem}", file=sys.stderr)
    except AlreadyRunning as problem:
        portal = read_environment(directory).get("PORTAL_URL", "")
        print(
            f"This market already runs (process {problem}; portal {portal}): stop it there with Ctrl-C, "
            "or with `python -m marketplace.local stop`",
            file=sys.stderr,
        )
    return 1


def _wait_then_become(parts: list[str], timeout_s: float, program: list[str]) -> int:
    wait_for(parts, timeout_s=timeout_s)
    command = program[1:] if program[:1] == ["--"] else program
    if command:
        os.execvp(command[0], command)  # noqa: S606 - the supervisor's own command
    return 0


def _stop(directory: Path) -> int:
    """End the run in the foreground elsewhere, then whatever is left."""
    if not directory.is_dir():
        return 0
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    asked = False
    while time.monotonic() < deadline:
        try:
            with only_run_of(directory):
                ended = end_leftovers(directory)
                if ended:
                    say(f"Ended what an earlier run left behind: {', '.join(ended)}")
                return 0
        except AlreadyRunning as running:
            if not asked:
                asked = True
                psutil.Process(int(str(running))).send_signal(signal.SIGTERM)
            time.sleep(0.2)
    print(f"The market in {directory} does not stop; see its logs", file=sys.stderr)
    return 1


def _reset(directory: Path) -> int:
    if not directory.exists():
        say("Nothing to reset.")
        return 0
    if not is_data_directory(directory):
        print(f"{directory} holds no market of ours; nothing was deleted", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    say(f"Deleted {directory}")
    return 0


def _status(directory: Path) -> int:
    environment = read_environment(directory)
    if not environment:
        print(json.dumps({"data": str(directory), "parts": {}}))
        return 1
    os.environ.update(environment)
    parts = {part: trouble_with(part) or "ready" for part in ("postgres", "redis", "web", "gateway")}
    print(json.dumps({"data": str(directory), "portal": environment["PORTAL_URL"], "parts": parts}))
    return 0 if set(parts.values()) == {"ready"} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
