"""Every benchmark of this folder, one JSON line per result on stdout: name, value, unit, floor, ratio.

    python -m tests.benchmarks            all of them
    python -m tests.benchmarks NAME ...   those modules only

A benchmark is a module with `run()`, which yields its results. Each runs in a process of its own on a fresh database
of one durable PostgreSQL, the shortest first. What fails says so on stderr; the others still run, and the exit code
is 1.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final

_FOLDER: Final = Path(__file__).parent
# Generous: a benchmark that hangs must not hold up the whole.
_LIMIT_S: Final = 200
_KEYS: Final = ("name", "value", "unit", "floor", "ratio")
_CHILD: Final = "--one"


def benchmarks() -> list[str]:
    """The names of the modules here that have a `run()`."""
    return sorted(
        path.stem
        for path in _FOLDER.glob("*.py")
        if not path.stem.startswith("_") and "\ndef run(" in path.read_text()
    )


def main(names: list[str]) -> int:
    found = benchmarks()
    unknown = set(names) - set(found)
    if unknown:
        print(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(found)}", file=sys.stderr
        )
        return 2
    import tests.environment  # noqa: F401  (sets the environment of the processes below)
    from tests.benchmarks.servers import durable_services, environment

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, end)
    failed = False
    with durable_services() as services:
        for name in names or found:
            database = f"benchmark_{name}"
            services.clone(database)
            failed |= not _run_child(name, environment(services, database))
            services.drop(database)
    return int(failed)


def _run_child(name: str, environment: dict[str, str]) -> bool:
    command = [sys.executable, "-m", "tests.benchmarks", _CHILD, name]
    # The child's own group, so that whatever it started goes with it.
    child = subprocess.Popen(command, env=environment, cwd=_FOLDER.parent.parent, process_group=0)
    try:
        code = child.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {_LIMIT_S} s", file=sys.stderr)
        return False
    finally:
        _end_group(child)
    if code != 0:
        print(f"{name}: failed ({code})", file=sys.stderr)
    return code == 0


def _end_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # All of them have gone, as they should.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _run_one(name: str) -> int:
    """In the child: print the results as they come."""
    out = sys.stdout
    try:
        # Only results go to stdout, whatever a library prints.
        with redirect_stdout(sys.stderr):
            import django

            django.setup()
            for result in importlib.import_module(f"tests.benchmarks.{name}").run():
                print(json.dumps(_line(result)), file=out, flush=True)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _line(result: dict[str, Any]) -> dict[str, Any]:
    """Four digits say all that such a measurement knows."""
    assert set(result) == set(_KEYS), f"a result has the keys {_KEYS}"
    return {key: float(f"{value:.4g}") if isinstance(value := result[key], float) else value for key in _KEYS}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(_run_one(arguments[1]) if arguments[:1] == [_CHILD] else main(arguments))
