"""Start the whole market on this machine, watch it, stop it cleanly."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from xmlrpc.client import Fault, ServerProxy

import psutil

from marketplace.local import postgres
from marketplace.local.environment import write_private
from marketplace.local.installation import Installation, has_demo, prepare_installation
from marketplace.local.leftovers import end_leftovers, note_processes
from marketplace.local.paths import CHECKOUT
from marketplace.local.ports import LOOPBACK
from marketplace.local.programs import PYTHON, Program, market, stores, supervisor_configuration
from marketplace.local.wait import trouble_with, wait_for

LOCK = "run.lock"
_START_TIMEOUT_S = 90
_STOP_TIMEOUT_S = 120
_WATCH_EVERY_S = 1.0
_PR_SET_PDEATHSIG = 1


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or a closed terminal."""


class AlreadyRunning(Exception):
    """Another `make run` holds this data directory."""


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def only_run_of(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; the kernel frees it however this process ends."""
    with (directory / LOCK).open("a+") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise AlreadyRunning(lock.read().strip()) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def run(directory: Path) -> int:
    """Everything, in the foreground, until told to stop. 0 after a clean stop, 1 when a part cannot start."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _stop)
    supervisor: subprocess.Popen[bytes] | None = None
    try:
        ended = end_leftovers(directory)
        if ended:
            say(f"Ended what an earlier run left behind: {', '.join(ended)}")
        say(f"Data: {directory}")
        installation = prepare_installation(directory)
        # The probes and one-shot commands below see what the programs see.
        os.environ.update(installation.environment)
        base = stores(installation)
        supervisor = _start_stores(installation, base)
        programs = _prepare_market(installation, base)
        _start_market(installation, supervisor, base, programs)
        return _watch(installation, supervisor)
    except Stopped:
        say("Stopping ...")
        return 0
    finally:
        _ignore_signals()
        if supervisor is not None:
            _stop_supervisor(supervisor)
            end_leftovers(directory)
            say("Stopped.")


def _stop(signum: int, frame: object) -> None:
    _ignore_signals()
    raise Stopped


def _ignore_signals() -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)


def control(installation: Installation) -> ServerProxy:
    password = installation.passwords["supervisor"]
    return ServerProxy(f"http://tokenyard:{password}@{LOOPBACK}:{installation.ports['supervisor']}/RPC2")


def _start_stores(installation: Installation, base: list[Program]) -> subprocess.Popen[bytes]:
    supervisor = _start_supervisor(installation, base)
    for program in base:
        started = time.monotonic()
        _start(installation, supervisor, program.name)
        _await_ready(installation, supervisor, program.name, probe=None)
        if program.name == "postgres":
            postgres.wait_until_ready(installation.admin_url, timeout_s=_START_TIMEOUT_S)
            installation.make_roles()
        wait_for((program.name,), timeout_s=_START_TIMEOUT_S)
        say(f"  {program.name:<10} ready ({time.monotonic() - started:.1f} s)")
    wait_for(("postgres", "redis"))
    return supervisor


