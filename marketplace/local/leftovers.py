"""Processes of a run that was killed: noted while it lives, ended before the next one.

A process id alone says nothing after a reboot or a day; id and start time together name one process for ever.
"""

import json
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil

_FILE = "processes.json"
_SAME_START_S = 0.05
_SUPERVISOR_PATIENCE_S = 90
_PATIENCE_S = 15


def note_processes(directory: Path, root: psutil.Process) -> None:
    """Write down the supervisor and everything below it."""
    noted = []
    for process in [root, *_below(root)]:
        try:
            noted.append({"pid": process.pid, "started": process.create_time(), "name": process.name()})
        except psutil.Error:
            continue
    text = json.dumps(noted)
    file = directory / _FILE
    if not file.exists() or file.read_text() != text:
        temporary = file.with_name(_FILE + ".new")
        temporary.write_text(text)
        temporary.replace(file)


def end_leftovers(directory: Path) -> list[str]:
    """End what an earlier run of this directory left behind; names of what was ended, in order."""
    found = _noted_and_alive(directory)
    postmaster = _postmaster(directory / "postgres")
    if postmaster is not None and postmaster not in found:
        found.append(postmaster)
    ended = [_name(process) for process in found]
    supervisors = [process for process in found if "supervisord" in _command_line(process)]
    # A living supervisor ends its programs in good order, and would start again what is ended behind its back.
    _end(supervisors, patience_s=_SUPERVISOR_PATIENCE_S)
    rest = [process for process in found if process.is_running()]
    below = [child for process in rest for child in _below(process)]
    _end([*rest, *below], patience_s=_PATIENCE_S)
    for name in (_FILE, "supervisord.pid"):
        (directory / name).unlink(missing_ok=True)
    return ended


def _noted_and_alive(directory: Path) -> list[psutil.Process]:
    try:
        noted = json.loads((directory / _FILE).read_text())
    except (FileNotFoundError, ValueError):
        return []
    found = []
    for entry in noted:
        try:
            process = psutil.Process(int(entry["pid"]))
            if abs(process.create_time() - float(entry["started"])) < _SAME_START_S:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _postmaster(data: Path) -> psutil.Process | None:
    """PostgreSQL's own note, believed only when that process serves this very directory."""
    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        command = process.cmdline()
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if str(data) in command else None


def _end(processes: Iterable[psutil.Process], *, patience_s: float) -> None:
    waiting = list(processes)
    for process in waiting:
        try:
            # PostgreSQL waits for its clients on SIGTERM; SIGINT is its fast, clean way.
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(waiting, timeout=patience_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_PATIENCE_S)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({process.pid})"
    except psutil.Error:
        return str(process.pid)