def _start_supervisor(installation: Installation, programs: list[Program]) -> subprocess.Popen[bytes]:
    configuration = installation.directory / "supervisord.conf"
    write_private(configuration, supervisor_configuration(installation, programs))
    with (installation.directory / "logs" / "supervisor.err").open("wb") as errors:
        supervisor = subprocess.Popen(
            [PYTHON, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(configuration)],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            # Ctrl-C reaches this process alone; it passes the wish on once.
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads here yet
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            control(installation).supervisor.getState()
            return supervisor
        except (OSError, Fault):
            if supervisor.poll() is not None or time.monotonic() > deadline:
                supervisor.kill()
                reason = (installation.directory / "logs" / "supervisor.err").read_text().strip()
                raise postgres.CannotStart(
                    f"The supervisor does not start: {reason or 'no answer'}"
                ) from None
            time.sleep(0.05)


def _end_with_parent() -> None:
    """When this process is killed outright, the kernel asks the supervisor to end everything (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prepare_market(installation: Installation, base: list[Program]) -> list[Program]:
    """Migrations, then what the demo needs (organizations, agents' configuration); all of it safe to repeat."""
    _manage("migrate", "--database", "owner", "--skip-checks", say_what="database")
    if has_demo():
        _manage("demo", "--prepare", say_what="demo data")
    programs = market(installation)
    text = supervisor_configuration(installation, [*base, *programs])
    write_private(installation.directory / "supervisord.conf", text)
    proxy = control(installation).supervisor
    proxy.reloadConfig()
    for program in programs:
        proxy.addProcessGroup(program.name)
    return programs


def _manage(*arguments: str, say_what: str) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [PYTHON, "manage.py", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise postgres.CannotStart(
            f"`manage.py {' '.join(arguments)}` failed: "
            + "\n    ".join(lines[-12:])
            + "\n  If the data is of no value to you, `make reset` starts over."
        )
    say(f"  {say_what:<10} ready ({time.monotonic() - started:.1f} s)")


def _start_market(
    installation: Installation,
    supervisor: subprocess.Popen[bytes],
    base: list[Program],
    programs: list[Program],
) -> None:
    started = time.monotonic()
    for program in programs:
        _start(installation, supervisor, program.name)
    for program in programs:
        _await_ready(installation, supervisor, program.name, probe=program.probe)
        say(f"  {program.name:<10} ready ({time.monotonic() - started:.1f} s)")
    if has_demo():
        done = subprocess.run(
            [PYTHON, "manage.py", "demo", "--banner"], cwd=CHECKOUT, stdin=subprocess.DEVNULL
        )
        if done.returncode == 0:
            say("Ctrl-C stops everything; the data stays.")
            return
    say(f"Portal   {installation.environment['PORTAL_URL']}")
    say(f"Gateway  {installation.environment['GATEWAY_URL']}/v1")
    say("Ctrl-C stops everything; the data stays.")


def _start(installation: Installation, supervisor: subprocess.Popen[bytes], name: str) -> None:
    control(installation).supervisor.startProcess(name, False)
    note_processes(installation.directory, psutil.Process(supervisor.pid))


def _await_ready(
    installation: Installation, supervisor: subprocess.Popen[bytes], name: str, *, probe: str | None
) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        note_processes(installation.directory, psutil.Process(supervisor.pid))
        state = control(installation).supervisor.getProcessInfo(name)
        assert isinstance(state, dict)
        reason = str(state["statename"]).lower()
        if state["statename"] == "RUNNING" or (state["statename"] == "STARTING" and probe is not None):
            trouble = trouble_with(probe) if probe is not None else None
            if trouble is None:
                return
            reason = trouble
        if state["statename"] == "FATAL" or time.monotonic() > deadline:
            raise postgres.CannotStart(
                f"{name} does not start ({reason}):\n    {_last_lines(installation, name)}"
            )
        time.sleep(0.1)


def _last_lines(installation: Installation, name: str) -> str:
    log = installation.directory / "logs" / f"{name}.log"
    lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
    return "\n    ".join([*lines, f"(the whole log: {log})"])


def _watch(installation: Installation, supervisor: subprocess.Popen[bytes]) -> int:
    root = psutil.Process(supervisor.pid)
    starts: dict[str, int] = {}
    demo_log = installation.directory / "logs" / "demo.log"
    told = demo_log.stat().st_size if demo_log.exists() else 0
    while supervisor.poll() is None:
        note_processes(installation.directory, root)
        _tell_restarts(installation, starts)
        told = _tell_demo(demo_log, told)
        time.sleep(_WATCH_EVERY_S)
    say(f"The supervisor ended unexpectedly (code {supervisor.returncode}); ending its programs.")
    return 1


def _tell_demo(log: Path, told: int) -> int:
    """Pass on what the demonstration's traffic reports; returns how far its log was read."""
    if not log.exists():
        return 0
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(told if told <= size else 0)  # It starts over when the log was rotated.
        lines = file.read()
        end = lines.rfind(b"\n") + 1
        for line in lines[:end].decode(errors="replace").splitlines():
            if line.startswith("demo: "):
                say(line)
        return (told if told <= size else 0) + end


def _tell_restarts(installation: Installation, starts: dict[str, int]) -> None:
    try:
        states = control(installation).supervisor.getAllProcessInfo()
    except (OSError, Fault):
        return
    assert isinstance(states, list)
    for state in states:
        assert isinstance(state, dict)
        name, start = str(state["name"]), int(state["start"])
        if start and starts.get(name, start) != start:
            say(f"{name} ended and was started again; see {state['stdout_logfile']}")
        if start:
            starts[name] = start


def _stop_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    if supervisor.poll() is None:
        supervisor.terminate()
        try:
            supervisor.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print("The supervisor did not stop in time and is killed.", file=sys.stderr)
            supervisor.kill()
            supervisor.wait()
